"""How sockets end and rooms fill, under faults: F13, F14, F15, F18, F19, F21, F22, F23 of behaviour 5.5."""

import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from conftest import write_app
from harness import Load, write_rooms
from roost.protocol.websocket import encode_message, mask_frame
from roost.testing import open_socket, running, wait_for

SOURCE = """
import asyncio, os, time
from js import WebSocketPair, WebSocketRequestResponsePair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS ends (socket TEXT, how TEXT)")
        if ctx.id.name == "slow":
            async def slowly():
                await asyncio.sleep(0.3)
            ctx.blockConcurrencyWhile(slowly)
        if os.path.exists(env.BROKEN):
            for ws in ctx.getWebSockets():
                ws.send("from a constructor that fails")
            raise ValueError("constructor")

    async def fetch(self, request):
        if not request.headers.get("Upgrade"):
            return Response.json({
                "ends": [[row.socket, row.how] for row in self.ctx.storage.sql.exec("SELECT socket, how FROM ends")],
                "open": len(self.ctx.getWebSockets()),
                "alarm": await self.ctx.storage.get("alarm"),
            })
        if "/late" in request.url:
            await asyncio.sleep(0.5)
        client, server = WebSocketPair.new()
        server.serializeAttachment(request.url.split("?")[1])
        if "/late" in request.url:
            await asyncio.sleep(0.1)
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        if message == "wait":
            await asyncio.sleep(0.5)
        elif message == "bye":
            ws.send("one")
            ws.send("two")
            ws.close(4001, "bye")
        elif message == "auto":
            self.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair("ping", "pong"))
        elif message == "alarm":
            await self.ctx.storage.setAlarm(int(time.time() * 1000) + 1000)
        elif message == "forever":
            async def never():
                await asyncio.Future()
            await self.ctx.blockConcurrencyWhile(never)
        elif isinstance(message, str) and message.startswith("all"):
            for other in self.ctx.getWebSockets():
                other.send(message)
            return
        ws.send(message)

    def end(self, ws, how):
        self.ctx.storage.sql.exec("INSERT INTO ends VALUES (?, ?)", ws.deserializeAttachment(), how)
        if os.path.exists(self.env.BROKEN + "-close"):
            raise ValueError("close handler")

    async def webSocketClose(self, ws, code, reason, clean):
        self.end(ws, f"close {code} {clean}")

    async def webSocketError(self, ws, error):
        self.end(ws, "error")

    async def alarm(self, info):
        await self.ctx.storage.put("alarm", (await self.ctx.storage.get("alarm") or 0) + 1)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        name = request.url.split("/", 3)[3].split("?")[0].split("/")[0]
        return await self.env.ROOM.getByName(name).fetch(request)
"""


@pytest.fixture
def serve(tmp_path):
    def start(settings="[hibernation]\nidle_s = 0.2\n[timeouts]\nclose_s = 1.0\n", **options):
        app = write_app(tmp_path / "app", SOURCE, "Room", settings=settings)
        return running(app, "--var", f"BROKEN:{tmp_path / 'broken'}", **options)

    return start


def ends(node, room):
    return json.loads(node.get(f"/{room}")[2])["ends"]


def reset(ws):
    """RST instead of FIN."""
    ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ws.sock.close()


def asleep(node):
    wait_for(lambda: node.awake() == [])


HOW = {"reset": reset, "fin": lambda ws: ws.abort(), "close": lambda ws: (ws.close(4000, "x"), ws.at_end(), ws.abort())}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("when", ["in a handler", "awake", "asleep", "while waking", "while its host dies", "half a frame"])
def test_exactly_one_close_event(serve, how, when):
    """F15."""
    with serve() as node:
        room = "slow" if when == "while waking" else "room"
        ws, witness = node.connect(f"/{room}?mine", timeout_s=20), node.connect(f"/{room}?witness")
        ws.send("hello")
        assert ws.recv() == "hello"
        if when == "in a handler":
            ws.send("wait")
            wait_for(lambda: any("webSocketMessage running" in entry["pins"] for entry in node.awake()))
        elif when == "asleep":
            asleep(node)
        elif when == "while waking":
            asleep(node)
            witness.send("wake up")
            wait_for(lambda: any(entry["phase"] == "waking" or entry["pins"] for entry in node.awake()))
        elif when == "while its host dies":
            os.kill(node.pid("host 0"), signal.SIGKILL)
        elif when == "half a frame":
            ws.send_bytes(mask_frame(encode_message(b"x" * 100, True), b"abcd")[:20])
        if how == "close" and when == "half a frame":
            how = "fin"
        HOW[how](ws)
        wait_for(lambda: [name for name, _ in ends(node, room)] == ["mine"], "one event")
        what = ends(node, room)[0][1]
        assert what == ("close 4000 True" if how == "close" else "close 1006 False")
        witness.send("and you?")
        while witness.recv(10) != "and you?":
            pass
        asleep(node)
        assert len(ends(node, room)) == 1
        assert json.loads(node.get(f"/{room}")[2])["open"] == 1
        witness.abort()


