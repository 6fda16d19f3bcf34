"""How the cost of a message grows: `python benchmarks/growth.py`, a table for docs/design/performance.md.

Processor time of gateways and hosts a message (user and kernel), all of them on one core, the load on the other. Only
Roost, split; what it does beside others is `run.py`'s.
"""

import contextlib
import os
import shutil
import socket
import struct
import time
from pathlib import Path

from servers import CACHE, HERE, LOAD_CORE, Server, load, roost
from works import Held

TICK = os.sysconf("SC_CLK_TCK")
SECONDS = 2.0


def cpu_by_role(server):
    """Seconds of processor so far: of the gateways, and of the hosts."""
    used = {"gateway": 0.0, "host": 0.0}
    for pid in server.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        if "roost.node.child" in Path(f"/proc/{pid}/cmdline").read_text():
            role = "host" if "ROOST_ALLOCATOR=1" in Path(f"/proc/{pid}/environ").read_text() else "gateway"
            used[role] += (int(fields[11]) + int(fields[12])) / TICK
    return used


def measured(server, what, run):
    """One row: `run` returns how many messages (or deliveries) a second it saw, and for how long the server was busy."""
    run()  # warm
    before = cpu_by_role(server)
    began = time.monotonic()
    per_s, busy_s = run()
    after = cpu_by_role(server)
    count = per_s * (busy_s or time.monotonic() - began)
    gateway, host = (1e6 * (after[role] - before[role]) / count for role in ("gateway", "host"))
    print(f"| {what} | {per_s:,.0f} | {gateway:,.1f} | {host:,.1f} | {gateway + host:,.1f} |", flush=True)


def echo(server, connections, size=64, depth=1, path="/echo/a", objects=0):
    def run():
        environment = {"WSLOAD_MOD": str(objects)} if objects else {}
        with contextlib.ExitStack() as stack:
            for name, value in environment.items():
                os.environ[name] = value
                stack.callback(os.environ.pop, name)
            seen = load(server, "echo", path, connections, size, depth, SECONDS)
        return seen["per_s"], SECONDS + 0.3  # its first 0.3 s are not counted by it, but by us

    return run


def fan(server, connections):
    def run():
        return load(server, "fan", f"/fan/f{connections}", connections, 64, SECONDS)["per_s"], SECONDS

    return run


def large(server, size):
    """One connection in lockstep, by a client of our own: wsload's messages are at most 64 KiB."""

    def run():
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(
                b"GET /echo/large HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            while not sock.recv(65536).endswith(b"\r\n\r\n"):
                pass
            frame = b"\x81\xff" + struct.pack("!Q", size) + bytes(4) + b"x" * size
            answer = bytearray(size + 10)
            count, began = 0, time.monotonic()
            while time.monotonic() < began + SECONDS:
                sock.sendall(frame)
                missing = memoryview(answer)
                while missing:
                    missing = missing[sock.recv_into(missing) :]
                count += 1
            taken = time.monotonic() - began
            return count / taken, taken

    return run


def paced(stack, rates):
    """Messages at random moments, whatever is answered: what a gateway gains and costs by staying awake between them."""
    servers = {}
    for mode in ("split", "inline"):
        for polling_us in (0, 100):
            folder = CACHE / f"room-{polling_us}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(HERE / "apps" / "room", folder)
            (folder / "roost.toml").write_text(f"[network]\nbusy_poll_us = {polling_us}\n")
            arguments = ["--inline"] if mode == "inline" else []
            servers[mode, polling_us] = serving(stack, *arguments, app=folder)
    for rate in rates:
        cells = []
        for server in servers.values():
            before = server.cpu_s()
            seen = load(server, "pace", "/echo/a", 50, 64, rate, SECONDS)
            share = 100 * (server.cpu_s() - before) / (SECONDS + 0.3)
            cells.append(f"{seen['p50_us']:.0f} / {seen['p99_us']:.0f} µs, {share:.0f} %")
        print(f"| {rate:,} | {' | '.join(cells)} |", flush=True)


def section(title):
    print(f"\n{title}\n\n| | a second | gateway µs | host µs | both |\n|---|---|---|---|---|", flush=True)


def serving(stack, *arguments, hosts=1, app="room"):
    server = Server(roost(*arguments, hosts=hosts, app=app))
    stack.callback(server.stop)
    load(server, "echo", "/echo/warm", 100, 64, 1, 1.0)
    return server


def main():
    CACHE.mkdir(exist_ok=True)
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # with the load
    with contextlib.ExitStack() as stack:
        server = serving(stack)
        section("Echo, 64 bytes, 1 in flight, one object: sockets")
        for connections in (1, 10, 100, 1000, 5000):
            measured(server, f"{connections:,}", echo(server, connections))
        section("The same, 100 sockets: in flight")
        for depth in (1, 2, 8, 32):
            measured(server, f"{depth}", echo(server, 100, depth=depth))
        section("The same, 1,000 sockets: objects")
        for objects in (1, 10, 100, 1000):
            run = echo(server, 1000, path="/echo/n%d", objects=objects)
            measured(server, f"{objects:,}", run)
        section("Echo, 10 sockets: size of a message")
        for size in (64, 1024, 16 * 1024, 64 * 1024 - 1):
            measured(server, f"{size:,}", echo(server, 10, size=size))
        section("Echo, 1 socket in lockstep: size of a message")
        for size in (128 * 1024, 512 * 1024, 1024 * 1024):
            measured(server, f"{size:,}", large(server, size))
        section("Fan-out, 64 bytes, by the plain loop: sockets; each a delivery")
        for connections in (10, 100, 1000, 5000):
            measured(server, f"{connections:,}", fan(server, connections))
        section("Echo, 100 sockets, beside idle sockets")
        for idle in (0, 15_000):
            with contextlib.ExitStack() as held:
                if idle:
                    others = Held(server.port, "/echo/idle", idle)
                    held.callback(others.close)
                    others.wait_open()
                    time.sleep(14)
                measured(server, f"{idle:,}", echo(server, 100))
    print("\nEcho, 50 sockets, messages at random moments: p50 / p99, share of a core\n")
    print("| a second | split, busy_poll_us 0 | split, 100 | inline, 0 | inline, 100 |\n|---|---|---|---|---|", flush=True)
    with contextlib.ExitStack() as stack:
        paced(stack, (1_000, 5_000, 10_000, 20_000, 30_000))
    section("Echo, 1,000 sockets in 100 objects: hosts and gateways, still on one core")
    for hosts, gateways in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 4)):
        with contextlib.ExitStack() as stack:
            server = serving(stack, "--gateways", gateways, hosts=hosts)
            run = echo(server, 1000, path="/echo/n%d", objects=100)
            measured(server, f"{hosts} hosts, {gateways} gateways", run)


if __name__ == "__main__":
    main()
