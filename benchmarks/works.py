"""What is measured: P1 to P13, each a function that yields its figures. `run.py` prints and judges them.

All server processes share one core and the load has another. Where rounds matter, every server runs all the time and the
rounds are interleaved, each server once a round in turn, so that a slow minute of the machine is everybody's.
"""

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

from servers import (
    HERE,
    LOAD_CORE,
    ONLY_ECHOES,
    SERVERS,
    Server,
    available,
    free_port,
    kernel_bytes,
    load,
    roost,
    started,
    tool,
)

SPLIT, INLINE = "roost split", "roost inline"
IDLE_SOCKETS = 15_000
FEWER_IDLE = {"workerd": 9_000} | dict.fromkeys(("bun", "ws", "websockets", "aiohttp", "picows"), 5_000)
"""workerd needs two files a connection, and a process may open 20,000 here; the others' bytes each do not depend on it."""
IDLE_S = 60
MANY_SOCKETS, MANY_GATEWAYS, ROOM_SOCKETS = 100_000, 6, 1_000
HIBERNATED_S = 14  # everybody's objects are asleep after this
WAKES = 400  # a round, so that its p99 is not its slowest but one
FEEDS, TICKS_PER_S, SYMBOLS, SUBSCRIBERS, TICKER_S = 3, 1_000, 50, 1_000, 6


REAL_SERVERS = [name for name in SERVERS if name != ONLY_ECHOES]


@dataclass
class Bar:
    """What a server must reach: `factor` of `against`, or that figure itself. Whether more is better says the figure."""

    server: str
    factor: float
    against: str = ""


@dataclass
class Figure:
    """One row for each server: `samples` of each, one a round."""

    key: str
    title: str
    unit: str
    samples: dict[str, list[float]]
    more_is_better: bool = True
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Options:
    rounds: int
    seconds: float
    peers: list[str]

    def commands(self, *only):
        """Of the servers that were asked for, those that this work is for (by default all that do more than echo)."""
        return available([name for name in self.peers if name in (only or REAL_SERVERS)])


def rounds(options, names, sample, prepare=None, *, longer=(), commands=None):
    """Interleaved samples of each server (of `names`, or by `commands`); a server that fails is out, and said to be. Those
    of `longer`, whose bars are close to what a sample varies by, go on for as many rounds again."""
    with started(commands or options.commands(*names)) as servers:
        samples = {name: [] for name in servers}
        for turn in range(-1, options.rounds * (2 if longer else 1)):
            for name in [name for name in servers if turn < options.rounds or name in longer]:
                try:
                    if turn >= 0:
                        samples[name].append(sample(servers[name], turn))
                    elif prepare is not None:
                        prepare(servers[name])
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    print(f"  {name}: failed: {error}", flush=True)
                    servers.pop(name).stop()
                    samples.pop(name)
    return samples


# --- messages ------------------------------------------------------------------------------------------------------


def echo(options, key, title, depth, bars):
    def sample(server, turn, seconds=options.seconds):
        return load(server, "echo", "/echo/a", 100, 64, depth, seconds)["per_s"]

    samples = rounds(
        options, tuple(SERVERS), sample, lambda server: sample(server, 0, 1.0)
    )  # compilers and caches, ours too
    yield Figure(key, title, "messages/s", samples, bars=bars)


def p1(options):
    bars = [Bar(SPLIT, 0.6, "floor"), Bar(INLINE, 0.8, "floor")]
    yield from echo(options, "P1", "echo, 100 connections, 1 in flight", 1, bars)


def p2(options):
    bars = [Bar(INLINE, 1.0, "best peer")]
    yield from echo(options, "P2", "echo, 100 connections, 8 in flight", 8, bars)


def p3(options):
    def sample(server, turn, seconds=options.seconds):
        return load(server, "fan", "/fan/a", 1000, 64, seconds)["per_s"]

    samples = rounds(options, (), sample, lambda server: sample(server, 0, 0.5), longer=(SPLIT, INLINE, "workerd", "bun"))
    bars = [Bar(SPLIT, 0.9, "bun")]
    yield Figure("P3", "fan-out to 1,000 by the plain loop", "deliveries/s", samples, bars=bars)


