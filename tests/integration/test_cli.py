"""The command line: what goes wrong is one clear line and the right exit code (2 usage or configuration, 1 failure)."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from roost.testing import running, wait_for


def serve(*arguments, timeout=30, env=None):
    return subprocess.run(
        [sys.executable, "-m", "roost", "serve", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})},
    )  # fmt: skip


GOOD = """
from workers import Response, WorkerEntrypoint
class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("hi")
"""


def expect(result, code, *says):
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("roost: ") and "warning" not in line]
    assert len(lines) == 1, result.stderr
    for text in says:
        assert text in lines[0]
    assert "roost/" not in result.stderr.replace(lines[0], "")  # no traceback of ours
    return lines[0]


@pytest.mark.parametrize("mode", [[], ["--inline"]], ids=["split", "inline"])
def test_worker_faults(make_app, mode):
    expect(serve(make_app("def broken(:\n"), "--port", 0, *mode), 1, "worker.py:1: syntax error")
    expect(serve(make_app("import no_such_package\n"), "--port", 0, *mode), 1, "no_such_package", sys.executable)
    expect(serve(make_app("x = 1\n"), "--port", 0, *mode), 1, "no entrypoint", "class Default(WorkerEntrypoint)")
    result = serve(make_app("1 / 0\n"), "--port", 0, *mode)
    assert result.returncode == 1
    assert "worker.py:1: ZeroDivisionError: division by zero" in result.stderr
    expect(serve(make_app(GOOD, "Room"), "--port", 0, *mode), 2, "'Room' is not a DurableObject", "it has: none")


def test_wrong_folder_and_missing_main(tmp_path, make_app):
    expect(serve(tmp_path / "none"), 2, "is not a folder")
    expect(serve(tmp_path), 2, "has no wrangler.toml")
    app = make_app(GOOD)
    (app / "wrangler.toml").write_text('name = "x"\n')
    expect(serve(app), 2, '"main" is missing')
    (app / "wrangler.toml").write_text('main = "gone.py"\n')
    expect(serve(app), 2, "does not exist")


def test_port_in_use(make_app):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expect(serve(make_app(GOOD), "--port", port), 1, f"cannot listen on 127.0.0.1:{port}", "already in use")


def test_unusable_data_folder(make_app, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    expect(serve(make_app(GOOD), "--data", blocked / "data"), 2, "data folder", "--data")


def test_data_folder_of_another_node(make_app):
    app = make_app(GOOD)
    with running(app) as node:
        expect(serve(app, "--port", 0, "--data", node.data), 2, "another Roost node runs on the data folder")


def test_usage(make_app):
    app = make_app(GOOD)
    assert serve(app, "--nonsense").returncode == 2
    expect(serve(app, "--inline", "--hosts", 2), 2, "--inline is one process")
    expect(serve(app, "--hosts", 0), 2, "between 1 and 256")
    expect(serve(app, "--port", 70000), 2, "not between 0 and 65535")
    expect(serve(app, "--config", "none.toml"), 2, "does not exist")
    expect(serve(app, "--var", "x"), 2, "KEY:VALUE")
    (app / "roost.toml").write_text("[limits]\nmax_conections = 1\n")
    expect(serve(app), 2, 'Did you mean "max_connections"?')


def test_debug_shows_the_traceback(tmp_path):
    result = serve(tmp_path, "--debug")
    assert "Traceback" in result.stderr
    assert result.returncode != 0


def test_objects_without_a_node(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "roost", "objects", "--data", str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "no Roost node answers" in result.stderr


@pytest.mark.parametrize("mode", [[], ["--inline"]], ids=["split", "inline"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_drained_is_0_and_leaves_nothing(make_app, mode, how):
    with running(make_app(GOOD), *mode) as node:
        pids = list(node.status()["pids"].values())
        assert node.get()[2] == b"hi"
        assert node.stop(how) == 0
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
        assert node.process.stdout.read() == ""


def test_children_end_with_a_killed_node(make_app):
    with running(make_app(GOOD)) as node:
        pids = list(node.status()["pids"].values())
        node.process.kill()
        wait_for(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_vars_envs_and_long_data_paths(make_app, tmp_path):
    app = make_app(
        """
        from workers import Response, WorkerEntrypoint, env
        class Default(WorkerEntrypoint):
            async def fetch(self):
                print("asked")
                return Response(f"{self.env.GREETING} {env.NAME}")
        """,
        config='[vars]\nGREETING = "hello"\n[env.prod.vars]\nGREETING = "welcome"\n',
    )
    long = str(tmp_path / ("x" * 60) / ("y" * 60))
    with running(app, "--var", "NAME:you", "--env", "prod", data=long) as node:
        assert node.get()[2] == b"welcome you"
        wait_for(lambda: node.logged("[GET /] asked"))
        assert node.status()["gateways"][0]["counters"]["requests"] == 1


def test_json_logs(make_app):
    import json

    app = make_app(GOOD.replace('return Response("hi")', 'print("said"); 1 / 0'))
    with running(app, "--log-format", "json") as node:
        assert node.get("/x?secret=1")[0] == 500
        wait_for(lambda: node.logged("ZeroDivisionError") and node.logged('"GET /x 500"'))
        entries = [json.loads(line) for line in node.log]
        said = next(entry for entry in entries if entry["message"] == "said")
        assert said["object"] == "GET /x"
        failed = next(entry for entry in entries if "traceback" in entry)
        assert "worker.py" in failed["traceback"]
        assert "roost/host" not in failed["traceback"]
        assert not node.logged("secret")


def test_the_apps_own_interpreter(make_app):
    """A .venv in the app's folder runs the host if Roost is in it; else a warning and this one."""
    app = make_app("import sys\n" + GOOD.replace('"hi"', "sys.prefix"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", app / ".venv"], check=True)
    with running(app) as node:
        assert node.get()[2].decode() == sys.prefix
        assert node.logged("has no Roost in it")
    site = next((app / ".venv/lib").glob("python*/site-packages"))
    paths = [path for path in sys.path if path.endswith("site-packages")]
    import roost

    source = os.path.dirname(os.path.dirname(roost.__file__))
    (site / "roost.pth").write_text("\n".join([*paths, source]))
    with running(app) as node:
        assert node.get()[2].decode() == str(app / ".venv")


def test_dev_reloads_and_keeps_sockets(make_app):
    source = """
    from js import WebSocketPair
    from workers import DurableObject, Response, WorkerEntrypoint
    VERSION = 1
    class Room(DurableObject):
        async def fetch(self, request):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        async def webSocketMessage(self, ws, message):
            ws.send(f"{VERSION} {message}")
    class Default(WorkerEntrypoint):
        async def fetch(self, request):
            return await self.env.ROOM.getByName("x").fetch(request)
    """
    app = make_app(source, "Room")
    with running(app, command="dev") as node, node.connect() as ws:
        ws.send("a")
        assert ws.recv() == "1 a"
        before = node.pid("host 0")
        text = (app / "worker.py").read_text()
        (app / "worker.py").write_text(text.replace("VERSION = 1", "VERSION = 2"))
        wait_for(lambda: node.pid("host 0") != before)
        ws.send("b")
        assert ws.recv() == "2 b"

        (app / "worker.py").write_text(text.replace("VERSION = 1", "VERSION = (3"))
        wait_for(lambda: node.logged("syntax error") and node.logged("the running version goes on"))
        ws.send("c")
        assert ws.recv() == "2 c"
        before = node.pid("host 0")
        (app / "state.log").write_text("the worker's own files do not reload it")
        (app / "worker.py").write_text(text.replace("VERSION = 1", "VERSION = 4"))
        wait_for(lambda: node.pid("host 0") != before)
        ws.send("d")
        assert ws.recv() == "4 d"
        assert not node.logged("state.log")


def test_common_mistakes_are_named(make_app):
    """What a newcomer does first: each has one line that says what happened and what to do."""
    app = make_app(
        """
        from js import WebSocketPair
        from workers import DurableObject, Response, WorkerEntrypoint
        class Room(DurableObject):
            async def fetch(self, request):
                action = request.url.rsplit("/", 1)[1]
                client, server = WebSocketPair.new()
                if action == "tag":
                    self.ctx.acceptWebSocket(server, "tag")
                if action == "hibernate":
                    self.ctx.acceptWebSocket(server)
                return Response(None, status=101, web_socket=client)
            async def webSocketMesage(self, ws, message):
                pass
        class Default(WorkerEntrypoint):
            async def fetch(self, request):
                action = request.url.rsplit("/", 1)[1]
                if action == "exit":
                    raise SystemExit(3)
                room = self.env.ROOM.getByName("x").fetch(request)
                return room if action == "await" else await room
        """,
        "Room",
    )
    with running(app) as node:
        assert node.logged("Room.webSocketMesage is not a handler and is never called. Did you mean webSocketMessage?")
        assert node.get("/tag")[0] == 500
        wait_for(lambda: node.logged("takes a list of tags: ['tag'], not 'tag'"))
        assert node.get("/await")[0] == 500
        wait_for(lambda: node.logged("did you forget `await`?"))
        assert node.get("/exit")[0] == 500
        wait_for(lambda: node.logged("fetch failed: SystemExit: 3"))
        with node.connect("/hibernate"):
            wait_for(lambda: node.logged("Room has no webSocketMessage"))
        with node.connect("/forgotten") as ws:
            ws.send("hello?")
            wait_for(lambda: node.logged("a message came for a WebSocket that nobody accepted"))
            ws.close(4000)
            assert ws.recv_close(3)[0] == 4000
        assert not node.logged("roost/host")


def test_dev_runs_a_cron_on_demand(make_app):
    app = make_app(
        """
        from workers import Response, WorkerEntrypoint
        class Default(WorkerEntrypoint):
            async def fetch(self, request):
                return Response("the worker's")
            async def scheduled(self, controller, env, ctx):
                print("ran", controller.cron, controller.scheduledTime)
                if controller.cron == "fails":
                    raise ValueError("in the cron")
        """
    )
    path = "/cdn-cgi/handler/scheduled?cron=*/5+*+*+*+*&time=1700000000000"
    with running(app, command="dev") as node:
        assert node.get(path)[::2] == (200, b"ok")
        wait_for(lambda: node.logged("ran */5 * * * * 1700000000000"))
        assert node.get("/cdn-cgi/handler/scheduled?cron=fails")[0] == 500
        wait_for(lambda: node.logged("scheduled failed: ValueError: in the cron"))
    with running(app) as node:
        assert node.get(path)[2] == b"the worker's"
