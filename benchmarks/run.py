"""Roost and its peers through the same work, in one run: `make bench`, or

    python benchmarks/run.py [--only WORK,…] [--peers NAME,…] [--rounds N] [--seconds S] [--json FILE]

Every server has all of its processes on one core and the load generator has another. Rounds are interleaved (each server
once a round, in turn) and medians are shown, so that a slow minute of the machine is everybody's. Absolute figures are
noise on a shared machine; the ratios count. Roost serves a hibernating Durable Object with its default settings; workerd
the same in JavaScript; the others, which have no objects, a plain handler.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
NPM_PEERS = {"workerd": "1.20261117.1", "bun": "1.4.5", "ws": "8.23.0"}
SERVER_CORE, LOAD_CORE = "0", "1"
IDLE_SOCKETS = 15_000
WARM_UP_S = 2.0


def tool(name):
    """wsload, compiled once."""
    binary = CACHE / name
    source = HERE / f"{name}.c"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-o", binary, source], check=True)
    return str(binary)


def npm(package):
    """Install a peer from npm under .cache; None if it cannot be had."""
    folder = CACHE / "npm"
    if not (folder / "node_modules" / package).exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder)]
        wanted = f"{package}@{NPM_PEERS[package]}"
        if shutil.which("npm") is None or subprocess.run([*command, wanted], check=False).returncode:
            return None
    return folder / "node_modules"


def native(modules, pattern):
    """The binary that an npm package's platform package ships."""
    found = sorted(modules.glob(pattern)) if modules else []
    return str(found[0]) if found else None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def roost(*arguments):
    def command(port):
        app = HERE / "apps" / "room"
        data = CACHE / f"data-{port}"
        return [sys.executable, "-m", "roost", "serve", app, "--port", port, "--data", data, "--hosts", 1, *arguments]

    return command


def workerd():
    binary = native(npm("workerd"), "@cloudflare/workerd-*/bin/workerd")
    config = HERE / "peers" / "workerd" / "config.capnp"
    return binary and (lambda port: [binary, "serve", config, "--socket-addr", f"http=127.0.0.1:{port}"])


def bun():
    binary = native(npm("bun"), "bun/bin/bun.exe")
    return binary and (lambda port: [binary, HERE / "peers" / "bun" / "server.js", port])


def node_ws():
    modules = npm("ws")
    if modules is None or shutil.which("node") is None:
        return None
    return lambda port: ["env", f"NODE_PATH={modules}", "node", HERE / "peers" / "ws" / "server.js", port]


def python_peer(name):
    return lambda port: [sys.executable, HERE / "peers" / name / "server.py", port]


SERVERS = {
    "roost split": lambda: roost(),
    "roost inline": lambda: roost("--inline"),
    "workerd": workerd,
    "bun": bun,
    "ws": node_ws,
    "websockets": lambda: python_peer("websockets"),
    "aiohttp": lambda: python_peer("aiohttp"),
}


class Server:
    """A running server and its children."""

    def __init__(self, command):
        self.port = free_port()
        self._command = ["taskset", "-c", SERVER_CORE, *map(str, command(self.port))]
        self._start()

    def _start(self):
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.stop()
                    raise RuntimeError("did not start") from None
                time.sleep(0.05)
        time.sleep(0.5)

    def restart(self):
        self.stop()
        self._start()

    def pids(self):
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                queue += map(int, task.read_text().split())
        return found

    def pss_bytes(self):
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def cpu_s(self):
        total = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def load(server, *arguments):
    command = ["taskset", "-c", LOAD_CORE, tool("wsload"), arguments[0], server.port, *arguments[1:]]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1] if result.stderr else "wsload failed")
    return json.loads(result.stdout.splitlines()[-1])


def echo(server, seconds, depth):
    load(server, "echo", "/echo/a", 100, 64, depth, WARM_UP_S)  # compilers and caches of every server, ours too
    return load(server, "echo", "/echo/a", 100, 64, depth, seconds)["per_s"]


def fan(server, seconds):
    load(server, "fan", "/fan/a", 1000, 64, WARM_UP_S)
    return load(server, "fan", "/fan/a", 1000, 64, seconds)["per_s"]


def idle(server, seconds):
    """Memory growth per idle connection, after objects had time to hibernate. Also prints the idle CPU."""
    load(server, "echo", "/echo/warm", 10, 64, 1, 1)
    time.sleep(14)
    before = server.pss_bytes()
    holder = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, tool("wsload"), "idle", str(server.port), "/echo/idle", str(IDLE_SOCKETS), "120"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if not holder.stdout.readline().startswith("open"):
            raise RuntimeError("not all connections opened")
        time.sleep(16)
        after = server.pss_bytes()
        start = server.cpu_s()
        time.sleep(30)
        used = server.cpu_s() - start
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    print(f"    ({used / 30:.2%} of a core over 30 s of idleness)", flush=True)
    return (after - before) / IDLE_SOCKETS


WORKS = {
    "echo1": ("echo, 100 connections, 1 in flight, messages/s", lambda server, s: echo(server, s, 1)),
    "echo8": ("echo, 100 connections, 8 in flight, messages/s", lambda server, s: echo(server, s, 8)),
    "fan": ("fan-out to 1,000, deliveries/s", fan),
    "idle": (f"{IDLE_SOCKETS:,} idle connections, bytes each", idle),
}


def main():
    parser = argparse.ArgumentParser(description="Roost and its peers, side by side.")
    parser.add_argument("--only", default=",".join(WORKS))
    parser.add_argument("--peers", default=",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    commands = {}
    for name in options.peers.split(","):
        commands[name] = SERVERS[name]()
        if not commands[name]:
            print(f"{name}: missing (npm or node is not here, or the package cannot be installed)")
    figures = {}
    for work in options.only.split(","):
        title, measure = WORKS[work]
        rounds = 1 if work == "idle" else options.rounds
        print(f"{title}: {rounds} round(s)", flush=True)
        samples = figures[work] = {name: [] for name, command in commands.items() if command}
        for _ in range(rounds):
            for name in samples:
                try:
                    server = Server(commands[name])
                    try:
                        samples[name].append(measure(server, options.seconds))
                        print(f"  {name}: {samples[name][-1]:,.0f}", flush=True)
                    finally:
                        server.stop()
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    print(f"  {name}: failed: {error}", flush=True)
    table(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))
    for leftover in CACHE.glob("data-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def table(figures):
    print("\n| work | server | median | spread | ÷ workerd |\n|---|---|---|---|---|")
    for work, samples in figures.items():
        medians = {name: statistics.median(values) for name, values in samples.items() if values}
        reference = medians.get("workerd")
        for name, median in medians.items():
            values = samples[name]
            ratio = f"{median / reference:.2f}" if reference else ""
            print(f"| {WORKS[work][0]} | {name} | {median:,.0f} | {min(values):,.0f}-{max(values):,.0f} | {ratio} |")


if __name__ == "__main__":
    main()
