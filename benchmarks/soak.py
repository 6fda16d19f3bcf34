"""A year in half an hour: four awake rooms under load while alarms are set and fired, objects are made, hosts are killed
and frozen, and code is deployed. `make soak MINUTES=30`; a short form runs in `make test`.

At the end (and every half minute) the sizes of everything that could grow are printed, and must be within their bounds:
objects' and the index's logs, versions, the run folder, descriptors and resident memory of every process. Nothing that was
acknowledged may be missing or there twice, and every object that was ever asked for must answer.
"""

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from roost.storage.folding import size_of
from roost.testing import running

SOURCE = """
import json
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

VERSION = 0

class Room(DurableObject):
    async def fetch(self, request):
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        self.table()
        after = int(request.url.split("after=")[1])
        rows = self.ctx.storage.sql.exec("SELECT n, id FROM seen WHERE n > ? ORDER BY n LIMIT 20000", after)
        return Response.json([[row.n, row.id] for row in rows])

    def table(self):
        self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS seen (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE)")

    async def webSocketMessage(self, ws, message):
        self.table()
        self.ctx.storage.sql.exec("INSERT INTO seen (id) VALUES (?)", message)
        ws.send(message)

class Born(DurableObject):
    async def fetch(self, request):
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        if "alarm" in request.url:
            await self.ctx.storage.setAlarm(int(request.url.rsplit("=", 1)[1]))
        return Response.json([n, await self.ctx.storage.get("fired") or 0])

    async def alarm(self):
        await self.ctx.storage.put("fired", (await self.ctx.storage.get("fired") or 0) + 1)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        kind, name = request.url.split("/")[3:5]
        return await getattr(self.env, kind).getByName(name.split("?")[0]).fetch(request)
"""
LOG_BOUND = 16 * 1024 * 1024
MEMORY_BOUND_MIB = 300
VERSIONS_KEPT = 10


def write_app(folder, version):
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(SOURCE.replace("VERSION = 0", f"VERSION = {version}"))
    bindings = "".join(
        f'[[durable_objects.bindings]]\nname = "{name}"\nclass_name = "{name}"\n' for name in ("Room", "Born")
    )
    (folder / "wrangler.toml").write_text(
        f'name = "soak"\nmain = "worker.py"\ncompatibility_date = "2026-11-01"\n{bindings}'
    )
    (folder / "roost.toml").write_text(
        "[limits]\ncpu_ms = 1000\n[timeouts]\nhost_silence_s = 2\nrestart_pause_s = 0.5\n[hibernation]\nidle_s = 2\n"
    )
    return folder


