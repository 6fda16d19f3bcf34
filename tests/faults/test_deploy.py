"""Deploying under load (fault F16): no socket closed, no message lost, doubled or swapped; broken code changes nothing."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import json
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

VERSION = 0

class Box(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS seen (id TEXT)")

    async def fetch(self, request):
        if request.url.endswith("/seen"):
            return Response.json([row.id for row in self.ctx.storage.sql.exec("SELECT id FROM seen")])
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        self.ctx.storage.sql.exec("INSERT INTO seen VALUES (?)", message)
        ws.send(json.dumps([message, VERSION]))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/")
        if path[3] == "version":
            return Response(str(VERSION))
        return await self.env.BOX.getByName(path[3]).fetch(request)
"""

SOCKETS = int(os.environ.get("ROOST_DEPLOY_SOCKETS", "200"))
DEPLOYS = int(os.environ.get("ROOST_DEPLOYS", "4"))
OBJECTS = 50


def roost(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "roost", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def version(folder, number, source=SOURCE):
    return write_app(folder, source.replace("VERSION = 0", f"VERSION = {number}"), "Box")


class Load:
    """Sockets that each send numbered messages, one in flight, until told to stop."""

    def __init__(self, node):
        self.node = node
        self.sockets = []
        self.sent, self.answered, self.versions, self.pauses_s = {}, {}, set(), []
        self.selector = selectors.DefaultSelector()
        for number in range(SOCKETS):
            ws = node.connect(f"/box{number % OBJECTS}", timeout_s=60)
            self.sockets.append(ws)
            self.sent[number], self.answered[number] = 0, 0
            self.selector.register(ws.sock, selectors.EVENT_READ, (number, ws))
            self.say(number, ws)

    def say(self, number, ws):
        self.sent[number] += 1
        self.began = time.monotonic()
        ws.send(f"{number}:{self.sent[number]}")

    def run(self, until, timeout_s=60):
        """Go on until `until()`."""
        deadline = time.monotonic() + timeout_s
        last = time.monotonic()
        while not until():
            assert time.monotonic() < deadline, "the load stands still"
            for key, _ in self.selector.select(0.05):
                number, ws = key.data
                reply, by = json.loads(ws.recv(30))
                assert reply == f"{number}:{self.sent[number]}", "lost, doubled or out of order"
                self.answered[number] += 1
                self.versions.add(by)
                now = time.monotonic()
                self.pauses_s.append(now - last)
                last = now
                self.say(number, ws)

    def close(self):
        self.selector.close()
        for ws in self.sockets:
            ws.sock.close()

    def finish(self):
        for number, ws in enumerate(self.sockets):
            if self.answered[number] < self.sent[number]:
                assert json.loads(ws.recv(30))[0] == f"{number}:{self.sent[number]}"
                self.answered[number] += 1


def test_deploys_under_load(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app, "--hosts", "2") as node, contextlib.closing(Load(node)) as load:
        for number in range(2, DEPLOYS + 2):
            version(app, number)
            deploying = subprocess.Popen(
                [sys.executable, "-m", "roost", "deploy", str(app), "--data", node.data],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            load.run(lambda deploying=deploying: deploying.poll() is not None)
            with deploying:
                said = deploying.stdout.read()
            assert deploying.returncode == 0, said
            assert f"version {number} runs" in said
            load.versions.clear()
            goal = sum(load.answered.values()) + 2 * SOCKETS
            load.run(lambda goal=goal: sum(load.answered.values()) >= goal)
            assert number in load.versions
            assert node.get("/version")[2].decode() == str(number)
        load.finish()
        assert node.counter("sockets") == SOCKETS
        for box in range(OBJECTS):
            seen = json.loads(node.get(f"/box{box}/seen")[2])
            mine = [number for number in range(SOCKETS) if number % OBJECTS == box]
            assert len(seen) == len(set(seen)) == sum(load.sent[number] for number in mine)
            for number in mine:  # in order
                assert [s for s in seen if s.startswith(f"{number}:")] == [
                    f"{number}:{n + 1}" for n in range(load.sent[number])
                ]
        total, pause = sum(load.sent.values()), max(load.pauses_s)
        print(f"{DEPLOYS} deploys, {SOCKETS} sockets, {total} messages; longest pause {pause:.2f} s")


BROKEN = {
    "syntax": ("def (:", "syntax error"),
    "import": ("import no_such_module_at_all", "no_such_module_at_all"),
    "raises": ("raise ValueError('at import')", "at import"),
    "class": ("del Box", "Box"),
}


@pytest.mark.parametrize("how", [*BROKEN, "constructor", "block", "name", "config", "folder"])
def test_broken_code_changes_nothing(tmp_path, how):
    app = version(tmp_path / "app", 1)
    with running(app) as node, node.connect("/a") as ws:
        ws.send("one")
        assert json.loads(ws.recv()) == ["one", 1]
        pid = node.pid("host 0")
        other = version(tmp_path / "other", 2)
        why = ""
        if how in BROKEN:
            line, why = BROKEN[how]
            (other / "worker.py").write_text((other / "worker.py").read_text() + f"\n{line}\n")
        elif how == "constructor":
            (other / "worker.py").write_text(
                (other / "worker.py").read_text().replace("ctx.storage.sql", "ctx.nothing.sql")
            )
            why = "Box cannot be built"
        elif how == "block":
            text = (other / "worker.py").read_text()
            text = text.replace(
                "    async def fetch",
                "    async def load(self):\n        raise ValueError('in load')\n\n    async def fetch",
                1,
            )
            text = text.replace('seen (id TEXT)")', 'seen (id TEXT)")\n        ctx.blockConcurrencyWhile(self.load)', 1)
            (other / "worker.py").write_text(text)
            why = "in load"
        elif how == "name":
            (other / "wrangler.toml").write_text((other / "wrangler.toml").read_text().replace("test-app", "another"))
            why = "is named 'another'"
        elif how == "config":
            (other / "wrangler.toml").write_text("main = ")
            why = "cannot be parsed"
        else:
            other = tmp_path / "none"
            why = "is not a folder"
        said = roost("deploy", str(other), "--data", node.data, code=1)
        assert why in said
        assert "Nothing has changed" in said
        ws.send("two")
        assert json.loads(ws.recv()) == ["two", 1]
        assert node.pid("host 0") == pid
        (only,) = roost("versions", "--data", node.data).splitlines()
        assert only.startswith("1  ")
        assert "active" in only
        assert sorted(path.name for path in Path(node.data, "versions").iterdir()) == ["1", "versions.json"]
        assert how == "folder" or node.logged("deploy failed, and what ran goes on")


def test_rollback_and_versions(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app) as node, node.connect("/a") as ws:
        for number in (2, 3):
            version(app, number)
            message = ("-m", "number three") if number == 3 else ()
            roost("deploy", str(app), "--data", node.data, *message)
        ws.send("now")
        assert json.loads(ws.recv())[1] == 3
        version(app, 4)  # an edit of the source is not a deployment
        os.kill(node.pid("host 0"), 9)
        ws.send("after a crash")
        assert json.loads(ws.recv(20))[1] == 3
        assert "version 2 runs" in roost("rollback", "--data", node.data)
        ws.send("back")
        assert json.loads(ws.recv())[1] == 2
        listed = roost("versions", "--data", node.data).splitlines()
        assert ["active" in line for line in listed] == [False, True, False]
        assert "number three" in listed[2]
        assert "version 1 runs" in roost("rollback", "--data", node.data)
        ws.send("what was started")
        assert json.loads(ws.recv())[1] == 1
        assert "there is no version 9" in roost("rollback", "9", "--data", node.data, code=1)
        assert "there is no earlier version" in roost("rollback", "--data", node.data, code=1)
        assert node.stop() == 0


def test_a_handler_that_runs_is_finished_by_the_old_code(tmp_path):
    source = SOURCE.replace(
        'self.ctx.storage.sql.exec("INSERT INTO seen VALUES (?)", message)',
        'import asyncio\n        await asyncio.sleep(1.0 if message == "slow" else 0)',
    )
    app = version(tmp_path / "app", 1, source)
    with running(app) as node, node.connect("/a") as slow, node.connect("/b") as other:
        slow.send("slow")
        wait_for(lambda: any("webSocketMessage running" in entry["pins"] for entry in node.awake()))
        version(app, 2, source)
        roost("deploy", str(app), "--data", node.data)
        other.send("next")
        assert json.loads(other.recv()) == ["next", 2]
        assert json.loads(slow.recv()) == ["slow", 1]


def test_requests_wait_for_the_new_code_instead_of_failing(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app) as node:
        version(app, 2)
        seen = []
        with subprocess.Popen([sys.executable, "-m", "roost", "deploy", str(app), "--data", node.data]) as deploying:
            while deploying.poll() is None:
                seen.append(node.get("/version"))
        assert deploying.returncode == 0
        assert {status for status, _, _ in seen} == {200}
        seen = [body for _, _, body in seen]
        assert node.get("/version")[2] == b"2"
        assert seen == sorted(seen)


def test_inline_says_that_it_cannot(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app, "--inline") as node:
        assert "restart it" in roost("deploy", str(app), "--data", node.data, code=1)
