"""The logs (`-wal`) of objects and of the alarm index stay below their bounds, whatever is written and whoever reads."""

import asyncio
import gc
import logging
import os
import sqlite3
import threading
import time
from types import SimpleNamespace

import apsw
import pytest

from roost.clock import SystemClock
from roost.events import ObjectRef
from roost.host.disk import Disk, LogBounds
from roost.host.objects.actor_storage import ActorStorage
from roost.storage import database as database_module
from roost.storage import folding
from roost.storage.alarm_index import AlarmIndex
from roost.storage.database import Database
from roost.storage.errors import SqlError, StorageError
from roost.storage.folding import Folded
from unit.test_database import Owner

MIB = 1024 * 1024
BOUNDS = LogBounds(MIB, 64 * MIB)


class Object(Owner):
    """Counts how often its events are held back."""

    def __init__(self, disk, number=0):
        super().__init__()
        self.blocks = self.blocked = 0
        self.ref = ObjectRef("Room", f"{number:064x}", f"room {number}")
        self.store = ActorStorage(self.ref, disk, self)
        self.path = disk.path(self.ref)
        self.largest_log = 0

    def block(self):
        self.blocked += 1
        self.blocks += 1

        def unblock():
            self.blocked -= 1

        return unblock

    def look(self):
        try:
            self.largest_log = max(self.largest_log, os.path.getsize(f"{self.path}-wal"))
        except OSError:
            pass

    async def write(self, size=20_000, key="k"):
        self.store.put(key, os.urandom(size), unconfirmed=False)
        await asyncio.sleep(0)
        self.look()

    async def settle(self):
        await self.store.durable()
        while self.store.busy:
            await asyncio.sleep(0.001)
        self.look()


def with_disk(tmp_path, test, bounds=BOUNDS):
    async def main():
        disk = Disk(asyncio.get_running_loop(), tmp_path, SystemClock(), log_bounds=bounds)
        try:
            await test(disk)
        finally:
            disk.end()

    asyncio.run(main())


async def steady(disk):
    room = Object(disk)
    for number in range(300):
        await room.write()
        if number % 3 == 0:
            await room.settle()
    await room.settle()
    room.store.close_now()
    assert room.largest_log <= BOUNDS.max_bytes
    assert disk.logs_folded > 10
    assert not disk.folds_held
    assert not room.blocked
    assert not room.failures
    assert disk.log_bytes <= BOUNDS.max_bytes


def test_steady_writes(tmp_path):
    with_disk(tmp_path, steady)


def test_a_mutant_that_has_not_read_before_it_folds_is_seen(tmp_path, monkeypatch):
    """As version 0.1 did: SQLite then knows of no log, says (-1, -1) and moves nothing."""

    def fold(path, log_fd):
        other = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        found = other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        other.close()
        return Folded(*found, "")

    monkeypatch.setattr(database_module, "fold", fold)
    with pytest.raises(AssertionError):
        with_disk(tmp_path, steady)


def test_a_handler_that_goes_on_writing_while_the_disk_is_slow(tmp_path, monkeypatch):
    """It never lets the object's events be over: the host folds the log itself, and waits."""
    fsync = os.fsync

    def slow(fd):
        time.sleep(0.01)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)

    async def body(disk):
        room = Object(disk)
        for _ in range(100):
            await room.write(60_000)
        await room.settle()
        assert room.largest_log <= BOUNDS.max_bytes
        assert disk.folds_waited_for > 0
        assert not room.failures
        room.store.close_now()

    with_disk(tmp_path, body)


