"""The bounds of one object and one host: each has its setting, its policy and its counter, and others are served."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from conftest import write_app
from roost.node.out_of_memory import KernelKills
from roost.testing import HandshakeRefused, open_socket, running, wait_for

SOURCE = """
import asyncio, os, resource
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3]
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        if path.endswith("?block"):
            async def held():
                while not os.path.exists(self.env.GATE):
                    await asyncio.sleep(0.02)
            await self.ctx.blockConcurrencyWhile(held)
        if path.endswith("?write"):
            await self.ctx.storage.put("n", 1)
        return Response(f"hello from {self.ctx.id.name}")

    async def webSocketMessage(self, ws, message):
        if message == "wait":
            while not os.path.exists(self.env.GATE):
                await asyncio.sleep(0.02)
            ws.send("waited")
        elif message == "flood":
            for number in range(3000):
                ws.send(f"{number} " + "x" * 1000)
        else:
            ws.send(message)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3].split("?")[0]
        if path == "crash":
            os._exit(3)
        if path == "memory":
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
            return Response(str(len(bytearray(1_000_000_000))))
        if path == "slow":
            open(self.env.GATE + ".slow", "w").close()
            await asyncio.sleep(1000)
        if path == "plain":
            return Response("plain")
        return await self.env.ROOM.getByName(path).fetch(request)
