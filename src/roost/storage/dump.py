"""Objects from outside of a worker: listing them, dumping them as JSON lines, restoring and checking them.

Reads through a connection of its own, which SQLite lets it do beside a running node; a restored object is a new file that
its owner puts in place. Format of a dump, one JSON object a line: `docs/reference/storage.md`.
"""

from __future__ import annotations

import base64
import json
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import apsw
import msgspec

from roost.errors import ConfigError, JsException
from roost.events import ObjectRef
from roost.storage.alarm_index import AlarmIndex, index_path, object_files, object_path
from roost.storage.database import Database
from roost.storage.errors import NeverWritten, StorageError
from roost.storage.folding import sync_path
from roost.storage.object_file import check_format
from roost.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DUMP_VERSION: Final = 2
_WITHOUT_COUNT: Final = 1  # dumps of Roost 0.1 do not end with a count
_DAMAGE: Final = (StorageError, ValueError, TypeError, OverflowError)  # what reading a damaged object may raise


NOTE: Final = "note: "


class Stored(msgspec.Struct):
    """One object's file."""

    ref: ObjectRef
    path: Path
    size_bytes: int
    keys: int
    tables: int
    alarm_ms: int | None


@contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """One consistent view of a file. Raises StorageError, NeverWritten for what a cut first write has left."""
    connection = None
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.pragma("query_only", 1)
        connection.set_busy_timeout(5000)
        connection.execute("BEGIN")
        check_format(connection, path)
        yield connection
    except apsw.Error as error:
        raise StorageError(f"{path}: {error}") from error
    finally:
        if connection is not None:
            connection.close()


def _metadata(connection: apsw.Connection) -> dict[str, Any]:
    return dict(connection.execute("SELECT key, value FROM _cf_METADATA WHERE key IN ('name', 'alarm')"))


def list_objects(data: Path) -> Iterator[Stored | StorageError]:
    """Every object that has stored something; an error in the place of one that cannot be read."""
    for class_name, object_id, path in object_files(data):
        try:
            with reading(path) as connection:
                metadata = _metadata(connection)
                tables = sum(kind == "table" for kind, *_ in _user_schema(connection))
                yield Stored(
                    ObjectRef(class_name, object_id, metadata.get("name")),
                    path,
                    path.stat().st_size,
                    connection.execute("SELECT count(*) FROM _cf_KV").get,
                    tables,
                    metadata.get("alarm"),
                )
        except (FileNotFoundError, NeverWritten):
            continue  # it deleted everything just now, or has not written anything yet
        except StorageError as error:
            if path.exists():
                yield error


def _user_schema(connection: apsw.Connection) -> list[tuple[str, str, str]]:
    """(kind, name, SQL) of what the worker created, tables first; a virtual table without its own tables."""
    kinds = {name: kind for _, name, kind, *_ in connection.execute("PRAGMA table_list")}
    found: list[tuple[str, str, str]] = []
    rows: Any = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
    ).fetchall()
    for kind, name, sql in rows:
        if not name.startswith(("_cf_", "sqlite_")) and kinds.get(name) != "shadow":
            found.append((kind, name, sql))
    return sorted(found, key=lambda entry: entry[0] != "table")


