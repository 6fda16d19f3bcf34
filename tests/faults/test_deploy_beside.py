"""What goes on while new code takes over: requests, streams, `waitUntil`, idle sockets. They are finished by the old
host, and nobody else waits for them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio
import json
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

VERSION = 0

class Box(DurableObject):
    async def fetch(self, request):
        path = request.url.split("/")
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        if path[4] == "slow":
            await asyncio.sleep(float(path[5]))
            await self.ctx.storage.put("slow", VERSION)
            return Response(f"slow {VERSION}")
        if path[4] == "later":
            async def later():
                await asyncio.sleep(float(path[5]))
                await self.ctx.storage.put("later", VERSION)
            self.ctx.waitUntil(later())
            return Response("later")
        if path[4] == "last":
            async def last():
                await asyncio.sleep(float(path[5]))
                self.ctx.storage.kv.put("later", VERSION)
                for ws in self.ctx.getWebSockets():
                    ws.send(json.dumps(["last", VERSION]))
            self.ctx.waitUntil(last())
            return Response("last")
        return Response.json([await self.ctx.storage.get("slow"), await self.ctx.storage.get("later"),
                              await self.ctx.storage.get("note"), VERSION])

    async def note(self, text):
        await self.ctx.storage.put("note", [text, VERSION])
        return VERSION

    async def webSocketMessage(self, ws, message):
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        ws.send(json.dumps([message, n, VERSION]))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/")
        if path[3] == "request":
            await asyncio.sleep(float(path[4]))
            return Response(f"request {VERSION}, object {await self.env.BOX.getByName('noted-request').note('request')}")
        if path[3] == "stream":
            async def pieces():
                for number in range(10):
                    yield f"{number} {VERSION};".encode()
                    await asyncio.sleep(float(path[4]) / 10)
            return Response(pieces())
        if path[3] == "wait":
            async def wait():
                await asyncio.sleep(float(path[4]))
                await self.env.BOX.getByName("noted-wait").note("waitUntil")
            self.ctx.waitUntil(wait())
            return Response("waiting")
        if path[3] == "plain":
            client, server = WebSocketPair.new()
            server.accept()
            server.addEventListener("message", lambda event: server.send(event.data))
            return Response(None, status=101, web_socket=client)
        return await self.env.BOX.getByName(path[3]).fetch(request)
"""
MODES = [("--hosts", "1"), ("--hosts", "2", "--gateways", "2")]


def version(folder, number, settings=""):
    return write_app(folder, SOURCE.replace("VERSION = 0", f"VERSION = {number}"), "Box", settings=settings)


def deploy(node, app, number):
    version(app, number)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "roost", "deploy", str(app), "--data", node.data], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


class Chat:
    """A client of another object, which never waits long."""

    def __init__(self, node):
        self.node, self.worst_s, self.versions, self.over = node, 0.0, [], threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        with self.node.connect("/chat") as ws:
            n = 0
            while not self.over.is_set():
                n += 1
                began = time.monotonic()
                ws.send(f"m{n}")
                message, seen, number = json.loads(ws.recv(30))
                self.worst_s = max(self.worst_s, time.monotonic() - began)
                assert (message, seen) == (f"m{n}", n)
                self.versions.append(number)
                time.sleep(0.005)

    def __enter__(self):
        self.thread.start()
        wait_for(lambda: len(self.versions) > 5)
        self.worst_s = 0.0
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(30)


def begun(node, path):
    """A request of which nothing has been read."""
    sock = socket.create_connection(("127.0.0.1", node.port), timeout=30)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return sock


