"""Hosts killed -9 under load (fault F1): what a client saw acknowledged is kept (I1), nothing counts twice (I2), no socket
is closed (I8), every message is answered (I10). `make torture` does it with more kills and seeds."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import write_app
from roost.storage.folding import size_of
from roost.testing import running, wait_for

SOURCE = """
import json
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Box(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS seen (id TEXT)")

    async def fetch(self, request):
        if request.url.endswith("/seen"):
            return Response.json([row.id for row in self.ctx.storage.sql.exec("SELECT id FROM seen")])
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        self.ctx.storage.sql.exec("INSERT INTO seen VALUES (?)", message)
        count = (await self.ctx.storage.get("count") or 0) + 1
        await self.ctx.storage.put("count", count)
        ws.send(json.dumps([message, count]))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.BOX.getByName(request.url.split("/")[3]).fetch(request)
"""

REPLY_BEFORE_COMMIT = """
from roost.host.objects.actor_storage import ActorStorage
from roost.host.objects.output_gate import OutputGate
OutputGate.shut = property(lambda self: False, lambda self, value: None)
OutputGate.hold = lambda self, release: release(None)
ActorStorage._schedule = lambda self: (setattr(self, "_scheduled", True), self._loop.call_later(0.05, self._commit))
"""

NO_DELIVERED_CHECK = """
from roost.host.objects.actor_storage import ActorStorage
ActorStorage.was_finished = lambda self, epoch, event: False
"""

OBJECTS = 8
SOCKETS_EACH = 2


class Report:
    """What a run has shown."""

    def __init__(self):
        self.acknowledged = {}
        self.lost, self.doubled, self.wrong_counts, self.failures, self.pauses_s = [], [], [], [], []

    def __str__(self):
        total = sum(map(len, self.acknowledged.values()))
        pauses = sorted(self.pauses_s) or [0]
        return (
            f"{total} acknowledged, lost {len(self.lost)}, doubled {len(self.doubled)}, wrong counts"
            f" {len(self.wrong_counts)}, failures {self.failures[:3]}; pause p50 {pauses[len(pauses) // 2]:.2f} s, max"
            f" {pauses[-1]:.2f} s"
        )


def ok(answer):
    status, _, body = answer
    return body if status == 200 else None


def crash_run(app, data, kills, seed, hosts=2):
    """Count unique ids in 8 objects while hosts are killed at random moments."""
    chance = random.Random(seed)
    report = Report()
    stop = threading.Event()

    def client(node, name, number):
        mine = report.acknowledged[name, number] = []
        sent = 0
        try:
            with node.connect(f"/{name}", timeout_s=60) as ws:
                while not stop.is_set():
                    sent += 1
                    message = f"{name}-{number}-{sent}"
                    began = time.monotonic()
                    ws.send(message)
                    reply, count = json.loads(ws.recv(60))
                    if reply != message:
                        raise AssertionError(f"{reply} answers {message}")
                    took = time.monotonic() - began
                    if took > 0.2:
                        report.pauses_s.append(took)
                    mine.append((message, count))
        except Exception as error:
            report.failures.append(f"{name}-{number}: {type(error).__name__}: {error}")

    def progress():
        return sum(map(len, report.acknowledged.values()))

    settings = "[hibernation]\nidle_s = 0.1\n[timeouts]\nrestart_pause_s = 0.05\n"
    app = write_app(app, SOURCE if isinstance(data, str) else data[1] + SOURCE, "Box", settings=settings)
    data = data if isinstance(data, str) else data[0]
    with running(app, "--hosts", str(hosts), data=data) as node:
        threads = [
            threading.Thread(target=client, args=(node, f"box{box}", number))
            for box in range(OBJECTS)
            for number in range(SOCKETS_EACH)
        ]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            goal = progress() + 50
            wait_for(lambda goal=goal: progress() >= goal or report.failures, "progress after a kill", 60)
            time.sleep(chance.random() * 0.05)  # where in a message's way the kill falls, not a wait for anything
            victim = f"host {chance.randrange(hosts)}"
            try:
                os.kill(node.pid(victim), signal.SIGKILL)
            except (KeyError, ProcessLookupError):
                continue  # it is just being replaced
        goal = progress() + 50
        wait_for(lambda: progress() >= goal or report.failures, "progress after the last kill", 60)
        stop.set()
        for thread in threads:
            thread.join(90)
        for box in range(OBJECTS):
            # A client that has failed (a mutant makes some) does not wait for the last kill's host: this does.
            answer = wait_for(lambda box=box: ok(node.get(f"/box{box}/seen")), f"box{box}'s list", 60)
            seen = json.loads(answer)
            replies = [pair for (name, _), pairs in report.acknowledged.items() if name == f"box{box}" for pair in pairs]
            report.lost += {message for message, _ in replies} - set(seen)
            report.doubled += [message for message, times in Counter(seen).items() if times > 1]
            report.wrong_counts += [count for count, times in Counter(count for _, count in replies).items() if times > 1]
    return report


@pytest.mark.parametrize("seed", range(int(os.environ.get("ROOST_SEED", "1")), int(os.environ.get("ROOST_SEED", "1")) + 2))
def test_killed_hosts(tmp_path, seed):
    kills = int(os.environ.get("ROOST_KILLS", "6"))
    report = crash_run(tmp_path / "app", str(tmp_path / "data"), kills, seed)
    print(f"seed {seed}, {kills} kills: {report}")
    assert not report.failures, report
    assert not report.lost, report
    assert not report.doubled, report
    assert not report.wrong_counts, report


def test_mutant_that_replies_before_the_commit_is_seen(tmp_path):
    report = crash_run(tmp_path / "app", (str(tmp_path / "data"), REPLY_BEFORE_COMMIT), 4, 1)
    assert report.lost, report


def test_mutant_without_the_delivered_check_is_seen(tmp_path):
    report = crash_run(tmp_path / "app", (str(tmp_path / "data"), NO_DELIVERED_CHECK), 12, 1)
    assert report.doubled, report


def test_logs_of_a_killed_host_are_folded_though_their_objects_sleep_on(tmp_path):
    """An object folds its log when it sleeps; what a killed host leaves is its successor's to fold, if nobody wakes it."""
    app = write_app(tmp_path / "app", LEFT, "Box")
    with running(app, "--hosts", "2", "--gateways", "2") as node:
        for number in range(60):
            assert node.get(f"/{number}")[0] == 200
        logs = lambda: [path for path in Path(node.data).glob("objects/*/*/*-wal") if size_of(path)]  # noqa: E731
        assert len(logs()) == 60
        for host in ("host 0", "host 1"):
            before = node.pid(host)
            os.kill(before, signal.SIGKILL)
            wait_for(lambda host=host, before=before: node.status()["pids"].get(host) not in (None, before))
        wait_for(lambda: not logs(), "logs are left")
        assert not node.awake()
        assert [node.get(f"/{number}")[2] for number in range(60)] == [b"2"] * 60


LEFT = """
from workers import DurableObject, Response, WorkerEntrypoint

class Box(DurableObject):
    async def fetch(self, request):
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        return Response(str(n))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.BOX.getByName(request.url.split("/")[3]).fetch(request)
"""
