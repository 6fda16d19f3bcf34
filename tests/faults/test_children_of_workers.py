"""Processes that a worker starts: a dead host is replaced though they live, none reads another object's messages, none
outlives its host."""

import json
import os
import signal
import sys

import pytest

from conftest import write_app
from roost.testing import running, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals and /proc are Linux's")

SOURCE = """
import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

POOL = None
PIPES = dict(stdin=-1, stdout=-1, stderr=-1)

def child_sleeps(seconds):
    time.sleep(seconds)
    return os.getpid()

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        global POOL
        loop = asyncio.get_running_loop()
        if message == "fork":
            pid = os.fork()
            if not pid:
                time.sleep(60)
                os._exit(0)
            ws.send(json.dumps([pid]))
        elif message == "thread fork":
            pids = []
            def fork():
                pid = os.fork()
                if not pid:
                    time.sleep(60)
                    os._exit(0)
                pids.append(pid)
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
            ws.send(json.dumps(pids))
        elif message in ("returns", "raises", "waits", "task"):
            async def forks():
                pid = os.fork()
                if not pid:
                    time.sleep(0.2)
                    if message == "raises":
                        raise ValueError("in the child")
                    if message == "waits":
                        await asyncio.sleep(0.01)
                return pid
            pid = await (asyncio.create_task(forks()) if message == "task" else forks())
            ws.send(json.dumps([pid]))
        elif message == "program":
            program = await asyncio.create_subprocess_exec("sh", "-c", "cat; echo oops >&2; exit 7", **PIPES)
            out, err = await program.communicate(b"through")
            plain = subprocess.run(["echo", "plain"], capture_output=True, text=True).stdout
            ws.send(json.dumps([out.decode(), err.decode(), program.returncode, plain]))
        elif message == "pair":
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if not pid:
                theirs.sendall(b"from the child")
                os._exit(0)
            ws.send(json.dumps([ours.recv(100).decode()]))
            os.waitpid(pid, 0)
            ours.close()
            theirs.close()
        elif message == "pool":
            POOL = POOL or ProcessPoolExecutor(2)
            pids = await asyncio.gather(*(loop.run_in_executor(POOL, child_sleeps, 0.2) for _ in range(2)))
            ws.send(json.dumps(sorted(set(pids))))
        elif message == "spawn":
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            globals()["SPAWNED"] = pool
            ws.send(json.dumps([await loop.run_in_executor(pool, os.getpid)]))
        elif message == "subprocess":
            ws.send(json.dumps([subprocess.Popen(["sleep", "60"]).pid]))
        elif message == "compute":
            with multiprocessing.get_context("fork").Pool(1) as pool:
                in_child = pool.apply(compute)
            ws.send(json.dumps([in_child, compute()]))
        else:
            n = await self.ctx.storage.get("n") or 0
            await self.ctx.storage.put("n", n + 1)
            ws.send(json.dumps([message, n + 1, os.getpid()]))

def small(x):
    return x + 1

def compute():
    x, began = 0, time.process_time()
    for _ in range(1_000_000):
        x = small(x)
    return time.process_time() - began

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName(request.url.split("/")[3]).fetch(request)
"""


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app", SOURCE, "Room", settings="[timeouts]\nrestart_pause_s = 0.3\n")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def say(ws, text):
    ws.send(text)
    return json.loads(ws.recv(20))


@pytest.mark.parametrize("how", ["fork", "thread fork", "pool", "spawn", "subprocess"])
def test_a_killed_host_is_replaced_and_its_children_end_with_it(app, how):
    with running(app) as node, node.connect("/a") as ws, node.connect("/b") as other:
        children = say(ws, how)
        assert children
        assert all(alive(pid) for pid in children)
        assert say(other, "x")[:2] == ["x", 1]
        os.kill(node.pid("host 0"), signal.SIGKILL)
        assert say(other, "y")[:2] == ["y", 2]
        wait_for(lambda: not any(map(alive, children)), "its children live on", 5)


@pytest.mark.parametrize("how", ["returns", "raises", "waits", "task"])
def test_a_child_that_comes_back_ends_and_handles_nothing(app, how):
    with running(app) as node, node.connect("/a") as ws, node.connect("/b") as other:
        host = node.pid("host 0")
        (child,) = say(ws, how)
        for number in range(60):
            assert say(other, f"m{number}") == [f"m{number}", number + 1, host]
        wait_for(lambda: not alive(child))
        assert node.logged("came back from the worker's code and ends")
        ws.send("x")
        assert json.loads(ws.recv(20)) == ["x", 1, host]


def test_deploys_work_while_a_child_lives(app):
    with running(app) as node, node.connect("/a") as ws, node.connect("/b") as other:
        children = say(ws, "pool")
        from roost.node.control import ask

        (app / "worker.py").write_text((app / "worker.py").read_text() + "\nX = 1\n")
        assert "version" in ask(node.data, {"command": "deploy", "dir": str(app)}, 60)
        assert say(other, "x")[:2] == ["x", 1]
        wait_for(lambda: not any(map(alive, children)), "its children live on", 10)


def test_children_of_multiprocessing_run_at_full_speed(app):
    with running(app) as node, node.connect("/a") as ws:
        child_s, parent_s = say(ws, "compute")
        assert child_s < 2.5 * parent_s  # of the processor; a traced one takes five times as long


@pytest.mark.parametrize("mode", ["--hosts=1", "--inline"])
def test_programs_and_pairs_of_sockets_speak_to_the_worker(app, mode):
    with running(app, mode) as node, node.connect("/a") as ws:
        ws.send("program")
        assert json.loads(ws.recv(10)) == ["through", "oops\n", 7, "plain\n"]
        ws.send("pair")
        assert json.loads(ws.recv(10)) == ["from the child"]
