"""What a message, a wake, an upgrade and more cost (`make measure-calls`): counts, which no clock has a part in.

    python tools/measure_calls.py [--base COMMIT]

With `--base`, the figures of a commit stand before those of this tree. A node with one process
(`--inline`) serves an app of this tool; `sys.setprofile` counts what it calls while an act is repeated: functions in
Python, and those in C that Python calls. With them stands how many objects that the cycle collector knows (containers) stay
of each act.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

REPEAT = 200
WAKES = 50

WORKER = """
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint


class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new().object_values()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        if message == "put":
            await self.ctx.storage.put("key", message)
        elif message == "call":
            message = await self.env.ROOMS.getByName("other").answer(message)
        ws.send(message)

    async def answer(self, message):
        return message


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if request.headers.get("Upgrade") != "websocket":
            return Response("hello")
        return await self.env.ROOMS.getByName(request.url.split("/", 3)[3]).fetch(request)
"""

CONFIG = """
name = "counted"
main = "worker.py"
compatibility_date = "2026-11-01"
compatibility_flags = ["python_workers"]
[[durable_objects.bindings]]
name = "ROOMS"
class_name = "Room"
[[migrations]]
tag = "v1"
new_sqlite_classes = ["Room"]
"""

NODE = """
[hibernation]
idle_s = 0.2
"""

COUNTER = """
import gc, json, os, signal, sys

counts = [0, 0]
before = 0

def count(frame, event, argument):
    if event == "call":
        counts[0] += 1
    elif event == "c_call":
        counts[1] += 1

def begin(*_):
    global before
    counts[:] = [0, 0]
    gc.collect()
    gc.disable()
    before = gc.get_count()[0]
    sys.setprofile(count)

def end(*_):
    sys.setprofile(None)
    counts.append(gc.get_count()[0] - before)
    gc.enable()
    with open(os.environ["COUNTS"] + ".new", "w") as file:
        json.dump(counts, file)
    os.rename(os.environ["COUNTS"] + ".new", os.environ["COUNTS"])

signal.signal(signal.SIGUSR1, begin)
signal.signal(signal.SIGWINCH, end)
"""


class Node:
    """A node of one process that counts its calls."""

    def __init__(self, source: Path, folder: Path) -> None:
        (folder / "worker.py").write_text(WORKER)
        (folder / "wrangler.toml").write_text(CONFIG)
        (folder / "roost.toml").write_text(NODE)
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(textwrap.dedent(COUNTER))
        self.counts = folder / "counts"
        environment = {**os.environ, "PYTHONPATH": f"{site}:{source}", "COUNTS": str(self.counts)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roost", "serve", folder, "--inline", "--port", "0", "--data", folder / "data"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = ""
        while "ready on" not in line:
            line = self.process.stdout.readline()
            assert line, "the node did not start"
        self.port = int(re.findall(r":(\d+)", line)[-1])

    def count(self, act: Callable[[], None], times: int) -> list[float]:
        """Calls in Python and in C, and containers that stay, for each of `times` acts."""
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)  # a signal has no answer
        for _ in range(times):
            act()
        self.process.send_signal(signal.SIGWINCH)
        while not self.counts.exists():
            time.sleep(0.01)
        counted = json.loads(self.counts.read_text())
        self.counts.unlink()
        return [round(each / times, 1) for each in counted]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Client:
    """A WebSocket that sends short texts and waits for each answer."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self.file: IO[bytes] = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def echo(self, text: str) -> None:
        data = text.encode()
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        self.socket.sendall(bytes([0x81, 0x80 | len(data)]) + mask + masked)
        head = self.file.read(2)
        assert self.file.read(head[1]) == data

    def close(self) -> None:
        self.socket.close()
        self.file.close()


def get(connection: socket.socket) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    while not connection.recv(65536).endswith(b"hello"):
        pass


def measure(source: Path) -> dict[str, list[float]]:
    """Calls in Python and in C, and containers that stay, by act."""
    with tempfile.TemporaryDirectory() as folder:
        node = Node(source, Path(folder))
        try:
            one = Client(node.port, "/one")
            one.echo("hello")
            found = {"an echo": node.count(lambda: one.echo("hello"), REPEAT)}
            found["a put and an echo"] = node.count(lambda: one.echo("put"), REPEAT)
            found["a call of another object"] = node.count(lambda: one.echo("call"), REPEAT)
            with socket.create_connection(("127.0.0.1", node.port)) as connection:
                get(connection)
                found["a GET"] = node.count(lambda: get(connection), REPEAT)
            found["an upgrade and its end"] = node.count(lambda: Client(node.port, "/one").close(), REPEAT)
            sleepers = [Client(node.port, f"/asleep{number}") for number in range(WAKES)]
            time.sleep(2.0)  # all sleep; what does not shows as fewer calls
            awake = iter(sleepers)
            found["a wake and an echo"] = node.count(lambda: next(awake).echo("hello"), WAKES)
            for client in (one, *sleepers):
                client.close()
            return found
        finally:
            node.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls of a message, a wake, an upgrade.")
    parser.add_argument("--base", metavar="COMMIT")
    base = parser.parse_args().base
    root = Path(__file__).resolve().parent.parent
    results = []
    if base:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", base, "src"], cwd=root, stdout=subprocess.PIPE, check=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            results.append(measure(Path(folder) / "src"))
    results.append(measure(root / "src"))
    for act in results[0]:
        figures = [
            f"{python:7.1f} Python {c:7.1f} C {stay:6.1f} stay" for python, c, stay in (each[act] for each in results)
        ]
        print(f"{act:28}" + "   ->  ".join(figures))


if __name__ == "__main__":
    main()
