"""The files behind `kv_namespaces`: one SQLite database a namespace, shared by the hosts of a node.

`data/kv/<sha-256 of the namespace's id>.sqlite`, format 1 (`user_version`): no name from outside becomes part of a path.
Everything here blocks on the disk; `host/kv.py` has the threads. Source: platform documentation, Workers KV API.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from typing import TYPE_CHECKING, Final

import apsw
import msgspec

from roost.errors import RoostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FORMAT: Final = 1
_BUSY_MS: Final = 5_000  # another host writes
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


class KeyValues:
    """One namespace's file, for one thread at a time. Raises RoostError if it is of a newer format."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._connection = connection = apsw.Connection(str(path))
        connection.set_busy_timeout(_BUSY_MS)
        try:
            self._set_up(path)
        except BaseException:
            connection.close()
            raise

    def _set_up(self, path: Path) -> None:
        connection = self._connection
        deadline = time.monotonic() + _BUSY_MS / 1000
        while True:  # SQLite does not wait for another's lock when the journal's mode changes
            try:
                connection.pragma("journal_mode", "wal")
                break
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.pragma("synchronous", "full")
        if connection.pragma("user_version") == FORMAT:
            return
        with self._writing():  # the one that comes second finds it done
            found = connection.pragma("user_version")
            if found not in (0, FORMAT):
                raise RoostError(f"{path} has format {found}; this Roost knows {FORMAT}.")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS pairs"
                " (key TEXT PRIMARY KEY, value BLOB NOT NULL, metadata TEXT, expires INTEGER) WITHOUT ROWID"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS by_expiry ON pairs (expires) WHERE expires IS NOT NULL")
            connection.pragma("user_version", FORMAT)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that takes the write lock at once: one that took it later could not wait for another's."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

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
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?)", (key, pair.value, pair.metadata, pair.expires_s)
            )
            self._connection.execute(
                "DELETE FROM pairs WHERE key IN (SELECT key FROM pairs WHERE expires <= ? LIMIT ?)",
                (now_s, _PURGED_AT_ONCE),
            )

    def delete(self, keys: Sequence[str]) -> None:
        with self._writing():
            self._connection.executemany("DELETE FROM pairs WHERE key = ?", [(key,) for key in keys])

    def list(self, prefix: str, after: str, limit: int, now_s: float) -> list[Listed]:
        """Up to `limit` keys that begin with `prefix`, behind `after`, in the order of their UTF-8 bytes."""
        rows = self._connection.execute(
            "SELECT key, metadata, expires FROM pairs WHERE key > ? AND key >= ? AND (expires IS NULL OR expires > ?)"
            " ORDER BY key LIMIT ?",
            (after, prefix, now_s, limit),
        )
        return [Listed(*row) for row in itertools.takewhile(lambda row: row[0].startswith(prefix), rows)]

    def close(self) -> None:
        self._connection.close()


def namespace_path(data: Path, namespace: str) -> Path:
    """Where a namespace's file is."""
    return data / "kv" / f"{hashlib.sha256(namespace.encode()).hexdigest()}.sqlite"
