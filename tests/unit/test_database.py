"""storage/database.py and host/objects/actor_storage.py on real files: what a review found, each as a test."""

import asyncio
import threading

import apsw
import pytest

from hosted import until
from roost.api.storage import DurableObjectStorage
from roost.clock import SystemClock
from roost.errors import ConfigError
from roost.events import ObjectRef
from roost.host.disk import Disk
from roost.host.objects.actor_storage import ActorStorage
from roost.storage.database import Database
from roost.storage.errors import SqlError, StorageError

REF = ObjectRef("Room", "ab" * 32, "x")


class Owner:
    """The object around a storage."""

    def __init__(self):
        self.failures = []

    def storage_failed(self, error):
        self.failures.append(error)

    def block(self):
        return lambda: None

    def is_redelivered(self, epoch, event):
        return True

    def has_received(self, epoch, life, group):
        return False

    def groups_to_store(self):
        return []

    def ask_to_confirm(self, epoch):
        return None

    def check_alarm_handler(self):
        pass


def stored(tmp_path, test):
    """Run an async test with one object's storage."""

    async def main():
        disk = Disk(asyncio.get_running_loop(), tmp_path, SystemClock())
        owner = Owner()

        def make():
            return ActorStorage(REF, disk, owner)

        store = make()
        try:
            await test(store, DurableObjectStorage(store), owner.failures, make)
        finally:
            store.close_now()
            disk.end()

    asyncio.run(main())


def test_a_transaction_that_sqlite_undid_does_not_count(tmp_path):
    """A full disk undoes the whole turn: what an earlier handler of it wrote must not be confirmed."""

    async def body(store, storage, failures, make):
        await storage.put("a", 1)
        await storage.sync()
        released = []
        await storage.put("b", 2)
        store.gate.hold(released.append)
        store._database.connection().execute("ROLLBACK")  # as SQLITE_FULL does
        await until(lambda: released)
        assert isinstance(released[0], StorageError)
        assert len(failures) == 1

    stored(tmp_path, body)


def test_parallel_transactions_are_one_after_the_other(tmp_path):
    async def body(store, storage, failures, make):
        async def add(txn):
            n = await txn.get("n") or 0
            await asyncio.sleep(0.005)
            await txn.put("n", n + 1)

        await asyncio.gather(*(storage.transaction(add) for _ in range(5)))
        assert await storage.get("n") == 5
        await storage.sync()
        assert not store.busy
        assert failures == []

    stored(tmp_path, body)


def test_waiting_for_its_own_writes_inside_a_transaction_is_an_error(tmp_path):
    async def body(store, storage, failures, make):
        async def waits(txn):
            await txn.put("a", 1)
            await storage.sync()

        with pytest.raises(StorageError, match=r"inside storage\.transaction"):
            await asyncio.wait_for(storage.transaction(waits), 5)
        assert await storage.get("a") is None
        await storage.sync()

    stored(tmp_path, body)


def test_rows_of_a_writing_statement_do_not_hold_up_the_commit(tmp_path):
    async def body(store, storage, failures, make):
        storage.sql.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        cursor = storage.sql.exec("INSERT INTO t (x) VALUES (1), (2), (3) RETURNING id")
        assert next(cursor).id == 1
        await storage.sync()
        assert failures == []
        assert [row.id for row in cursor] == [2, 3]

    stored(tmp_path, body)


def test_unconfirmed_writes_are_synced_by_sync(tmp_path):
    """W51, W52."""

    async def body(store, storage, failures, make):
        await storage.put("a", 1, allowUnconfirmed=True)
        assert not store.gate.shut
        await storage.sync()
        assert not store._database.connection().in_transaction

    stored(tmp_path, body)


def test_w48_several_puts_are_one_transaction(tmp_path):
    async def body(store, storage, failures, make):
        for number in range(10):
            await storage.put(str(number), number)
        store.give_up(StorageError("reset"))
        store.close()
        again = make()
        assert again.get("0") is None
        again.close_now()

    stored(tmp_path, body)


