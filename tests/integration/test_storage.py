"""ctx.storage on real files (reference 5), split and inline: what an object wrote survives sleep, restart and kill -9."""

import json
import os
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio
import json
from datetime import datetime, UTC
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Box(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.started = []

        @ctx.blockConcurrencyWhile
        async def load():
            await asyncio.sleep(0.02)
            self.loaded = await ctx.storage.get("loaded")
            self.started.append("loaded")

    async def fetch(self, request):
        name = request.url.rsplit("/", 1)[1].split("?")[0]
        if name == "ws":
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        try:
            result = await getattr(self, "do_" + name)()
        except Exception as error:
            return Response.json([type(error).__name__, getattr(error, "name", None), str(error)], status=400)
        return Response.json(result)

    async def webSocketMessage(self, ws, message):
        count = (self.ctx.storage.kv.get("count") or 0) + 1
        self.ctx.storage.kv.put("count", count)
        self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS seen (id TEXT)")
        self.ctx.storage.sql.exec("INSERT INTO seen VALUES (?)", message)
        ws.send(json.dumps([message, count]))

    async def do_started(self):
        return self.started

    async def do_kv(self):
        s = self.ctx.storage
        await s.put("a", {"list": [1, None, 2.5], "when": datetime(2026, 1, 2, tzinfo=UTC)})
        await s.put({"b": b"bytes", "c": {1, 2}})
        got = await s.get("a")
        several = await s.get(["c", "b", "missing"])
        return [got["list"], got["when"].year, await s.get("missing"), list(several), sorted(several["c"]),
                await s.delete("a"), await s.delete("a"), await s.delete(["b", "x"]), list(await s.list())]

    async def do_list(self):
        s = self.ctx.storage
        await s.put({f"k{n}": n for n in range(5)})
        await s.put({"é": 1, "z": 2, "k%": 3, "k_": 4})
        async def keys(**options):
            return list(await s.list(**options))
        return [await keys(), await keys(prefix="k"), await keys(prefix="k%"), await keys(start="k1", end="k3"),
                await keys(startAfter="k1", limit=2), await keys(reverse=True, limit=2),
                await keys(prefix="k", reverse=True),
                [k for k, _ in s.kv.list(prefix="k", limit=1)], await keys(prefix="é")]

    async def do_sql(self):
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, name TEXT, data BLOB); DELETE FROM t")
        cursor = sql.exec("INSERT INTO t (name, data) VALUES (?, ?), ('b', NULL) RETURNING id, name", "a", b"xy")
        written = cursor.toArray()
        row = sql.exec("SELECT * FROM t WHERE name = ?", "a").one()
        raw = sql.exec("SELECT id, name FROM t ORDER BY id").raw()
        first = raw.next()
        return [written, row["name"], row.name, len(row.data), cursor.columnNames, cursor.rowsWritten,
                [first.done, first.value], raw.toArray(), raw.next().done, sql.databaseSize > 0,
                [r.name for r in sql.exec("SELECT name FROM t")], sql.exec("SELECT 1 AS x").next().value.x]

    async def do_transactions(self):
        s = self.ctx.storage
        await s.put("n", 1)
        def good():
            s.kv.put("n", 2)
            try:
                s.transactionSync(bad)
            except ValueError:
                pass
        def bad():
            s.kv.put("n", 3)
            s.sql.exec("CREATE TABLE gone (x)")
            raise ValueError("undo me")
        s.transactionSync(good)
        one = await s.get("n")
        async def later(txn):
            await txn.put("n", 4)
            await asyncio.sleep(0.01)
            return await txn.get("n")
        two = await s.transaction(later)
        async def undone(txn):
            await txn.put("n", 5)
            txn.rollback()
        await s.transaction(undone)
        try:
            await s.transaction(lambda txn: failing(txn))
        except ValueError as error:
            three = str(error)
        async def failing_body(txn):
            pass
        tables = [r.name for r in s.sql.exec("SELECT name FROM sqlite_schema WHERE name = 'gone'")]
        return [one, two, await s.get("n"), three, tables]

    async def do_delete_all(self):
        await self.ctx.storage.put("x", 1)
        self.ctx.storage.sql.exec('CREATE TABLE IF NOT EXISTS "odd ""name" (x)')
        await self.ctx.storage.deleteAll()
        return [list(await self.ctx.storage.list()),
                self.ctx.storage.sql.exec("SELECT count(*) AS n FROM sqlite_schema WHERE name LIKE 'odd%'").one().n]

    async def do_abort(self):
        self.ctx.storage.kv.put("aborted", True)
        try:
            self.ctx.abort("enough")
        except Exception:
            return "caught"

    async def do_after_abort(self):
        return await self.ctx.storage.get("aborted")

    async def do_block_fails(self):
        async def fails():
            raise ValueError("in block")
        await self.ctx.blockConcurrencyWhile(fails)

    async def do_nested(self):
        async def nest(n):
            if not n:
                return "deep"
            try:
                inner = self.ctx.blockConcurrencyWhile(lambda: nest(n - 1))
            except Exception as error:
                return str(error)
            return await inner
        return [await nest(64), await nest(65)]

    async def do_count(self):
        rows = self.ctx.storage.sql.exec("SELECT id FROM seen").toArray()
        return [self.ctx.storage.kv.get("count"), sorted(r.id for r in rows)]

