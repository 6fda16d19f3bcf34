"""permessage-deflate on the wire: with clients of others, to a whole room, outbound, through sleep and an upgrade."""

import os
import subprocess
import sys
import zlib

import pytest
from websockets.sync.client import connect

from conftest import make_certificate, write_app
from roost.protocol.compression import deflate
from roost.protocol.websocket import encode_message, mask_frame
from roost.testing import running, wait_for

OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
SOURCE = """
from js import WebSocket, WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint, fetch

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        headers = {}
        if "header=" in request.url:
            headers["Sec-WebSocket-Extensions"] = request.url.split("header=")[1]
        return Response(None, status=101, web_socket=client, headers=headers)

    async def webSocketMessage(self, ws, message):
        if message == "all":
            for other in self.ctx.getWebSockets():
                other.send("to all of you " * 100)
        elif message.startswith("dial "):
            _, url, extensions = message.split(" ")
            headers = {"Upgrade": "websocket"}
            if extensions != "default":
                headers["Sec-WebSocket-Extensions"] = extensions.strip("-")
            answer = await fetch(url, headers=headers)
            upstream = answer.web_socket
            upstream.accept()
            upstream.addEventListener("message", lambda event: ws.send(f"{upstream.extensions}|{len(event.data)}"))
            upstream.send("upstream " * 1000)
        else:
            ws.send(message)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if request.url.endswith("/relay"):
            return await fetch(request.headers.get("X-Upstream"), headers={"Upgrade": "websocket"})
        return await self.env.ROOM.getByName("room").fetch(request)
"""
TEXT = "a message that gets smaller, " * 100


@pytest.fixture
def serve(tmp_path):
    def start(*arguments, settings="[hibernation]\nidle_s = 0.2\n", config="", **options):
        app = write_app(tmp_path / "app", SOURCE, "Room", settings=settings, config=config)
        return running(app, *arguments, **options)

    return start


@pytest.mark.parametrize("mode", [(), ("--inline",)], ids=["split", "inline"])
def test_a_client_of_others(serve, mode):
    with serve(*mode) as node, connect(f"ws://127.0.0.1:{node.port}/", max_size=None) as ws:
        for message in (TEXT, "short", "", "\x00€𝄞" * 2000, os.urandom(50_000).hex()):
            ws.send(message)
            assert ws.recv(10) == message
        wait_for(lambda: node.awake() == [])
        ws.send(TEXT)
        assert ws.recv(10) == TEXT
        assert node.counter("deflated") == 4


def test_a_message_to_many_is_compressed_once(serve):
    with serve() as node:
        plain = node.connect()
        assert "sec-websocket-extensions" not in plain.headers
        many = [node.connect(headers=OFFER) for _ in range(20)]
        small = node.connect(headers={"Sec-WebSocket-Extensions": "permessage-deflate; server_max_window_bits=9"})
        assert "server_max_window_bits=9" in small.headers["sec-websocket-extensions"]
        plain.send("all")
        for ws in (plain, *many, small):
            assert ws.recv() == "to all of you " * 100
            ws.abort()
        assert node.counter("deflated") == 2  # one for each window


@pytest.mark.parametrize(
    ("path", "config", "settings", "agreed"),
    [
        ("/?header=", "", "", False),
        ("/?header=permessage-deflate", "", "", True),
        ("/?header=foo", "", "", False),
        ("/", "", "[network]\ncompression = false\n", False),
        ("/", 'compatibility_flags = ["no_web_socket_compression"]', "", False),
        ("/", "", "", True),
    ],
)
def test_who_decides(serve, path, config, settings, agreed):
    with serve(config=config, settings=settings) as node, node.connect(path, headers=OFFER) as ws:
        assert ("sec-websocket-extensions" in ws.headers) is agreed
        ws.send(TEXT)
        assert ws.recv() == TEXT
        assert node.counter("deflated") == int(agreed)


def test_outbound(serve, tmp_path):
    with serve() as node, node.connect() as ws:
        upstream = f"http://127.0.0.1:{node.port}/"
        for header, agreed in (("default", True), ("-", False), ("permessage-deflate", True)):
            before = node.counter("deflated")
            ws.send(f"dial {upstream} {header}")
            extensions, size = ws.recv().split("|")
            assert extensions.startswith("permessage-deflate") is agreed
            assert size == "9000"
            assert node.counter("deflated") - before == (2 if agreed else 0)
        with node.connect("/relay", headers={**OFFER, "X-Upstream": upstream}) as relayed:
            assert "sec-websocket-extensions" in relayed.headers
            relayed.send(TEXT)
            assert relayed.recv() == TEXT


def test_a_bomb(serve):
    """204 kB that become 200 MiB: 1009, and no memory."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = compressor.compress(bytes(200 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
    frame = mask_frame(encode_message(bomb, False), b"abcd")
    with serve() as node, node.connect(headers=OFFER) as ws, node.connect() as other:
        ws.send_bytes(bytes((0xC2,)) + frame[1:])
        assert ws.recv_close()[0] == 1009
        assert ws.at_end()
        other.send("and you?")
        assert other.recv() == "and you?"
        with open(f"/proc/{node.pid('gateway 0')}/status") as file:
            peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        assert peak_kib < 100 * 1024


def test_through_an_upgrade(serve):
    """The successor goes on in the middle of a compressed message."""
    with serve() as node, node.connect(headers=OFFER) as ws:
        frame = mask_frame(encode_message(deflate(TEXT.encode(), 15, 6), True), b"abcd")
        frame = bytes((0xC1,)) + frame[1:]
        ws.send_bytes(frame[: len(frame) // 2])
        subprocess.run(
            [sys.executable, "-m", "roost", "upgrade", "--data", node.data], check=True, capture_output=True, timeout=60
        )
        ws.send_bytes(frame[len(frame) // 2 :])
        assert ws.recv() == TEXT
        ws.send(TEXT)
        assert ws.recv() == TEXT


def test_over_tls(serve, tmp_path):
    import ssl

    cert, key = make_certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=cert)
    with (
        serve("--tls-cert", str(cert), "--tls-key", str(key)) as node,
        connect(f"wss://localhost:{node.port}/", ssl=trusted) as ws,
    ):
        ws.send(TEXT)
        assert ws.recv(10) == TEXT
        assert node.counter("deflated") == 1
