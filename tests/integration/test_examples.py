"""The tutorial's programs over real sockets, split and inline."""

import json
import os
import signal
import socket
import threading

import pytest
from websockets.sync.server import serve as upstream_server

from conftest import write_app
from roost.testing import HandshakeRefused, RawWebSocket, running, wait_for

MODES = pytest.mark.parametrize("mode", [(), ("--inline",)], ids=["split", "inline"])


@MODES
def test_echo(examples, mode):
    with running(examples / "echo", *mode) as node:
        with node.connect() as ws:
            for text in ("Hello", "ping", "", "é\0🎉", "x" * 100_000):
                ws.send(text)
                assert ws.recv() == f"Echo: {text}"
            ws.send(b"\x00\xff")
            assert ws.recv() == b"\x00\xff"
            ws.close(1000, "bye")
            assert ws.recv_close() == (1000, "bye")
            assert ws.at_end()
        wait_for(lambda: node.logged("[GET /] Connection closed 1000"))
        assert node.logged("GET / 101")
        status, headers, body = node.get()
        assert (status, body) == (426, b"Expected WebSocket upgrade")
        assert headers["content-type"] == "text/plain;charset=UTF-8"
        assert node.get(method="HEAD")[2] == b""
        assert node.stop() == 0


def test_handshake_without_connection_header_names_the_fix(examples):
    with running(examples / "echo", "--inline") as node:
        with pytest.raises(HandshakeRefused, match="Connection: Upgrade") as caught:
            node.connect(headers={"Connection": "keep-alive"})
        assert caught.value.status == 400


