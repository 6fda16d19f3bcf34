"""A process that may open few files: objects that write take turns, and a full gateway says so."""

import os
import shutil
import socket

import pytest

from conftest import write_app
from roost.testing import running, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit (util-linux)")

SOURCE = """
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Box(DurableObject):
    async def fetch(self, request):
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        if request.url.endswith("/abort"):
            self.ctx.abort("on purpose")
        return Response(str(n))

    async def webSocketMessage(self, ws, message):
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        await self.ctx.storage.setAlarm(4_000_000_000_000)
        ws.send(str(n))

    async def alarm(self):
        pass

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.BOX.getByName(request.url.split("/")[3]).fetch(request)
"""


@pytest.mark.parametrize("mode", [("--hosts", "2", "--gateways", "2"), ("--inline",)], ids=" ".join)
def test_300_objects_with_256_files(tmp_path, mode):
    app = write_app(tmp_path / "app", SOURCE, "Box", settings="[hibernation]\nidle_s = 600\n")
    with running(app, *mode, prefix=("prlimit", "--nofile=256:256")) as node:
        for expected in ("1", "2"):
            for number in range(300):
                status, _, body = node.get(f"/{number}")
                assert (status, body.decode()) == (200, expected), node.log[-5:]
        with node.connect("/7") as ws:
            ws.send("x")
            assert ws.recv() == "3"
        assert node.logged("open at once instead of")
        assert sum(host["databases_parked"] for host in node.status()["hosts"]) > 200


@pytest.mark.parametrize("cut", ["sleep", "evicted", "reset"])
def test_no_descriptor_stays_of_objects_that_have_stored(tmp_path, cut):
    app = write_app(tmp_path / "app", SOURCE, "Box", settings="[hibernation]\nidle_s = 0.2\n")
    with running(app) as node:
        folder = f"/proc/{node.pid('host 0')}/fd"

        def some(first):
            for number in range(first, first + 40):
                assert node.get(f"/{number}/{'abort' if cut == 'reset' else ''}")[0] == (500 if cut == "reset" else 200)
            if cut == "evicted":
                node.evict()
            wait_for(lambda: not node.awake())

        def data_files():
            found = []
            for fd in os.listdir(folder):
                try:
                    found.append(os.readlink(f"{folder}/{fd}"))
                except OSError:
                    continue
            return [path for path in found if "/objects/" in path]

        some(0)
        wait_for(lambda: not data_files())
        before = len(os.listdir(folder))
        for first in (40, 0, 80):
            some(first)
        wait_for(lambda: not data_files() and len(os.listdir(folder)) <= before + 2)


def test_the_soft_limit_is_raised(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Box", settings="[hibernation]\nidle_s = 600\n")
    with running(app, prefix=("prlimit", "--nofile=256:3000")) as node:
        for number in range(300):
            assert node.get(f"/{number}")[0] == 200
        with open(f"/proc/{node.pid('host 0')}/limits") as file:
            line = next(line for line in file if line.startswith("Max open files"))
        assert line.split()[3:5] == ["3000", "3000"]
        assert node.logged("each process may open 3000 files only")


def test_a_full_gateway_answers(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Box")
    with running(app, prefix=("prlimit", "--nofile=256:256")) as node:
        held = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(160)]
        try:
            wait_for(lambda: node.counter("refused_connections") or node.counter("connections") >= 150)
            status, fields, _ = node.get("/1")
            assert status == 503
            assert "retry-after" in {name.lower() for name in fields}
        finally:
            for sock in held:
                sock.close()
        wait_for(lambda: node.get("/1")[0] == 200)
