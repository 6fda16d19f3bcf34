"""What must not grow unseen: counts that no clock has a part in. The budget is in docs/design/performance.md.

The worker is the benchmarks' own. `/proc/PID/io` counts what a process reads from clients and writes to them (not what it
receives and sends over a link); strace counts every system call.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import ROOT
from roost.testing import running

APP = ROOT / "benchmarks" / "apps" / "room"
MESSAGES = 300
linux = pytest.mark.skipif(sys.platform != "linux", reason="counts of /proc")


def reads_and_writes(pid):
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["syscr"]), int(fields["syscw"])


class Counted:
    """Reads and writes of each process of a node over a `with` block, divided by `by`."""

    def __init__(self, node, *names, by):
        self.pids = {name: node.pid(name) for name in names}
        self.by = by

    def __enter__(self):
        self.before = {name: reads_and_writes(pid) for name, pid in self.pids.items()}
        return self

    def __exit__(self, *exception):
        self.each = {}
        for name, pid in self.pids.items():
            now = reads_and_writes(pid)
            self.each[name] = tuple(
                (after - before) / self.by for before, after in zip(self.before[name], now, strict=True)
            )


def in_lockstep(ws, messages=MESSAGES):
    for number in range(messages):
        ws.send(f"message {number}")
        assert ws.recv() == f"message {number}"


@linux
def test_reads_and_writes_of_an_echo():
    """A lone message is read once and written once."""
    with running(APP, "--hosts", "1") as node, node.connect("/echo/a") as ws:
        in_lockstep(ws, 20)
        with Counted(node, "gateway 0", "host 0", by=MESSAGES) as counted:
            in_lockstep(ws)
    reads, writes = counted.each["gateway 0"]
    assert 1 <= reads <= 1.1
    assert 1 <= writes <= 1.1
    assert max(counted.each["host 0"]) <= 0.1


@linux
def test_reads_and_writes_of_a_broadcast():
    """One write to each socket."""
    sockets, broadcasts = 200, 20
    with running(APP, "--hosts", "1") as node:
        room = [node.connect("/fan/a") for _ in range(sockets)]

        def broadcast(number):
            room[0].send(f"news {number}")
            assert {ws.recv() for ws in room} == {f"news {number}"}

        broadcast(-1)
        with Counted(node, "gateway 0", "host 0", by=broadcasts) as counted:
            for number in range(broadcasts):
                broadcast(number)
        for ws in room:
            ws.abort()
    reads, writes = counted.each["gateway 0"]
    assert 1 <= reads <= 1.5
    assert sockets <= writes <= sockets + 0.5
    assert max(counted.each["host 0"]) <= 0.5


def can_trace():
    """strace may be missing, and a container may forbid it."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-c", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def system_calls(pid, during):
    """What `pid` asks of the kernel while `during()` runs: calls by name."""
    command = ["strace", "-c", "-f", "-p", str(pid)]
    strace = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert "attached" in strace.stderr.readline()
    during()
    strace.send_signal(signal.SIGINT)
    _, summary = strace.communicate(timeout=30)
    rows = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", summary, re.MULTILINE)
    return {name: int(calls) for calls, name in rows if name != "total"}


@linux
@pytest.mark.skipif(not can_trace(), reason="no strace, or it may not attach")
@pytest.mark.parametrize(("process", "inline", "most"), [("gateway 0", False, 7), ("host 0", False, 3), ("node", True, 4)])
def test_system_calls_of_an_echo(tmp_path, process, inline, most):
    """Lone messages, the worst case: batches share all but the reads and writes of clients. How often a gateway looks for
    more before it sleeps depends on the clock, so it does not here."""
    app = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (app / "roost.toml").write_text("[network]\nbusy_poll_us = 0\n")
    with running(app, "--inline" if inline else "--hosts=1") as node, node.connect("/echo/a") as ws:
        in_lockstep(ws, 20)
        calls = system_calls(node.pid(process), lambda: in_lockstep(ws))
    assert calls, "strace counted nothing"
    assert sum(calls.values()) / MESSAGES <= most + 0.3, calls  # timers and the beat of the watchdog are the rest