def _json_value(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def _readable(key: str, raw: bytes) -> dict[str, Any]:
    """A stored value as JSON if JSON can carry it exactly, else its encoding. Raises StorageError if it is damaged."""
    try:
        value = decode(raw)
    except (ValueError, TypeError) as error:
        raise StorageError(f"the value of {key[:60]!r} is damaged: {error}") from error
    try:
        if encode(json.loads(json.dumps(value, allow_nan=False))) == raw:
            return {"value": value}
    except (ValueError, TypeError, RecursionError):
        pass
    return {"encoded": base64.b64encode(raw).decode()}


def dump_object(ref: ObjectRef, path: Path, out: IO[str]) -> str:
    """Write one object as JSON lines. What is wrong with it, if it cannot be read to its end; a line says so, too."""
    try:
        _dump_whole(ref, path, out)
    except _DAMAGE as error:
        _line(out, broken={"class": ref.class_name, "id": ref.id}, error=str(error))
        return f"{ref.class_name}({ref.id}): {error}"
    return ""


def note_broken(out: IO[str], error: StorageError) -> None:
    """An object that cannot be opened at all."""
    _line(out, broken={}, error=str(error))


def end_dump(out: IO[str], objects: int, broken: int) -> None:
    """The last line, so that a dump that was cut short is known as one."""
    _line(out, dump={"objects": objects, "broken": broken})


def _line(out: IO[str], **entry: Any) -> None:
    out.write(json.dumps(entry, ensure_ascii=True) + "\n")


def _dump_whole(ref: ObjectRef, path: Path, out: IO[str]) -> None:
    line = partial(_line, out)
    with reading(path) as connection:
        metadata = _metadata(connection)
        if type(metadata.get("alarm", 0)) is not int:
            raise StorageError(f"its alarm is {metadata['alarm']!r}, which is no time")
        line(
            object={"class": ref.class_name, "id": ref.id, "name": metadata.get("name")},
            version=DUMP_VERSION,
            alarm_ms=metadata.get("alarm"),
        )
        keys = rows = 0
        for key, raw in connection.execute("SELECT key, value FROM _cf_KV ORDER BY key"):
            keys += 1
            line(key=key, **_readable(key, raw))
        schema = _user_schema(connection)
        for kind, _, sql in schema:
            if kind == "table":
                line(sql=sql)
        for kind, name, _ in schema:
            if kind == "table":
                for rowid, values in _rows(connection, name):
                    rows += 1
                    line(table=name, rowid=rowid, row=[_json_value(value) for value in values])
        if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence'").get:
            for name, number in connection.execute("SELECT name, seq FROM sqlite_sequence"):
                line(sequence=name, value=number)
        for kind, _, sql in schema:
            if kind != "table":
                line(sql=sql)
        line(end={"keys": keys, "rows": rows})


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(connection: apsw.Connection, table: str) -> list[str]:
    """The columns that can be written: not generated, not hidden."""
    return [row[1] for row in connection.execute("SELECT * FROM pragma_table_xinfo(?)", (table,)) if row[6] == 0]


def _rows(connection: apsw.Connection, table: str) -> Iterator[tuple[int | None, tuple[Any, ...]]]:
    columns = ", ".join(map(_quoted, _columns(connection, table)))
    try:
        cursor = connection.execute(f"SELECT rowid, {columns} FROM {_quoted(table)}")
    except apsw.SQLError:  # WITHOUT ROWID
        for row in connection.execute(f"SELECT {columns} FROM {_quoted(table)}"):
            yield None, row
        return
    for rowid, *values in cursor:
        yield rowid, tuple(values)


class Restored(msgspec.Struct):
    """A file made from a dump, to be put in the object's place."""

    ref: ObjectRef
    path: Path
    alarm_ms: int | None


def restore_objects(data: Path, lines: Iterable[str]) -> Iterator[Restored]:
    """Make a file beside each object's own, from a dump. Raises ConfigError naming the line; leaves no file of the object
    that it stands in then. Objects that the dump says were damaged are passed over. Only at the end is it known that the
    dump is whole: nothing may be put in place before."""
    database: Database | None = None
    restored: Restored | None = None
    keys = rows = 0
    objects = broken = 0  # since the last count
    counted = True
    try:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                entry = json.loads(text)
                if "object" in entry:
                    if restored is not None:
                        raise ValueError("the object before it is not complete")
                    restored = _begin(data, entry)
                    counted = counted and entry["version"] == _WITHOUT_COUNT
                    database = Database(restored.path, restored.ref.name)
                    database.begin()
                    keys = rows = 0
                elif "broken" in entry:
                    if restored is not None and database is not None:
                        database.rollback()
                        database.close()
                        discard(restored.path)
                    database = restored = None
                    broken += 1
                elif "dump" in entry and restored is None:
                    if entry["dump"] != {"objects": objects, "broken": broken}:
                        raise ValueError(f"it should end with {entry['dump']}, but has {objects} objects, {broken} broken")
                    objects = broken = 0
                    counted = True
                elif database is None or restored is None:
                    raise ValueError('a dump begins with a line that has "object"')
                elif "end" in entry:
                    if entry["end"] != {"keys": keys, "rows": rows}:
                        raise ValueError(f"it should end with {entry['end']}, but has {keys} keys and {rows} rows")
                    database.set_alarm(restored.alarm_ms)
                    database.commit()
                    database.close()
                    database = None
                    sync_path(restored.path)
                    finished, restored = restored, None
                    objects += 1
                    yield finished
                elif "key" in entry:
                    keys += 1
                    raw = base64.b64decode(entry["encoded"]) if "encoded" in entry else encode(entry["value"])
                    decode(raw)
                    database.put(entry["key"], raw)
                else:
                    rows += _restore_sql(database, entry)
            except (ValueError, KeyError, TypeError, apsw.Error, StorageError, JsException) as error:
                raise ConfigError(f"line {number} of the dump: {error}") from error
        if restored is not None:
            raise ConfigError(f"the dump ends in the middle of {restored.ref.class_name}({restored.ref.id[:8]}).")
        if not counted:
            raise ConfigError("the dump was cut short: the line that counts its objects is missing. Nothing was restored.")
    finally:
        if restored is not None:
            if database is not None:
                database.rollback()
                database.close()
            discard(restored.path)


def _begin(data: Path, entry: dict[str, Any]) -> Restored:
    if entry.get("version") not in (_WITHOUT_COUNT, DUMP_VERSION):
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
    columns = ", ".join(map(_quoted, names))
    marks = ", ".join("?" * len(values))
    database.execute(f"INSERT INTO {_quoted(table)} ({columns}) VALUES ({marks})", tuple(values))
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


def check_objects(data: Path, slots: int | None) -> Iterator[str]:
    """Everything that is wrong with the data folder, one line each; what begins with `NOTE` is no fault. `slots`: also
    compare the alarm indexes (offline)."""
    alarms: dict[tuple[str, str], int] = {}
    for class_name, object_id, path in object_files(data):
        what = f"{class_name}({object_id[:12]}…) {path}"
        try:
            with reading(path) as connection:
                for (problem,) in connection.execute("PRAGMA integrity_check(5)"):
                    if problem != "ok":
                        yield f"{what}: {problem}"
                for key, raw in connection.execute("SELECT key, value FROM _cf_KV"):
                    try:
                        decode(raw)
                    except (ValueError, TypeError) as error:
                        yield f"{what}: the value of {key[:60]!r}: {error}"
                alarm_ms = _metadata(connection).get("alarm")
                if alarm_ms is not None and type(alarm_ms) is not int:
                    yield f"{what}: its alarm is {alarm_ms!r}, which is no time"
                elif alarm_ms is not None:
                    alarms[class_name, object_id] = alarm_ms
        except NeverWritten as error:
            yield f"{NOTE}{what}: {error}"
        except _DAMAGE as error:
            if path.exists():
                yield f"{what}: {error}"
    yield from _check_kv(data)
    if slots is not None:
        yield from _check_indexes(data, slots, alarms)


def _check_kv(data: Path) -> Iterator[str]:
    for path in sorted((data / "kv").glob("*.sqlite")):
        try:
            connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                for (problem,) in connection.execute("PRAGMA integrity_check(5)"):
                    if problem != "ok":
                        yield f"KV namespace {path}: {problem}"
                connection.execute("SELECT count(*), max(expires) FROM pairs").fetchall()
            finally:
                connection.close()
        except apsw.Error as error:
            yield f"KV namespace {path}: {error}"


def _check_indexes(data: Path, slots: int, alarms: dict[tuple[str, str], int]) -> Iterator[str]:
    told: dict[tuple[str, str], tuple[int, bool]] = {}
    for slot in range(slots):
        index = AlarmIndex(index_path(data, slot, slots))
        try:
            for due in index.entries():
                told[due.ref.class_name, due.ref.id] = due.due_ms, bool(due.retries or due.setbacks)
        except (StorageError, apsw.Error) as error:
            yield f"the alarm index {index_path(data, slot, slots)}: {error} (it is made anew at the next start)"
            return
        finally:
            index.close()
    for (class_name, object_id), alarm_ms in alarms.items():
        due_ms, retrying = told.get((class_name, object_id), (None, False))
        if due_ms is None or (due_ms > alarm_ms and not retrying):
            yield (
                f"{class_name}({object_id[:12]}…): its alarm at {alarm_ms} is not in the index: remove"
                f" {data / 'alarms'}, and it is made anew at the next start"
            )