@pytest.mark.parametrize("how", ["reset", "fin"])
def test_a_client_that_leaves_before_its_101(serve, how):
    """F15, before the 101 and before the accept: what was accepted ends once, what was not never was."""
    with serve() as node:
        for _ in range(5):
            sock = open_socket(node.port)
            sock.sendall(
                b"GET /late/late?early HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            wait_for(lambda: node.awake())
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        asleep(node)
        state = json.loads(node.get("/late")[2])
        assert state["open"] == 0
        assert len(state["ends"]) in (0, 5)
        assert node.counter("sockets") == 0


def test_what_is_queued_survives_the_sleep(serve):
    """F23 (W22-W24): sends, a close and an auto-response, then eviction."""
    with serve("[hibernation]\nidle_s = 0.05\n") as node:
        with node.connect("/room?a") as ws:
            ws.send("bye")
            asleep(node)
            assert [ws.recv(), ws.recv()] == ["one", "two"]
            assert ws.recv_close() == (4001, "bye")
        with node.connect("/room?b") as ws:
            ws.send("auto")
            assert ws.recv() == "auto"
            asleep(node)
            for _ in range(100):
                ws.send("ping")
            ws.send("bye")
            assert [ws.recv() for _ in range(102)] == ["pong"] * 100 + ["one", "two"]
            assert ws.recv_close() == (4001, "bye")


def test_throwing_handlers(serve, tmp_path):
    """F21: a close handler and a constructor that throw; others, and later sockets, notice nothing."""
    with serve() as node:
        (tmp_path / "broken-close").touch()
        ws, other = node.connect("/room?mine"), node.connect("/room?other")
        ws.close(4000)
        assert ws.recv_close()[0] == 4000
        ws.abort()
        wait_for(lambda: node.logged("ValueError: close handler"))
        other.send("still here")
        assert other.recv() == "still here"
        asleep(node)
        (tmp_path / "broken").touch()
        other.abort()  # woken by its close: the constructor sends, and throws (W34)
        wait_for(lambda: node.logged("ValueError: constructor"))
        (tmp_path / "broken").unlink()
        (tmp_path / "broken-close").unlink()
        with node.connect("/room?new") as ws:
            ws.send("works")
            assert ws.recv() == "works"
        wait_for(lambda: node.counter("sockets") == 0)


def test_a_section_that_never_ends_holds_only_its_own_object(serve):
    """F21: `blockConcurrencyWhile` of a future that nobody sets; the limit of 30 s is tested without a clock elsewhere."""
    with serve() as node, node.connect("/bad?a") as bad, node.connect("/good?b") as good:
        bad.send("forever")
        bad.send("nobody hears this yet")
        for number in range(20):
            good.send(str(number))
            assert good.recv(5) == str(number)


def test_a_slow_client_in_a_large_room(serve):
    """F13: some of the readers of a room do not read; they end with 1013, the others have everything, as fast as before."""
    readers = int(os.environ.get("ROOST_READERS", "200"))
    with serve("[limits]\nmax_outbound_bytes = 200_000\n") as node:
        sockets = [node.connect(f"/room?{number}", timeout_s=60) for number in range(readers)]
        deaf, good = sockets[:10], sockets[10:]

        def round_s(text):
            began = time.monotonic()
            good[0].send(text)
            for ws in good:
                while ws.recv() != text:
                    pass
            return time.monotonic() - began

        quiet = sorted(round_s(f"all quiet {number}") for number in range(20))[18]
        times = []
        number = 0
        while node.counter("closed_slow_reader") < len(deaf):
            times.append(round_s(f"all {number} " + "x" * 60_000))
            number += 1
            assert number < 400, "they are never closed"
        after = sorted(round_s(f"all after {number}") for number in range(20))[18]
        wait_for(lambda: len(ends(node, "room")) == len(deaf))
        assert {how for _, how in ends(node, "room")} == {"error"}
        print(f"{readers} readers, 10 of them deaf: p95 of a round {quiet * 1000:.0f} -> {after * 1000:.0f} ms after them")
        assert after < max(3 * quiet, 0.2)
        for ws in sockets:
            ws.abort()


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="a network namespace needs root and iproute2"
)