def rest(sock):
    found = b""
    while piece := sock.recv(65536):
        found += piece
    sock.close()
    return found


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_what_is_no_objects_is_finished_by_the_old_host(tmp_path, mode):
    app = version(tmp_path / "app", 1)
    with running(app, *mode) as node, node.connect("/plain") as plain, Chat(node) as chat:
        slow, stream = begun(node, "/request/2"), begun(node, "/stream/2")
        assert node.get("/wait/2")[2] == b"waiting"
        wait_for(lambda: sum(host["counters"]["requests"] for host in node.status()["hosts"]) >= 5)
        took_s = deploy(node, app, 2)
        assert plain.recv_close(5)[0] == 1012
        assert node.counter("closed_host_lost") == 1  # plain sockets only: what other tests see as 0
        assert took_s < 2
        wait_for(lambda: chat.versions[-1] == 2)
        assert chat.worst_s < 0.5, chat.worst_s
        assert b"request 1, object 2" in rest(slow)  # its stub reaches the object where that is now
        pieces = rest(stream)
        assert all(f"{number} 1;".encode() in pieces for number in range(10))
        wait_for(lambda: json.loads(node.get("/noted-wait/state")[2])[2] == ["waitUntil", 2])
        assert chat.versions == sorted(chat.versions)


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize(("what", "index"), [("slow", 0), ("later", 1)])
def test_an_object_whose_request_goes_on_is_held_back_and_only_that_one(tmp_path, mode, what, index):
    app = version(tmp_path / "app", 1)
    with running(app, *mode) as node, node.connect("/busy") as ws, Chat(node) as chat:
        slow = begun(node, f"/busy/{what}/2")
        wait_for(lambda: any("busy" in entry["object"] and entry["pins"] for entry in node.awake()))
        assert deploy(node, app, 2) < 2
        ws.send("waits")
        wait_for(lambda: chat.versions[-1] == 2)
        assert chat.worst_s < 0.5, chat.worst_s
        assert (b"slow 1" if what == "slow" else b"later") in rest(slow)  # by the old code, with its storage
        assert json.loads(ws.recv(20)) == ["waits", 1, 2]  # then by the new
        assert json.loads(node.get("/busy/state")[2])[index] == 1


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_what_a_held_object_does_last_is_kept_and_said(tmp_path, mode):
    """It writes and sends, and nothing of it runs any more: it is let go of when the write is on the disk."""
    app = version(tmp_path / "app", 1)
    with running(app, *mode) as node, ExitStack() as stack:
        names = [f"busy{number}" for number in range(8)]
        sockets = [stack.enter_context(node.connect(f"/{name}")) for name in names]
        for name in names:
            assert node.get(f"/{name}/last/2")[2] == b"last"
        deploy(node, app, 2)
        for ws in sockets:
            assert json.loads(ws.recv(20)) == ["last", 1]
        for name in names:
            assert json.loads(node.get(f"/{name}/state")[2])[1] == 1


def test_a_held_object_is_not_restored(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app) as node:
        node.get("/busy/later/0")
        wait_for(lambda: json.loads(node.get("/busy/state")[2])[1] == 1)
        dump = storage(node, "dump")
        slow = begun(node, "/busy/slow/3")
        wait_for(lambda: any("busy" in entry["object"] and entry["pins"] for entry in node.awake()))
        deploy(node, app, 2)
        refused = storage(node, "restore", dump.stdout)
        assert refused.returncode == 1
        assert "an old host still finishes a request" in refused.stderr + refused.stdout
        assert b"slow 1" in rest(slow)
        wait_for(lambda: storage(node, "restore", dump.stdout).returncode == 0)
        assert json.loads(node.get("/busy/state")[2])[:2] == [None, 1]


def storage(node, what, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "roost", "storage", what, "--data", node.data],
        input=stdin, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_beyond_the_grace_it_is_cut(tmp_path):
    settings = "[timeouts]\ndeploy_grace_s = 1\nreplaced_host_s = 2\n"
    app = version(tmp_path / "app", 1, settings)
    with running(app) as node, node.connect("/busy") as ws, Chat(node) as chat:
        slow, other = begun(node, "/busy/slow/30"), begun(node, "/request/30")
        wait_for(lambda: any("busy" in entry["object"] and entry["pins"] for entry in node.awake()))
        deploy(node, app, 2)
        ws.send("waits")
        began = time.monotonic()
        assert json.loads(ws.recv(20)) == ["waits", 1, 2]
        assert time.monotonic() - began < 5
        assert chat.worst_s < 0.5
        assert b"HTTP/1.1 50" in rest(slow)
        assert b"HTTP/1.1 50" in rest(other)


def test_an_old_host_that_dies_lets_go(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app) as node, node.connect("/busy") as ws:
        old = node.pid("host 0")
        slow = begun(node, "/busy/slow/30")
        wait_for(lambda: any("busy" in entry["object"] and entry["pins"] for entry in node.awake()))
        deploy(node, app, 2)
        ws.send("waits")
        os.kill(old, signal.SIGKILL)
        assert json.loads(ws.recv(20)) == ["waits", 1, 2]
        assert b"502" in rest(slow)


def test_one_deployment_after_the_other_while_a_request_goes_on(tmp_path):
    app = version(tmp_path / "app", 1)
    with running(app, "--hosts", "2") as node, Chat(node) as chat:
        slow = begun(node, "/request/4")
        for number in (2, 3, 4):
            deploy(node, app, number)
            wait_for(lambda number=number: chat.versions[-1] == number)
        assert b"request 1, object 4" in rest(slow)
        assert chat.worst_s < 0.5
        wait_for(lambda: len(list(Path(node.data, "run").glob("*.mark"))) == 2, "marks are left")
