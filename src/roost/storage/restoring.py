"""Objects made again from a dump: a file beside each one's own, to be put in its place once the dump is whole."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from roost.errors import ConfigError, JsException
from roost.events import ObjectRef
from roost.storage.alarm_index import object_path
from roost.storage.database import Database
from roost.storage.errors import StorageError
from roost.storage.folding import sync_path
from roost.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
from roost.storage.dump import DUMP_VERSION, WITHOUT_COUNT, _columns, quoted


def _from_json(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


class Restored(msgspec.Struct):
    """A file made from a dump, to be put in the object's place."""

    ref: ObjectRef
    path: Path
    alarm_ms: int | None


def restore_objects(data: Path, lines: Iterable[str]) -> Iterator[Restored]:
    """Make a file beside each object's own, from a dump. Raises ConfigError naming the line; leaves no file of the object
    that it stands in then. Objects that the dump says were damaged are passed over. Only at the end is it known that the
    dump is whole: nothing may be put in place before."""
    restoring = _Restoring(data)
    try:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                finished = restoring.line(json.loads(text))
            except (ValueError, KeyError, TypeError, apsw.Error, StorageError, JsException) as error:
                raise ConfigError(f"line {number} of the dump: {error}") from error
            if finished is not None:
                yield finished
        restoring.check_whole()
    finally:
        restoring.discard()


class _Restoring:
    """What has been read of a dump: the object that it stands in, and what was counted since the last count."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._database: Database | None = None
        self._restored: Restored | None = None
        self._keys = self._rows = 0  # of the object
        self._objects = self._broken = 0
        self._counted = True

    def line(self, entry: dict[str, Any]) -> Restored | None:
        """Take one; the object that it ends. Raises ValueError, KeyError, TypeError, apsw.Error, StorageError."""
        if "object" in entry:
            self._begin(entry)
        elif "broken" in entry:
            self.discard()
            self._broken += 1
        elif "dump" in entry and self._restored is None:
            self._count(entry["dump"])
        elif self._database is None or self._restored is None:
            raise ValueError('a dump begins with a line that has "object"')
        elif "end" in entry:
            return self._end(self._database, self._restored, entry["end"])
        elif "key" in entry:
            self._keys += 1
            raw = base64.b64decode(entry["encoded"]) if "encoded" in entry else encode(entry["value"])
            decode(raw)
            self._database.put(entry["key"], raw)
        else:
            self._rows += _restore_sql(self._database, entry)
        return None

    def _begin(self, entry: dict[str, Any]) -> None:
        if self._restored is not None:
            raise ValueError("the object before it is not complete")
        self._restored = _begin(self._data, entry)
        self._counted = self._counted and entry["version"] == WITHOUT_COUNT
        self._database = Database(self._restored.path, self._restored.ref.name)
        self._database.begin()
        self._keys = self._rows = 0

    def _end(self, database: Database, restored: Restored, end: Any) -> Restored:
        if end != {"keys": self._keys, "rows": self._rows}:
            raise ValueError(f"it should end with {end}, but has {self._keys} keys and {self._rows} rows")
        database.set_alarm(restored.alarm_ms)
        database.commit()
        database.close()
        self._database = None
        sync_path(restored.path)
        self._restored = None
        self._objects += 1
        return restored

    def _count(self, count: Any) -> None:
        if count != {"objects": self._objects, "broken": self._broken}:
            raise ValueError(f"it should end with {count}, but has {self._objects} objects, {self._broken} broken")
        self._objects = self._broken = 0
        self._counted = True

    def check_whole(self) -> None:
        """The dump is over. Raises ConfigError if it should not be."""
        if self._restored is not None:
            ref = self._restored.ref
            raise ConfigError(f"the dump ends in the middle of {ref.class_name}({ref.id[:8]}).")
        if not self._counted:
            raise ConfigError("the dump was cut short: the line that counts its objects is missing. Nothing was restored.")

    def discard(self) -> None:
        """Leave nothing of the object that it stands in."""
        database, self._database = self._database, None
        restored, self._restored = self._restored, None
        if database is not None:
            database.rollback()
            database.close()
        if restored is not None:
            discard(restored.path)


def _begin(data: Path, entry: dict[str, Any]) -> Restored:
    if entry.get("version") not in (WITHOUT_COUNT, DUMP_VERSION):
        raise ValueError(f"a dump of version {entry.get('version')}; this Roost knows {DUMP_VERSION}")
    ref = ObjectRef(str(entry["object"]["class"]), str(entry["object"]["id"]), entry["object"].get("name"))
    alarm_ms = entry.get("alarm_ms")
    if alarm_ms is not None and type(alarm_ms) is not int:
        raise ValueError("alarm_ms must be a number of milliseconds")
    new = restoring_path(data, ref)
    new.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    discard(new)
    return Restored(ref, new, alarm_ms)


def restoring_path(data: Path, ref: ObjectRef) -> Path:
    """Where an object's new file is made: beside its own."""
    path = object_path(data, ref)
    return path.with_name(f"{path.name}.restoring")


def discard(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _restore_sql(database: Database, entry: dict[str, Any]) -> int:
    """A statement or a row, with no more rights than the worker's own SQL has; how many rows."""
    if "sql" in entry:
        database.execute(str(entry["sql"]), ())
        return 0
    if "sequence" in entry:
        database.execute("DELETE FROM sqlite_sequence WHERE name = ?", (entry["sequence"],))
        database.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (entry["sequence"], entry["value"]))
        return 0
    table = str(entry["table"])
    names = _columns(database.connection(), table)
    values = [_from_json(value) for value in entry["row"]]
    if entry.get("rowid") is not None:
        names, values = ["rowid", *names], [entry["rowid"], *values]
    columns = ", ".join(map(quoted, names))
    marks = ", ".join("?" * len(values))
    database.execute(f"INSERT INTO {quoted(table)} ({columns}) VALUES ({marks})", tuple(values))
    return 1


def put_in_place(data: Path, restored: Restored) -> None:
    """Make a restored file the object's. Nobody may have the object open. Blocks on the disk."""
    path = object_path(data, restored.ref)
    if path.exists():
        try:
            apsw.Connection(str(path)).close()  # fold its log: a crash in the middle of this must find it whole
        except apsw.Error:
            pass  # it is damaged, and about to be replaced
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(restored.path, path)
    sync_path(path.parent)
