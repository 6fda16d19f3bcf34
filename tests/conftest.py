"""What all tests share: where the examples are, and a fresh app folder."""

import subprocess
import textwrap
from pathlib import Path

import pytest

import roost.names  # noqa: F401 - tests import `workers` as worker code does
from language import JUDGED, LANGUAGES, Chosen, source_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def examples() -> Path:
    return ROOT / "examples"


def write_app(folder: Path, source: str | dict[str, str], *classes: str, config: str = "", settings: str = "") -> Path:
    """An app in `folder`: its source (Python, or by language), and which classes are bound (binding = class name in
    capitals)."""
    folder.mkdir(exist_ok=True)
    main = f"worker{Chosen.language.suffix}"
    (folder / main).write_text(textwrap.dedent(source_of(source)))
    lines = ['name = "test-app"', f'main = "{main}"', 'compatibility_date = "2026-11-01"', config]
    for name in classes:
        lines += ["[[durable_objects.bindings]]", f'name = "{name.upper()}"', f'class_name = "{name}"']
    (folder / "wrangler.toml").write_text("\n".join(lines))
    if settings:
        (folder / "roost.toml").write_text(textwrap.dedent(settings))
    return folder


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def make_app(tmp_path):
    """`write_app` into a folder of this test's own."""
    return lambda *args, **options: write_app(tmp_path / "app", *args, **options)


def pytest_addoption(parser):
    parser.addoption("--language", action="append", choices=list(LANGUAGES), help="of the workers that are judged")


def pytest_generate_tests(metafunc):
    """Every test of a suite that judges a host has the parameter `language`."""
    if "language" not in metafunc.fixturenames and any(part in metafunc.definition.path.parts for part in JUDGED):
        metafunc.fixturenames.append("language")
    if "language" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("language") or ["python"]
        hidden = len(chosen) == 1  # ids of tests stay as they were
        values = [pytest.param(LANGUAGES[name], id=pytest.HIDDEN_PARAM if hidden else name) for name in chosen]
        metafunc.parametrize("language", values, indirect=True, scope="session")


@pytest.fixture(scope="session")
def language(request):
    """The language of the workers of this test."""
    before, Chosen.language = Chosen.language, request.param
    yield request.param
    Chosen.language = before
