"""cli: the commands in this very process, beside a node that is here, too."""

import json

import pytest

from conftest import write_app
from here import command_instead, running_here
from roost.cli.main import main
from roost.cli.parser import parser

SOURCE = """
from workers import DurableObject, Response, WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response(await self.env.BOX.getByName(request.url.split("/")[3]).hello())

class Box(DurableObject):
    async def hello(self):
        await self.ctx.storage.put("n", 1)
        return "hello"
"""


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app", SOURCE, "Box")


def test_what_is_awake_and_why(app, tmp_path):
    with running_here(app, tmp_path / "data") as node:
        assert node.get("/lobby")[2] == b"hello"
        said = command_instead("objects", "--data", node.data)
        assert said.startswith("objects awake: 1; hibernatable sockets: 0\n")
        assert "Box(lobby)  awake  sockets: 0  " in said
        status = json.loads(command_instead("objects", "--json", "--data", node.data))
        assert status["hosts"][0]["counters"]["calls"] >= 1
        assert command_instead("objects", "evict", "Box(lobby)", "--data", node.data) == "evicted: 1\n"
        assert command_instead("objects", "--data", node.data).startswith("objects awake: 0;")
        assert command_instead("objects", "release", "--data", node.data) == "released: 0\n"
        listed = command_instead("storage", "list", "--data", node.data)
        assert "lobby" in listed


@pytest.mark.parametrize("verb", [["objects"], ["objects", "evict"], ["objects", "release"], ["rollback"], ["upgrade"]])
def test_without_a_node_each_says_so(tmp_path, verb):
    said = command_instead(*verb, "--data", str(tmp_path), code=2)
    assert said.startswith("roost: ")
    assert str(tmp_path) in said


def test_a_deployment_needs_a_node(app, tmp_path):
    assert "roost: " in command_instead("deploy", str(app), "--data", str(tmp_path), code=2)


def test_no_versions_yet(tmp_path):
    assert "has no versions yet" in command_instead("versions", "--data", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--inline", "--hosts", "2"], "--inline is one process"),
        (["--inline", "--gateways", "2"], "--inline is one process"),
        (["--hosts", "0"], "between 1 and 256"),
        (["--gateways", "257"], "between 1 and 256"),
        (["--port", "70000"], "--port 70000 is not between"),
        (["--config", "nowhere.toml"], "nowhere.toml does not exist"),
        (["--admin", "nonsense"], "nonsense"),
        (["--var", "nonsense"], "nonsense"),
        (["--env", "nowhere"], "nowhere"),
        (["--tls-cert", "nowhere.pem"], "tls"),
    ],
)
def test_what_cannot_be_served_is_said(app, options, says):
    assert says in command_instead("serve", str(app), *options, code=2)


def test_a_limit_for_a_class_that_is_not_bound(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Box", settings="[limits.class_cpu_ms]\nBix = 500\n")
    assert 'Did you mean "Box"?' in command_instead("serve", str(app), code=2)


def test_a_folder_without_an_app(tmp_path):
    assert "is it the app's folder?" in command_instead("serve", str(tmp_path), code=2)
    assert "is not a folder" in command_instead("serve", str(tmp_path / "none"), code=2)


def test_debug_shows_where_it_was_raised(tmp_path):
    with pytest.raises(Exception, match="is it the app's folder"):
        main(["serve", str(tmp_path), "--debug"])


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["serve", "--what"], ["objects", "wake"], ["storage"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: roost" in capsys.readouterr().err


def test_all_commands():
    commands = parser()._subparsers._group_actions[0].choices
    assert set(commands) == {"serve", "dev", "objects", "storage", "deploy", "versions", "rollback", "upgrade", "check"}