def test_a_successor_waits_until_the_file_is_closed(tmp_path):
    async def body(store, storage, failures, make):
        for _ in range(20):
            store = make()
            storage = DurableObjectStorage(store)
            await storage.put("k", 1)
            await storage.sync()
            await storage.deleteAll()
            await asyncio.sleep(0)
            store.close()  # the fsync is under way; the close then finds the file empty and removes it
            successor = make()
            other = DurableObjectStorage(successor)
            await other.put("mine", 2)
            await other.sync()
            assert await other.get("mine") == 2
            successor.close_now()
            third = make()
            assert third.get("mine") is not None
            third.close_now()

    stored(tmp_path, body)


def test_an_earlier_life_cannot_touch_the_file_again(tmp_path):
    async def body(store, storage, failures, make):
        await storage.put("a", 1)
        await storage.sync()
        store.give_up(StorageError("reset"))
        store.close()
        for call in (lambda: store.get("a"), lambda: store.put("a", b"", unconfirmed=False), lambda: store.size_bytes()):
            with pytest.raises(StorageError):
                call()

    stored(tmp_path, body)


def test_a_newer_format_is_refused(tmp_path):
    database = Database(tmp_path / "a" / "x.sqlite")
    database.connection().pragma("user_version", 99)
    database.close()
    with pytest.raises(ConfigError, match="format 99"):
        Database(tmp_path / "a" / "x.sqlite").connection()


def test_values_are_never_sql(tmp_path):
    database = Database(tmp_path / "x.sqlite")
    keys = ["'; DROP TABLE _cf_KV; --", "%", "_", "a\0b", "é🎉", "x" * 2000, ""]
    for key in keys:
        database.put(key, key.encode())
    database.commit()
    for key in keys:
        assert database.get(key) == key.encode()
    found = database.list(start=None, after=None, end=None, prefix="", reverse=False, limit=None)
    assert [key for key, _ in found] == sorted(keys, key=str.encode)
    with pytest.raises(SqlError):
        database.execute("SELECT * FROM _cf_METADATA", ())
    database.close()


def test_syncing_keeps_sqlites_locks(tmp_path):
    """Closing any descriptor of a file drops the process's POSIX locks on it: another program could take the log away."""
    import subprocess
    import sys

    probe = (
        "import fcntl, struct, sys; f = open(sys.argv[1], 'rb'); "
        "lock = fcntl.fcntl(f, fcntl.F_GETLK, struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0x40000000, 1024, 0)); "
        "print(struct.unpack('hhqqi', lock)[0] == fcntl.F_RDLCK)"
    )
    database = Database(tmp_path / "x.sqlite")
    try:
        for number in range(3):
            database.put("a", bytes([number]))
            database.commit()
            database.sync()
            done = subprocess.run([sys.executable, "-c", probe, str(tmp_path / "x.sqlite")], capture_output=True, text=True)
            assert done.stdout.strip() == "True", done
    finally:
        database.close()


def test_reading_opens_no_log_until_the_first_write(tmp_path):
    path = tmp_path / "x.sqlite"
    database = Database(path)
    for key in "abc":
        database.put(key, key.encode())
    database.commit()
    database.close()
    database = Database(path)
    assert database.get("a") == b"a"
    assert not path.with_name("x.sqlite-wal").exists()
    rows = database.list(start=None, after=None, end=None, prefix="", reverse=False, limit=None)
    assert next(rows) == ("a", b"a")
    database.put("d", b"d")  # while the rows are being read
    assert list(rows) == [("b", b"b"), ("c", b"c")]
    assert database.get("d") == b"d"
    database.commit()
    assert path.with_name("x.sqlite-wal").exists()
    database.close()


