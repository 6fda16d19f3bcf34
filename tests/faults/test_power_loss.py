"""Power loss: the data folder as it was between two system calls, its log's tail torn or flipped. The object opens with a
prefix of its commits, never half of one, never fewer than were acknowledged unless what had been synced was damaged."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from roost.storage import object_file
from roost.storage.database import Database
from roost.storage.errors import StorageError
from roost.testing import wait_for

WRITER = """
import sys
from pathlib import Path
from roost.storage import database as storage
path, log = Path(sys.argv[1]), open(sys.argv[2], "w")
database = storage.Database(path)
database.execute("CREATE TABLE IF NOT EXISTS part (n INTEGER, half TEXT, filler TEXT)", ())
k = 0
while True:
    k += 1
    database.put("n", str(k).encode())
    for half in ("first", "second"):
        database.execute("INSERT INTO part VALUES (?, ?, ?)", (k, half, "x" * (k * 37 % 3000)))
    database.commit()
    before = (path.parent / (path.name + "-wal"))
    database.sync()
    with open(before, "rb") as file:
        salt = file.read(24)[16:].hex()
        size = file.seek(0, 2)
    log.write(f"{k} {size} {salt}\\n")
    log.flush()
    if size > 60_000:
        assert not database.fold().held
        log.write(f"{k} 0 folded\\n")
        log.flush()
    if k % 60 == 0:
        database.close()
        database = storage.Database(path)
        log.write(f"{k} 0 closed\\n")
        log.flush()
"""

SNAPSHOTS = int(os.environ.get("ROOST_SNAPSHOTS", "40"))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Copies of a folder that was written to, each with what had been acknowledged by then."""
    folder = tmp_path_factory.mktemp("power")
    data, log = folder / "data", folder / "log"
    data.mkdir()
    chance = random.Random(7)
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(data / "x.sqlite"), str(log)])
    found = []
    try:
        for number in range(SNAPSHOTS):
            wait_for(lambda goal=number * 5: log.exists() and log.read_text().count("\n") > goal, "progress", 60)
            for _ in range(chance.randrange(2000)):  # a random moment
                pass
            os.kill(writer.pid, signal.SIGSTOP)
            wait_for(lambda: Path(f"/proc/{writer.pid}/stat").read_text().split()[2] in "Tt", "stopped")
            copy = folder / f"copy {number}"
            shutil.copytree(data, copy)
            acknowledged = log.read_text().split("\n")[-2].split()
            os.kill(writer.pid, signal.SIGCONT)
            found.append((copy, int(acknowledged[0]), int(acknowledged[1]), acknowledged[2]))
    finally:
        writer.kill()
        writer.wait()
    folds = log.read_text().count("folded")
    print(f"{folds} folds crossed in {len(found)} snapshots")
    assert folds > len(found) // 4, "the log was hardly ever folded"
    return found


def state(path):
    """How many whole commits the object has. Raises StorageError if it refuses; AssertionError for anything torn."""
    database = Database(path)
    try:
        n = int(database.get("n") or b"0")
        run = database.execute("SELECT n, half FROM part ORDER BY rowid", ()) if n else None
        rows = []
        while run is not None and (row := run.next_row()) is not None:
            rows.append(row)
        database.commit()
    finally:
        database.close()
    assert rows == [(k, half) for k in range(1, n + 1) for half in ("first", "second")], "a torn transaction"
    return n


def damaged(snapshot, folder, how, chance):
    """A copy with its log damaged. Whether only what was not yet synced may be gone."""
    source, _, synced, salt = snapshot
    shutil.copytree(source, folder)
    log = folder / "x.sqlite-wal"
    if not log.exists() or not log.stat().st_size:
        return folder / "x.sqlite", True
    size = log.stat().st_size
    same_log = log.read_bytes()[16:24].hex() == salt
    unsynced_from = synced if same_log else size
    if how == "lost tail":  # what a power loss does: only what was not synced
        if unsynced_from < size:
            os.truncate(log, chance.randrange(unsynced_from, size + 1))
        return folder / "x.sqlite", True
    if how == "truncated":
        os.truncate(log, chance.randrange(size + 1))
    else:
        content = bytearray(log.read_bytes())
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(max(0, size - 20_000), size)] ^= 1 << chance.randrange(8)
        log.write_bytes(content)
    return folder / "x.sqlite", False


@pytest.mark.parametrize("how", ["lost tail", "truncated", "flipped"])
def test_a_prefix_of_the_commits_or_a_clear_refusal(snapshots, tmp_path, how):
    chance = random.Random(11)
    opened = refused = 0
    for number, snapshot in enumerate(snapshots):
        path, nothing_synced_is_gone = damaged(snapshot, tmp_path / f"{how} {number}", how, chance)
        try:
            n = state(path)
        except StorageError as error:
            assert not nothing_synced_is_gone, error
            assert str(path) in str(error)
            refused += 1
            continue
        opened += 1
        if nothing_synced_is_gone:
            assert n >= snapshot[1], f"acknowledged {snapshot[1]}, found {n}"
    print(f"{how}: {opened} opened, {refused} refused")
    assert opened + refused == len(snapshots)
    assert opened


def test_the_checker_sees_a_torn_transaction(tmp_path):
    """Proven: half of a commit turns it red."""
    database = Database(tmp_path / "x.sqlite")
    database.execute("CREATE TABLE part (n INTEGER, half TEXT)", ())
    database.put("n", b"1")
    database.execute("INSERT INTO part VALUES (1, 'first')", ())
    database.commit()
    database.close()
    with pytest.raises(AssertionError, match="torn"):
        state(tmp_path / "x.sqlite")


def test_a_mutant_that_acknowledges_before_the_sync_is_seen(tmp_path):
    """A log without its unsynced tail has fewer commits than were acknowledged, if those were never synced."""
    path = tmp_path / "x.sqlite"
    database = Database(path)
    database.execute("CREATE TABLE part (n INTEGER, half TEXT)", ())
    database.put("n", b"0")
    database.commit()
    database.sync()
    synced = os.path.getsize(f"{path}-wal")
    database.put("n", b"1")
    for half in ("first", "second"):
        database.execute("INSERT INTO part VALUES (1, ?)", (half,))
    database.commit()
    acknowledged = 1  # the mutant: nothing was synced
    copy = tmp_path / "copy"
    copy.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", copy)
    os.truncate(copy / "x.sqlite-wal", synced)
    with pytest.raises(AssertionError):
        assert state(copy / "x.sqlite") >= acknowledged
    database.close()
    assert object_file.FORMAT == 1
