"""`roost storage list|dump|restore` and `roost check`: offline and beside a running node."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import running

SOURCE = """
import asyncio
import time
from datetime import datetime, UTC
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Box(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.in_memory = None

    async def alarm(self):
        await self.ctx.storage.put("alarmed", True)

    async def fill(self, due):
        s = self.ctx.storage
        loop = [1]
        loop.append(loop)
        await s.put({"number": 5, "text": "é🎉\\n", "bytes": b"\\x00\\xff", "when": datetime(2026, 1, 2, tzinfo=UTC),
                     "set": {1, 2}, "big": 2**90, "loop": loop, "nested": {"a": [None, True, 1.5]}, "intkeys": {1: 2}})
        s.sql.exec("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, x TEXT, y BLOB, z REAL)")
        s.sql.exec("INSERT INTO t (x, y, z) VALUES ('a', ?, 1.5), (NULL, NULL, 2), ('it''s', ?, -1)", b"blob", b"")
        s.sql.exec("DELETE FROM t WHERE id = 2")
        s.sql.exec("CREATE TABLE pairs (a TEXT, b TEXT, both TEXT AS (a || b), PRIMARY KEY (a, b)) WITHOUT ROWID")
        s.sql.exec("INSERT INTO pairs VALUES ('k', 'v')")
        s.sql.exec("CREATE INDEX tx ON t (x)")
        s.sql.exec("CREATE VIEW v AS SELECT count(*) AS n FROM t")
        s.sql.exec("CREATE TRIGGER tr AFTER INSERT ON t BEGIN UPDATE t SET z = 99 WHERE id = new.id; END")
        s.sql.exec("CREATE VIRTUAL TABLE words USING fts5(body)")
        s.sql.exec("INSERT INTO words VALUES ('hello world'), ('goodbye')")
        if due:
            await s.setAlarm(due)
        self.in_memory = "kept"

    async def state(self):
        s = self.ctx.storage
        values = await s.list()
        loop = values.pop("loop", None)
        s.sql.exec("INSERT INTO t (x) VALUES ('next')")
        sql = s.sql.exec
        rows = [
            [dict(row) for row in sql("SELECT id, x, hex(y) AS y, z FROM t")],
            dict(sql("SELECT * FROM pairs").one()),
            sql("SELECT n FROM v").one().n,
            sql("SELECT rowid FROM words WHERE words MATCH 'goodbye'").one().rowid,
        ]
        found = [repr(values), loop is not None and loop[1] is loop, rows, await s.getAlarm()]
        return [*found, self.in_memory, self.ctx.id.name]

    async def change(self):
        await self.ctx.storage.put("number", 6)
        self.in_memory = "changed"

    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def large(self):
        await self.ctx.storage.put("large", "x" * 100_000)

    async def webSocketMessage(self, ws, message):
        if message == "slow":
            await asyncio.sleep(0.02)
            await self.ctx.storage.put("slow", time.time())
        ws.send(str(self.ctx.storage.kv.get("number")))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        name, what, *rest = request.url.split("/")[3:]
        box = self.env.BOX.getByName(name)
        if what == "ws":
            return await box.fetch(request)
        return Response.json(await getattr(box, what)(*map(int, rest)))
"""


def roost(*arguments, stdin=None, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "roost", *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr + done.stdout


def ask(node, path):
    status, _, body = node.get(path)
    assert status == 200, node.log[-20:]
    return json.loads(body)


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app", SOURCE, "Box", settings="[hibernation]\nidle_s = 0.2\n")


FAR = int(time.time() * 1000) + 86_400_000


@pytest.mark.parametrize("mode", [("--hosts", "2"), ("--inline",)], ids=" ".join)
def test_dump_and_restore_through_a_running_node(app, tmp_path, mode):
    with running(app, *mode) as node:
        ask(node, f"/one/fill/{FAR}")
        ask(node, "/two/fill/0")
        listed = [json.loads(line) for line in roost("storage", "list", "--data", node.data, "--json").splitlines()]
        assert sorted((entry["class"], entry["name"], entry["keys"], entry["alarm_ms"]) for entry in listed) == [
            ("Box", "one", 9, FAR),
            ("Box", "two", 9, None),
        ]
        assert "alarm: 20" in roost("storage", "list", "--data", node.data, "--name", "one")
        dump = roost("storage", "dump", "--data", node.data, "--name", "one")
        assert '{"key": "number", "value": 5}' in dump
        before = ask(node, "/one/state")
        with node.connect("/one/ws") as ws:
            ask(node, "/one/change")
            ws.send("?")
            assert ws.recv() == "6"
            # The object is awake, with a socket: it is built anew on what was restored, the socket stays.
            assert "1 objects restored" in roost("storage", "restore", "--data", node.data, stdin=dump)
            ws.send("?")
            assert ws.recv() == "5"
        again = ask(node, "/one/state")
        assert again[4] is None
        assert [*again[:4], again[5]] == [*before[:4], before[5]]
        assert "2 objects checked, 0 problems" in roost("check", "--data", node.data)


def test_offline_into_another_folder(app, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    with running(app, "--hosts", "2", data=str(first)) as node:
        ask(node, f"/one/fill/{FAR}")
        ask(node, f"/soon/fill/{int(time.time() * 1000) + 1500}")
    dump = tmp_path / "dump.jsonl"
    assert "2 objects dumped" in roost("storage", "dump", "--data", str(first), "--file", str(dump))
    assert "2 objects restored" in roost("storage", "restore", "--data", str(second), "--file", str(dump))
    assert roost("storage", "dump", "--data", str(second)) == dump.read_text()
    assert "2 objects checked, 0 problems" in roost("check", "--data", str(second))
    with running(app, "--hosts", "3", data=str(second)) as node:
        assert ask(node, "/one/state")[3:] == [FAR, None, "one"]
        from roost.testing import wait_for

        wait_for(lambda: "alarmed" in ask(node, "/soon/state")[0])


def test_a_bad_dump_changes_nothing(app, tmp_path):
    data = tmp_path / "data"
    with running(app, data=str(data)) as node:
        ask(node, "/one/fill/0")
    dump = roost("storage", "dump", "--data", str(data))
    lines = dump.splitlines()
    header = json.loads(lines[0])
    bad = {
        "JSON": [*lines[:3], "{", *lines[3:]],
        "ends in the middle": lines[:-2],
        "cut short": lines[:-1],
        "should end with": [*lines, *lines[:-1], json.dumps({"dump": {"objects": 2, "broken": 0}})],
        "keys and": [lines[0], *lines[2:]],
        "begins with a line": lines[1:],
        "version 99": [json.dumps({**header, "version": 99}), *lines[1:]],
        "cannot name a file": [json.dumps({**header, "object": {**header["object"], "id": "../../etc"}}), *lines[1:]],
        "cannot name": [json.dumps({**header, "object": {**header["object"], "class": "../x"}}), *lines[1:]],
        "not authorized": [*lines[:-2], json.dumps({"sql": "ATTACH '/tmp/x' AS y"}), *lines[-2:]],
        "damaged": [lines[0], json.dumps({"key": "k", "encoded": "AQ=="}), *lines[1:]],
    }
    for why, broken in bad.items():
        said = roost("storage", "restore", "--data", str(data), stdin="\n".join(broken), code=2)
        assert "line" in said or "dump" in said, said
        if why != "JSON":
            assert why in said, said
        assert roost("storage", "dump", "--data", str(data)) == dump
        assert not list(data.glob("**/*.restoring*"))


def test_a_dump_without_a_count_is_one_of_version_1(app, tmp_path):
    data = tmp_path / "data"
    with running(app, data=str(data)) as node:
        ask(node, "/one/fill/0")
    lines = roost("storage", "dump", "--data", str(data)).splitlines()
    old = [json.dumps({**json.loads(lines[0]), "version": 1}), *lines[1:-1]]
    assert "1 objects restored" in roost("storage", "restore", "--data", str(data), stdin="\n".join(old))


def _long_value(path):
    content = bytearray(path.read_bytes())
    for at in range(4096 * 4 + 100, len(content), 997):
        content[at] ^= 0xFF
    path.write_bytes(content)


def _sql(statement):
    def damage(path):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(statement)
        connection.close()

    return damage


DAMAGE = {
    "long value": _long_value,
    "not Roost's": _sql("UPDATE _cf_KV SET value = x'ff00'"),
    "text": _sql("UPDATE _cf_KV SET value = 'abc'"),
    "alarm": _sql("INSERT OR REPLACE INTO _cf_METADATA VALUES ('alarm', 'soon')"),
    "no table": _sql("DROP TABLE _cf_KV"),
    "no format": _sql("PRAGMA user_version = 0"),
    "no database": lambda path: path.write_bytes(b"nothing" * 999),
}


def test_a_dump_passes_over_the_damaged_and_names_them(app, tmp_path):
    data, second = tmp_path / "data", tmp_path / "second"
    second.mkdir()
    with running(app, data=str(data)) as node:
        for number in range(len(DAMAGE) + 3):
            ask(node, f"/o{number}/large")
    files = sorted(data.glob("objects/Box/*/*.sqlite"))
    for path, damage in zip(files, DAMAGE.values(), strict=False):
        damage(path)
    (data / "objects/Box" / ("0" * 2)).mkdir(exist_ok=True)
    unborn = data / "objects/Box/00" / ("0" * 64 + ".sqlite")
    unborn.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "roost", "storage", "dump", "--data", str(data)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    damaged = {path.stem for path in files[: len(DAMAGE)]}
    whole = {path.stem for path in files[len(DAMAGE) :]}
    assert all(stem in done.stderr for stem in damaged)
    assert not any(stem in done.stderr for stem in whole)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["dump"] == {"objects": len(whole), "broken": len(damaged)}
    said = roost("check", "--data", str(data), code=1)
    assert "note: " in said
    assert str(unborn) in said
    for path in files[: len(DAMAGE)]:
        assert path.stem in said
    said = roost("storage", "restore", "--data", str(second), stdin=done.stdout)
    assert f"{len(whole)} objects restored" in said


@pytest.mark.parametrize("mode", [("--hosts", "2", "--gateways", "2"), ("--inline",)], ids=" ".join)
def test_messages_that_are_being_handled_while_an_object_is_restored_are_answered(app, tmp_path, mode):
    with running(app, *mode) as node:
        ask(node, "/one/change")
        dump = roost("storage", "dump", "--data", node.data, "--name", "one")
        asked, answered, wrong = [0] * 3, [0] * 3, []
        over = threading.Event()

        def client(number):
            with node.connect("/one/ws") as ws:
                while not over.is_set():
                    asked[number] += 1
                    ws.send("slow")
                    if ws.recv(20) != "6":
                        wrong.append(number)
                    answered[number] += 1

        def visitor():  # its requests and calls come while the object is waited for
            while not over.is_set():
                with node.connect("/one/ws") as ws:
                    ws.send("fast")
                    if ws.recv(20) != "6":
                        wrong.append("visitor")
                ask(node, "/one/change")

        threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
        threads += [threading.Thread(target=visitor) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            began = time.monotonic()
            assert "1 objects restored" in roost("storage", "restore", "--data", node.data, stdin=dump)
            assert time.monotonic() - began < 5
        over.set()
        for thread in threads:
            thread.join(30)
        assert asked == answered
        assert sum(answered) > 20
        assert not wrong


def test_check_finds_damage(app, tmp_path):
    data = tmp_path / "data"
    with running(app, data=str(data)) as node:
        for name in ("a", "b", "c", "d"):
            ask(node, f"/{name}/fill/{FAR}")
    files = sorted(Path(data).glob("objects/Box/*/*.sqlite"))
    content = bytearray(files[0].read_bytes())
    content[4096 * 2 : 4096 * 2 + 2000] = bytes(2000)
    files[0].write_bytes(content)
    files[1].write_bytes(b"not a database" * 1000)
    import apsw

    connection = apsw.Connection(str(files[2]))
    connection.execute("UPDATE _cf_KV SET value = x'0199' WHERE key = 'number'")
    connection.close()
    index = apsw.Connection(str(next(data.glob("alarms/0-of-*.sqlite"))))
    index.execute("DELETE FROM alarm")
    index.close()
    said = roost("check", "--data", str(data), code=1)
    assert files[0].stem[:12] in said
    assert "not a database" in said
    assert "the value of 'number'" in said
    assert "not in the index" in said
    # The damaged ones are refused with a clear error, the others go on.
    with running(app, data=str(data)) as node:
        by_id = {entry["id"]: entry["name"] for entry in map(json.loads, _listed(data))}
        assert files[3].stem in by_id
        assert ask(node, f"/{by_id[files[3].stem]}/change") is None
        damaged = next(name for name in ("a", "b", "c", "d") if name not in by_id.values())
        status, _, _ = node.get(f"/{damaged}/change")
        assert status == 500
        assert node.logged("file is not a database")


def _listed(data):
    done = subprocess.run(
        [sys.executable, "-m", "roost", "storage", "list", "--json", "--data", str(data)], capture_output=True, text=True
    )
    assert done.returncode == 1
    return done.stdout.splitlines()


def test_usage(tmp_path):
    assert "not a data folder" in roost("storage", "list", "--data", str(tmp_path / "none"), code=2)
    assert roost("storage", "list", "--data", str(tmp_path)) == ""
    assert "no object matches" in roost("storage", "dump", "--data", str(tmp_path), "--name", "x", code=2)
    assert "0 objects checked, 0 problems" in roost("check", "--data", str(tmp_path))