async def failing(txn):
    await txn.put("n", 6)
    raise ValueError("failed inside")

BAD = {
    "both_bounds": lambda s: s.list(start="a", startAfter="b"),
    "limit": lambda s: s.list(limit=0),
    "option": lambda s: s.get("a", nocache=True),
    "keys": lambda s: s.get([str(n) for n in range(129)]),
    "pairs": lambda s: s.put({str(n): n for n in range(129)}),
    "size": lambda s: s.put("a", b"x" * 2_097_152),
    "function": lambda s: s.put("a", {"f": print}),
    "cf_table": lambda s: s.sql.exec("SELECT * FROM _CF_kv"),
    "attach": lambda s: s.sql.exec("ATTACH 'x' AS y"),
    "begin": lambda s: s.sql.exec("BEGIN"),
    "pragma": lambda s: s.sql.exec("PRAGMA user_version = 9"),
    "params": lambda s: s.sql.exec("SELECT " + ",".join(["?"] * 101), *range(101)),
    "one_none": lambda s: s.sql.exec("SELECT 1 WHERE 0").one(),
    "one_two": lambda s: s.sql.exec("SELECT 1 UNION ALL SELECT 2").one(),
    "syntax": lambda s: s.sql.exec("SELEKT"),
    "bind": lambda s: s.sql.exec("SELECT ?", {"a": 1}),
}
for bad_name, bad in BAD.items():
    async def do(self, bad=bad):
        result = bad(self.ctx.storage)
        return await result if hasattr(result, "__await__") else str(result)
    setattr(Box, "do_" + bad_name, do)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.BOX.getByName(request.url.split("/")[3]).fetch(request)
"""

MODES = {"split": (), "inline": ("--inline",)}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return write_app(tmp_path_factory.mktemp("storage"), SOURCE, "Box", settings="[hibernation]\nidle_s = 0.1\n")


@pytest.fixture(scope="module", params=MODES)
def node(request, app):
    with running(app, *MODES[request.param]) as running_node:
        yield running_node


def ask(node, name, action):
    status, _, body = node.get(f"/{name}/{action}")
    return json.loads(body) if status in (200, 400) else (status, body)


def test_constructor_block_finishes_before_any_event(node):
    assert ask(node, "block", "started") == ["loaded"]


def test_key_value(node):
    assert ask(node, "kv", "kv") == [[1, None, 2.5], 2026, None, ["b", "c"], [1, 2], True, False, 1, ["c"]]


def test_list(node):
    every = ["k%", "k0", "k1", "k2", "k3", "k4", "k_", "z", "é"]
    assert ask(node, "list", "list") == [
        every, every[:7], ["k%"], ["k1", "k2"], ["k2", "k3"], ["é", "z"], every[:7][::-1], ["k%"], ["é"],
    ]  # fmt: skip


def test_sql(node):
    rows = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert ask(node, "sql", "sql") == [
        rows, "a", "a", 2, ["id", "name"], 2, [False, [1, "a"]], [[2, "b"]], True, True, ["a", "b"], 1,
    ]  # fmt: skip


def test_transactions(node):
    assert ask(node, "tx", "transactions") == [2, 4, 4, "failed inside", []]


@pytest.mark.parametrize(
    ("action", "kind", "says"),
    [
        ("both_bounds", "JsTypeError", "both start and startAfter"),
        ("limit", "JsTypeError", "must be positive"),
        ("option", "JsTypeError", "no option 'nocache'"),
        ("keys", "JsRangeError", "at most 128 keys; 129"),
        ("pairs", "JsRangeError", "at most 128 keys; 129"),
        ("size", "JsRangeError", "2 MB"),
        ("function", "DataCloneError", "value['f'] is of type builtin_function_or_method"),
        ("cf_table", "SqlError", "prohibited"),
        ("attach", "SqlError", "not authorized"),
        ("begin", "SqlError", "transactionSync"),
        ("pragma", "SqlError", "not authorized"),
        ("params", "SqlError", "too many"),
        ("one_none", "JsException", "no results"),
        ("one_two", "JsException", "more than one"),
        ("syntax", "SqlError", "syntax error"),
        ("bind", "JsTypeError", "not dict"),
    ],
)
def test_limits_and_errors(node, action, kind, says):
    """W44 and reference 5: the platform's type, and a message with the limit."""
    got = ask(node, "bad", action)
    assert got[0] == kind, got
    assert says in got[2]


def test_w42_nesting(node):
    deep, too_deep = ask(node, "nested", "nested")
    assert deep == "deep"
    assert "at most 64 deep" in too_deep
    assert ask(node, "nested", "started") == ["loaded"]