def test_one_large_commit(tmp_path):
    async def body(disk):
        room = Object(disk)
        await room.write(10)
        await room.settle()
        for key in range(5):
            room.store.put(f"large {key}", os.urandom(MIB // 3), unconfirmed=False)
        await asyncio.sleep(0)
        room.look()
        await room.settle()
        await room.write(10)
        await room.settle()
        assert MIB < room.largest_log <= 4 * MIB
        assert os.path.getsize(f"{room.path}-wal") < MIB // 4
        room.store.close_now()

    with_disk(tmp_path, body)


@pytest.mark.parametrize("kind", ["sql", "list"])
def test_a_cursor_that_is_not_read_is_ended_and_says_so(tmp_path, kind):
    async def body(disk):
        room = Object(disk)
        for key in range(50):
            room.store.put(f"key {key:02}", b"x", unconfirmed=False)
        room.store.execute(
            "CREATE TABLE t AS WITH RECURSIVE n(x) AS (SELECT 1 UNION SELECT x+1 FROM n LIMIT 50) SELECT x FROM n", ()
        )
        await room.settle()
        if kind == "sql":
            run = room.store.execute("SELECT x FROM t", ())
            read = run.next_row
        else:
            bounds = {"start": None, "after": None, "end": None, "prefix": "", "reverse": False, "limit": None}
            read = iter(room.store.list(**bounds)).__next__
        assert read()
        for _ in range(100):
            await room.write()
        await room.settle()
        assert room.largest_log <= BOUNDS.max_bytes
        with pytest.raises(SqlError, match="max_log_bytes"):
            read()
        room.store.close_now()

    with_disk(tmp_path, body)


def test_a_reader_outside_is_waited_for_and_told_of_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING)

    async def body(disk):
        room = Object(disk)
        await room.write()
        await room.settle()
        reader = apsw.Connection(str(room.path))
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM _cf_KV").fetchall()
        for _ in range(60):
            await room.write()
            await room.settle()
        assert disk.folds_held >= 2
        said = [record.getMessage() for record in caplog.records if "cannot be folded" in record.getMessage()]
        assert len(said) == 1
        assert "a reader holds it" in said[0]
        assert "Room(room 0)" in said[0]
        reader.close()
        for _ in range(60):
            await room.write()
            await room.settle()
        assert os.path.getsize(f"{room.path}-wal") <= BOUNDS.max_bytes
        assert not room.failures
        room.store.close_now()

    with_disk(tmp_path, body)


def test_all_logs_of_a_host_together(tmp_path):
    async def body(disk):
        rooms = [Object(disk, number) for number in range(20)]
        largest = 0
        for _ in range(12):
            for room in rooms:
                await room.write(15_000)
                await room.settle()
                largest = max(largest, sum(os.path.getsize(f"{each.path}-wal") for each in rooms if each.largest_log))
        assert largest <= 2 * MIB + 100_000  # each alone would be folded at 256 KiB
        assert disk.logs_folded
        for room in rooms:
            room.store.close_now()

    with_disk(tmp_path, body, LogBounds(MIB, 2 * MIB))


def test_the_alarm_index(tmp_path):
    index = AlarmIndex(tmp_path / "0-of-1.sqlite", max_log_bytes=MIB)
    largest = 0
    for number in range(2000):
        index.put(ObjectRef("Room", f"{number:064x}", None), number)
        if number % 10 == 0:
            index.sync()
        largest = max(largest, os.path.getsize(tmp_path / "0-of-1.sqlite-wal"))
    assert largest <= MIB
    assert index.count() == 2000
    assert not index.folds_held
    index.close()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_that_was_removed_in_use_is_an_error_not_an_acknowledged_write(tmp_path, suffix):
    async def body(disk):
        room = Object(disk)
        await room.write()
        await room.settle()
        os.unlink(f"{room.path}{suffix}")
        room.store.put("k", b"2", unconfirmed=False)
        with pytest.raises(StorageError, match="removed while it was in use"):
            await room.store.durable()
        assert len(room.failures) == 1
        room.store.close_now()

    with_disk(tmp_path, body)


class Paused(apsw.Connection):
    """Of a thread that folds: everything is moved, the log is not yet emptied."""

    here, go = threading.Event(), threading.Event()

    def wal_checkpoint(self, *args, mode, **more):
        if mode == apsw.SQLITE_CHECKPOINT_TRUNCATE:
            self.here.set()
            self.go.wait(10)
        return super().wal_checkpoint(*args, mode=mode, **more)


async def read_then_write_beside_a_fold(disk):
    """A handler that was suspended begins a transaction with a read, the log is emptied, and it writes."""
    room = Object(disk)
    while not room.blocked:
        await room.write()
    while not Paused.here.is_set():
        await asyncio.sleep(0.001)
    depth = room.store.begin_nested()
    room.store.get("k")
    Paused.go.set()
    while room.blocked:
        await asyncio.sleep(0.001)
    room.store.put("k", b"last", unconfirmed=False)
    room.store.end_nested(depth, keep=True)
    await room.settle()
    assert not room.failures
    assert room.store.get("k") == b"last"
    room.store.close_now()


@pytest.fixture
def a_paused_fold(monkeypatch):
    Paused.here.clear()
    Paused.go.clear()
    names = ("SQLITE_OPEN_READWRITE", "SQLITE_CHECKPOINT_PASSIVE", "SQLITE_CHECKPOINT_TRUNCATE", "BusyError")
    monkeypatch.setattr(
        folding, "apsw", SimpleNamespace(Connection=Paused, **{name: getattr(apsw, name) for name in names})
    )


@pytest.mark.usefixtures("a_paused_fold")
def test_reads_and_then_writes_while_a_thread_folds(tmp_path):
    with_disk(tmp_path, read_then_write_beside_a_fold)


@pytest.mark.usefixtures("a_paused_fold")
def test_a_mutant_that_begins_with_a_read_beside_a_fold_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(Database, "is_folding", property(lambda self: False, lambda self, value: None), raising=False)
    with pytest.raises((AssertionError, StorageError)):
        with_disk(tmp_path, read_then_write_beside_a_fold)


def test_a_held_largest_log_does_not_keep_the_others_from_being_folded(tmp_path):
    async def body(disk):
        held, *rooms = [Object(disk, number) for number in range(6)]
        for _ in range(10):
            await held.write()
            await held.settle()
        reader = apsw.Connection(str(held.path))
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM _cf_KV").fetchall()
        for _ in range(60):
            await held.write()
            await held.settle()
        assert disk.folds_held
        others = 0
        for _ in range(30):
            for room in rooms:
                await room.write(10_000)
                await room.settle()
            others = max(others, sum(os.path.getsize(f"{each.path}-wal") for each in rooms))
        reader.close()
        assert others <= 2 * MIB
        for room in (held, *rooms):
            room.store.close_now()

    with_disk(tmp_path, body, LogBounds(4 * MIB, 2 * MIB))


def test_a_cursor_that_was_dropped_holds_no_log(tmp_path):
    async def body(disk):
        room = Object(disk)
        room.store.execute(
            "CREATE TABLE t AS WITH RECURSIVE n(x) AS (SELECT 1 UNION SELECT x+1 FROM n LIMIT 50) SELECT x FROM n", ()
        )
        await room.settle()
        gc.disable()
        try:
            for _ in range(100):
                assert room.store.execute("SELECT x FROM t", ()).next_row()
                await room.write()
                await room.settle()
        finally:
            gc.enable()
        assert not disk.folds_held
        room.store.close_now()

    with_disk(tmp_path, body)


@pytest.mark.parametrize("how", ["put", "sql"])
def test_a_transaction_that_is_larger_than_a_log_may_be_is_told_and_keeps_what_was_before(tmp_path, how):
    """What was written before the refused write is kept, as long as the handler goes on."""

    async def body(disk):
        room = Object(disk)
        store = room.store
        store.execute("CREATE TABLE t (x BLOB)", ())
        await room.settle()
        told = 0
        for number in range(200):
            try:
                if how == "put":
                    store.put(f"key {number}", os.urandom(1_000_000), unconfirmed=False)
                else:
                    store.execute("INSERT INTO t VALUES (randomblob(1000000))", ())
            except SqlError as error:
                told += 1
                assert "one transaction of the object has filled its log (4 MiB" in error.message
            room.look()
        assert told > 20
        assert room.largest_log <= 20 * MIB
        await room.settle()
        assert not room.failures
        kept = 200 - told
        if how == "put":
            assert sum(store.get(f"key {number}") is not None for number in range(200)) == kept
        else:
            assert store.execute("SELECT count(*) FROM t", ()).next_row() == (kept,)
        await room.write()
        await room.settle()
        assert os.path.getsize(f"{room.path}-wal") <= MIB
        store.close_now()

    with_disk(tmp_path, body)


def test_one_statement_that_is_larger_than_a_log_may_be_undoes_the_turn(tmp_path):
    """SQLite undoes the whole transaction of a statement that is cut short: none of the turn may count."""

    async def body(disk):
        room = Object(disk)
        store = room.store
        store.execute("CREATE TABLE t (x BLOB)", ())
        store.put("before", b"1", unconfirmed=False)
        await room.settle()
        store.put("before", b"2", unconfirmed=False)
        with pytest.raises(SqlError, match="has filled its log"):
            store.execute(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000)"
                " INSERT INTO t SELECT randomblob(1000) FROM n",
                (),
            )
        room.look()
        assert room.largest_log < 64 * MIB  # of 100 MB
        with pytest.raises(StorageError, match="were undone"):
            await store.durable()
        assert len(room.failures) == 1
        store.close_now()
        again = Object(disk)
        assert again.store.get("before") == b"1"
        again.store.close_now()

    with_disk(tmp_path, body)


