"""What a configuration says of the classes of objects: `migrations`, or `exports` in their place, and how their new code
takes over.

Source: platform documentation, "Durable Object class exports", "Durable Object class migrations (legacy)"; reference 6.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from roost.config_values import nearest, table
from roost.errors import ConfigError
from roost.storage.migrations import Exports, Migration

if TYPE_CHECKING:
    from pathlib import Path

_MIGRATION_KEYS: Final = (
    "tag", "new_sqlite_classes", "new_classes", "renamed_classes", "deleted_classes", "transferred_classes",
)  # fmt: skip
_EXPORT_KEYS: Final = ("type", "storage", "state", "renamed_to", "transferred_to", "transfer_from", "cache")
_STATES: Final = ("created", "deleted", "renamed", "transferred", "expecting-transfer")
_MODES: Final = ("immediate", "deferred")
_MAX_DELAY_S: Final = 300


class CodeUpdate(msgspec.Struct, frozen=True):
    """`durable_objects.code_update_strategy`. With "deferred", new code waits for the objects to sleep, but no longer than
    `max_delay_s`."""

    mode: str = "immediate"
    max_delay_s: float = 30.0


def code_update_of(raw: dict[str, Any], path: Path) -> CodeUpdate:
    """Raises ConfigError."""
    where = "durable_objects.code_update_strategy"
    found = table(
        table(raw.get("durable_objects", {}), "durable_objects", path).get("code_update_strategy", {}), where, path
    )
    for key in found:
        if key not in ("mode", "max_delay"):
            raise ConfigError(f"{path}: {where}: unknown key {key!r}.{nearest(key, ['mode', 'max_delay'])}", key=where)
    mode, delay_s = found.get("mode", "immediate"), found.get("max_delay")
    if mode not in _MODES:
        raise ConfigError(f'{path}: {where}.mode must be "immediate" or "deferred", not {mode!r}.', key=where)
    if delay_s is None:
        return CodeUpdate(mode)
    if mode == "immediate":
        raise ConfigError(f'{path}: {where}.max_delay is for the mode "deferred".', key=where)
    if type(delay_s) not in (int, float) or not 0 <= delay_s <= _MAX_DELAY_S:
        raise ConfigError(f"{path}: {where}.max_delay must be a number of seconds from 0 to {_MAX_DELAY_S}.", key=where)
    return CodeUpdate(mode, float(delay_s))


def exports_of(raw: dict[str, Any], path: Path, bindings: dict[str, str], warnings: list[str]) -> Exports | None:
    """The classes as they are to be; None if the configuration does not say. Raises ConfigError."""
    if "exports" not in raw:
        return None
    if raw.get("migrations"):
        raise ConfigError(f"{path}: exports and migrations exclude each other; keep one of them.", key="exports")
    found = Exports([], {}, [])
    for name, entry in table(raw["exports"], "exports", path).items():
        _export(found, name, table(entry, f"exports.{name}", path), path)
    for before, after in found.renamed.items():
        if after not in found.created:
            raise ConfigError(
                f"{path}: exports: {before} is renamed to {after}, which exports does not declare; add it.", key="exports"
            )
    if len(set(found.renamed.values())) != len(found.renamed):
        raise ConfigError(f"{path}: exports: two classes are renamed to the same name.", key="exports")
    gone = {*found.renamed, *found.deleted}
    _refuse_bindings_of(gone, bindings, path, "exports has")
    for class_name in bindings.values():
        if class_name not in found.created:
            warnings.append(f"{path.name}: the class {class_name} is bound, but exports does not declare it; add it.")
            found.created.append(class_name)  # it will have objects
    return found


def _export(found: Exports, name: str, entry: dict[str, Any], path: Path) -> None:
    def fault(text: str) -> ConfigError:
        return ConfigError(f"{path}: exports.{name}: {text}", key="exports")

    for key in entry:
        if key not in _EXPORT_KEYS:
            raise fault(f"unknown key {key!r}.{nearest(key, list(_EXPORT_KEYS))}")
    kind = entry.get("type")
    if kind == "worker":
        return  # an entrypoint: all of them are exported
    if kind not in ("durable-object", "durable_object"):
        raise fault(f'type must be "durable-object" or "worker", not {kind!r}.')
    if not name.isidentifier():
        raise fault("this is not the name of a class.")
    if entry.get("storage", "sqlite") not in ("sqlite", "legacy-kv"):
        raise fault(f'storage must be "sqlite", not {entry["storage"]!r}.')
    state = entry.get("state", "created")
    if state not in _STATES:
        raise fault(f"state must be one of {', '.join(_STATES)}, not {state!r}.{nearest(str(state), list(_STATES))}")
    if state in ("transferred", "expecting-transfer"):
        raise fault(f"state {state!r} is not supported: Roost runs one worker.")
    if (state == "renamed") != ("renamed_to" in entry):
        raise fault('renamed_to and the state "renamed" go together.')
    if state == "created":
        found.created.append(name)
    elif state == "deleted":
        found.deleted.append(name)
    else:
        after = entry["renamed_to"]
        if not isinstance(after, str) or not after.isidentifier() or after == name:
            raise fault(f"renamed_to must be the name of another class, not {after!r}.")
        found.renamed[name] = after


def migrations_of(raw: dict[str, Any], path: Path, bindings: dict[str, str], warnings: list[str]) -> list[Migration]:
    """Class migrations, in order; what they leave must be what is bound."""
    entries = raw.get("migrations", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: migrations must be a list.", key="migrations")
    found: list[Migration] = []
    classes: set[str] = set()
    for entry in entries:
        migration = _migration(entry, path)
        if migration.tag in [other.tag for other in found]:
            raise ConfigError(f"{path}: migrations: the tag {migration.tag!r} is there twice.", key="migrations")
        for verb, names in (("renames", migration.renamed), ("deletes", migration.deleted)):
            for name in names:
                if name not in classes | set(migration.new):
                    raise ConfigError(
                        f"{path}: migrations: {migration.tag!r} {verb} {name}, which no migration before it has made"
                        f" (there are: {', '.join(sorted(classes)) or 'none'}).{nearest(name, sorted(classes))}",
                        key="migrations",
                    )
        classes = (classes | set(migration.new) | set(migration.renamed.values())) - set(migration.renamed)
        classes -= set(migration.deleted)
        found.append(migration)
    gone = {name for migration in found for name in (*migration.deleted, *migration.renamed)} - classes
    _refuse_bindings_of(gone, bindings, path, "migrations have")
    if found:
        warnings.extend(
            f"{path.name}: the class {class_name} is bound, but no migration makes it; add it to new_sqlite_classes."
            for class_name in bindings.values()
            if class_name not in classes
        )
    return found


def _refuse_bindings_of(gone: set[str], bindings: dict[str, str], path: Path, who_has: str) -> None:
    for binding, class_name in bindings.items():
        if class_name in gone:
            raise ConfigError(
                f"{path}: durable_objects.bindings: {binding} is of the class {class_name}, which {who_has} renamed or"
                " deleted.",
                key="durable_objects.bindings",
            )


def _migration(entry: Any, path: Path) -> Migration:
    def fault(text: str) -> ConfigError:
        return ConfigError(f"{path}: migrations: {text}", key="migrations")

    if not isinstance(entry, dict) or not isinstance(entry.get("tag"), str) or not entry["tag"]:
        raise fault("each needs a tag.")
    tag = entry["tag"]
    for key in entry:
        if key not in _MIGRATION_KEYS:
            raise fault(f"{tag!r}: unknown key {key!r}.{nearest(key, list(_MIGRATION_KEYS))}")
    if entry.get("transferred_classes"):
        raise fault(f"{tag!r}: transferred_classes is not supported: Roost runs one worker.")

    def names(key: str) -> list[str]:
        value = entry.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) and name.isidentifier() for name in value):
            raise fault(f"{tag!r}: {key} must be a list of class names.")
        return value

    renamed: dict[str, str] = {}
    pairs = entry.get("renamed_classes", [])
    for pair in pairs if isinstance(pairs, list) else [None]:
        both = (pair.get("from"), pair.get("to")) if isinstance(pair, dict) else (None, None)
        if not all(isinstance(name, str) and name.isidentifier() for name in both):
            raise fault(f'{tag!r}: renamed_classes must be a list of {{ from = "…", to = "…" }}.')
        renamed[str(both[0])] = str(both[1])
    return Migration(tag, names("new_sqlite_classes") + names("new_classes"), renamed, names("deleted_classes"))
