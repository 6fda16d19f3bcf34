"""A new kind of binding is one module and one line of `roost.bindings`: nothing in a gateway, a link or a host knows it."""

import shutil
import textwrap

import pytest

from conftest import ROOT, write_app
from roost.testing import running

KIND = '''
"""`greetings`: `env.NAME.greet(who)`."""

from roost.errors import ConfigError


class Greeter:
    def __init__(self, text):
        self._text = text

    async def greet(self, who):
        return f"{self._text}, {who}"


class Greetings:
    KEY = "greetings"
    IS_INHERITED = False

    @staticmethod
    def parse(value, place):
        if not isinstance(value, dict):
            raise ConfigError(f"{place.path}: greetings must be a table.", key="greetings")
        return {name: {"text": text} for name, text in value.items()}

    def __init__(self, configs, version):
        self._configs = configs

    def open(self, surroundings):
        return {name: Greeter(config["text"]) for name, config in self._configs.items()}

    def close(self):
        pass
'''
WORKER = """
from workers import DurableObject, Response, WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        outside = await self.env.HELLO.greet("worker")
        return Response(f"{outside}; {await self.env.ROOM.getByName('a').greet()}")

class Room(DurableObject):
    async def greet(self):
        return await self.env.HELLO.greet("object")
"""


@pytest.fixture
def planted(tmp_path):
    """A Roost with one more kind: a file, and a line in the list."""
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (source / "roost/bindings/greetings.py").write_text(textwrap.dedent(KIND))
    kinds = source / "roost/bindings/__init__.py"
    text = kinds.read_text().replace("= [Services,", "= [Greetings, Services,")
    assert "Greetings" in text
    kinds.write_text(
        text.replace(
            "\nfrom roost.bindings.assets", "\nfrom roost.bindings.greetings import Greetings\nfrom roost.bindings.assets"
        )
    )
    return source


@pytest.mark.parametrize("mode", [["--hosts", "2", "--gateways", "2"], ["--inline"]], ids=["split", "inline"])
def test_a_planted_kind_works_without_an_edit_elsewhere(planted, tmp_path, mode):
    app = write_app(tmp_path / "app", WORKER, "Room", config='[greetings]\nHELLO = "Good day"\n')
    with running(app, *mode, env={"PYTHONPATH": str(planted)}) as node:
        assert node.get("/")[2] == b"Good day, worker; Good day, object"


def test_without_the_line_the_key_is_unknown(tmp_path):
    app = write_app(tmp_path / "app", WORKER, "Room", config='[greetings]\nHELLO = "Good day"\n')
    with running(app, "--inline", own_errors=True) as node:
        assert any("unknown key 'greetings'" in line for line in node.log)


def test_the_rooms_between_do_not_name_the_kinds():
    """What a gateway and a link know of bindings: nothing."""
    for room in ("gateway", "link", "protocol"):
        for file in (ROOT / "src/roost" / room).rglob("*.py"):
            assert "roost.bindings" not in file.read_text(), file