def test_an_object_is_emptied_whatever_refers_to_what(tmp_path):
    """SQLite deletes row by row, through the log, what foreign keys refer to."""
    database = Database(tmp_path / "x.sqlite", max_log_bytes=4 * MIB)
    database.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY, x BLOB)", ())
    database.execute("CREATE TABLE child (id INTEGER REFERENCES parent(id))", ())
    for _ in range(40):
        for _ in range(100):
            database.execute("INSERT INTO parent (x) VALUES (randomblob(9000))", ())
        database.commit()
        database.fold()
    database.delete_all()
    database.put("after", b"x" * 2_000_000)  # which counts from there
    database.commit()
    assert database.execute("SELECT count(*) FROM sqlite_schema WHERE name IN ('parent', 'child')", ()).next_row() == (0,)
    database.close()


def test_a_log_that_a_reader_holds_is_not_the_transactions_fault(tmp_path):
    database = Database(tmp_path / "x.sqlite", max_log_bytes=4 * MIB)
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n)", ())
    database.execute("INSERT INTO t VALUES (1, 0)", ())
    database.commit()
    reader = sqlite3.connect(tmp_path / "x.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM t").fetchall()
    for _ in range(8):
        database.put("k", os.urandom(2_000_000))
        database.commit()
    for _ in range(100):
        database.execute("UPDATE t SET n = n + 1", ())
    database.commit()
    assert database.execute("SELECT n FROM t", ()).next_row() == (100,)
    reader.close()
    database.close()


def test_rows_of_an_earlier_roost_are_read_while_others_are_written(tmp_path):
    database = Database(tmp_path / "x.sqlite")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)", ())
    database.commit()
    database.close()
    with sqlite3.connect(tmp_path / "x.sqlite") as older:
        older.executemany("INSERT INTO t VALUES (?, ?)", [(1, b"a"), (2, b"b" * 3_000_000), (3, b"c")])
    older.close()
    database = Database(tmp_path / "x.sqlite")
    rows = database.execute("SELECT id, x FROM t ORDER BY id", ())
    sizes = []
    while (row := rows.next_row()) is not None:
        sizes.append(len(row[1]))
        database.execute("UPDATE t SET x = 'd' WHERE id = 3", ())
    assert sizes == [1, 3_000_000, 1]
    database.commit()
    database.close()