IN_ONE_PROCESS = """
import asyncio, gc, json, os, socket, sys, tracemalloc
from pathlib import Path
import roost.events as e
from roost.api.runtime import Compat
from roost.clock import SystemClock
from roost.gateway.gateway import Gateway
from roost.host.host import Host
from roost.host.spec import HostSpec
from roost.host.worker.loader import load_worker
from roost.link.memory import memory_pair
from roost.protocol.websocket import encode_message, mask_frame

SOCKETS, OBJECTS = 1000, 200
UPGRADE = (b"GET /%s HTTP/1.1\\r\\nHost: a\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
           b"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")

async def connect(loop, port, path):
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, UPGRADE % path)
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n"):
        head += await loop.sock_recv(sock, 4096)
    assert head.startswith(b"HTTP/1.1 101"), head
    return sock

class Counting:
    def __init__(self, receiver, seen):
        self.receiver, self.seen = receiver, seen
    def on_events(self, events):
        self.seen += events
        self.receiver.on_events(events)
    def __getattr__(self, name):
        return getattr(self.receiver, name)

async def main():
    loop = asyncio.get_running_loop()
    worker = load_worker(Path(sys.argv[1]), ["Room"], Compat())
    host = Host(loop, worker, HostSpec(worker_name="t", classes={"ROOMS": "Room"}, idle_s=0.2))
    gateway = Gateway(loop, SystemClock(), slots=1)
    ours, theirs = memory_pair(loop)
    gateway.add_host(theirs)
    host.add_gateway(ours)
    gateway.start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    gateway.listen(listener)

    async def asleep():
        while len(host.actors):
            await asyncio.sleep(0.02)
        gc.collect()

    package = os.path.dirname(sys.modules["roost.events"].__file__) + "/*"
    async def held():
        await asleep()
        snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, package)])
        return sum(trace.size for trace in snapshot.traces)

    def pending():
        return len(asyncio.all_tasks()), len([timer for timer in loop._scheduled if not timer.cancelled()])

    warm = [await connect(loop, port, b"fan/warm") for _ in range(50)]
    await host._leftovers  # its look for them ends by itself, once
    await asleep()
    tracemalloc.start()
    report = {"before": pending()}
    base = await held()
    room = [await connect(loop, port, b"fan/idle") for _ in range(SOCKETS)]
    report["bytes"] = (await held() - base) / SOCKETS
    report["after"] = pending()
    tracemalloc.stop()

    to_gateway, to_host = [], []
    ours._peer._receiver = Counting(ours._peer._receiver, to_gateway)
    ours._receiver = Counting(ours._receiver, to_host)
    for turn in range(2):  # the first wakes the object
        to_gateway.clear(), to_host.clear()
        await loop.sock_sendall(room[0], mask_frame(encode_message(b"news", True), b"1234"))
        for sock in room:
            data = await loop.sock_recv(sock, 100)
            assert data[2:] == b"news", data
        report["wake" if turn == 0 else "broadcast"] = [
            [type(event).__name__ for event in to_host], [type(event).__name__ for event in to_gateway]]
        if turn:
            report["targets"] = [len(event.sockets) for event in to_gateway if isinstance(event, e.Send)]
    alone = [await connect(loop, port, b"echo/w%d" % number) for number in range(OBJECTS)]
    for turn in range(2):  # the first time, tables grow
        await asleep()
        gc.disable()
        before = gc.get_count()[0]
        for sock in alone:
            await loop.sock_sendall(sock, mask_frame(encode_message(b"good morning", True), b"1234"))
            await loop.sock_recv(sock, 100)
        report["containers"] = (gc.get_count()[0] - before) / OBJECTS
        gc.enable()
    await asleep()
    to_gateway.clear(), to_host.clear()
    await loop.sock_sendall(alone[0], mask_frame(encode_message(b"good morning", True), b"1234"))
    await loop.sock_recv(alone[0], 100)
    report["wake alone"] = [[type(event).__name__ for event in to_host], [type(event).__name__ for event in to_gateway]]
    for sock in warm + room + alone:
        sock.close()
    await gateway.drain(1)
    await host.close()
    print(json.dumps(report))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    script = tmp_path_factory.mktemp("costs") / "costs.py"
    script.write_text(textwrap.dedent(IN_ONE_PROCESS))
    command = [sys.executable, script, str(APP / "worker.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_an_idle_socket_is_bytes(report):
    """Gateway and host together, the interpreter's own overhead of allocation left out."""
    assert report["bytes"] <= 500  # 426 on 2026-11-24


def test_an_idle_socket_has_no_task_and_no_timer(report):
    (tasks_before, timers_before), (tasks, timers) = report["before"], report["after"]
    assert tasks == tasks_before
    assert timers <= timers_before + 1  # the node's own come and go


def test_a_broadcast_is_one_envelope(report):
    assert report["broadcast"] == [["SocketMessage"], ["Send", "Done"]]
    assert report["targets"] == [1000]


def test_a_wake_makes_few_containers(report):
    """Each is looked at by the cycle collector, whose passes are the longest wakes (docs/design/performance.md)."""
    assert report["containers"] <= 24  # 18 on 2026-11-27; 59 before


def test_a_wake_asks_nothing(report):
    """The roster comes with the message: no round trip before the handler."""
    assert report["wake"] == [["Roster", "SocketMessage"], ["Send", "Done"]]
    assert report["wake alone"] == [["WakingMessage"], ["Send", "Done"]]


# by act: calls in Python, in C, containers that stay; what was measured on 2026-12-01, and a tenth more
MOST = {
    "an echo": (42, 40, 0.5),
    "a put and an echo": (176, 125, 1),
    "a call of another object": (224, 150, 1),
    "a GET": (129, 112, 0.5),
    "an upgrade and its end": (337, 293, 5),
    "a wake and an echo": (76, 56, 18),
}


def test_what_each_act_calls_and_what_stays_of_it():
    spec = importlib.util.spec_from_file_location("measure_calls", ROOT / "tools/measure_calls.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found = tool.measure(ROOT / "src")
    assert found.keys() == MOST.keys()
    for act, figures in found.items():
        assert all(figure <= most for figure, most in zip(figures, MOST[act], strict=True)), (act, figures, MOST[act])