class Soak:
    def __init__(self, node, app, seed):
        self.node, self.app = node, app
        self.rng = random.Random(seed)
        self.over = threading.Event()
        self.acknowledged = [[] for _ in range(4)]
        self.unsure = [set() for _ in range(4)]
        self.born, self.alarms = {}, {}
        self.done = Counter()
        self.wrong = []

    def chat(self, room):
        """One client of a room: a message at a time, and which of them were acknowledged."""
        ws, number = None, 0
        while not self.over.is_set():
            number += 1
            name = f"{room}-{number}"
            try:
                ws = ws or self.node.connect(f"/Room/{room}", timeout_s=20)
                ws.send(name)
                if ws.recv(40) != name:
                    self.wrong.append(f"room {room}: an answer to another message than {name}")
                self.acknowledged[room].append(name)
            except (OSError, ConnectionError) as error:
                self.unsure[room].add(name)
                self.done[f"reconnects ({type(error).__name__})"] += 1
                if ws is not None:
                    ws.abort()
                ws = None
                time.sleep(0.05)
        if ws is not None:
            ws.abort()

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=40)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def births(self):
        """New objects, some of which set an alarm."""
        number = 0
        while not self.over.is_set():
            number += 1
            due_ms = int(time.time() * 1000) + self.rng.randrange(100, 3000)
            alarm = f"?alarm={due_ms}" if number % 4 == 0 else ""
            try:
                status, _ = self.get(f"/Born/b{number}{alarm}")
            except (OSError, http.client.HTTPException):
                status = 0
            self.born[f"b{number}"] = status
            if alarm and status == 200:
                self.alarms[f"b{number}"] = due_ms
            time.sleep(0.004)

    def fault(self):
        """Something happens to a host, or new code comes."""
        what = self.rng.choice(("kill", "kill", "freeze", "deploy", "rollback"))
        try:
            pid = self.node.pid(f"host {self.rng.randrange(2)}")
            if what == "kill":
                os.kill(pid, signal.SIGKILL)
            elif what == "freeze":
                os.kill(pid, signal.SIGSTOP)  # the node ends it
            elif what == "deploy":
                write_app(self.app, self.rng.randrange(1_000_000))
                self.roost("deploy", str(self.app))
            else:
                self.roost("rollback")
        except (ProcessLookupError, KeyError):
            return
        self.done[what] += 1

    def roost(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "roost", *arguments, "--data", self.node.data],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode and "no earlier version" not in done.stderr:
            self.done[f"{arguments[0]} refused"] += 1

    def sizes(self):
        """What could grow, and what is too large of it."""
        data = Path(self.node.data)
        logs = [size_of(path) for path in data.glob("objects/*/*/*-wal")]  # 0 for one that has just gone
        pids = self.node.status()["pids"]
        rss, files = {}, {}
        for name, pid in pids.items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                rss[name] = int(status.split("VmRSS:")[1].split()[0]) // 1024
                files[name] = len(os.listdir(f"/proc/{pid}/fd"))
            except (OSError, IndexError):
                continue
        found = {
            "largest log": max(logs, default=0),
            "logs": sum(logs),
            "index log": max((size_of(path) for path in data.glob("alarms/*-wal")), default=0),
            "versions": len([path for path in (data / "versions").iterdir() if path.name.isdigit()]),
            "run folder": len(list((data / "run").iterdir())),
            "objects": sum(1 for _ in data.glob("objects/*/*/*.sqlite")),
            "rss MiB": rss,
            "files": files,
        }
        bounds = (
            ("an object's log", found["largest log"] <= LOG_BOUND),
            ("the index's log", found["index log"] <= LOG_BOUND),
            ("versions", found["versions"] <= VERSIONS_KEPT + 1),
            ("the run folder", found["run folder"] <= 12),
            ("memory", all(size <= MEMORY_BOUND_MIB for size in rss.values())),
            ("descriptors", all(count <= 8000 for count in files.values())),
        )
        self.wrong += [f"too large: {name}: {found}" for name, fits in bounds if not fits]
        return found

    def page(self, room, after):
        """The next rows of what a room has stored."""
        status, body = self.get(f"/Room/{room}?after={after}")
        if status != 200:
            raise AssertionError(f"room {room} answers {status}: {body[:200]!r}; the log ends: {self.node.log[-20:]}")
        return json.loads(body)

    def judge(self):
        """After the load: nothing lost, doubled or dead."""
        lost = doubled = 0
        for room in range(4):
            stored, after = Counter(), 0
            while rows := self.page(room, after):
                stored.update(name for _, name in rows)
                after = rows[-1][0]
            doubled += sum(count > 1 for count in stored.values())
            lost += len(set(self.acknowledged[room]) - set(stored))
        dead = [name for name in self.born if self.get(f"/Born/{name}")[0] != 200]
        missed = [name for name, due in self.alarms.items() if not json.loads(self.get(f"/Born/{name}")[1])[1]]
        acknowledged = sum(map(len, self.acknowledged))
        said = f"{acknowledged} acknowledged, {lost} lost, {doubled} doubled; {len(self.born)} objects, {len(dead)} dead; "
        said += f"{len(self.alarms)} alarms, {len(missed)} never ran; {dict(self.done)}"
        if lost or doubled or dead or missed:
            self.wrong.append(said)
        return said


def soak(minutes, seed=1, say=print):
    """Run it; returns what was found to be wrong."""
    with tempfile.TemporaryDirectory(prefix="roost-soak-") as folder:
        app = write_app(Path(folder) / "app", 0)
        with running(app, "--hosts", "2", "--gateways", "2", data=str(Path(folder) / "data")) as node:
            run = Soak(node, app, seed)
            threads = [threading.Thread(target=run.chat, args=(room,)) for room in range(4)]
            threads.append(threading.Thread(target=run.births))
            for thread in threads:
                thread.start()
            ends = time.monotonic() + minutes * 60
            shown = time.monotonic()
            try:
                while time.monotonic() < ends:
                    time.sleep(run.rng.uniform(1.0, 4.0))  # the faults' own rhythm
                    run.fault()
                    if time.monotonic() - shown > 30:
                        shown = time.monotonic()
                        messages = sum(map(len, run.acknowledged))
                        say(f"{(ends - shown) / 60:.1f} min to go: {messages} messages, {run.sizes()}")
            finally:
                run.over.set()
                for thread in threads:
                    thread.join(90)
            time.sleep(5)  # the last alarms
            say(run.judge())
            say(str(run.sizes()))
            return run.wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wrong = soak(options.minutes, options.seed, lambda text: print(text, flush=True))
    print("\n".join(["WRONG:", *wrong]) if wrong else "everything is bounded; nothing is lost, doubled or dead")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