VANISHING = """
import sys
sys.path[:0] = sys.argv[3].split(":")
from roost.testing import rawws
import socket
host, port = sys.argv[1], int(sys.argv[2])
rawws.open_socket = lambda port, timeout_s=10.0, tls=None: socket.create_connection((host, port), timeout=timeout_s)
sockets = [rawws.RawWebSocket(port, f"/room?{number}") for number in range(int(sys.argv[4]))]
print("here", flush=True)
sys.stdin.read()
"""


@needs_root
def test_clients_that_vanish(tmp_path):
    """F14: a link goes down under 50 clients; each has its one close event within keep-alive and timeout."""
    space, ours = f"roost-{os.getpid()}", f"rst{os.getpid() % 10000}"

    def ip(*arguments, check=True):
        return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode

    if ip("netns", "add", space, check=False):
        pytest.skip("this machine allows no network namespaces")
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("addr", "add", "10.231.7.1/24", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", space, "addr", "add", "10.231.7.2/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        settings = "[hibernation]\nidle_s = 0.2\n[timeouts]\ntcp_keepalive_s = 2\ntcp_timeout_s = 2\n"
        app = write_app(tmp_path / "app", SOURCE, "Room", settings=settings)
        # The one server of these tests that is not on loopback: its address is that of a link to nowhere else.
        with running(app, "--var", f"BROKEN:{tmp_path / 'broken'}", "--ip", "10.231.7.1") as node:
            where = ":".join(path for path in sys.path if path)
            client = subprocess.Popen(
                ["ip", "netns", "exec", space, sys.executable, "-c", VANISHING, "10.231.7.1", str(node.port), where, "50"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            try:
                assert client.stdout.readline().strip() == "here"
                asleep(node)
                ip("link", "set", ours, "down")
                began = time.monotonic()
                wait_for(lambda: node.counter("sockets") == 0, "they are still thought to be there")
                took = time.monotonic() - began
                ip("link", "set", ours, "up")
            finally:
                client.kill()
                client.wait()
                client.stdin.close()
                client.stdout.close()
            asleep(node)
            ip("addr", "add", "10.231.7.1/24", "dev", ours, check=False)
            got = []
            wait_for(lambda: got.extend(_get(node.port, "10.231.7.1")) or got)
            assert len(got) == 50
            assert {how for _, how in got} == {"close 1006 False"}
            print(f"50 vanished clients: each told of once, after {took:.1f} s (keep-alive 2 s, timeout 2 s)")
            assert took < 8
    finally:
        ip("link", "del", ours, check=False)
        ip("netns", "del", space, check=False)


def _get(port, address):
    with socket.create_connection((address, port), timeout=10) as sock:
        sock.sendall(b"GET /room HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    return json.loads(data.split(b"\r\n\r\n", 1)[1])["ends"]


def test_sigterm_under_load_and_again(tmp_path):
    """F18: the node drains under load within `drain_s`, with 1001 and exit code 0; the next one finds all as it was."""
    app = write_rooms(tmp_path / "app")
    data = tmp_path / "data"
    data.mkdir()
    acked = set()
    for round_number in range(2):
        with running(app, "--hosts", "2", data=str(data)) as node, Load(node, seed=round_number, sockets=60) as load:
            load.start()
            load.go_on(300)
            began = time.monotonic()
            node.process.send_signal(signal.SIGTERM)
            load._stop.set()
            assert node.process.wait(20) == 0
            took = time.monotonic() - began
            load._thread.join(90)
            assert took < 10, "drain_s"
            acked |= {(client.room, name, round_number) for client in load.clients for name in client.acked}
            assert not load.found, load.found[:5]
            # Each round numbers its messages alike: count them by room and name.
    with running(app, "--hosts", "3", data=str(data)) as node:
        for room in {room for room, _, _ in acked}:
            seen = json.loads(node.get(f"/{room}")[2])["seen"]
            for name in {name for where, name, _ in acked if where == room}:
                rounds = sum((room, name, number) in acked for number in range(2))
                assert seen.count(name) >= rounds, f"{name} was acknowledged and is lost"
        print(f"two drains under load ({took:.1f} s): {len(acked)} acknowledged messages, 0 lost")


def test_a_storm_of_reconnects(serve):
    """F19: everybody comes back at once after a gateway's death; all get in, or are told when to try again."""
    count = int(os.environ.get("ROOST_STORM", "1000"))
    with serve() as node:
        sockets = [node.connect(f"/r{number % 20}?{number}", timeout_s=60) for number in range(count)]
        gateway = node.pid("gateway 0")
        os.kill(gateway, signal.SIGKILL)
        for ws in sockets:
            ws.abort()
        back, told, times = [], [], []
        lock = threading.Lock()
        rng = random.Random(1)

        def come_back(numbers):
            for number in numbers:
                began = time.monotonic()
                while True:
                    try:
                        ws = node.connect(f"/r{number % 20}?again-{number}", timeout_s=60)
                        break
                    except OSError:
                        time.sleep(0.05 * rng.random())
                    except Exception as refused:
                        assert refused.status == 503
                        assert "retry-after" in refused.headers
                        with lock:
                            told.append(number)
                        time.sleep(0.1)
                with lock:
                    back.append(ws)
                    times.append(time.monotonic() - began)

        threads = [threading.Thread(target=come_back, args=(range(part, count, 8),)) for part in range(8)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        assert len(back) == count
        for ws in back[:50]:
            ws.send("here again")
            assert ws.recv(30) == "here again"
        print(f"{count} reconnects in {took:.1f} s, {len(told)} told to wait, slowest {max(times):.2f} s")
        for ws in back:
            ws.abort()
        wait_for(lambda: node.counter("sockets") == 0)


def test_an_alarm_that_is_due_while_the_node_is_down(serve, tmp_path):
    """F22."""
    data = tmp_path / "data"
    data.mkdir()
    with serve(data=str(data)) as node, node.connect("/room?a") as ws:
        ws.send("alarm")
        assert ws.recv() == "alarm"
        node.process.send_signal(signal.SIGKILL)
        node.process.wait()
    began = time.time()
    wait_for(lambda: time.time() - began > 1.1)
    with serve(data=str(data)) as node:
        wait_for(lambda: json.loads(node.get("/room")[2])["alarm"] == 1)


def test_a_gateway_that_dies_while_objects_sleep(serve):
    """F2: each object hears of each of its sockets once, within 5 s, with tags and attachment; no ghost is left."""
    with serve() as node:
        sockets = [node.connect(f"/r{number % 5}?{number}") for number in range(40)]
        gone = sockets[::4]
        for ws in gone:  # those that are over already are not told of again
            ws.close(4000)
            ws.at_end()
        asleep(node)
        with node.connect("/awake?w") as ws:
            ws.send("hello")
            assert ws.recv() == "hello"
            os.kill(node.pid("gateway 0"), signal.SIGKILL)
            began = time.monotonic()
            for other in sockets:
                other.abort()
        wait_for(lambda: all(node.status()["gateways"]))
        wait_for(lambda: sum(len(ends(node, f"r{room}")) for room in range(5)) == 40)
        assert time.monotonic() - began < 15  # 5 on a machine that does nothing else
        for room in range(5):
            told = ends(node, f"r{room}")
            assert sorted(int(name) for name, _ in told) == [number for number in range(40) if number % 5 == room]
            assert {how for name, how in told if int(name) % 4} == {"close 1006 False"}
            assert json.loads(node.get(f"/r{room}")[2])["open"] == 0
        wait_for(lambda: ends(node, "awake") == [["w", "close 1006 False"]])
        assert node.counter("inherited") == 31
        wait_for(lambda: node.counter("hibernatable") == 0)
        with node.connect("/r1?new") as ws:
            ws.send("works")
            assert ws.recv() == "works"
        os.kill(node.pid("gateway 0"), signal.SIGKILL)
        wait_for(lambda: all(node.status()["gateways"]))
        wait_for(lambda: len(ends(node, "r1")) == 9)
        assert sorted(name for name, _ in ends(node, "r1"))[-1] == "new"