"""


@pytest.fixture
def serve(tmp_path):
    def start(settings="", *arguments):
        app = write_app(tmp_path / "app", SOURCE, "Room", settings=settings)
        return running(app, "--var", f"GATE:{tmp_path / 'gate'}", *arguments)

    return start


def test_events_of_one_object(serve, tmp_path):
    with serve("[limits]\nmax_queued_events = 50\n") as node:
        with node.connect("/busy") as ws, node.connect("/other") as other:
            threading.Thread(target=node.get, args=("/busy?block",), daemon=True).start()
            wait_for(lambda: any("blockConcurrencyWhile or a transaction" in entry["pins"] for entry in node.awake()))
            for number in range(100):
                ws.send(str(number))
            assert ws.recv_close()[0] == 1013
            status, headers, body = node.get("/busy")
            assert (status, headers["retry-after"]) == (503, "1"), body
            other.send("as if nothing were")
            assert other.recv() == "as if nothing were"
            assert node.host_counter("events_shed") >= 51
            (tmp_path / "gate").touch()
        wait_for(lambda: node.get("/busy")[0] == 200)


def test_messages_whose_handlers_wait_count(serve, tmp_path):
    with serve("[limits]\nmax_queued_events = 50\n") as node, node.connect("/busy") as ws, node.connect("/other") as other:
        for _ in range(50):
            ws.send("wait")
        wait_for(lambda: node.status()["gateways"][0]["unfinished"] == 50)
        other.send("as if nothing were")
        assert other.recv() == "as if nothing were"
        ws.send("one more")
        assert ws.recv_close()[0] == 1013
        assert node.host_counter("events_shed") == 1
        (tmp_path / "gate").touch()
        wait_for(lambda: node.status()["gateways"][0]["unfinished"] == 0)


def test_sockets_of_one_object(serve):
    with serve("[limits]\nmax_sockets_per_object = 2\n") as node:
        with node.connect("/a"), node.connect("/a"), node.connect("/b"):
            with pytest.raises(HandshakeRefused) as caught:
                node.connect("/a")
            assert caught.value.status == 500
            wait_for(lambda: node.logged("only 2 websockets can be accepted"))
            assert node.host_counter("sockets_refused") == 1
        wait_for(lambda: node.counter("sockets") == 0)
        node.connect("/a").abort()


def test_live_objects(serve, tmp_path):
    with serve("[limits]\nmax_live_objects = 20\n[hibernation]\nidle_s = 1000\n") as node:
        for number in range(100):
            assert node.get(f"/{number}?write")[0] == 200
            assert len(node.awake()) <= 20
        assert node.host_counter("sleeps_early") >= 80
        sockets = [node.connect(f"/busy-{number}") for number in range(20)]
        for ws in sockets:
            ws.send("wait")
        wait_for(lambda: node.status()["gateways"][0]["unfinished"] == 20)
        status, headers, _ = node.get("/one-more")
        assert (status, headers["retry-after"]) == (503, "1")
        assert node.host_counter("wakes_refused") >= 1
        (tmp_path / "gate").touch()
        for ws in sockets:
            assert ws.recv() == "waited"
            ws.abort()
        assert node.get("/one-more")[0] == 200


@pytest.mark.parametrize("policy", ["close", "drop_oldest"])
def test_what_a_client_does_not_read(serve, policy):
    with (
        serve(f'[limits]\nmax_outbound_bytes = 100000\nslow_reader = "{policy}"\n') as node,
        node.connect("/room") as slow,
        node.connect("/room") as other,
    ):
        for _ in range(10):
            slow.send("flood")
        if policy == "close":
            wait_for(lambda: node.counter("closed_slow_reader") == 1)
        else:
            wait_for(lambda: node.counter("dropped_oldest") > 1000)
            other.send("between")
            assert other.recv() == "between"
            slow.send("the end")
            numbers = []
            while (message := slow.recv(5)) != "the end":
                numbers.append(int(message.split()[0]))
            assert len(numbers) < 30_000
            rounds = sum(later < earlier for earlier, later in itertools.pairwise(numbers))
            assert rounds <= 9, "what is not dropped keeps its order"
            assert numbers[-1] == 2999, "the newest are there"
            assert node.counter("closed_slow_reader") == 0


def test_requests_that_were_not_begun_are_given_again(serve, tmp_path):
    with serve() as node, node.connect("/room") as ws:
        results = []

        def ask(path):
            with open_socket(node.port, 60) as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                results.append((path, int(sock.recv(65536).split()[1])))

        begun = threading.Thread(target=ask, args=("/slow",))
        begun.start()
        wait_for((tmp_path / "gate.slow").exists)
        host = node.pid("host 0")
        os.kill(host, signal.SIGSTOP)
        waiting = [threading.Thread(target=ask, args=("/plain",)) for _ in range(20)]
        for thread in waiting:
            thread.start()
        deadline = time.monotonic() + 20
        while node_requests(node) < 22 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(host, signal.SIGKILL)
        for thread in (begun, *waiting):
            thread.join()
        assert sorted(results) == [*[("/plain", 200)] * 20, ("/slow", 502)]
        assert node.counter("requests_again") == 20
        ws.send("still here")
        assert ws.recv() == "still here"


def node_requests(node):
    report = node.status()["gateways"][0]
    return report["counters"]["requests"]


def test_a_crash_loop_opens_the_breaker_and_a_deployment_closes_it(serve, tmp_path):
    with serve("[timeouts]\nrestart_pause_s = 2.0\n") as node, node.connect("/room") as ws:
        ws.send("before")
        assert ws.recv() == "before"
        app = tmp_path / "app"
        version_of_the_crash = SOURCE.replace("import asyncio, os", "import asyncio, os, atexit")
        deadline = time.monotonic() + 60
        refused = None
        while refused is None and time.monotonic() < deadline:
            status, headers, body = node.get("/crash")
            if status == 503:
                refused = headers, body
        assert refused is not None
        assert b"has crashed 5 times in a row" in refused[1], refused
        assert refused[0]["retry-after"] == "5"
        began = time.monotonic()
        while node.get("/plain")[0] == 503 and time.monotonic() - began < 1.0:
            time.sleep(0.05)
        write_app(app, version_of_the_crash, "Room")
        deployed = subprocess.run(
            [sys.executable, "-m", "roost", "deploy", str(app), "--data", node.data, "--var", f"GATE:{tmp_path / 'gate'}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert deployed.returncode == 0, deployed.stderr
        assert node.get("/plain")[0] == 200
        ws.send("after")
        assert ws.recv() == "after", "its socket has outlived it all"
        assert json.loads(json.dumps(node.status()))["breakers"] == {}


def test_a_drain_says_goodbye_over_a_while(serve):
    with serve("[timeouts]\ndrain_spread_s = 1.0\n") as node:
        sockets = [node.connect(f"/{number % 10}") for number in range(300)]
        began = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        for ws in sockets:
            assert ws.recv_close(10) == (1001, "The server is shutting down.")
            ws.close(1001)
            ws.abort()
        assert time.monotonic() - began > 0.7
        assert node.process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_host_under_a_limit_of_memory_says_what_failed_and_serves_others(serve):
    with serve() as node, node.connect("/a") as ws:
        assert node.get("/memory")[0] == 500
        ws.send("hello")
        assert ws.recv() == "hello"
        said = [line for line in node.log if "MemoryError: out of memory" in line]
        assert len(said) == 1
        assert re.search(r"this host has \d+ MiB in memory of the \d+ MiB of addresses it may have \(ulimit -v\)", said[0])


def test_what_the_kernel_kills_for_memory_is_known_by_its_count(tmp_path):
    v2, v1 = tmp_path / "memory.events", tmp_path / "memory.oom_control"
    v2.write_text("low 0\nhigh 3\nmax 7\noom 2\noom_kill 4\noom_group_kill 0\n")
    v1.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    for file in (v2, v1):
        kills = KernelKills([file, tmp_path / "none"])
        assert not kills.happened()
        file.write_text(file.read_text().replace("oom_kill 4", "oom_kill 5").replace("oom_kill 0", "oom_kill 1"))
        assert kills.happened()
        assert not kills.happened()
        file.write_text(file.read_text().replace("oom_kill 5", "oom_kill 7").replace("oom_kill 1", "oom_kill 3"))
        assert [kills.happened() for _ in range(3)] == [True, True, False], "two at once explain two deaths"
    assert not KernelKills([]).happened()
