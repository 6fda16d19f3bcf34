"""`roost storage list|dump|restore` and `roost check`: a data folder from outside, beside a running node or without one."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from roost.cli.folders import data_of
from roost.errors import ConfigError
from roost.ids import slot_of
from roost.node import control
from roost.storage import alarm_index, dump, restoring
from roost.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from roost.storage.dump import Stored
    from roost.storage.restoring import Restored


def run(parsed: Any) -> int:
    """Run the command; its exit code. Raises ConfigError or StorageError."""
    data = data_of(parsed)
    if parsed.command == "check":
        return _check(data)
    if parsed.verb == "restore":
        return _restore(data, parsed)
    return _list(data, parsed) if parsed.verb == "list" else _dump(data, parsed)


def _chosen(data: Path, parsed: Any) -> Iterator[Stored | StorageError]:
    for stored in dump.list_objects(data):
        if isinstance(stored, StorageError):
            yield stored
            continue
        wanted = ((parsed.class_name, stored.ref.class_name), (parsed.name, stored.ref.name), (parsed.id, stored.ref.id))
        if all(want is None or want == got for want, got in wanted):
            yield stored


def _list(data: Path, parsed: Any) -> int:
    damaged = 0
    for stored in _chosen(data, parsed):
        if isinstance(stored, StorageError):
            damaged += 1
            print(f"roost: {stored}", file=sys.stderr)
        elif parsed.json:
            entry = {"class": stored.ref.class_name, "id": stored.ref.id, "name": stored.ref.name}
            sizes = {"bytes": stored.size_bytes, "keys": stored.keys, "tables": stored.tables}
            print(json.dumps({**entry, **sizes, "alarm_ms": stored.alarm_ms}))
        else:
            alarm = "" if stored.alarm_ms is None else f"  alarm: {_time(stored.alarm_ms)}"
            name = stored.ref.name if stored.ref.name is not None else "(no name)"
            print(
                f"{stored.ref.class_name}  {name}  {stored.ref.id}  {stored.size_bytes} bytes  keys: {stored.keys}"
                f"  tables: {stored.tables}{alarm}"
            )
    return 1 if damaged else 0


def _time(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def _dump(data: Path, parsed: Any) -> int:
    out = open(parsed.file, "w", encoding="utf-8") if parsed.file else sys.stdout  # noqa: SIM115 - closed below
    count = damaged = 0
    try:
        for stored in _chosen(data, parsed):
            if isinstance(stored, StorageError):
                damaged += 1
                print(f"roost: {stored}", file=sys.stderr)
                dump.note_broken(out, stored)
                continue
            if problem := dump.dump_object(stored.ref, stored.path, out):
                damaged += 1
                print(f"roost: {problem}", file=sys.stderr)
            else:
                count += 1
        dump.end_dump(out, count, damaged)
    finally:
        if out is not sys.stdout:
            out.close()
    if not count and any((parsed.class_name, parsed.name, parsed.id)):
        raise ConfigError("no object matches; `roost storage list` shows what there is.")
    if parsed.file:
        print(f"{count} objects dumped to {parsed.file}")
    return 1 if damaged else 0


def _restore(data: Path, parsed: Any) -> int:
    lock = _lock(data)
    source = open(parsed.file, encoding="utf-8") if parsed.file else sys.stdin  # noqa: SIM115 - closed below
    made: list[Restored] = []
    count = 0
    try:
        made.extend(restoring.restore_objects(data, source))
        while made:  # the dump is whole
            restored = made[0]
            if lock is None:
                _through_node(data, restored)
            else:
                if restored.alarm_ms is not None:
                    _tell_index(data, restored)  # too early wakes for nothing; too late would be missed
                restoring.put_in_place(data, restored)
                _tell_index(data, restored)
            del made[0]
            count += 1
            print(f"restored {restored.ref.class_name}  {restored.ref.name or ''}  {restored.ref.id}")
        if lock is not None:
            alarm_index.recount(data)
    finally:
        for restored in made:
            restoring.discard(restored.path)
        if source is not sys.stdin:
            source.close()
        if lock is not None:
            os.close(lock)
    print(f"{count} objects restored")
    return 0


def _lock(data: Path) -> int | None:
    """The folder's lock; None if a node runs on it."""
    try:
        return control.lock_data_folder(str(data))
    except ConfigError:
        return None


def _through_node(data: Path, restored: Restored) -> None:
    ref = restored.ref
    request = {"command": "restore", "class": ref.class_name, "id": ref.id, "name": ref.name, "alarm_ms": restored.alarm_ms}
    answer = control.ask(str(data), request, timeout_s=60)  # it waits for the object's running handlers
    if "error" in answer:
        raise StorageError(f"{ref.class_name}({ref.id[:8]}) was not restored: {answer['error']}")


def _tell_index(data: Path, restored: Restored) -> None:
    slots = alarm_index.slots_of(data) or 1
    index = alarm_index.AlarmIndex(alarm_index.index_path(data, slot_of(restored.ref.id, slots), slots))
    try:
        if restored.alarm_ms is None:
            index.remove(restored.ref)
        else:
            index.put(restored.ref, restored.alarm_ms)
    finally:
        index.close()


def _check(data: Path) -> int:
    lock = _lock(data)
    try:
        objects = sum(1 for _ in alarm_index.object_files(data))
        problems = 0
        for problem in dump.check_objects(data, None if lock is None else alarm_index.slots_of(data)):
            problems += not problem.startswith(dump.NOTE)
            print(problem)
        note = " (a node runs on it: its alarm index was not compared)" if lock is None else ""
        print(f"{objects} objects checked, {problems} problems{note}")
        return 1 if problems else 0
    finally:
        if lock is not None:
            os.close(lock)
