"""Which sleeping object is due when: one small database a host slot, and how it is rebuilt if it is lost.

The index is a hint that is never late: the object's own database says whether and when its alarm is set. So an alarm that
comes earlier is told here *before* the object's commit, one that goes later *after* it (observed behaviour, W49): a crash
between the two wakes an object for nothing, and never misses one. What a power loss may have torn apart is found by the
machine's boot id, and the index is then made anew from the objects.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from roost.errors import ConfigError
from roost.events import ObjectRef
from roost.ids import is_object_id, slot_of
from roost.storage.errors import NeverWritten, StorageError
from roost.storage.folding import FOLD_BYTES, MAX_LOG_BYTES, fold, sync_path
from roost.storage.object_file import read_alarm

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("roost.storage")

FORMAT: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LOOKS_EVERY: Final = 50  # statements, at the size of the log
_BUSY_TIMEOUT_MS: Final = 10_000  # its log is being folded
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS alarm (class TEXT, id TEXT, name TEXT, due_ms INTEGER, retries INTEGER, setbacks INTEGER,"
    " PRIMARY KEY (class, id)) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS alarm_due ON alarm (due_ms);"
    "CREATE TABLE IF NOT EXISTS cron (expression TEXT PRIMARY KEY, last_ms INTEGER) WITHOUT ROWID"
)


class Due(NamedTuple):
    """One entry. `retries` are those that count (the handler failed), `setbacks` those that do not (a crash, a reset)."""

    ref: ObjectRef
    due_ms: int
    retries: int
    setbacks: int


class AlarmIndex:
    """One slot's index. A node makes the file before its hosts start; `sync` is for another thread."""

    def __init__(self, path: Path, max_log_bytes: int = MAX_LOG_BYTES) -> None:
        self.folds_held = 0
        self._path = path
        self._max_log_bytes = max_log_bytes
        self._fold_bytes = min(FOLD_BYTES, max_log_bytes // 4)
        self._connection: apsw.Connection | None = None
        self._log_fd = self._file_fd = -1  # kept open: closing one of the file's would drop this process's locks on it
        self._is_new = True  # the log's name, at least
        self._runs = 0
        self._syncing = threading.Lock()
        self._folding = threading.Lock()

    def _open(self, *, create: bool) -> apsw.Connection | None:
        if self._connection is None and (create or self._path.exists()):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                connection = apsw.Connection(str(self._path))
                connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
                connection.pragma("synchronous", "off")  # as in `database.py`: every sync is ours
                connection.pragma("journal_mode", "wal")
                connection.pragma("wal_autocheckpoint", 0)
                connection.execute(_SCHEMA)
            except apsw.Error as error:
                raise StorageError(f"the alarm index {self._path} cannot be opened: {error}") from error
            self._connection = connection
        return self._connection

    def create(self) -> None:
        """Make the file, so that a missing one is a lost one. Raises StorageError."""
        self._open(create=True)

    def _run(self, sql: str, bindings: tuple[Any, ...]) -> None:
        connection = self._open(create=True)
        assert connection is not None
        try:
            connection.execute(sql, bindings)
            self._runs += 1
            if not self._runs % _LOOKS_EVERY and self._log_fd >= 0 and self.log_bytes > self._max_log_bytes // 2:
                self._fold()  # here, while the loop waits: it grows faster than a thread folds it
        except (apsw.Error, OSError) as error:
            raise StorageError(f"the alarm index cannot be written: {error}") from error

    @property
    def log_bytes(self) -> int:
        """How large the log is; 0 until it has first been synced."""
        return os.fstat(self._log_fd).st_size if self._log_fd >= 0 else 0

    def _rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        connection = self._open(create=False)
        if connection is None:
            return []
        try:
            return connection.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise StorageError(f"the alarm index cannot be read: {error}") from error

    def put(self, ref: ObjectRef, due_ms: int, retries: int = 0, setbacks: int = 0) -> None:
        """The object's alarm is due then. Raises StorageError."""
        self._run(
            "INSERT INTO alarm VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET"
            " due_ms = ?4, retries = ?5, setbacks = ?6",
            (ref.class_name, ref.id, ref.name, due_ms, retries, setbacks),
        )

    def remove(self, ref: ObjectRef) -> None:
        """The object has no alarm."""
        if self._open(create=False) is not None:
            self._run("DELETE FROM alarm WHERE class = ? AND id = ?", (ref.class_name, ref.id))

    def change(self, sql: str, bindings: tuple[Any, ...]) -> None:
        """A statement over all entries, while no host runs. Raises StorageError."""
        self._run(sql, bindings)

    def due(self, now_ms: int, limit: int) -> list[Due]:
        """What is due, the oldest first. Raises StorageError, as all that reads."""
        return _entries(
            self._rows(
                "SELECT class, id, name, due_ms, retries, setbacks FROM alarm WHERE due_ms <= ? ORDER BY due_ms LIMIT ?",
                (now_ms, limit),
            )
        )

    def due_ms(self, ref: ObjectRef) -> int | None:
        """When the object is to be woken; None if it is not."""
        return _only(self._rows("SELECT due_ms FROM alarm WHERE class = ? AND id = ?", (ref.class_name, ref.id)))

    def next_due(self, after_ms: int = -1) -> int | None:
        """When the next alarm after a moment is due (ms); None if there is none."""
        return _only(self._rows("SELECT min(due_ms) FROM alarm WHERE due_ms > ?", (after_ms,)))

    def count(self) -> int:
        return _only(self._rows("SELECT count(*) FROM alarm")) or 0

    def entries(self) -> list[Due]:
        """Everything, for checks."""
        return _entries(self._rows("SELECT class, id, name, due_ms, retries, setbacks FROM alarm"))

    def last_cron(self, expression: str) -> int | None:
        """When a cron expression last fired (ms)."""
        return _only(self._rows("SELECT last_ms FROM cron WHERE expression = ?", (expression,)))

    def cron_fired(self, expression: str, at_ms: int) -> None:
        self._run("INSERT INTO cron VALUES (?1, ?2) ON CONFLICT DO UPDATE SET last_ms = ?2", (expression, at_ms))

    def sync(self) -> None:
        """Make everything put before durable. Blocks. Raises StorageError."""
        try:
            with self._syncing:  # the disk has several threads
                if self._log_fd < 0:
                    self._file_fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                    self._log_fd = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                if self._is_new:
                    os.fsync(self._file_fd)
                    os.fsync(self._log_fd)
                    sync_path(self._path.parent)
                    self._is_new = False
            os.fsync(self._log_fd)
            if not os.fstat(self._log_fd).st_nlink or not os.fstat(self._file_fd).st_nlink:
                raise StorageError(f"the alarm index {self._path} was removed while it was in use.")
        except OSError as error:
            raise StorageError(f"the alarm index could not be made durable: {error}") from error
        if self.log_bytes > self._fold_bytes:
            try:
                self._fold()
            except (apsw.Error, OSError) as error:
                _log.warning("storage: the log of the alarm index %s could not be folded: %s", self._path, error)

    def _fold(self) -> None:
        """Empty the log. One at a time; who finds another at it leaves it to that one."""
        if self._folding.acquire(blocking=False):
            try:
                if fold(self._path, self._log_fd).held:
                    self.folds_held += 1
            finally:
                self._folding.release()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pragma("synchronous", "normal")
            connection.close()
        for fd in (self._log_fd, self._file_fd):
            if fd >= 0:
                os.close(fd)
        self._log_fd = self._file_fd = -1
        self._is_new = True


def _entries(rows: list[Any]) -> list[Due]:
    return [Due(ObjectRef(class_name, id_, name), *rest) for class_name, id_, name, *rest in rows]


def _only(rows: list[Any]) -> int | None:
    return rows[0][0] if rows else None


def index_path(data: Path, slot: int, slots: int) -> Path:
    """Where a slot's index is."""
    return data / "alarms" / f"{slot}-of-{slots}.sqlite"


def object_path(data: Path, ref: ObjectRef) -> Path:
    """Where an object's database is. Raises ValueError for what must not name a file."""
    if not is_object_id(ref.id) or not ref.class_name.isidentifier():
        raise ValueError(f"{ref!r} cannot name a file")
    return data / f"objects/{ref.class_name}/{ref.id[:2]}/{ref.id}.sqlite"  # one step: each wake makes one


def object_files(data: Path) -> Iterator[tuple[str, str, Path]]:
    """Class, id and path of every object that has a file."""
    for path in sorted((data / "objects").glob("*/??/*.sqlite")):
        if is_object_id(path.stem):
            yield path.parent.parent.name, path.stem, path


def prepare(data: Path, slots: int) -> None:
    """Make the indexes fit before any host starts: for another number of slots, after a power loss, or if one is lost.

    A lost one is missing, empty, damaged, or has not as many entries as when the node ended. Raises StorageError, and
    ConfigError for a newer format.
    """
    state_path = data / "alarms" / "state.json"
    boot_id = _boot_id()
    fault = ""
    count = slots
    try:
        state = json.loads(state_path.read_text())
        if state["format"] != FORMAT:
            raise ConfigError(f"{state_path} has format {state['format']}; this Roost knows {FORMAT}. Use the newer one.")
        if not state["clean"] and not state["boot_id"] == boot_id != "":
            fault = "the machine has ended without the node's doing"
        count = int(state["slots"])
        fault = fault or _fault_of_any(data, count, state.get("counts") if state["clean"] else None)
    except FileNotFoundError:
        fault = "alarms/state.json is missing" if (data / "objects").is_dir() else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"alarms/state.json is damaged ({error})"
    if fault:
        _log.warning("storage: %s: the alarm index is made anew from the objects", fault)
        _rebuild(data, slots, _from_objects(data))
    elif count != slots:
        _rebuild(data, slots, _from_indexes(data, count))
    for slot in range(slots):
        index = AlarmIndex(index_path(data, slot, slots))
        try:
            index.create()
        finally:
            index.close()
    sync_path(data)
    mark(data, slots, clean=False)


def _fault_of_any(data: Path, slots: int, counts: Any) -> str:
    """What is wrong with the indexes; empty if nothing is. `counts`: how many entries each had, if that is known."""
    for slot in range(slots):
        path = index_path(data, slot, slots)
        found = _count_of(path)
        if isinstance(found, str):
            return f"the alarm index of host {slot} {found}"
        if isinstance(counts, list) and slot < len(counts) and counts[slot] != found:
            return f"the alarm index of host {slot} has {found} entries instead of {counts[slot]}"
    return ""


def slots_of(data: Path) -> int | None:
    """How many hosts the folder's indexes are for; None if there are none."""
    try:
        return int(json.loads((data / "alarms" / "state.json").read_text())["slots"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark(data: Path, slots: int, *, clean: bool) -> None:
    """Write down whose indexes these are, and whether the node has ended in order (and with how many entries)."""
    state_path = data / "alarms" / "state.json"
    state_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    state: dict[str, Any] = {"format": FORMAT, "slots": slots, "boot_id": _boot_id(), "clean": clean}
    if clean:  # also of hosts that had to be killed: fold their logs, so that the indexes are on the disk
        counts: list[int] = []
        for slot in range(slots):
            index = AlarmIndex(index_path(data, slot, slots))
            try:
                counts.append(index.count())
                index.close()
            except (StorageError, apsw.Error) as error:
                _log.error("storage: the alarm index of slot %d: %s", slot, error)
                return
        state["counts"] = counts
    with open(f"{state_path}.new", "w", encoding="utf-8") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{state_path}.new", state_path)
    sync_path(state_path.parent)


def recount(data: Path) -> None:
    """The indexes were changed while no node ran: what `prepare` compares is to say so, too."""
    slots = slots_of(data)
    if slots is not None and json.loads((data / "alarms" / "state.json").read_text()).get("clean"):
        mark(data, slots, clean=True)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # not Linux: an unclean end always rebuilds


def _count_of(path: Path) -> int | str:
    """How many entries an index has, or what is wrong with it."""
    try:
        if not path.stat().st_size:
            return "is empty"
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            if (problem := connection.pragma("quick_check")) != "ok":
                return f"is damaged ({problem})"
            return int(connection.execute("SELECT count(*) FROM alarm").get)
        finally:
            connection.close()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    except apsw.Error as error:
        return f"is damaged ({error})"


def _from_indexes(data: Path, slots: int) -> list[Due]:
    """Every entry of the indexes. Raises StorageError."""
    found: list[Due] = []
    for slot in range(slots):
        index = AlarmIndex(index_path(data, slot, slots))
        try:
            found += index.entries()
        finally:
            index.close()
    return found


def _from_objects(data: Path) -> Iterator[Due]:
    for class_name, object_id, path in object_files(data):
        try:
            name, due_ms = read_alarm(path)
        except NeverWritten as error:
            _log.warning("storage: %s", error)
            continue
        except (StorageError, apsw.Error) as error:
            _log.error("storage: %s(%s) cannot be read: %s; `roost check` tells more", class_name, object_id[:8], error)
            continue
        if due_ms is not None:
            yield Due(ObjectRef(class_name, object_id, name), due_ms, 0, 0)


def _rebuild(data: Path, slots: int, entries: Any) -> None:
    found = list(entries)
    # Without it, a start after a crash in the middle of this makes them anew from the objects.
    (data / "alarms" / "state.json").unlink(missing_ok=True)
    (data / "alarms").mkdir(parents=True, exist_ok=True, mode=0o700)
    sync_path(data / "alarms")
    for old in (data / "alarms").glob("*-of-*.sqlite*"):
        old.unlink()
    indexes = [AlarmIndex(index_path(data, slot, slots)) for slot in range(slots)]
    for entry in found:
        indexes[slot_of(entry.ref.id, slots)].put(entry.ref, entry.due_ms, entry.retries, entry.setbacks)
    for index in indexes:
        index.close()
