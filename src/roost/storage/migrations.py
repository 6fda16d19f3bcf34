"""Class migrations: which classes a data folder knows, and how a renamed class keeps its objects.

Each tag of the configuration's `migrations` is applied once, in order, and recorded in `migrations.json` of the data
folder. A renamed class keeps its objects, their names and their ids: ids are bound to the name that the class had first,
which the record remembers. Applying is idempotent: after a crash in the middle the next start does it again.

Source: Durable Objects class migrations, reference 6.1.
"""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING, Final

import apsw
import msgspec

from roost.errors import ConfigError
from roost.storage.alarm_index import AlarmIndex, index_path
from roost.storage.errors import StorageError
from roost.storage.folding import sync_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger("roost.storage")

FORMAT: Final = 1
_EXPORTS: Final = "exports: "  # before what was done because of a declaration, in the record


class Migration(msgspec.Struct, frozen=True):
    """One entry of `migrations`: new classes, then renamed ones (from → to), then deleted ones."""

    tag: str
    new: list[str] = []
    renamed: dict[str, str] = {}
    deleted: list[str] = []

    @property
    def moves_objects(self) -> bool:
        return bool(self.renamed or self.deleted)


class Exports(msgspec.Struct, frozen=True):
    """A declaration of classes: those that are there, those that were renamed (from → to), those that are to go. What has
    been done already is nothing to do. Source: platform documentation, "Durable Object class exports"."""

    created: list[str]
    renamed: dict[str, str]
    deleted: list[str]


class _Record(msgspec.Struct):
    """`migrations.json`. `first_names`: of each renamed class, the name that its ids are bound to."""

    format: int = FORMAT
    applied: list[Migration] = []
    moving: str = ""  # the tag of one that was begun: folders may have their new names already
    first_names: dict[str, str] = {}


class Plan(msgspec.Struct):
    """What is to be done before an app runs, and what is true after it."""

    pending: list[Migration]
    first_names: dict[str, str]
    steps: list[dict[str, str]]  # the first names after each of `pending`

    def _follow(self) -> tuple[dict[str, str], list[str]]:
        """What becomes of each class of now: its last name, or that it goes."""
        now: dict[str, str | None] = {}  # by the name after the migrations so far: the name of now, None for a new class
        gone: list[str] = []
        for migration in self.pending:
            for name in migration.new:
                if name in now.values():
                    now.setdefault(name, None)  # the old bearer of the name was renamed: this is another class
            for before, after in migration.renamed.items():
                now[after] = now.pop(before, before)
            for name in migration.deleted:
                origin = now.pop(name, name)
                if origin is not None:
                    gone.append(origin)
        return {origin: name for name, origin in now.items() if origin is not None and origin != name}, gone

    @property
    def renamed(self) -> dict[str, str]:
        """From the names of now to those after all of it."""
        return self._follow()[0]

    @property
    def deleted(self) -> list[str]:
        """Classes, by their names of now, whose objects go."""
        return self._follow()[1]

    @property
    def moves_objects(self) -> bool:
        return any(migration.moves_objects for migration in self.pending)


def _reconciled(exports: Exports, folders: set[str], record: _Record) -> list[Migration]:
    """What makes the classes that have objects those that are declared. Raises ConfigError."""
    unknown = sorted(folders - {*exports.created, *exports.renamed, *exports.deleted})
    if unknown:
        raise ConfigError(
            f"exports: this data folder has objects of {', '.join(unknown)}, which exports does not declare; add it, or"
            ' give it the state "renamed" or "deleted".',
            key="exports",
        )
    known = record.first_names
    again = [name for name in exports.created if name in known.values() and name not in known and name not in folders]
    pending = [Migration(f"{_EXPORTS}{name} created", [name]) for name in again]
    for before, after in exports.renamed.items():
        tag = f"{_EXPORTS}{before} -> {after}"
        if before in folders or record.moving == tag:
            pending.append(Migration(tag, renamed={before: after}))
    pending += [Migration(f"{_EXPORTS}{name} deleted", deleted=[name]) for name in exports.deleted if name in folders]
    return pending


