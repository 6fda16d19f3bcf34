"""tests/language.py: the parameter by which a host in another language will be judged."""

from types import SimpleNamespace

import pytest

import language as module
from conftest import ROOT, pytest_generate_tests, write_app
from language import Chosen, Language

SPOKEN = Language("klingon", ".kl")


@pytest.fixture
def klingon(monkeypatch):
    monkeypatch.setattr(Chosen, "language", SPOKEN)


def test_python_is_what_text_is(tmp_path):
    write_app(tmp_path, "x = 1\n")
    assert (tmp_path / "worker.py").read_text() == "x = 1\n"
    write_app(tmp_path, {"python": "x = 2\n", "klingon": "x"})
    assert (tmp_path / "worker.py").read_text() == "x = 2\n"


def test_another_language_has_its_own_source_and_file(tmp_path, klingon):
    write_app(tmp_path, {"python": "x = 2\n", "klingon": "qapla\n"})
    assert (tmp_path / "worker.kl").read_text() == "qapla\n"
    assert 'main = "worker.kl"' in (tmp_path / "wrangler.toml").read_text()


def test_without_a_source_it_is_skipped_and_says_so(tmp_path, klingon):
    with pytest.raises(pytest.skip.Exception, match="no source in klingon"):
        write_app(tmp_path, "x = 1\n")


@pytest.mark.parametrize(
    ("file", "judged"),
    [
        ("conformance/test_x.py", True),
        ("faults/test_x.py", True),
        ("integration/test_costs.py", True),
        ("unit/test_x.py", False),
    ],
)
def test_the_suites_that_judge_have_the_parameter(request, file, judged):
    """Asked of pytest's hook itself."""
    asked = []
    function = SimpleNamespace(
        fixturenames=[],
        definition=SimpleNamespace(path=ROOT / "tests" / file),
        config=request.config,
        parametrize=lambda name, values, **_: asked.append([value.values[0] for value in values]),
    )
    pytest_generate_tests(function)
    assert asked == ([[module.LANGUAGES["python"]]] if judged else [])
    assert function.fixturenames == (["language"] if judged else [])
