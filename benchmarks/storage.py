"""Storage, beside workerd on local disk, in one run:

    python benchmarks/storage.py [--only WORK,…] [--rounds N] [--seconds S] [--json FILE]

The same source on both, each with all of its processes on one core and its files on the same disk; rounds are interleaved
and medians are shown. Both promise that a reply leaves only after the write it tells of is durable.
"""

import argparse
import json
import selectors
import shutil
import socket
import statistics
import sys
import time
from pathlib import Path

from servers import CACHE, HERE, Server, load, native, npm

OBJECTS_TO_WAKE = 200


def roost(*arguments):
    def command(port):
        app = HERE / "apps" / "store"
        return [sys.executable, "-m", "roost", "serve", app, "--port", port, "--data", data(port), "--hosts", 1, *arguments]

    return command


def workerd():
    binary = native(npm("workerd"), "@cloudflare/workerd-*/bin/workerd")
    config = HERE / "peers" / "workerd-store" / "config.capnp"
    return binary and (
        lambda port: [
            binary, "serve", config, "--socket-addr", f"http=127.0.0.1:{port}", "--directory-path", f"disk={data(port)}",
        ]
    )  # fmt: skip


def data(port):
    folder = CACHE / f"data-{port}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


SERVERS = {"roost split": lambda: roost(), "roost inline": lambda: roost("--inline"), "workerd": workerd}


class Client:
    """One keep-alive connection."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def ask(self, path):
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def read(self):
        """Whether a whole answer is here; more is read once."""
        self.buffer += self.sock.recv(65536)
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        lower = head.lower()
        if b"content-length: " in lower:
            length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(rest) < length:
                return False
        elif not rest.endswith(b"0\r\n\r\n"):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered {head[:60]!r}")
        self.buffer = b""
        return True

    def get(self, path):
        self.ask(path)
        while not self.read():
            pass


def http_rate(server, path, connections, seconds):
    """Requests a second over keep-alive connections, one in flight each; `%d` in the path is the connection's number."""
    selector = selectors.DefaultSelector()
    for number in range(connections):
        client = Client(server.port)
        selector.register(client.sock, selectors.EVENT_READ, (client, path.replace("%d", str(number))))
        client.ask(path.replace("%d", str(number)))
    count = 0
    start = time.perf_counter()
    counting_from = start + 1.0  # warm-up
    end = counting_from + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(1):
            client, its_path = key.data
            if client.read():
                count += now >= counting_from
                client.ask(its_path)
    for key in list(selector.get_map().values()):
        key.fileobj.close()
    selector.close()
    return count / seconds


def ws_rate(server, path, connections, seconds):
    load(server, "echo", path, connections, 64, 1, 1)
    return load(server, "echo", path, connections, 64, 1, seconds)["per_s"]


def wake(server, seconds):
    """Objects a second, woken from their files by a request that reads one key: after a restart, all are asleep."""
    client = Client(server.port)
    for number in range(OBJECTS_TO_WAKE):
        client.get(f"/count/wake-{number}")
    server.restart()
    client = Client(server.port)
    client.get("/read/other")
    start = time.perf_counter()
    for number in range(OBJECTS_TO_WAKE):
        client.get(f"/read/wake-{number}")
    return OBJECTS_TO_WAKE / (time.perf_counter() - start)


def list_keys(server, seconds):
    Client(server.port).get("/fill/a")
    return http_rate(server, "/list/a", 2, seconds)


WORKS = {
    "http1": ("durable counter over HTTP, 1 object, 16 connections, /s", lambda s, t: http_rate(s, "/count/a", 16, t)),
    "http64": ("durable counter over HTTP, 64 objects, 64 connections, /s", lambda s, t: http_rate(s, "/count/n%d", 64, t)),
    "ws1": ("durable counter over hibernated sockets, 1 object, 16 sockets, /s", lambda s, t: ws_rate(s, "/ws/a", 16, t)),
    "ws64": (
        "durable counter over hibernated sockets, 64 objects, 64 sockets, /s",
        lambda s, t: ws_rate(s, "/ws/n%d", 64, t),
    ),
    "wake": ("wake and read, objects/s", wake),
    "list": ("list of 10,000 keys, /s", list_keys),
    "insert": ("1,000 sql.exec inserts in one event, events/s", lambda s, t: http_rate(s, "/insert/a", 1, t)),
}


def main():
    parser = argparse.ArgumentParser(description="Storage of Roost and workerd, side by side.")
    parser.add_argument("--only", default=",".join(WORKS))
    parser.add_argument("--peers", default=",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    commands = {name: command for name in options.peers.split(",") if (command := SERVERS[name]())}
    figures = {}
    for work in options.only.split(","):
        title, measure = WORKS[work]
        print(f"{title}: {options.rounds} round(s)", flush=True)
        samples = figures[work] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                server = Server(command)
                try:
                    samples[name].append(measure(server, options.seconds))
                    print(f"  {name}: {samples[name][-1]:,.0f}", flush=True)
                except (RuntimeError, OSError) as error:
                    print(f"  {name}: failed: {error}", flush=True)
                finally:
                    server.stop()
                    for leftover in CACHE.glob("data-*"):
                        shutil.rmtree(leftover, ignore_errors=True)
    print("\n| work | server | median | spread | ÷ workerd |\n|---|---|---|---|---|")
    for work, samples in figures.items():
        reference = statistics.median(samples.get("workerd") or [0])
        for name, values in samples.items():
            if values:
                median = statistics.median(values)
                ratio = f"{median / reference:.2f}" if reference else ""
                print(f"| {WORKS[work][0]} | {name} | {median:,.1f} | {min(values):,.1f}-{max(values):,.1f} | {ratio} |")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
