"""What else is measured: sizes, compression, TLS, and waking to a write. `make bench-sizes`; `run.py` prints and judges.

Only peers take part that can do the work. As in `works.py`: all server processes on one core, the load on another, rounds
interleaved, every message with a text and a mask of its own.
"""

import contextlib
import statistics
import subprocess
import time

import storage
from servers import CACHE, SERVERS, available, load, roost, started
from works import HIBERNATED_S, INLINE, SPLIT, WAKES, Bar, Figure, Held, open_websocket, rounds, wake

KIB = 1024
PYTHON_PEERS = ("websockets", "aiohttp", "picows", "uvicorn")
COMPRESS = ("bun", "ws", "websockets", "aiohttp", "uvicorn")  # and Roost; workerd and picows as they are here do not
IDLE_TLS = 3_000
LARGE_BARS = (Bar(SPLIT, 0.8, "best Python peer"), Bar(INLINE, 1.0, "best Python peer"))


def echo(key, size, connections, *, binary):
    def work(options):
        kind = "binary" if binary else "text"

        def sample(server, turn, seconds=options.seconds):
            return load(server, "echo", "/echo/a", connections, size, 1, seconds, binary=int(binary))["per_s"]

        samples = rounds(options, tuple(SERVERS), sample, lambda server: sample(server, 0, 0.5))
        bars = [] if size < 64 * KIB else list(LARGE_BARS)
        yield Figure(
            key, f"echo of {size // KIB:,} KiB {kind}, {connections} connections", "messages/s", samples, bars=bars
        )

    return work


def broadcast(options):
    def sample(server, turn, seconds=2 * options.seconds):
        return load(server, "fan", "/fan/a", 1000, 16 * KIB, seconds)["per_s"]

    samples = rounds(options, tuple(SERVERS), sample, lambda server: sample(server, 0, 0.5))
    yield Figure("F16K", "fan-out of 16 KiB to 1,000", "deliveries/s", samples)


# --- compression and TLS --------------------------------------------------------------------------------------------


def with_environment(options, names, **variables):
    """The commands of those servers, each started with these variables."""
    pairs = [f"{name}={value}" for name, value in variables.items()]

    def made(command):
        return lambda port: ["env", *pairs, *command(port)]

    found = available([name for name in options.peers if name in names])
    return {name: made(command) for name, command in found.items()}


def of_each(options, commands, sample):
    """Samples of servers that are started by these commands."""
    return rounds(options, (), lambda server, turn: sample(server), sample, commands=commands)


def compressed(options):
    commands = with_environment(options, (SPLIT, INLINE, *COMPRESS), PEER_DEFLATE=1)

    def echoes(server):
        report = load(server, "echo", "/echo/z", 50, 4 * KIB, 1, options.seconds, deflate=1)
        if report["compressed"] < report["received"]:
            raise RuntimeError("it does not compress what it sends")
        return report["per_s"]

    def fan(server):
        return load(server, "fan", "/fan/z", 1000, 4 * KIB, 2 * options.seconds, deflate=1)["per_s"]

    yield Figure("Z4K", "compressed echo of 4 KiB, 50 connections", "messages/s", of_each(options, commands, echoes))
    yield Figure("ZF4K", "compressed fan-out of 4 KiB to 1,000", "deliveries/s", of_each(options, commands, fan))


def certificate():
    """A folder with a certificate for localhost that signs itself, and its key."""
    folder = CACHE / "tls"
    if not (folder / "cert.pem").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out",
             folder / "cert.pem", "-days", "3650", "-subj", "/CN=localhost"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def tls(options):
    folder = certificate()
    files = ("--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem")
    commands = with_environment(options, COMPRESS, PEER_TLS=folder)
    for name, more in ((SPLIT, ()), (INLINE, ("--inline",))):
        if name in options.peers:
            commands[name] = roost(*files, *more)

    def echoes(server):
        return load(server, "echo", "/echo/t", 100, 64, 1, options.seconds, tls=1)["per_s"]

    yield Figure("T64", "TLS echo of 64 bytes, 100 connections", "messages/s", of_each(options, commands, echoes))
    sizes = {}
    with contextlib.ExitStack() as held, started(commands) as servers:
        for server in servers.values():
            load(server, "echo", "/echo/warm", 10, 64, 1, 0.5, tls=1)
        for name, server in list(servers.items()):
            try:
                before = server.pss_bytes()
                connections = Held(server.port, "/echo/idle", IDLE_TLS, tls=True)
                held.callback(connections.close)
                connections.wait_open()
                time.sleep(HIBERNATED_S)
                sizes[name] = [(server.pss_bytes() - before) / IDLE_TLS]
            except RuntimeError as error:
                print(f"  {name}: failed: {error}", flush=True)
                servers.pop(name).stop()
    yield Figure("TI", f"{IDLE_TLS:,} idle sockets over TLS", "bytes each", sizes, more_is_better=False)


# --- storage ----------------------------------------------------------------------------------------------------------


def wakes(options):
    """Objects that sleep, each woken by a message that reads a key, writes it durably, and is answered."""
    servers = {SPLIT: storage.roost(), INLINE: storage.roost("--inline"), "workerd": storage.workerd()}
    p50, p99 = {}, {}
    commands = {name: command for name, command in servers.items() if command and name in options.peers}
    with started(commands) as running, contextlib.ExitStack() as stack:
        sockets = {}
        for name, server in running.items():
            sockets[name] = [open_websocket(server.port, f"/ws/w{number}") for number in range(WAKES)]
            for sock in sockets[name]:
                stack.callback(sock.close)
        for turn in range(-1, max(2, options.rounds // 2)):
            time.sleep(HIBERNATED_S)
            for name in running:
                taken = sorted(map(wake, sockets[name]))
                if turn >= 0:  # the first makes the files
                    p50.setdefault(name, []).append(statistics.median(taken))
                    p99.setdefault(name, []).append(taken[int(len(taken) * 0.99)])
    for which, samples in (("p50", p50), ("p99", p99)):
        title = f"wake, read, durable write, reply, {which}"
        yield Figure(f"W {which}", title, "us", samples, more_is_better=False, bars=[Bar(SPLIT, 1, "workerd")])


SIZES = {
    f"E{name}{kind}": echo(f"E{name} {'binary' if kind == 'b' else 'text'}", size, connections, binary=kind == "b")
    for name, size, connections in (("1K", KIB, 100), ("64K", 64 * KIB, 16), ("1M", KIB * KIB, 4))
    for kind in ("t", "b")
} | {"F16K": broadcast, "Z4K": compressed, "T64": tls, "W": wakes}
