"""Logs of objects whose host was killed: folded once, but for those that somebody has or that are another host's."""

import asyncio
import os
import shutil
from types import SimpleNamespace

import pytest

from roost.clock import SystemClock
from roost.events import ObjectRef
from roost.host.disk import Disk
from roost.host.objects import leftovers
from roost.host.worker.surroundings import HostPhase
from roost.storage.database import Database


def left(disk, number):
    """An object whose host was killed with a log: the files of one that is still open, copied."""
    ref = ObjectRef("Room", f"{number:064x}", None)
    path = disk.path(ref)
    database = Database(path, None)
    for key in range(20):
        database.put(f"key {key}", os.urandom(1000))
    database.sync()
    copies = [(f"{path}{end}.copy", f"{path}{end}") for end in ("", "-wal")]
    for copy, file in copies:
        shutil.copy(file, copy)
    database.close()
    for copy, file in copies:
        os.replace(copy, file)
    assert log_of(disk, ref)
    return ref


def log_of(disk, ref):
    try:
        return os.path.getsize(f"{disk.path(ref)}-wal")
    except OSError:
        return 0


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Fold what `make(disk)` leaves; the disk, and what was left."""
    monkeypatch.setattr(leftovers, "_LATER_S", 0)

    def look(make, *, owns=lambda ref: True, here=(), elsewhere=(), phase=HostPhase.SERVING):
        async def main():
            disk = Disk(asyncio.get_running_loop(), tmp_path, SystemClock())
            try:
                refs = make(disk)
                actors = {refs[number]: object() for number in here}
                away = {(refs[number].class_name, refs[number].id) for number in elsewhere}
                surroundings = SimpleNamespace(disk=disk, owns=owns, phase=phase, elsewhere=away)
                await leftovers.fold_leftovers(surroundings, actors)
                return [bool(log_of(disk, ref)) for ref in refs]
            finally:
                disk.end()

        return asyncio.run(main())

    return look


def three(disk):
    return [left(disk, number) for number in range(3)]


def test_all_of_them(look, caplog):
    caplog.set_level("INFO")
    assert look(three) == [False, False, False]
    assert "3 objects' logs that a killed host has left are folded" in caplog.text


def test_who_is_awake_or_elsewhere_keeps_its_log(look):
    assert look(three, here=[0], elsewhere=[2]) == [True, False, True]


def test_objects_of_other_hosts(look):
    assert look(three, owns=lambda ref: ref.id.endswith("1")) == [True, False, True]


def test_a_host_that_ends_folds_nothing(look):
    assert look(three, phase=HostPhase.CLOSING) == [True, True, True]


def test_what_is_no_object_is_left_alone(look, caplog):
    def make(disk):
        refs = three(disk)
        folder = disk.path(refs[0]).parent
        for name in ("x.sqlite-wal", f"{1:063x}.sqlite-wal", f"{9:064x}.other"):
            (folder / name).write_bytes(b"x")
        (folder / f"{7:064x}.sqlite-wal").write_bytes(b"no log of a database")
        return refs

    assert look(make) == [False, False, False]
