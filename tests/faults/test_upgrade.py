"""`roost upgrade`: gateways and hosts are replaced, and no client notices."""

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import make_certificate, write_app
from roost.protocol.websocket import encode_message, mask_frame
from roost.testing import open_socket, running, wait_for

SOCKETS = int(os.environ.get("ROOST_UPGRADE_SOCKETS", "1000"))
BUSY = int(os.environ.get("ROOST_UPGRADE_BUSY", "50"))
ROUNDS = int(os.environ.get("ROOST_UPGRADES", "2"))

SOURCE = """
import asyncio, json, os
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server, ["tag"])
        server.serializeAttachment({"since": os.getpid()})
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        if message == "flood":
            for number in range(300):
                ws.send(f"{number} " + "x" * 10000)
        elif message == "about":
            ws.send(json.dumps([self.ctx.getTags(ws), len(self.ctx.getWebSockets()), bool(ws.deserializeAttachment())]))
        elif message == "wait":
            await asyncio.sleep(1.0)
            ws.send("waited")
        elif isinstance(message, str) and message.startswith("count"):
            n = (await self.ctx.storage.get("n") or 0) + 1
            await self.ctx.storage.put("n", n)
            ws.send(f"{message} {n}")
        else:
            ws.send(message)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3]
        if request.headers.get("Upgrade"):
            return await self.env.ROOM.getByName(path).fetch(request)
        if path == "slow":
            await asyncio.sleep(0.7)
        return Response(f"{request.url} {os.getpid()}")
"""

pytestmark = pytest.mark.timeout(600)


