"""Objects from outside of a worker: listing them, dumping them as JSON lines, restoring and checking them.

Reads through a connection of its own, which SQLite lets it do beside a running node; a restored object is a new file that
its owner puts in place. Format of a dump, one JSON object a line: `docs/reference/storage.md`.
"""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import apsw
import msgspec

from roost.events import ObjectRef
from roost.storage.alarm_index import AlarmIndex, index_path, object_files
from roost.storage.errors import NeverWritten, StorageError
from roost.storage.object_file import check_format
from roost.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator


DUMP_VERSION: Final = 2


WITHOUT_COUNT: Final = 1  # dumps of Roost 0.1 do not end with a count


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


_as_json: Final = json.JSONEncoder(allow_nan=False).encode
_from_json: Final = json.JSONDecoder().decode


def _pair(key: str, raw: bytes) -> str:
    """The line of a key: its value as JSON if JSON can carry it exactly, else its encoding. Raises StorageError if it is
    damaged."""
    try:
        value = decode(raw)
    except (ValueError, TypeError) as error:
        raise StorageError(f"the value of {key[:60]!r} is damaged: {error}") from error
    try:
        text = _as_json(value)
        if encode(_from_json(text)) == raw:
            return f'{{"key": {_as_json(key)}, "value": {text}}}\n'
    except (ValueError, TypeError, RecursionError):
        pass
    return json.dumps({"key": key, "encoded": base64.b64encode(raw).decode()}) + "\n"


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
            out.write(_pair(key, raw))
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


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(connection: apsw.Connection, table: str) -> list[str]:
    """The columns that can be written: not generated, not hidden."""
    return [row[1] for row in connection.execute("SELECT * FROM pragma_table_xinfo(?)", (table,)) if row[6] == 0]


def _rows(connection: apsw.Connection, table: str) -> Iterator[tuple[int | None, tuple[Any, ...]]]:
    columns = ", ".join(map(quoted, _columns(connection, table)))
    try:
        cursor = connection.execute(f"SELECT rowid, {columns} FROM {quoted(table)}")
    except apsw.SQLError:  # WITHOUT ROWID
        for row in connection.execute(f"SELECT {columns} FROM {quoted(table)}"):
            yield None, row
        return
    for rowid, *values in cursor:
        yield rowid, tuple(values)


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
