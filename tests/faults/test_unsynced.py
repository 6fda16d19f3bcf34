"""Power loss on a disk that forgets what was not synced (`lossy_disk.py`): what was acknowledged is there, whole, and every
object that was ever asked for works. Each fsync is needed: without it, one of these runs turns red."""

import os
import random
import shutil

import apsw
import pytest

from faults.test_power_loss import state
from lossy_disk import LossyDisk
from roost.events import ObjectRef
from roost.storage import database as database_module
from roost.storage import folding
from roost.storage.alarm_index import AlarmIndex
from roost.storage.database import Database
from roost.storage.errors import StorageError

REF = ObjectRef("Room", "ab" * 32, "x")


class Run:
    """Commits, syncs and folds, with a power loss after some of the changes to the disk."""

    def __init__(self, tmp_path, monkeypatch, seed=3):
        self.disk = LossyDisk(tmp_path / "data")
        self.tmp_path = tmp_path
        self.chance = random.Random(seed)
        self.acknowledged = 0
        self.losses = self.folds = 0
        self.patch = monkeypatch
        self.found = ""  # what is wrong; nothing may raise inside of SQLite
        self.disk.changed = self._changed

    def _changed(self):
        if self.chance.random() < 0.3:
            self.lose_power(self.chance.choice(("any", "last", "last", "nothing")))

    def lose_power(self, how):
        if self.found:
            return
        self.losses += 1
        image = self.tmp_path / f"image {self.losses}"
        image.mkdir()
        self.disk.image(image, self.chance, how)
        try:
            self.judge(image)
        except AssertionError as error:
            self.found = f"{how} kept: {error}"
        shutil.rmtree(image)

    def judge(self, image):
        path = image / "objects/Room/ab/x.sqlite"
        try:
            n = state(path) if path.exists() else 0
        except (StorageError, apsw.Error) as error:
            raise AssertionError(f"acknowledged {self.acknowledged}, cannot be read: {error}") from error
        assert n >= self.acknowledged, f"acknowledged {self.acknowledged}, found {n}"

    def commits(self, lives=3, commits=14, fold_every=4):
        """What was found to be wrong; "" if nothing."""
        n = 0
        (self.tmp_path / "data").mkdir()
        database_module._durable_folders.clear()
        with self.disk.watching(self.patch):
            for _ in range(lives):
                database = Database(self.tmp_path / "data/objects/Room/ab/x.sqlite")
                for _ in range(commits):
                    n += 1
                    database.execute("CREATE TABLE IF NOT EXISTS part (n INTEGER, half TEXT, filler TEXT)", ())
                    database.put("n", str(n).encode())
                    for half in ("first", "second"):
                        filler = "x" * (n * 937 % 9000)
                        database.execute("INSERT INTO part VALUES (?, ?, ?)", (n, half, filler))
                    database.commit()
                    database.sync()
                    self.acknowledged = n
                    if n % fold_every == 0:
                        assert not database.fold().held
                        self.folds += 1
                database.close()
            self.lose_power("nothing")
        return self.found


