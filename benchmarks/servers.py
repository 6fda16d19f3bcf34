"""How each server of the comparison is started, stopped and looked at.

Peers are installed on first use under `.cache`: from npm, from PyPI, or compiled here. A server that cannot be had is left
out and said to be missing.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
NPM_PEERS = {"workerd": "1.20261117.1", "bun": "1.4.5", "ws": "8.23.0"}
SERVER_CORE, LOAD_CORE = "0", "1"
PICOWS = ("picows==2.3.1", "python-socks==3.2.1")
UVICORN = ("uvicorn==0.54.0", "httptools==0.9.0", "h11==0.16.0", "click==8.5.1")


def tool(name, source=None):
    """A program in C, a load generator or the floor, compiled once; without zlib and OpenSSL where they have no headers."""
    binary = CACHE / name
    source = source or HERE / f"{name}.c"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(exist_ok=True)
        command = ["cc", "-O2", "-o", binary, source, "-lm"]
        if subprocess.run([*command, "-lssl", "-lcrypto", "-lz"], check=False, capture_output=True).returncode:
            subprocess.run([*command, "-DPLAIN"], check=True)
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


def roost(*arguments, app="room", hosts=1):
    """`roost serve` of one of the apps, with default settings."""

    def command(port):
        data = CACHE / f"data-{port}"
        folder = HERE / "apps" / app
        return [
            sys.executable,
            "-m",
            "roost",
            "serve",
            folder,
            "--port",
            port,
            "--data",
            data,
            "--hosts",
            hosts,
            *arguments,
        ]

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


def floor():
    """What no server that waits in the kernel can go below: an epoll loop in C, without protocol and objects."""
    if shutil.which("cc") is None:
        return None
    binary = tool("floor", HERE / "peers" / "floor" / "floor.c")
    return lambda port: [binary, port]


def python_peer(name):
    return lambda port: [sys.executable, HERE / "peers" / name / "server.py", port]


def installed_peer(name, packages):
    """A peer that our environment does not have, in a folder of its own; None if it cannot be had."""
    folder = CACHE / name
    if not all((folder / package.split("==")[0].replace("-", "_")).exists() for package in packages):
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, "--target", folder, *packages], check=False).returncode:
            return None
    return lambda port: ["env", f"PYTHONPATH={folder}", sys.executable, HERE / "peers" / name / "server.py", port]


SERVERS = {
    "roost split": lambda: roost(),
    "roost inline": lambda: roost("--inline"),
    "workerd": workerd,
    "bun": bun,
    "ws": node_ws,
    "websockets": lambda: python_peer("websockets"),
    "aiohttp": lambda: python_peer("aiohttp"),
    "picows": lambda: installed_peer("picows", PICOWS),
    "uvicorn": lambda: installed_peer("uvicorn", UVICORN),
    "floor": floor,
}
ONLY_ECHOES = "floor"


def available(names):
    """The commands of those servers that can be had, by name; says which cannot."""
    commands = {name: SERVERS[name]() for name in names}
    for name in [name for name, command in commands.items() if not command]:
        print(f"{name}: missing (npm, node or pip is not here, or the package cannot be installed)", flush=True)
        del commands[name]
    return commands


@contextlib.contextmanager
def started(commands):
    """All of them running, by name; those that do not start are left out."""
    servers = {}
    try:
        for name, command in commands.items():
            servers[name] = Server(command, wait=False)
        for name in list(servers):
            try:
                servers[name].wait_ready()
            except RuntimeError as error:
                print(f"  {name}: {error}", flush=True)
                servers.pop(name).stop()
        time.sleep(0.5)
        yield servers
    finally:
        for server in servers.values():
            server.kill()  # what it has to say to thousands of clients is nobody's business any more
        for leftover in CACHE.glob("data-*"):
            shutil.rmtree(leftover, ignore_errors=True)


class Server:
    """A running server and its children."""

    def __init__(self, command, *, wait=True):
        self.port = free_port()
        self._command = ["taskset", "-c", SERVER_CORE, *map(str, command(self.port))]
        self._start()
        if wait:
            self.wait_ready()
            time.sleep(0.5)

    def _start(self):
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def wait_ready(self):
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

    def restart(self):
        self.stop()
        self._start()
        self.wait_ready()
        time.sleep(0.5)

    def pids(self):
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError):  # a thread that has ended since
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

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()


def load(server, *arguments, generator="wsload", **how):
    """What the generator reports, as a dict. `arguments`: its mode, then what follows the port; `how`: `binary=1`,
    `deflate=1`, `tls=1`, `same=1`, as the generator's `WSLOAD_BINARY` and so on."""
    command = ["taskset", "-c", LOAD_CORE, tool(generator), arguments[0], server.port, *arguments[1:]]
    environment = os.environ | {f"WSLOAD_{name.upper()}": str(value) for name, value in how.items()}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180, env=environment)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1] if result.stderr else "wsload failed")
    report = json.loads(result.stdout.splitlines()[-1])
    if report.get("bad") and arguments[0] == "echo":
        raise RuntimeError(f"{report['bad']} echoes were not what had been sent")
    return report


def kernel_bytes():
    """What the kernel holds for everybody: its slabs, which are mostly sockets here, and their buffers.

    Without what it would give back to whoever asks: who lists the open files of a process, as monitors of machines do,
    leaves an inode of /proc for each of them.
    """
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("2")  # inodes and directory entries that nobody has open
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(fields["Slab"].split()[0]) * 1024
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == "TCP:":
            total += int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    return total