def test_abort_undoes_and_cannot_be_swallowed(node):
    assert ask(node, "abort", "started") == ["loaded"]
    with node.connect("/abort/ws") as ws:
        ws.send("1")
        assert json.loads(ws.recv()) == ["1", 1]
        assert node.get("/abort/abort")[0] == 500
        assert ws.recv_close()[0] == 1006  # ctx.abort cuts the sockets, as on the platform
    assert ask(node, "abort", "after_abort") is None
    assert ask(node, "abort", "count") == [1, ["1"]]


def test_block_that_fails_resets_the_object(node):
    with node.connect("/blocks/ws") as ws:
        ws.send("1")
        ws.recv()
        assert node.get("/blocks/block_fails")[0] in (400, 500)
        ws.send("2")
        assert json.loads(ws.recv()) == ["2", 2]  # the socket stays, and so does what was committed
    wait_for(lambda: node.logged("blockConcurrencyWhile failed: ValueError: in block"))


def test_delete_all_leaves_no_file(node):
    assert ask(node, "empty", "delete_all") == [[], 0]
    before = set(files(node))
    wait_for(lambda: not any(entry["object"] == "Box(empty)" for entry in node.awake()))
    wait_for(lambda: len(files(node)) < len(before) or ask(node, "nothing", "started") == ["loaded"])
    wait_for(lambda: not any(is_empty(path) for path in files(node)))


def files(node):
    return list(Path(node.data).glob("objects/Box/*/*.sqlite"))


def is_empty(path):
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute("SELECT count(*) FROM _cf_KV").fetchone()[0] == 0 and (
                connection.execute("SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE '_cf%'").fetchone()[0] == 0
            )
        finally:
            connection.close()
    except sqlite3.Error:
        return False


def test_reading_creates_no_file(node):
    before = len(files(node))
    assert ask(node, "only-read", "started") == ["loaded"]
    assert len(files(node)) == before


def test_state_survives_sleep(node):
    with node.connect("/sleeper/ws") as ws:
        for number in range(1, 4):
            ws.send(str(number))
            assert json.loads(ws.recv()) == [str(number), number]
            wait_for(lambda: not any(entry["object"] == "Box(sleeper)" for entry in node.awake()))
    assert ask(node, "sleeper", "count") == [3, ["1", "2", "3"]]


@pytest.mark.parametrize("mode", MODES)
def test_state_survives_a_restart(app, mode, tmp_path):
    for round_number in (1, 2):
        with running(app, *MODES[mode], data=str(tmp_path)) as node:
            with node.connect("/keeper/ws") as ws:
                ws.send(f"round {round_number}")
                assert json.loads(ws.recv())[1] == round_number
            assert node.stop() == 0


def test_killed_hosts_lose_no_acknowledged_write(app, tmp_path):
    """I1, I5: every write whose reply was seen is there after kill -9 at any moment. (Not yet: exactly once, issue 4.)"""
    with running(app, data=str(tmp_path)) as node:
        acknowledged = {name: [] for name in ("a", "b", "c", "d")}
        stop = threading.Event()

        def count(name):
            with node.connect(f"/{name}/ws", timeout_s=30) as ws:
                number = 0
                while not stop.is_set():
                    number += 1
                    ws.send(f"{name}{number}")
                    acknowledged[name].append(json.loads(ws.recv(30))[0])

        threads = [threading.Thread(target=count, args=(name,)) for name in acknowledged]
        for thread in threads:
            thread.start()
        for kills in range(1, 6):
            goal = sum(map(len, acknowledged.values())) + 200
            wait_for(lambda goal=goal: sum(map(len, acknowledged.values())) >= goal, timeout_s=60)
            os.kill(node.pid("host 0"), signal.SIGKILL)
            wait_for(lambda kills=kills: node.status()["hosts"][0] is not None and kills)
        stop.set()
        for thread in threads:
            thread.join(60)
        for name, replies in acknowledged.items():
            _, seen = ask(node, name, "count")
            assert set(replies) <= set(seen), f"lost in {name}: {set(replies) - set(seen)}"


def test_full_disk(app, tmp_path):
    """The write fails, nothing is sent, the object resets, reads go on; after space is freed it works by itself."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        with running(app, data=str(disk)) as node, node.connect("/full/ws") as ws:
            ws.send("before")
            assert json.loads(ws.recv()) == ["before", 1]
            filler = disk / "filler"
            descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
            try:
                while True:
                    os.write(descriptor, b"x" * 4096)
            except OSError:
                os.close(descriptor)
            ws.send("y" * 200_000)
            wait_for(lambda: node.logged("Box(full)") and (node.logged("is dropped") or node.logged("disk is full")))
            assert ask(node, "full", "count") == [1, ["before"]]
            filler.unlink()
            wait_for(lambda: not any(entry["object"] == "Box(full)" and entry["pins"] for entry in node.awake()))
            ws.send("after")
            assert json.loads(ws.recv()) == ["after", 2]
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
