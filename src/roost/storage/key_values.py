"""The files behind `kv_namespaces`: one SQLite database a namespace, shared by the hosts of a node.

`data/kv/<sha-256 of the namespace's id>.sqlite`, format 1 (`user_version`): no name from outside becomes part of a path.
Everything here blocks on the disk. Source: platform documentation, Workers KV API.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from roost.storage.shared_database import SharedDatabase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PURGED_AT_ONCE: Final = 100  # expired pairs that a write removes


class Pair(msgspec.Struct, frozen=True):
    """A stored value. `metadata` is JSON; `expires_s` is seconds since 1970."""

    value: bytes
    metadata: str | None
    expires_s: int | None


class Listed(msgspec.Struct, frozen=True):
    """A key in a listing."""

    name: str
    metadata: str | None
    expires_s: int | None


class KeyValues(SharedDatabase):
    """One namespace's file, for one thread at a time."""

    SCHEMA: ClassVar = (
        "CREATE TABLE IF NOT EXISTS pairs"
        " (key TEXT PRIMARY KEY, value BLOB NOT NULL, metadata TEXT, expires INTEGER) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS by_expiry ON pairs (expires) WHERE expires IS NOT NULL",
    )

    def get(self, keys: Sequence[str], now_s: float) -> list[Pair | None]:
        found: list[Pair | None] = []
        for key in keys:
            row = self._connection.execute(
                "SELECT value, metadata, expires FROM pairs WHERE key = ? AND (expires IS NULL OR expires > ?)",
                (key, now_s),
            ).fetchone()
            found.append(None if row is None else Pair(*row))
        return found

    def put(self, key: str, pair: Pair, now_s: float) -> None:
        with self.writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?)", (key, pair.value, pair.metadata, pair.expires_s)
            )
            self._connection.execute(
                "DELETE FROM pairs WHERE key IN (SELECT key FROM pairs WHERE expires <= ? LIMIT ?)",
                (now_s, _PURGED_AT_ONCE),
            )

    def delete(self, keys: Sequence[str]) -> None:
        with self.writing():
            self._connection.executemany("DELETE FROM pairs WHERE key = ?", [(key,) for key in keys])

    def list(self, prefix: str, after: str, limit: int, now_s: float) -> list[Listed]:
        """Up to `limit` keys that begin with `prefix`, behind `after`, in the order of their UTF-8 bytes."""
        rows = self._connection.execute(
            "SELECT key, metadata, expires FROM pairs WHERE key > ? AND key >= ? AND (expires IS NULL OR expires > ?)"
            " ORDER BY key LIMIT ?",
            (after, prefix, now_s, limit),
        )
        return [Listed(*row) for row in itertools.takewhile(lambda row: row[0].startswith(prefix), rows)]


def namespace_path(data: Path, namespace: str) -> Path:
    """Where a namespace's file is."""
    return data / "kv" / f"{hashlib.sha256(namespace.encode()).hexdigest()}.sqlite"