def p6(options):
    def sample(server, turn):
        opened = load(server, "storm", f"/echo/storm{turn}", 2000)["open_per_s"]
        time.sleep(0.7)  # the closes of this round are not the next server's
        return opened

    names, compared = (SPLIT, INLINE, "workerd", "bun", "aiohttp"), (SPLIT, "workerd")
    samples = rounds(options, names, sample, lambda server: sample(server, -1), longer=compared)
    yield Figure("P6", "upgrades: worker fetch, object, 101", "upgrades/s", samples, bars=[Bar(SPLIT, 2.5, "workerd")])


def p7(options):
    def sample(server, turn, seconds=options.seconds):
        return load(server, "echo", "/echo/one", 1, 64, 1, seconds)["p50_us"]

    names, compared = (SPLIT, INLINE, "workerd", "bun", "floor"), (SPLIT, INLINE, "workerd")
    samples = rounds(options, names, sample, lambda server: sample(server, 0, 0.5), longer=compared)
    bars = [Bar(SPLIT, 1.5, "workerd"), Bar(INLINE, 0.5, "workerd")]
    yield Figure("P7", "round trip on 1 connection, p50", "us", samples, more_is_better=False, bars=bars)


def p9(options):
    def sample(server, turn, seconds=options.seconds):
        return load(server, "get", "/hello", 64, seconds, generator="httpload")["per_s"]

    samples = rounds(options, (SPLIT, INLINE, "workerd", "bun", "aiohttp"), sample, lambda server: sample(server, 0, 0.5))
    bars = [Bar(SPLIT, 1.5, "workerd"), Bar(INLINE, 2, "workerd")]
    yield Figure("P9", "HTTP fetch of a short text, 64 connections", "requests/s", samples, bars=bars)


# --- idleness ------------------------------------------------------------------------------------------------------


class Held:
    """Connections that somebody else keeps open."""

    def __init__(self, port, path, count, *, distinct=0, source=0, tls=False):
        """The first `distinct` numbers of a path with %d, if not `count` of them; from the address 127.0.0.2 + `source`."""
        environment = {"WSLOAD_FROM": str(source)} | ({"WSLOAD_MOD": str(distinct)} if distinct else {})
        environment |= {"WSLOAD_TLS": "1"} if tls else {}
        command = ["taskset", "-c", LOAD_CORE, tool("wsload"), "idle", str(port), path, str(count), "600"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )

    def wait_open(self):
        if not self._process.stdout.readline().startswith("open"):
            raise RuntimeError("not all connections opened")

    def close(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


OWN_OBJECTS = " with objects"  # marks a second server of a kind, whose sockets have an object each


def idle(options):
    """Bytes a connection, and percent of a core over `IDLE_S`; of all servers at once, as nothing here is timed.

    Those that have objects run twice: with all sockets in one object, and with an object for each.
    """
    commands = options.commands()
    for name in (SPLIT, INLINE, "workerd"):
        if name in commands:
            commands[name + OWN_OBJECTS] = commands[name]
    sizes, shares = {}, {}
    with contextlib.ExitStack() as held, started(commands) as servers:  # these end first: no storm of closes
        for server in servers.values():
            load(server, "echo", "/echo/warm", 10, 64, 1, 0.5)
        time.sleep(2)
        before = {name: server.pss_bytes() for name, server in servers.items()}
        counts = {name: FEWER_IDLE.get(name.removesuffix(OWN_OBJECTS), IDLE_SOCKETS) for name in servers}
        for name, server in list(servers.items()):
            try:
                path = "/echo/o%d" if name.endswith(OWN_OBJECTS) else "/echo/idle"
                connections = Held(server.port, path, counts[name])
                held.callback(connections.close)
                connections.wait_open()
            except RuntimeError as error:
                print(f"  {name}: failed: {error}", flush=True)
                servers.pop(name).stop()
        time.sleep(HIBERNATED_S + 2)
        began = {name: server.cpu_s() for name, server in servers.items()}
        for name, server in servers.items():
            sizes[name] = [(server.pss_bytes() - before[name]) / counts[name]]
        time.sleep(IDLE_S)
        for name, server in servers.items():
            shares[name] = [100 * (server.cpu_s() - began[name]) / IDLE_S]
    return sizes, shares


def p4(options):
    """P4, P5 and P10: they are about the same minute of idleness."""
    sizes, shares = idle(options)
    one_object = {name: size for name, size in sizes.items() if not name.endswith(OWN_OBJECTS)}
    own = {name.removesuffix(OWN_OBJECTS): size for name, size in sizes.items() if name not in one_object}
    title = f"{IDLE_SOCKETS:,} hibernated sockets in one object, a tag and 64 bytes each"
    yield Figure("P4", title, "bytes each", one_object, more_is_better=False, bars=[Bar(SPLIT, 700)])
    title = f"{IDLE_SOCKETS:,} hibernated objects with one socket each"
    yield Figure("P5", title, "bytes each", own, more_is_better=False, bars=[Bar(SPLIT, 1500)])
    idle_shares = {name: shares[name] for name in one_object}
    title = f"{IDLE_SOCKETS:,} idle sockets for {IDLE_S} s"
    yield Figure("P10", title, "% of a core", idle_shares, more_is_better=False, bars=[Bar(SPLIT, 0.3)])


def open_websocket(port, path):
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096) or b"HTTP/1.1 000 closed\r\n\r\n"
    if not head.startswith(b"HTTP/1.1 101"):
        raise RuntimeError(head.split(b"\r\n")[0].decode())
    return sock


