"""Two checkouts of Roost through the same work, interleaved on the same cores: what a change did to its speed.

    make compare BASE=<commit> ROWS=P1,P3 [PAIRS=20] [MODES=split,inline]

Each pair is a sample of the base and one of this tree, in an order that alternates, taken right after each other from
servers that both run. Shown is the median of the pairs' ratios with its 95 % interval (by order statistics, without
assuming any distribution), better being more. "At least 0.98 of before" means that the interval reaches 0.98: then the exit
code is 0, else 1. This tree is as it lies here, with what is not committed; both run on this environment's libraries.
"""

import argparse
import contextlib
import functools
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from servers import CACHE, HERE, LOAD_CORE, Server, load
from works import HIBERNATED_S, WAKES, Held, open_websocket, wake

ROOT = HERE.parent
GOAL = 0.98
MODES = {"split": ("--hosts", "1"), "inline": ("--inline",)}


def echo(depth):
    return lambda server, seconds: load(server, "echo", "/echo/a", 100, 64, depth, seconds)["per_s"]


def fan(server, seconds):
    return load(server, "fan", "/fan/a", 1000, 64, seconds)["per_s"]


def round_trips(server, seconds):
    return 1e6 / load(server, "echo", "/echo/one", 1, 64, 1, seconds)["p50_us"]


def requests(server, seconds):
    return load(server, "get", "/hello", 64, seconds, generator="httpload")["per_s"]


def counter(path, sockets):
    return lambda server, seconds: load(server, "echo", path, sockets, 64, 1, seconds)["per_s"]


IDLE_OBJECTS = 10_000  # of a sample, each with a socket


def sleepers(servers, samples, stack):
    """Sockets of objects that have gone to sleep by the time this returns, as many as `samples` take; by server."""
    sockets = {}
    for server in servers:
        sockets[server] = [open_websocket(server.port, f"/echo/w{number}") for number in range(WAKES * samples)]
        for sock in sockets[server]:
            stack.callback(sock.close)
    time.sleep(HIBERNATED_S)
    return sockets


def wakes(server, _seconds, prepared):
    taken = [wake(prepared[server].pop()) for _ in range(WAKES)]
    return 1e6 / statistics.median(taken)


def idle_objects(server, _seconds):
    """Of a server that has just started, as what others have left would be used again and not counted, and behind the first
    5,000: what those take depends on what its start had left."""
    server.restart()
    with contextlib.ExitStack() as stack:
        for path, count in (("/echo/first%d", 5_000), ("/echo/o%d", IDLE_OBJECTS)):
            before = server.pss_bytes()
            connections = Held(server.port, path, count)
            stack.callback(connections.close)
            connections.wait_open()
            time.sleep(HIBERNATED_S + 2)
        return 1e6 * IDLE_OBJECTS / (server.pss_bytes() - before)


class Row(NamedTuple):
    """One sample is `sample(server, seconds)`, more is better; or, with what `prepare(servers, samples, stack)` made of
    the running servers before the first, `sample(server, seconds, prepared=…)`."""

    app: str
    title: str
    sample: object
    prepare: object = None
    is_warmed: bool = True  # by a sample before the first


ROWS = {
    "P1": Row("room", "echo, 1 in flight, messages/s", echo(1)),
    "P2": Row("room", "echo, 8 in flight, messages/s", echo(8)),
    "P3": Row("room", "fan-out to 1,000, deliveries/s", fan),
    "P5": Row("room", "sleeping objects with one socket each, objects/MB", idle_objects, is_warmed=False),
    "P7": Row("room", "round trips on 1 connection, 1/p50", round_trips),
    "P8": Row("room", "wakes from hibernation to reply, 1/p50", wakes, sleepers),
    "P9": Row("room", "HTTP, requests/s", requests),
    "S1": Row("store", "durable counter, 1 object, 16 sockets, messages/s", counter("/ws/a", 16)),
    "S64": Row("store", "durable counters, 64 objects, messages/s", counter("/ws/n%d", 64)),
}


def checkout(commit):
    """The base's source, in a work tree of its own."""
    name = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if name.returncode:
        sys.exit(f"compare: {commit} is no commit here")
    folder = CACHE / "compare" / name.stdout.strip()[:12]
    if not (folder / "src").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", name.stdout.strip(), "src"], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def command(source, app, mode):
    def made(port):
        data = CACHE / f"data-{port}"
        serve = ["-m", "roost", "serve", HERE / "apps" / app, "--port", port, "--data", data, *MODES[mode]]
        return ["env", f"PYTHONPATH={source / 'src'}", sys.executable, *serve]

    return made


def interval(ratios):
    """The 95 % interval of the median: the ordered ratios between which it lies with that chance (binomial)."""
    ordered, count = sorted(ratios), len(ratios)
    below = 0.0
    outside = -1
    while below + math.comb(count, outside + 1) / 2**count <= 0.025:
        outside += 1
        below += math.comb(count, outside) / 2**count
    first = max(outside, 0)
    return ordered[first], ordered[count - 1 - first]


def compare(row, mode, base, pairs, seconds):
    """Whether the row reaches the goal; prints its line."""
    app, title, sample, prepare, is_warmed = ROWS[row]
    with contextlib.ExitStack() as stack:
        servers = []
        for source in (base, ROOT):
            servers.append(Server(command(source, app, mode)))
            stack.callback(servers[-1].kill)
        if prepare:
            sample = functools.partial(sample, prepared=prepare(servers, pairs + 1, stack))
        for server in servers if is_warmed else ():
            sample(server, 1.0)  # warm
        ratios, rates = [], ([], [])
        for pair in range(pairs):
            taken = [0.0, 0.0]
            for which in (0, 1) if pair % 2 else (1, 0):
                taken[which] = sample(servers[which], seconds)
                rates[which].append(taken[which])
            ratios.append(taken[1] / taken[0])
    low, high = interval(ratios)
    reached = high >= GOAL
    print(
        f"{row} {mode}: {title}: {statistics.median(rates[0]):,.0f} -> {statistics.median(rates[1]):,.0f};"
        f" ratio {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] of {pairs} pairs:"
        f" {'reaches' if reached else 'MISSES'} {GOAL}",
        flush=True,
    )
    return reached


def main():
    parser = argparse.ArgumentParser(description="What a change did to the speed.")
    parser.add_argument("--base", required=True, help="a commit")
    parser.add_argument("--rows", default="P1,P3", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a sample")
    options = parser.parse_args()
    for given, known in ((options.rows, ROWS), (options.modes, MODES)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.pairs < 6:
        parser.error("an interval needs at least 6 pairs")
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = checkout(options.base)
    missed = []
    try:
        for row in options.rows.split(","):
            for mode in options.modes.split(","):
                if not compare(row, mode, base, options.pairs, options.seconds):
                    missed.append(f"{row} {mode}")
    finally:
        for leftover in Path(CACHE).glob("data-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    if missed:
        print(f"missed: {', '.join(missed)}: run those once more with PAIRS={2 * options.pairs}, then profile")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
