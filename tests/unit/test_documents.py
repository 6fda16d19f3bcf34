"""Documents that describe the code say what it is."""

import importlib.util
import re

import pytest

from conftest import ROOT

ARCHITECTURE = (ROOT / "docs/design/architecture.md").read_text()


def test_the_tree_is_the_repositorys():
    """Every folder and module of `src/roost` stands in the map, and nothing else."""
    block = re.search(r"```\nroost .*?\n```", ARCHITECTURE, re.S).group()
    told, folder = {}, None
    for line in block.split("\n")[1:-1]:
        if line.startswith("    "):
            told[folder] |= set(line.split())
        else:
            folder = line.split()[0]
            told[folder] = set()
    found = {}
    for file in (ROOT / "src/roost").rglob("*.py"):
        folder = str(file.parent.relative_to(ROOT / "src"))
        names = found.setdefault(folder, set())
        if file.stem not in ("__init__", "__main__"):
            names.add(file.stem)
    assert told == found


def test_the_sync_mode_is_the_codes():
    told = re.search(r"WAL with `synchronous=(\w+)`", ARCHITECTURE).group(1)
    code = (ROOT / "src/roost/storage/opening.py").read_text()
    assert re.search(r"synchronous\W+(\w+)", code).group(1).upper() == told


@pytest.mark.parametrize(
    "page",
    [
        "CONTRIBUTING.md",
        "docs/design/architecture.md",
        "docs/design/decisions.md",
        "docs/reference/envelope.md",
        "docs/reference/control.md",
    ],
)
def test_files_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    folders = {"", "src/roost/", "tests/", "docs/"}
    for name in set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|json|md|toml))`", text)):
        if "/" in name:
            assert any((ROOT / folder / name).exists() for folder in folders), f"{page}: {name}"
    for link in set(re.findall(r"\]\(([^)#]+\.md)\)", text)):
        assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_page_of_close_codes_is_made_from_the_table():
    spec = importlib.util.spec_from_file_location("close_codes", ROOT / "tools/close_codes.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page(), "run `make docs`"


@pytest.mark.parametrize(
    "term",
    [
        "gateway", "host", "node", "slot", "link", "envelope", "actor", "namespace", "stub", "input gate", "output gate",
        "alarm", "hibernate", "evict", "attachment", "tag", "auto-response", "roster", "drain", "epoch",
    ],
)  # fmt: skip
def test_the_fields_terms_have_a_meaning(term):
    assert re.search(rf"^\| {term} \|", (ROOT / "docs/reference/glossary.md").read_text(), re.M)


def test_each_term_stands_once_and_in_order():
    terms = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/reference/glossary.md").read_text(), re.M)[1:]
    terms = [term for term in terms if not set(term) <= {"-"}]
    assert terms == sorted(set(terms), key=str.lower)


def test_every_order_has_its_row():
    from roost.node import orders

    text = (ROOT / "docs/reference/control.md").read_text()
    for struct in (
        *orders.ToBoth.__args__,
        *orders.ToGateway.__args__,
        *orders.ToHost.__args__,
        *orders.FromChild.__args__,
    ):
        assert re.search(rf"\b{struct.__struct_config__.tag}\b", text), struct


def test_every_kind_of_envelope_stands_on_its_page():
    from roost.protocol import envelope

    text = (ROOT / "docs/reference/envelope.md").read_text()
    assert f"version {envelope.events.ENVELOPE_VERSION}" in text.split("\n")[0]
    for number, struct in envelope._STRUCTS.items():
        assert re.search(rf"\b{number} {struct.__name__}\b", text), struct