def wake(sock):
    """Microseconds from a message to an object that sleeps until its reply."""
    began = time.perf_counter()
    sock.sendall(b"\x81\xc0\0\0\0\0" + b"w" * 64)
    if not sock.recv(4096):
        raise RuntimeError("a server closed a socket")
    return (time.perf_counter() - began) * 1e6


def p8(options):
    """Objects that have slept since they got their socket, each woken once by a message."""
    turns = range(3 * options.rounds)  # they take no time, and what the machine does besides is most of a p99
    p50, p99 = {}, {}
    with started(options.commands(SPLIT, INLINE, "workerd")) as servers, contextlib.ExitStack() as stack:
        sockets = {}
        for name, server in servers.items():
            load(server, "echo", "/echo/warm", 10, 64, 1, 1.0)
            sockets[name] = [open_websocket(server.port, f"/echo/w{number}") for number in range(WAKES * len(turns))]
            for sock in sockets[name]:
                stack.callback(sock.close)
        time.sleep(HIBERNATED_S)
        for turn in turns:
            for name in servers:
                taken = sorted(map(wake, sockets[name][turn * WAKES : (turn + 1) * WAKES]))
                p50.setdefault(name, []).append(statistics.median(taken))
                p99.setdefault(name, []).append(taken[int(len(taken) * 0.99)])
    for which, samples in (("p50", p50), ("p99", p99)):
        title = f"wake from hibernation to reply, {which}"
        yield Figure(f"P8 {which}", title, "us", samples, more_is_better=False, bars=[Bar(SPLIT, 1, "workerd")])


# --- the whole ------------------------------------------------------------------------------------------------------


def p11(options):
    latencies, lost = {}, {}
    for name in (SPLIT, INLINE):
        if name not in options.peers:
            continue
        server = Server(roost(*(["--inline"] if name == INLINE else []), app="ticker"))
        try:
            latencies[name], lost[name] = ticker(server)
        finally:
            server.stop()
    title = f"ticker: {TICKS_PER_S:,} ticks/s of {FEEDS} feeds to {SUBSCRIBERS:,} subscribers, p99 to the client"
    yield Figure("P11", title, "ms", latencies, more_is_better=False, bars=[Bar(SPLIT, 20)])
    title = "ticker: pushes lost, doubled or out of order"
    yield Figure("P11 lost", title, "pushes", lost, more_is_better=False, bars=[Bar(SPLIT, 0)])