def test_sync_after_unconfirmed_writes_waits_and_does_not_hang(tmp_path):
    async def body(store, storage, failures, make):
        await storage.put("a", 1)  # its fsync begins
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await storage.put("b", 2, allowUnconfirmed=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        syncs = []
        sync = store._database.sync
        store._database.sync = lambda: (sync(), syncs.append(1))
        await asyncio.wait_for(storage.sync(), 5)
        assert syncs  # one that began after the write
        assert not store.busy

    stored(tmp_path, body)


def test_nested_transactions_do_not_wait_for_themselves(tmp_path):
    async def body(store, storage, failures, make):
        async def inner(txn):
            await txn.put("inner", 1)
            raise ValueError

        async def outer(txn):
            await txn.put("outer", 1)
            with pytest.raises(ValueError):
                await storage.transaction(inner)

        await asyncio.wait_for(storage.transaction(outer), 5)
        assert (await storage.get("outer"), await storage.get("inner")) == (1, None)

    stored(tmp_path, body)


def test_what_an_earlier_life_left_unsynced_is_synced_before_anything_leaves(tmp_path):
    async def body(store, storage, failures, make):
        await storage.put("a", 1)
        await storage.sync()
        copy = tmp_path / "copy"  # what a killed host leaves: a log that nobody folded
        copy.mkdir()
        for file in tmp_path.glob("objects/Room/ab/*"):
            (copy / file.name).write_bytes(file.read_bytes())
        store.close()
        while tmp_path.glob("objects/Room/ab/*-wal") and store._disk._closing:
            await asyncio.sleep(0.001)
        for file in copy.iterdir():
            (tmp_path / "objects" / "Room" / "ab" / file.name).write_bytes(file.read_bytes())
        successor = make()
        other = DurableObjectStorage(successor)
        assert await other.get("a") == 1
        assert successor.gate.shut
        await other.sync()
        assert not successor.gate.shut
        successor.close_now()

    stored(tmp_path, body)


def test_values_are_as_large_as_on_the_platform_and_larger_ones_of_before_are_read(tmp_path):
    path = tmp_path / "0.sqlite"
    database = Database(path)
    database.execute("CREATE TABLE t (x)", ())
    database.execute("INSERT INTO t VALUES (zeroblob(2000000))", ())
    for sql, bound in (
        ("INSERT INTO t VALUES (zeroblob(3000000))", ()),
        ("INSERT INTO t VALUES (?)", (b"x" * 3_000_000,)),
        ("INSERT INTO t VALUES (?)", (b"x" * 3_000_000,)),  # the shorter way of the second time
        ("UPDATE t SET x = zeroblob(3000000)", ()),
    ):
        with pytest.raises(SqlError, match="may have 2200000 bytes"):
            database.execute(sql, bound)
    database.commit()
    database.close()
    earlier = apsw.Connection(str(path))
    earlier.execute("INSERT INTO t VALUES (zeroblob(3000000))")
    earlier.close()
    database = Database(path)
    run = database.execute("SELECT length(x), x FROM t ORDER BY 1 DESC", ())
    assert run.next_row()[0] == 3_000_000
    database.close()


def test_pragmas_of_the_platform(tmp_path):
    database = Database(tmp_path / "0.sqlite")
    database.put("k", b"v")
    for pragma in (
        "case_sensitive_like = ON", "ignore_check_constraints = ON", "legacy_alter_table = ON", "recursive_triggers = ON",
        "reverse_unordered_selects = OFF", "optimize", "optimize(1)", "table_list",
    ):  # fmt: skip
        database.execute(f"PRAGMA {pragma}", ())
    for pragma in ("user_version = 3", "journal_mode = delete", "optimize; DELETE FROM _cf_KV", "synchronous = off"):
        with pytest.raises(SqlError, match="not authorized"):
            database.execute(f"PRAGMA {pragma}", ())
    assert database.get("k") == b"v"
    database.close()


def test_where_nearly_every_life_writes_the_file_is_opened_to_write_at_once(tmp_path):
    async def body(store, storage, failures, make):
        disk, seen = store._disk, []
        store.close()
        for life in range(30):
            store = make()
            storage = DurableObjectStorage(store)
            await storage.get("n")
            seen.append(store._database._connection is not None)
            if life < 25:
                await storage.put("n", life)
                await storage.sync()
            store.close()
            await disk.closed()
            await asyncio.sleep(0)
        assert not any(seen[:10])
        assert seen[24]
        assert not seen[29], "and as soon as some do not, only to read"
        assert Database(disk.path(REF)).get("n") is not None

    stored(tmp_path, body)


def test_what_a_cut_first_write_left_is_not_opened_to_write_by_a_reader(tmp_path):
    path = tmp_path / "object.sqlite"
    path.write_bytes(b"")
    database = Database(path, "x", will_write=lambda: True)
    assert database.get("a") is None
    assert path.read_bytes() == b""
    database.close()


def test_where_no_file_can_be_opened_to_write_reading_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "object.sqlite"
    first = Database(path, "x")
    first.put("a", b"1")
    first.commit()
    first.close()
    database = Database(path, "x", will_write=lambda: True)

    def full(*, existed):
        raise apsw.FullError("the disk is full")

    monkeypatch.setattr(database, "_open", full)
    assert database.get("a") == b"1"
    with pytest.raises(StorageError, match="make room on its disk"):
        database.put("a", b"2")
    database.close()


# `sync()` and `close` in each state


class Held:
    """The object's fsync waits until `let_go`."""

    def __init__(self, store):
        self.go, self.began = threading.Event(), threading.Event()
        sync = store._database.sync

        def held():
            self.began.set()
            assert self.go.wait(10)
            sync()

        store._database.sync = held


@pytest.mark.parametrize("state", ["scheduled", "syncing", "nested"])
def test_sync_after_unconfirmed_writes_waits_for_them(tmp_path, state):
    async def body(store, storage, failures, make):
        await storage.put("before", 0)
        await storage.sync()
        held = Held(store)

        async def write_and_sync():
            await storage.put("a", 1, allowUnconfirmed=True)
            await storage.sync()
            return held.go.is_set()

        if state == "syncing":
            await storage.put("b", 2)
            await until(held.began.is_set)
            assert store.gate.shut
        if state == "nested":

            async def section(txn):
                await txn.put("b", 2, allowUnconfirmed=True)
                with pytest.raises(StorageError, match=r"inside storage.transaction\(\) nothing can wait"):
                    await storage.sync()  # it would wait for itself
                return "went on"

            assert await asyncio.wait_for(storage.transaction(section), 5) == "went on"
        waiting = asyncio.create_task(write_and_sync())
        await until(held.began.is_set)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        held.go.set()
        assert await asyncio.wait_for(waiting, 5)
        assert not store.busy

    stored(tmp_path, body)


def test_a_nested_rollback_after_the_gate_broke(tmp_path):
    """What is undone inside must not hide that all is lost."""

    async def body(store, storage, failures, make):
        await storage.put("kept", 1)
        await storage.sync()

        async def inner(txn):
            await txn.put("inner", 1)
            store.give_up(StorageError("the disk is gone"))
            raise ValueError("undo me")

        async def outer(txn):
            await txn.put("outer", 1)
            with pytest.raises((ValueError, StorageError)):
                await storage.transaction(inner)
            await txn.put("later", 1)

        with pytest.raises(StorageError, match="the disk is gone"):
            await asyncio.wait_for(storage.transaction(outer), 5)
        store.close()
        again = make()
        assert [again.get(key) is not None for key in ("kept", "outer", "inner", "later")] == [True, False, False, False]
        again.close_now()

    stored(tmp_path, body)


def test_a_close_while_an_fsync_is_held_waits_for_it(tmp_path):
    async def body(store, storage, failures, make):
        await storage.put("a", 1)
        await storage.sync()
        held = Held(store)
        await storage.put("b", 2)
        await until(held.began.is_set)
        store.give_up(StorageError("reset"))
        store.close()
        successor = make()
        (closing,) = store._disk._closing.values()
        assert not closing.done(), "its file is being closed, behind the fsync"
        held.go.set()
        assert successor.get("b") is not None  # waits until the file is closed
        assert closing.done()
        successor.close_now()

    stored(tmp_path, body)