def upgrade(node):
    done = subprocess.run(
        [sys.executable, "-m", "roost", "upgrade", "--data", node.data], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app", SOURCE, "Room", settings="[hibernation]\nidle_s = 0.5\n")


def test_what_is_in_the_middle_of_something(app):
    with running(app) as node, node.connect("/a") as ws, node.connect("/b") as fragments, node.connect("/c") as slow:
        gateway = node.pid("gateway 0")
        ws.send("hello")
        assert ws.recv() == "hello"
        frame = mask_frame(encode_message(b"x" * 500, True), b"abcd")
        ws.send_bytes(frame[:7])  # half a frame
        first = mask_frame(bytes((0x01, 3)) + "a\u00e9".encode(), b"abcd")
        fragments.send_bytes(first[:2] + first[2:6] + first[6:9])  # a fragment whose last byte ends a character
        half = mask_frame(bytes((0x00, 1)) + "\u00e9".encode()[:1], b"efgh")
        fragments.send_bytes(half)  # and one that ends in the middle of one
        for _ in range(30):
            slow.send("flood")
        wait_for(lambda: node.counter("sends") > 300)
        slow_read_before = node.counter("closed_slow_reader")
        keep = open_socket(node.port)
        keep.sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"first" in keep.recv(65536)
        answers = []
        asked = threading.Thread(target=lambda: answers.append(node.get("/slow")[0]))
        asked.start()
        wait_for(lambda: node.counter("requests") >= 5)
        upgrade(node)
        assert node.pid("gateway 0") != gateway
        asked.join()
        assert answers == [200]
        ws.send_bytes(frame[7:])
        assert ws.recv() == "x" * 500
        ws.send("about")
        assert ws.recv() == '[["tag"], 1, true]'
        fragments.send_bytes(mask_frame(bytes((0x80, 1)) + "\u00e9".encode()[1:], b"ijkl"))
        assert fragments.recv() == "a\u00e9\u00e9"
        if not slow_read_before:
            numbers = [int(slow.recv(10).split()[0]) for _ in range(300)]
            assert numbers == list(range(300))
        keep.sendall(b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"second" in keep.recv(65536)
        keep.close()
        ws.close(4000, "enough")
        assert ws.recv_close() == (4000, "enough")
        for other in (fragments, slow):
            other.abort()
        wait_for(lambda: node.counter("sockets") == 0)
        wait_for(lambda: node.counter("connections") == 0)
        assert node.counter("hibernatable") == 0


class Client(threading.Thread):
    """Sends numbered messages one after the other; each must come back, once and in order."""

    def __init__(self, node, room, stop):
        super().__init__(daemon=True)
        self.ws = node.connect(f"/busy-{room}")
        self.stopping = stop
        self.sent = 0
        self.longest_s = 0.0
        self.fault = None

    def run(self):
        try:
            while not self.stopping.is_set():
                began = time.monotonic()
                self.ws.send(f"count {self.sent}")
                answer = self.ws.recv(30)
                assert answer.startswith(f"count {self.sent} "), (answer, self.sent)
                self.sent += 1
                self.longest_s = max(self.longest_s, time.monotonic() - began)
        except Exception as error:
            self.fault = error


def test_under_load(app):
    """The acceptance's row: idle and busy sockets, none closed, nothing lost."""
    random.seed(1)
    gateways = max(1, -(-SOCKETS // 6000))
    with running(app, "--gateways", str(gateways)) as node:
        idle = [node.connect(f"/idle-{number % 50}") for number in range(SOCKETS)]
        stop = threading.Event()
        clients = [Client(node, number % 10, stop) for number in range(BUSY)]
        for client in clients:
            client.start()
        before = {name: pid for name, pid in node.status()["pids"].items() if name != "node"}
        for _ in range(ROUNDS):
            said = upgrade(node)
            print(said.strip())
            for sock in random.sample(idle, min(50, len(idle))):
                sock.send("about")
                assert sock.recv(30).startswith('[["tag"], ')
        after = {name: pid for name, pid in node.status()["pids"].items() if name != "node"}
        assert not set(before.values()) & set(after.values()), "every process is another"
        stop.set()
        for client in clients:
            client.join(60)
            assert client.fault is None, client.fault
        for sock in idle:  # every one is open, and gets what it is sent
            sock.send("x")
        for sock in idle:
            assert sock.recv(30) == "x"
        assert node.counter("sockets") == SOCKETS + BUSY
        total = sum(client.sent for client in clients)
        written = 0
        for room in range(10):
            with node.connect(f"/busy-{room}") as ws:
                ws.send("count last")
                written += int(ws.recv().split()[-1]) - 1
        assert written == total, "each message was handled once"
        longest = max(client.longest_s for client in clients)
        print(
            f"upgrades {ROUNDS}, gateways {gateways}, idle {SOCKETS}, busy {BUSY}: {total} messages, 0 closed, 0 lost,"
            f" longest pause {longest:.2f} s"
        )
        for sock in (*idle, *(client.ws for client in clients)):
            sock.abort()


def test_tls_sessions_stay_where_they_are(app, tmp_path):
    cert, key = make_certificate(tmp_path)
    with running(app, "--tls-cert", str(cert), "--tls-key", str(key)) as node:
        node.tls = ssl.create_default_context(cafile=cert)
        old = node.pid("gateway 0")
        with node.connect("/a") as ws, open_socket(node.port, tls=node.tls) as keep:
            ws.send("before")
            assert ws.recv() == "before"
            keep.sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"https://x/first" in keep.recv(65536)
            for _ in range(2):
                upgrade(node)
                for message in ("after", "x" * 300_000, b"\xff"):
                    ws.send(message)
                    assert ws.recv() == message
                keep.sendall(b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"https://x/second" in keep.recv(65536)
            assert Path(f"/proc/{old}").exists(), "it still holds the session"
            with node.connect("/new") as other:
                other.send("new")
                assert other.recv() == "new"
            ws.close(4001, "bye")
            assert ws.recv_close() == (4001, "bye")
            assert ws.at_end()
        wait_for(lambda: not Path(f"/proc/{old}").exists() or Path(f"/proc/{old}/stat").read_text().split()[2] == "Z")
        assert node.stop() == 0


def test_old_tls_pumps_do_not_pile_up(app, tmp_path):
    """Beyond `limits.max_tls_pumps` the oldest one's clients are told to come back; a killed one is told of."""
    cert, key = make_certificate(tmp_path)
    (app / "roost.toml").write_text("[limits]\nmax_tls_pumps = 2\n")
    with running(app, "--tls-cert", str(cert), "--tls-key", str(key)) as node, contextlib.ExitStack() as stack:
        node.tls = ssl.create_default_context(cafile=cert)
        gateways, sockets = [], []
        for _ in range(4):
            gateways.append(node.pid("gateway 0"))
            sockets.append(stack.enter_context(node.connect("/a")))
            upgrade(node)
        # Four old ones would be left: the clients of the first two were told.
        for ws in sockets[:2]:
            assert ws.recv_close(10)[0] == 1012
        wait_for(lambda: [os.path.exists(f"/proc/{pid}") for pid in gateways] == [False, False, True, True])
        os.kill(gateways[2], signal.SIGKILL)
        wait_for(lambda: node.logged("an old gateway 0 was ended (SIGKILL)"))
        for ws in sockets[3:]:
            ws.send("still here")
            assert ws.recv()


def test_a_successor_that_fails_changes_nothing(app):
    with running(app) as node, node.connect("/a") as ws:
        gateway = node.pid("gateway 0")
        killed = threading.Event()
        known = (gateway, node.pid("host 0"))

        def kill_the_successor():
            while not killed.is_set():
                for entry in Path("/proc").iterdir():
                    if not entry.name.isdigit():
                        continue
                    try:
                        status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                        parent, command = int(status[1]), (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    if parent == node.process.pid and int(entry.name) not in known and b"roost.node.child" in command:
                        os.kill(int(entry.name), signal.SIGKILL)
                        killed.set()
                        return
                time.sleep(0.005)

        thread = threading.Thread(target=kill_the_successor)
        thread.start()
        done = subprocess.run(
            [sys.executable, "-m", "roost", "upgrade", "--data", node.data], capture_output=True, text=True, check=False
        )
        killed.set()
        thread.join()
        assert done.returncode == 1
        assert "goes on" in done.stderr
        assert node.pid("gateway 0") == gateway
        ws.send("still")
        assert ws.recv() == "still"
        with node.connect("/b") as other:
            other.send("new")
            assert other.recv() == "new"
        upgrade(node)
        ws.send("now")
        assert ws.recv() == "now"


def test_inline_says_that_it_cannot(app):
    with running(app, "--inline") as node:
        done = subprocess.run(
            [sys.executable, "-m", "roost", "upgrade", "--data", node.data], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "restart it" in done.stderr


def test_new_clients_are_never_refused(app):
    with running(app) as node:
        stop = threading.Event()
        faults = []

        def come():
            while not stop.is_set():
                try:
                    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as sock:
                        sock.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        data = b""
                        while piece := sock.recv(65536):
                            data += piece
                        assert data.startswith(b"HTTP/1.1 200"), data[:200]
                except Exception as error:
                    faults.append(repr(error))
                    return

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                upgrade(node)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not faults, faults[:3]