@pytest.fixture
def upstream():
    """A WebSocket server that records and answers in upper case."""
    seen = []

    def handle(ws):
        seen.append(ws)
        ws.heard = []
        for message in ws:
            ws.heard.append(message)
            if message == "close me":
                ws.close(4010, "as you wish")
                return
            ws.send(message.upper() if isinstance(message, str) else message[::-1])

    server = upstream_server(handle, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.socket.getsockname()[1], seen
    server.shutdown()
    thread.join()


@MODES
def test_relay(examples, mode, upstream):
    port, seen = upstream
    with running(examples / "relay", "--var", f"UPSTREAM_URL:ws://127.0.0.1:{port}/", *mode) as node:
        with node.connect() as ws:
            ws.send("hello everyone")
            assert ws.recv() == "HELLO EVERYONE"
            ws.send(b"\x01\x02\x03")
            assert ws.recv() == b"\x03\x02\x01"
            ws.send("x" * 70_000)
            assert ws.recv() == "X" * 70_000
            ws.close(4001, "client left")
            assert ws.recv_close() == (4001, "client left")
        wait_for(lambda: seen[0].close_code == 4001)
        assert seen[0].close_reason == "client left"
        with node.connect() as ws:
            ws.send("close me")
            assert json.loads(ws.recv())["text"] == "Disconnected from upstream"
            assert ws.recv_close() == (4010, "as you wish")
            ws.close(4010)
        with node.connect() as ws:
            wait_for(lambda: len(seen) == 3)
            ws.abort()
        wait_for(lambda: seen[2].close_code == 1011)
        wait_for(lambda: node.counter("sockets") == 0, "nothing leaked")
        assert not any("failed" in line for line in node.log), node.log


@MODES
def test_relay_without_upstream(examples, mode):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{unused.getsockname()[1]}/"
        with running(examples / "relay", "--var", f"UPSTREAM_URL:{url}", *mode) as node, node.connect() as ws:
            assert "cannot be reached" in json.loads(ws.recv())["text"]
            assert ws.recv_close()[0] == 1013
            ws.close(1013)
            wait_for(lambda: node.counter("sockets") == 0)


@MODES
def test_game(examples, mode, tmp_path):
    app = copy_with_settings(examples / "game", tmp_path, "[hibernation]\nidle_s = 0.3\n")
    with running(app, *mode) as node, node.connect("/room/a") as one, node.connect("/room/a") as two:
        first = json.loads(one.recv())
        assert first["type"] == "connected"
        assert first["activePlayers"] == 1
        assert json.loads(one.recv())["type"] == "joined"
        second = json.loads(two.recv())
        assert second["activePlayers"] == 2
        one.send('{"type": "move", "points": 10}')
        assert json.loads(one.recv()) == {"type": "moved", "score": 10}
        update = {"type": "score_update", "playerId": first["playerId"], "score": 10}
        assert json.loads(two.recv()) == update

        with node.connect("/room/b") as other:
            assert json.loads(other.recv())["activePlayers"] == 1  # rooms are separate

        wait_for(lambda: node.awake() == [], "all rooms asleep")
        assert node.counter("hibernatable") == 2
        one.send("ping")
        assert one.recv() == "pong"
        assert node.awake() == []  # answered by the gateway

        one.send('{"type": "move", "points": 5}')
        assert json.loads(one.recv()) == {"type": "moved", "score": 15}  # the score survived the sleep
        assert json.loads(two.recv()) == {**update, "score": 15}
        one.send("not JSON")
        assert json.loads(one.recv())["type"] == "error"
        two.close(1000, "bye")
        assert two.recv_close() == (1000, "bye")
        left = json.loads(one.recv())
        assert left == {"type": "left", "playerId": second["playerId"], "activePlayers": 1}
        assert json.loads(node.get("/room/a")[2])["players"][0]["score"] == 15


def copy_with_settings(app, folder, settings):
    import shutil

    target = folder / app.name
    shutil.copytree(app, target, ignore=shutil.ignore_patterns(".roost"))
    (target / "roost.toml").write_text(settings)
    return target


LISTENER = """
from js import WebSocketPair
from pyodide.ffi import create_proxy
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new().object_values()
        self.ctx.acceptWebSocket(server)
        server.addEventListener("message", create_proxy(lambda event: server.send(str(10 // int(event.data)))))
        return Response(None, status=101, web_socket=client)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName("room").fetch(request)
"""


@MODES
def test_a_listener_on_a_hibernatable_socket(tmp_path, mode):
    """On the platform it is never called. Here it is; it pins the object by name, and one warning says so."""
    app = write_app(tmp_path / "app", LISTENER, "Room", settings="[hibernation]\nidle_s = 0.05\n")
    with running(app, *mode) as node, node.connect() as one, node.connect() as two:
        for ws in (one, two):
            ws.send("5")
            assert ws.recv() == "2"
        assert node.awake()[0]["pins"] == ["listener on a hibernatable socket"]
        one.send("0")
        wait_for(lambda: node.logged("message listener failed: ZeroDivisionError"))
        one.send("2")
        assert one.recv() == "5"
        one.close(1000)
        assert one.recv_close()[0] == 1000
        warnings = [line for line in node.log if "listener on a hibernatable socket" in line]
        assert len(warnings) == 1
        assert "use webSocketMessage" in warnings[0]


def test_killed_host_closes_no_hibernated_socket(examples):
    """Kill -9 with 1,000 hibernated sockets: none is closed, each is answered by the new host."""
    with running(examples.parent / "benchmarks/apps/room") as node:
        sockets = [node.connect(f"/echo/{n % 20}") for n in range(1000)]
        wait_for(lambda: node.counter("hibernatable") == 1000)
        before = node.pid("host 0")
        os.kill(before, signal.SIGKILL)
        for number, ws in enumerate(sockets):
            ws.send(f"after {number}")
        for number, ws in enumerate(sockets):
            assert ws.recv(20) == f"after {number}"
        assert node.pid("host 0") != before
        assert node.counter("hibernatable") == 1000
        for ws in sockets:
            ws.abort()


def test_drain_says_1001(examples):
    with running(examples / "echo") as node:
        sockets: list[RawWebSocket] = [node.connect() for _ in range(20)]
        node.process.send_signal(signal.SIGTERM)
        for ws in sockets:
            code, reason = ws.recv_close()
            assert (code, reason) == (1001, "The server is shutting down.")
            ws.close(1001)
        assert node.process.wait(15) == 0
        for ws in sockets:
            ws.abort()