class Migrations:
    """The record of one data folder, and its objects' folders."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._file = data / "migrations.json"

    def _record(self) -> _Record:
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except FileNotFoundError:
            return _Record()
        except (msgspec.MsgspecError, OSError) as error:
            raise ConfigError(f"{self._file} cannot be read: {error}") from error
        if record.format != FORMAT:
            raise ConfigError(f"{self._file} has format {record.format}; this Roost knows {FORMAT}.")
        return record

    def plan(self, wanted: Sequence[Migration], exports: Exports | None = None) -> Plan:
        """What of an app's migrations, or its exports, is still to be done. Raises ConfigError if it does not fit what was
        done."""
        record = self._record()
        folders = {path.name for path in (self._data / "objects").glob("*") if any(path.iterdir())}
        pending = self._not_applied(record, wanted) if exports is None else _reconciled(exports, folders, record)
        return self._plan(record, pending, folders)

    @staticmethod
    def _not_applied(record: _Record, wanted: Sequence[Migration]) -> list[Migration]:
        tags = [migration.tag for migration in wanted]
        for migration in record.applied:
            if migration.moves_objects and migration.tag not in tags:
                raise ConfigError(
                    f"migrations: {migration.tag!r} was applied to this data folder and moved or deleted objects, but the"
                    " configuration does not have it; code from before it cannot run here any more.",
                    key="migrations",
                )
        done = {migration.tag for migration in record.applied}
        pending: list[Migration] = []
        for migration in wanted:
            if migration.tag not in done:
                pending.append(migration)
            elif pending:
                raise ConfigError(
                    f"migrations: {pending[0].tag!r} is new, but stands before {migration.tag!r}, which was applied"
                    " already; new ones come last.",
                    key="migrations",
                )
        return pending

    @staticmethod
    def _plan(record: _Record, pending: list[Migration], folders: set[str]) -> Plan:
        first_names = dict(record.first_names)
        steps: list[dict[str, str]] = []
        for migration in pending:
            for name in migration.new:  # another class that only bears the name of one that was renamed away
                if name in first_names.values() and name not in first_names and name not in folders:
                    first_names[name] = f"{name}@{migration.tag}"
            for before, after in migration.renamed.items():
                if after in folders and (before in folders or migration.tag != record.moving):
                    raise ConfigError(
                        f"migrations: {migration.tag!r} renames {before} to {after}, but {after} has objects already.",
                        key="migrations",
                    )
                if before in folders:
                    folders.discard(before)
                    folders.add(after)
                first_names[after] = first_names.pop(before, before)
            for name in migration.deleted:
                folders.discard(name)
                first_names.pop(name, None)
            steps.append(dict(first_names))
        return Plan(pending, first_names, steps)

    def apply(self, plan: Plan, slots: int) -> None:
        """Do it. No host may run. Raises ConfigError if the disk does not allow it: then the rest is done by the next
        start."""
        if not plan.pending:
            return
        objects = self._data / "objects"
        try:
            for migration, first_names in zip(plan.pending, plan.steps, strict=True):
                if migration.moves_objects:
                    record = self._record()
                    record.moving = migration.tag
                    self._save(record)
                for before, after in migration.renamed.items():
                    if (objects / before).is_dir():
                        if (objects / after).is_dir():
                            (objects / after).rmdir()  # empty, as `plan` has seen
                        (objects / before).rename(objects / after)
                        sync_path(objects)
                    self._alarms(slots, "UPDATE OR REPLACE alarm SET class = ?2 WHERE class = ?1", (before, after))
                for name in migration.deleted:
                    self._alarms(slots, "DELETE FROM alarm WHERE class = ?", (name,))
                    shutil.rmtree(objects / name, ignore_errors=True)
                record = self._record()
                record.applied.append(migration)
                record.moving = ""
                record.first_names = first_names
                self._save(record)
        except (OSError, apsw.Error, StorageError) as error:
            self._undo(migration, slots)
            raise ConfigError(f"migrations: {migration.tag!r} cannot be applied: {error}", key="migrations") from error

    def _undo(self, migration: Migration, slots: int) -> None:
        """Give the folders of a migration that failed their old names back, so that the old code finds its objects. If even
        that fails, the next start goes on with it: `moving` is recorded."""
        objects = self._data / "objects"
        try:
            for before, after in reversed(migration.renamed.items()):
                if (objects / after).is_dir() and not (objects / before).is_dir():
                    (objects / after).rename(objects / before)
                self._alarms(slots, "UPDATE OR REPLACE alarm SET class = ?1 WHERE class = ?2", (before, after))
        except (OSError, apsw.Error, StorageError) as error:
            _log.error("migrations: %r could not be undone, and is completed at the next start: %s", migration.tag, error)

    def _alarms(self, slots: int, sql: str, bindings: tuple[str, ...]) -> None:
        for slot in range(slots):
            path = index_path(self._data, slot, slots)
            if path.exists():
                index = AlarmIndex(path)
                try:
                    index.change(sql, bindings)
                finally:
                    index.close()

    def _save(self, record: _Record) -> None:
        new = self._file.with_suffix(".new")
        with open(new, "wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)
        sync_path(self._data)
