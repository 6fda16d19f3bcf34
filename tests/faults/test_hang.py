"""A handler that never lets go of the loop (fault F21): named, ended, and only its object suffers."""

import json
import subprocess
import sys
import time

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio, json, os, time
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

def spin_for_ever():
    while True:
        pass

class Box(DurableObject):
    async def fetch(self, request):
        if request.url.endswith("/ws"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        return Response(self.ctx.id.name)

    async def webSocketMessage(self, ws, message):
        if message == "spin":
            spin_for_ever()
        if message == "spin later":
            await asyncio.sleep(0)
            spin_for_ever()
        if message == "exit":
            os._exit(3)
        if message == "sleep":
            time.sleep(3600)
        if message == "hold the lock":
            sum(range(10**12))
        self.ctx.storage.kv.put("n", (self.ctx.storage.kv.get("n") or 0) + 1)
        ws.send(json.dumps([message, self.ctx.storage.kv.get("n")]))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if request.url.endswith("/hog"):
            globals()["hog"] = bytearray(400_000_000)
            for start in range(0, len(hog), 4096):
                hog[start] = 1
            return Response("hogged")
        return await self.env.BOX.getByName(request.url.split("/")[3]).fetch(request)
"""


def app_with(tmp_path, limits):
    return write_app(tmp_path / "app", SOURCE, "Box", settings=f"[limits]\n{limits}\n[timeouts]\nrestart_pause_s = 0.05\n")


def roost(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "roost", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("how", ["spin", "spin later", "sleep", "hold the lock", "exit"])
def test_one_of_fifty_objects_hangs(tmp_path, how):
    # The stack of code that holds the lock is written by `faulthandler`, with every frame.
    held = how == "hold the lock"
    with running(app_with(tmp_path, "cpu_ms = 500"), "--hosts", "1", own_errors=held) as node:
        sockets = [node.connect(f"/box{number}/ws", timeout_s=20) for number in range(50)]
        try:
            for number, ws in enumerate(sockets):
                ws.send("hello")
                assert json.loads(ws.recv()) == ["hello", 1], number
            pid = node.pid("host 0")
            sockets[7].send(how)
            began = time.monotonic()
            for number, ws in enumerate(sockets):
                if number != 7:
                    ws.send("still there?")
            for number, ws in enumerate(sockets):
                if number != 7:
                    assert json.loads(ws.recv()) == ["still there?", 2]
            took = time.monotonic() - began
            print(f"{how}: the other 49 answered after {took:.2f} s")
            assert took < (7 if how == "hold the lock" else 3)
            assert node.pid("host 0") != pid
            if how == "hold the lock":
                assert node.logged("ended in webSocketMessage of Box(box7)")
            elif how != "exit":
                assert node.logged("Box(box7) has not let go of the loop")
            if how != "exit":
                assert any("worker.py" in line for line in node.log)
            sockets[7].send("and you?")  # what hung is not tried again; the object goes on
            assert json.loads(sockets[7].recv()) == ["and you?", 2]
            assert node.counter("sockets") == len(sockets)  # nobody's was closed
        finally:
            for ws in sockets:
                ws.sock.close()


def test_a_limit_of_its_own_class(tmp_path):
    app = app_with(tmp_path, "cpu_ms = 30000\nclass_cpu_ms = { Box = 300 }")
    with running(app, "--hosts", "1") as node, node.connect("/bad/ws", timeout_s=20) as bad:
        bad.send("spin")
        wait_for(lambda: node.logged("Box(bad) has not let go of the loop"), "the class's limit", 10)
    app = app_with(tmp_path, "class_cpu_ms = { Bax = 300 }")
    with pytest.raises(RuntimeError, match='Did you mean "Box"'), running(app):
        pass


def test_an_object_that_hangs_twice_is_in_quarantine(tmp_path):
    with (
        running(app_with(tmp_path, "cpu_ms = 300"), "--hosts", "2") as node,
        node.connect("/bad/ws", timeout_s=20) as bad,
        node.connect("/good/ws", timeout_s=20) as good,
    ):
        for times in (1, 2):
            bad.send("spin")
            wait_for(lambda times=times: sum("has not let go" in line for line in node.log) == times, "the watchdog")
        wait_for(lambda: node.status()["quarantined"], "quarantine")
        assert "in quarantine" in roost("objects", "--data", node.data)
        good.send("hello")
        assert json.loads(good.recv())[0] == "hello"
        bad.send("nobody hears this")
        wait_for(lambda: node.get("/bad")[0] == 503, "503")
        status, headers, _ = node.get("/bad")
        assert (status, headers.get("retry-after")) == (503, "60")
        wait_for(lambda: sum(host["counters"]["events_quarantined"] for host in node.status()["hosts"] if host) >= 2)
        assert "not in quarantine" in roost("objects", "release", "Box(other)", "--data", node.data, code=2)
        assert "released: 1" in roost("objects", "release", "Box(bad)", "--data", node.data)
        bad.send("back")
        assert json.loads(bad.recv())[0] == "back"  # the same socket
        assert node.get("/bad")[0] == 200


def test_a_request_that_hangs_ends_with_502_and_the_others_go_on(tmp_path):
    source = SOURCE.replace(
        "return Response(self.ctx.id.name)",
        'spin_for_ever() if self.ctx.id.name == "bad" else None\n        return Response("ok")',
    )
    app = write_app(
        tmp_path / "app", source, "Box", settings="[limits]\ncpu_ms = 300\n[timeouts]\nrestart_pause_s = 0.05\n"
    )
    with running(app, "--hosts", "1") as node:
        assert node.get("/bad")[0] == 502
        assert node.get("/good")[0] == 200


def test_memory(tmp_path):
    app = app_with(tmp_path, "max_host_memory_bytes = 300_000_000")
    with running(app, "--hosts", "1") as node, node.connect("/a/ws", timeout_s=20) as ws:
        pid = node.pid("host 0")
        node.get("/hog")
        wait_for(lambda: node.logged("limits.max_host_memory_bytes"), "the limit")
        ws.send("hello")
        assert json.loads(ws.recv())[0] == "hello"
        assert node.pid("host 0") != pid


def test_many_short_handlers_in_one_batch_are_no_hang(tmp_path):
    """The limit is for one handler, not for a turn of the loop."""
    brief = 'if message == "brief":\n            time.sleep(0.02)\n        if message == "sleep":'
    source = SOURCE.replace('if message == "sleep":', brief)
    app = write_app(tmp_path / "app", source, "Box", settings="[limits]\ncpu_ms = 300\n")
    with running(app, "--hosts", "1") as node, node.connect("/a/ws", timeout_s=20) as ws:
        pid = node.pid("host 0")
        for _ in range(100):
            ws.send("brief")
        for number in range(100):
            assert json.loads(ws.recv()) == ["brief", number + 1]
        assert node.pid("host 0") == pid
