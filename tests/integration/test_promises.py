"""Calls of the platform act when they are called, awaited or not, and in the order in which they were called."""

import json

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio
import time
from workers import DurableObject, Response, WorkerEntrypoint

HITS = []

class Box(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.ctx.storage.put("made", "in the constructor")

    async def alarm(self, info):
        HITS.append("alarm")

    async def order(self):
        # Behind a write that is on its way to the disk.
        other = self.env.BOX.getByName("other")
        self.ctx.storage.put("w", 1)
        other.hit("a")
        fetching = other.fetch("http://x/c")                            # begins where it is awaited
        other.hit("b")
        await fetching
        await other.hit("d")

    async def hit(self, what):
        HITS.append(what)

    async def fetch(self, request):
        HITS.append(request.url.rsplit("/", 1)[1])
        return Response("x")

    async def storage_without_await(self):
        s = self.ctx.storage
        asked = s.sync()
        out = [await asked, await asked]                                # a promise may be awaited twice
        assert out == [None, None]
        await s.put({"old": 1, "gone": 1, "keep": 1})
        read_before = s.get("k")
        s.put("k", 1)
        s.put({"a": 1, "b": 2})
        s.delete("old")
        s.delete(["gone"])
        s.setAlarm(int(time.time() * 1000) + 3_600_000)
        read_after = s.get("k")
        s.put("k", 2)
        out = [await read_before, await read_after, await s.get("k"), list(await s.list())]
        out.append(await s.getAlarm() is not None)
        s.deleteAlarm()
        out.append(await s.getAlarm())
        s.transaction(self.in_transaction)
        await asyncio.sleep(0.05)
        out.append(await s.get("t"))
        task = asyncio.create_task(s.put("task", 1))
        await asyncio.gather(task, s.put("gathered", 1), asyncio.wait_for(s.put("waited", 1), 1))
        out.append([await s.get("task"), await s.get("gathered"), await s.get("waited")])
        s.deleteAll()
        out.append(list((await s.list()).keys()))
        return out

    async def shared(self):
        async def wait(promise):
            return await promise
        found = []
        for ask in (self.ctx.storage.sync, lambda: self.env.KV.get("k"), lambda: self.env.SELF.fetch("http://a/made")):
            for impatient in (1, 0):
                asked = ask()
                tasks = [asyncio.create_task(wait(asked)) for _ in range(2)]
                await asyncio.sleep(0)
                tasks[impatient].cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                found.append(isinstance(ends[1 - impatient], asyncio.CancelledError))
        return found

    async def breaking(self, txn):
        raise ValueError("broken")

    async def in_transaction(self, txn):
        txn.put("t", 1)

    async def failing(self):
        self.ctx.storage.put("k", object())                             # named in the log
        self.ctx.storage.setAlarm(-1)
        self.env.KV.put("", "x")
        self.ctx.storage.transaction(self.breaking)
        asked = self.ctx.storage.put("k", object())                     # awaited: whoever awaits it is told, once
        try:
            await asked
        except Exception as error:
            return type(error).__name__

    async def made(self):
        return await self.ctx.storage.get("made")

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3]
        box = self.env.BOX.getByName("a")
        if path == "storage":
            return Response.json(await box.storage_without_await())
        if path == "7":
            HITS.append("7")
            return Response("")
        if path == "shared":
            return Response.json(await box.shared())
        if path == "failing":
            return Response(await box.failing())
        if path == "made":
            return Response(await box.made())
        if path == "kv":
            kv = self.env.KV
            kv.put("k", "1")
            first = kv.get("k")
            kv.put("k", "2")
            second = kv.get("k")
            kv.delete("k")
            return Response.json([await first, await second, await kv.get("k")])
        if path == "calls":
            HITS.clear()
            box.hit("1")
            box.hit("2")
            fetching = box.fetch("http://x/4")                              # a coroutine: begins where it is awaited
            box.hit("3")
            await fetching
            await box.hit("5")
            self.env.SELF.selfhit("6")
            self.env.SELF.fetch("http://x/7")
            await asyncio.sleep(0)
            fetching = asyncio.create_task(box.fetch("http://x/9"))
            box.hit("8")
            await fetching
            await box.order()
            await asyncio.sleep(0.1)
            return Response.json(HITS)

    async def selfhit(self, what):
        HITS.append(what)
"""
CONFIG = """
[[kv_namespaces]]
binding = "KV"
id = "k"
[[services]]
binding = "SELF"
service = "test-app"
"""
MODES = [("--hosts", "1"), ("--inline",)]


@pytest.fixture(scope="module", params=MODES, ids=" ".join)
def node(request, tmp_path_factory):
    app = write_app(tmp_path_factory.mktemp("promises") / "app", SOURCE, "Box", config="")
    (app / "wrangler.toml").write_text((app / "wrangler.toml").read_text() + CONFIG)
    with running(app, *request.param) as node:
        yield node


def ask(node, path):
    status, _, body = node.get(f"/{path}")
    assert status == 200, node.log[-10:]
    return json.loads(body)


def test_storage(node):
    assert ask(node, "storage") == [
        None, 1, 2, ["a", "b", "k", "keep", "made"], True, None, 1, [1, 1, 1], [],
    ]  # fmt: skip


def test_a_constructor_writes_without_await(node):
    assert node.get("/made")[2] in (b"in the constructor", b"")  # deleted by the test before, if it came first
    node.evict()
    assert node.get("/made")[2] == b"in the constructor"


def test_kv_in_the_order_of_its_calls(node):
    assert ask(node, "kv") == ["1", "2", None]


def test_methods_of_a_stub_keep_their_order(node):
    assert ask(node, "calls") == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d"]


def test_what_nobody_awaits_and_fails_is_logged_with_object_and_line(node):
    assert node.get("/failing")[2] == b"DataCloneError"
    for said in (
        "put() in", "setAlarm() in", "put() in", "transaction() in",
    ):  # fmt: skip
        wait_for(lambda said=said: any(said in line and "which nobody awaits" in line for line in node.log), said)
    lines = [line for line in node.log if "which nobody awaits" in line]
    assert len(lines) == 4, lines
    assert all("[Box(a)" in line and "worker.py:" in line for line in lines), lines
    number = next(n for n, text in enumerate(SOURCE.split("\n"), 1) if "named in the log" in text)
    assert any(f"worker.py:{number}, which nobody awaits, failed: DataCloneError" in line for line in lines), lines
    assert not node.logged("never retrieved")
    assert not node.logged("never awaited")


def test_who_gives_up_waiting_cancels_nobody_else(node):
    assert ask(node, "shared") == [False] * 6