def ticker(server):
    """The p99 from the feed's sending to the subscriber's reading, and how many pushes did not arrive once and in order."""
    port = free_port()
    arguments = [port, FEEDS, TICKS_PER_S, SYMBOLS, TICKER_S]
    feed = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, sys.executable, HERE / "feed.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
    arguments = ["hold", server.port, SUBSCRIBERS, SYMBOLS, TICKER_S + 4]
    subscribers = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, tool("subscribers"), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    try:
        feed.stdout.readline()
        if not subscribers.stdout.readline().startswith("open"):
            raise RuntimeError("not all subscribers could connect")
        feeds = "&".join(f"feed=http://127.0.0.1:{port}/{number}" for number in range(FEEDS))
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(f"GET /start?{feeds} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            if b" 200 " not in sock.recv(4096):
                raise RuntimeError("the ticker did not start")
        sent = json.loads(feed.stdout.readline())
        seen = json.loads(subscribers.stdout.readline())
    finally:
        for process in (feed, subscribers):
            process.kill()
            process.wait()
            process.stdout.close()
    missing = sum(abs(count - seen["counts"][symbol]) for symbol, count in sent.items())
    print(f"    ({seen['received']:,} pushes, p50 {seen['p50_us'] / 1000:.1f} ms, longest {seen['max_us'] / 1000:.1f} ms)")
    return [seen["p99_us"] / 1000], [missing + seen["gaps"] + seen["uneven"]]


def p12(options):
    """A node on an empty data folder, until its first answer; and what importing the command costs of it."""
    taken, imports = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as data:
            port = free_port()
            command = [sys.executable, "-m", "roost", "serve", HERE / "apps/room", "--port", port, "--data", data]
            began = time.perf_counter()
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                while not answers(port):
                    if time.perf_counter() - began > 20:
                        raise RuntimeError("no answer after 20 s")
                    time.sleep(0.002)
                taken.append((time.perf_counter() - began) * 1000)
            finally:
                process.terminate()
                process.wait()
        code = "import time; t = time.perf_counter(); import roost.cli.main; print((time.perf_counter() - t) * 1000)"
        imports.append(float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    yield Figure("P12", "roost serve to the first answer", "ms", {SPLIT: taken}, False, [Bar(SPLIT, 1000)])
    yield Figure("P12 import", "import of the command", "ms", {SPLIT: imports}, False, [Bar(SPLIT, 150)])


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return sock.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def p13(options):
    """Rooms of a thousand, over several gateways; each of them may open 20,000 files here."""
    with contextlib.ExitStack() as stack, started({SPLIT: roost("--gateways", MANY_GATEWAYS)}) as servers:
        server = servers[SPLIT]
        time.sleep(1.5)
        before, kernel = server.pss_bytes(), kernel_bytes()
        began = time.monotonic()
        each = -(-MANY_SOCKETS // MANY_GATEWAYS)
        holders = []
        for number in range(MANY_GATEWAYS):
            holders.append(Held(server.port, f"/echo/m{number}-%d", each, distinct=each // ROOM_SOCKETS, source=2 * number))
            stack.callback(holders[-1].close)
        for holder in holders:
            holder.wait_open()
        opened_s = time.monotonic() - began
        time.sleep(HIBERNATED_S + 2)
        count = each * MANY_GATEWAYS
        ours = (server.pss_bytes() - before) / count
        theirs = (kernel_bytes() - kernel) / 2 / count
        cpu = server.cpu_s()
        time.sleep(10)
        share = (server.cpu_s() - cpu) * 10
        round_trip = load(server, "echo", "/echo/besides", 1, 64, 1, 1.0)["p50_us"]
    notes = [
        f"{count:,} opened in {opened_s:.0f} s; {ours:,.0f} bytes of processes and {theirs:,.0f} of the kernel each "
        "(half of what it took, as both ends are on this machine)",
        f"{share:.2f} % of a core while idle; round trip beside them {round_trip:.0f} us",
    ]
    for note in notes:
        print(f"    ({note})")
    title = f"{MANY_SOCKETS:,} hibernated sockets, {MANY_GATEWAYS} gateways, with the kernel's memory"
    yield Figure("P13", title, "bytes each", {SPLIT: [ours + theirs]}, False, [Bar(SPLIT, 5000)], notes)


WORKS = {
    "P1": p1, "P2": p2, "P3": p3, "P4": p4, "P5": p4, "P6": p6, "P7": p7, "P8": p8, "P9": p9, "P10": p4, "P11": p11,
    "P12": p12, "P13": p13,
}  # fmt: skip