def test_what_was_acknowledged_survives_every_loss_of_power(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    assert run.commits() == ""
    print(f"{run.losses} losses of power, {run.folds} folds crossed, {run.acknowledged} commits")
    assert run.losses > 200
    assert run.folds == 10


def _without_fsync_of(suffix):
    """`os.fsync` that passes over what ends so: a folder for ""."""

    def broken(patch):
        fsync = os.fsync

        def partial(fd):
            path = os.readlink(f"/proc/self/fd/{fd}")
            if not (path.endswith(suffix) if suffix else os.path.isdir(path)):
                fsync(fd)

        patch.setattr(os, "fsync", partial)

    return broken


def _fold_without_syncing(patch):
    class Careless(apsw.Connection):
        def pragma(self, name, *value):
            return super().pragma(name, *("off" if each == "full" else each for each in value))

    patch.setattr(folding.apsw, "Connection", Careless)


def _fold_that_begins_anew(patch):
    """The log is kept, and the next commit overwrites it from its beginning, as SQLite does by itself."""

    def fold(path, log_fd):
        other = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        other.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        other.close()
        return folding.Folded(1, 1, "")

    patch.setattr(database_module, "fold", fold)


@pytest.mark.parametrize(
    "broken",
    [
        _without_fsync_of("-wal"), _without_fsync_of(".sqlite"), _without_fsync_of(""), _fold_without_syncing,
        _fold_that_begins_anew,
    ],
    ids=["log", "file", "folder", "fold", "restart"],
)  # fmt: skip
def test_each_sync_is_needed(tmp_path, monkeypatch, broken):
    """Proven: a variant without it loses or tears what was acknowledged."""
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = Run(folder, monkeypatch, seed)
        watching = run.disk.watching

        def also_broken(patch, watching=watching):
            context = watching(patch)

            class Both:
                def __enter__(self):
                    entered = context.__enter__()
                    broken(patch)
                    return entered

                def __exit__(self, *error):
                    return context.__exit__(*error)

            return Both()

        run.disk.watching = also_broken
        with monkeypatch.context() as patch:
            run.patch = patch
            if found := run.commits():
                assert "acknowledged" in found or "torn" in found
                return
    raise AssertionError("nothing has turned red")


# the alarm index


def index_run(tmp_path, monkeypatch, puts=30):
    data = tmp_path / "data"
    data.mkdir()
    disk = LossyDisk(data)
    chance = random.Random(5)
    path = data / "alarms/0-of-1.sqlite"
    acknowledged = 0
    wrong = []

    def lose_power():
        if wrong:
            return
        image = tmp_path / f"image {disk.losses}"
        disk.losses += 1
        disk.image(image, chance, chance.choice(("nothing", "any")))
        if (image / "alarms/0-of-1.sqlite").exists():
            index = AlarmIndex(image / "alarms/0-of-1.sqlite")
            found = index.count()
            index.close()
        else:
            found = 0
        shutil.rmtree(image, ignore_errors=True)
        if found < acknowledged:
            wrong.append(f"acknowledged {acknowledged}, found {found}")

    disk.losses = 0
    disk.changed = lambda: chance.random() < 0.4 and lose_power()
    with disk.watching(monkeypatch):
        (data / "alarms").mkdir()
        folding.sync_path(data)
        index = AlarmIndex(path, max_log_bytes=4 * 50_000)
        for number in range(puts):
            index.put(ObjectRef("Room", f"{number:064x}", None), 1000 + number)
            index.sync()
            acknowledged = number + 1
            lose_power()
        folded = index.log_bytes < 100_000
        index.close()
        lose_power()
    return disk.losses, folded, wrong


def test_an_alarm_that_was_acknowledged_is_in_the_index(tmp_path, monkeypatch):
    losses, folded, wrong = index_run(tmp_path, monkeypatch)
    assert not wrong
    assert losses > 60
    assert folded


@pytest.mark.parametrize("suffix", ["-wal", ".sqlite", ""], ids=["log", "file", "folder"])
def test_each_sync_of_the_index_is_needed(tmp_path, monkeypatch, suffix):
    watching = LossyDisk.watching

    def broken(self, patch):
        context = watching(self, patch)

        class Both:
            def __enter__(self):
                context.__enter__()
                _without_fsync_of(suffix)(patch)

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Both()

    with monkeypatch.context() as patch:
        patch.setattr(LossyDisk, "watching", broken)
        assert index_run(tmp_path, patch)[2]


# the birth of a file


def first_write(path):
    database = Database(path, "x")
    database.put("n", b"1")
    database.commit()
    database.sync()
    database.close()


def works(path):
    """An object that was cut at its birth: it has all of its first write or nothing, and can be written."""
    database = Database(path, "x")
    assert database.get("n") in (None, b"1")
    database.put("n", b"2")
    database.commit()
    database.sync()
    database.close()
    database = Database(path, "x")
    assert database.get("n") == b"2"
    database.close()


@pytest.mark.parametrize("how", ["all", "any", "nothing"])
def test_killed_or_without_power_after_every_change_of_the_first_write(tmp_path, monkeypatch, how):
    """`all` is what SIGKILL leaves: the page cache."""
    data = tmp_path / "data"
    data.mkdir()
    disk = LossyDisk(data)
    chance = random.Random(1)
    cuts = []
    wrong = []

    def cut():
        for repeat in range(5 if how == "any" else 1):
            image = tmp_path / f"image {len(cuts)} {repeat}"
            image.mkdir()
            disk.image(image, chance, how)
            try:
                works(image / "objects/Room/ab/x.sqlite")
            except (AssertionError, StorageError, apsw.Error) as error:
                wrong.append(f"{image.name}: {error!r}")
        cuts.append(image)

    disk.changed = cut
    database_module._durable_folders.clear()
    with disk.watching(monkeypatch):
        first_write(data / "objects/Room/ab/x.sqlite")
    assert not wrong
    assert len(cuts) > 8


@pytest.mark.parametrize("again", ["in the same life", "in the next life"])
def test_a_full_disk_at_every_write_of_the_first_write(tmp_path, monkeypatch, again):
    writes = 0
    for number in range(200):
        data = tmp_path / f"data {number}"
        disk = LossyDisk(data)
        path = data / "objects/Room/ab/x.sqlite"
        writes = 0

        def full(number=number):
            nonlocal writes
            writes += 1
            if writes > number:
                raise apsw.FullError("database or disk is full")

        disk.before_write = full
        with disk.watching(monkeypatch):
            database = Database(path, "x")
            try:
                database.put("n", b"1")
                database.commit()
                disk.before_write = lambda: None
                database.close()
                return
            except StorageError as error:
                assert "full" in str(error), error
            disk.before_write = lambda: None
            if again == "in the same life":
                database.rollback()
                assert database.get("n") is None
                database.put("n", b"1")
                database.commit()
            database.close()
            works(path)
    raise AssertionError("the first write never succeeded")


def test_what_is_no_birth_is_damage(tmp_path):
    """Tables without a format, and an empty file of an object with an alarm."""
    path = tmp_path / "x.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE _cf_KV (key, value)")
    connection.close()
    with pytest.raises(StorageError, match="has tables, but no format"):
        Database(path).get("n")
    path.write_bytes(b"")
    assert Database(path).get("n") is None
    with pytest.raises(StorageError, match="its object has an alarm"):
        Database(path, is_known=lambda: True).get("n")
    with pytest.raises(StorageError, match="its object has an alarm"):
        Database(path, is_known=lambda: True).put("n", b"1")
