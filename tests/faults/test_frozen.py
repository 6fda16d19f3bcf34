"""Frozen is not dead: a host or gateway under SIGSTOP is noticed, named and replaced; one that was stopped together with
its node, or is held by a debugger, is not."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import write_app
from roost.node.heartbeat import PING_S, Heartbeat
from roost.testing import running, wait_for

SOURCE = """
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        if message == "debug":
            import bdb
            class Prompt(bdb.Bdb):
                def wait(self, until):
                    import time
                    exec(compile("while time.time() < until: time.sleep(0.05)", bdb.__file__, "exec"),
                         {"time": time, "until": until})
            import time
            Prompt().wait(time.time() + 4)
        await self.ctx.storage.put("n", (await self.ctx.storage.get("n") or 0) + 1)
        ws.send(f"{message} {await self.ctx.storage.get('n')}")

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName(request.url.split("/")[3]).fetch(request)
"""

SETTINGS = """
[limits]
cpu_ms = 500
[timeouts]
host_silence_s = 1
gateway_silence_s = 8
restart_pause_s = 0.3
"""


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app", SOURCE, "Room", settings=SETTINGS)


@contextlib.contextmanager
def stopped(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def say(ws, text="x"):
    ws.send(text)
    return ws.recv(30)


def roost(*arguments):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "roost", *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def test_a_frozen_host_is_replaced(app):
    with running(app, "--hosts", "2", "--gateways", "2") as node, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(node.connect(f"/r{number}")) for number in range(6)]
        assert {say(ws) for ws in sockets} == {"x 1"}
        frozen = node.pid("host 0")
        with stopped(frozen):
            assert {say(ws) for ws in sockets} == {"x 2"}  # events wait for the successor; none is lost or doubled
        assert node.pid("host 0") != frozen
        assert node.logged("host 0 has not answered for")
        assert node.logged("(stopped)) and is replaced")


def test_a_frozen_gateway_gets_no_new_clients_is_named_and_replaced(app):
    with running(app, "--gateways", "2") as node:
        frozen = node.pid("gateway 0")
        with stopped(frozen):
            code, said, took_s = roost("upgrade", "--data", node.data)
            assert code == 1
            assert "gateway 0 does not answer" in said
            assert took_s < 5
            wait_for(lambda: node.logged("new clients go to the other gateways while gateway 0 does not answer"))
            code, said, took_s = roost("objects", "--data", node.data)
            assert code == 0
            assert "gateway 0 has not answered for" in said
            assert took_s < 5
            for number in range(20):
                with node.connect(f"/r{number}", timeout_s=3) as ws:
                    assert say(ws) == "x 1"
            wait_for(lambda: node.logged("gateway 0 has not answered for"))
            wait_for(lambda: node.status()["pids"]["gateway 0"] != frozen and all(node.status()["gateways"]))

        def both_listen():
            with node.connect("/again", timeout_s=3) as ws:
                assert say(ws).startswith("x ")
            return all(gateway and gateway["counters"]["accepted"] for gateway in node.status()["gateways"])

        wait_for(both_listen)


def test_a_gateway_that_answers_again_listens_again(app):
    with running(app, "--gateways", "2") as node:
        frozen = node.pid("gateway 1")
        with stopped(frozen):
            wait_for(lambda: node.logged("new clients go to the other gateways"))
        wait_for(lambda: not node.status()["mute"])
        assert node.pid("gateway 1") == frozen
        before = node.status()["gateways"][1]["counters"]["accepted"]

        def reached():
            with node.connect("/a") as ws:
                say(ws)
            return node.status()["gateways"][1]["counters"]["accepted"] > before

        wait_for(reached)


def test_everything_stopped_together_is_no_silence(app):
    """The whole group, for longer than every limit."""
    with running(app, "--hosts", "2", "--gateways", "2") as node, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(node.connect(f"/r{number}")) for number in range(6)]
        assert {say(ws) for ws in sockets} == {"x 1"}
        before = node.status()["pids"]
        with stopped(*before.values()):
            time.sleep(6.5)
        assert {say(ws) for ws in sockets} == {"x 2"}
        time.sleep(2 * PING_S)
        assert node.status()["pids"] == before
        assert not node.logged("does not answer")


def test_a_debugged_handler_is_not_silent(app):
    with running(app) as node, node.connect("/r") as ws:
        before = node.pid("host 0")
        ws.send("debug")
        assert ws.recv(20) == "debug 1"
        assert node.pid("host 0") == before
        assert not node.logged("is replaced")


class Child:
    """As much of a ChildProcess as a Heartbeat sees."""

    def __init__(self, name):
        self.name = name
        self.is_ready, self.is_replaced, self.silent_s = True, False, 0.0
        self.process = type("Process", (), {"pid": 2**22 + 1})
        self.killed = 0

    def ping(self):
        pass

    def end_mute(self, *, blamed):
        self.killed += 1


class Socket:
    def __init__(self):
        self.listening = True

    def shutdown(self, how):
        self.listening = False

    def listen(self, backlog):
        self.listening = True


def test_the_judgement():
    gateways, hosts = [Child("gateway 0"), Child("gateway 1")], [Child("host 0")]
    sockets = [Socket(), Socket()]
    heart = Heartbeat(gateways, hosts, sockets, lambda: 35.0, 60.0)

    def tick(times, passed_s=1.0, answers=()):
        for _ in range(times):
            heart.tick(passed_s)
            for child in answers:
                child.silent_s = 0.0

    everybody = [*gateways, *hosts]
    tick(100, answers=everybody)
    tick(1, passed_s=500.0)  # the node was stopped
    assert not any(child.killed for child in everybody)
    assert all(child.silent_s == 0 for child in everybody)
    tick(4, answers=[gateways[1], hosts[0]])
    assert not sockets[0].listening
    assert sockets[1].listening
    tick(56, answers=[gateways[1], hosts[0]])
    assert not gateways[0].killed
    tick(1, answers=[gateways[1], hosts[0]])
    assert gateways[0].killed == 1
    gateways[0] = Child("gateway 0")  # its successor
    tick(1, answers=everybody)
    assert sockets[0].listening
    tick(35, answers=gateways)
    assert not hosts[0].killed
    tick(1, answers=gateways)
    assert hosts[0].killed == 1
    hosts[0] = Child("host 0")
    hosts[0].is_replaced = True  # it drains
    tick(100, answers=gateways)
    assert not hosts[0].killed
    # When all gateways are silent, none stops listening.
    tick(10, answers=hosts)
    assert [each.listening for each in sockets] == [True, True]
