"""The file behind `caches`: one SQLite database for all caches of a node, `data/cache/http.sqlite`, format 1.

What is in it may be lost at any time: the least recently used go when it is full, and a damaged file begins anew. So it is
not synced at each write, and no part of a backup. Source: platform documentation, "Cache"; RFC 9111.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from roost.storage.errors import StorageError
from roost.storage.shared_database import SharedDatabase

if TYPE_CHECKING:
    from pathlib import Path

MAX_ENTRY_BYTES: Final = 32 * 1024 * 1024
_OVERHEAD_BYTES: Final = 256  # of an entry, beside its texts and its body
_USED_AGAIN_S: Final = 60.0  # how exact the time of the last use is
_AT_ONCE: Final = 100  # entries that a write removes because they have expired


class Entry(msgspec.Struct, frozen=True):
    """A stored response. Times are seconds since 1970; `headers` is JSON, a list of pairs."""

    status: int
    reason: str
    headers: str
    body: bytes
    stored_s: float
    expires_s: float


class HttpCache(SharedDatabase):
    """All caches, by name and URL; at most `max_bytes` of them."""

    SCHEMA: ClassVar = (
        "CREATE TABLE IF NOT EXISTS entries (cache TEXT, url TEXT, status INTEGER, reason TEXT, headers TEXT, stored REAL,"
        " expires REAL, used REAL, size INTEGER, body BLOB, PRIMARY KEY (cache, url))",
        "CREATE INDEX IF NOT EXISTS by_use ON entries (used)",
        "CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires)",
        "CREATE TABLE IF NOT EXISTS totals (bytes INTEGER)",
        "INSERT INTO totals SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM totals)",
        "CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON entries BEGIN UPDATE totals SET bytes = bytes + new.size; END",
        "CREATE TRIGGER IF NOT EXISTS less AFTER DELETE ON entries BEGIN UPDATE totals SET bytes = bytes - old.size; END",
    )
    SYNCHRONOUS: ClassVar = "normal"

    def __init__(self, path: Path, max_bytes: int, min_free_bytes: int = 0) -> None:
        super().__init__(path)
        self._folder = path.parent
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes

    def match(self, cache: str, url: str, now_s: float) -> Entry | None:
        row = self._connection.execute(
            "SELECT status, reason, headers, body, stored, expires, used FROM entries"
            " WHERE cache = ? AND url = ? AND expires > ?",
            (cache, url, now_s),
        ).fetchone()
        if row is None:
            return None
        if row[6] < now_s - _USED_AGAIN_S:
            with self.writing():
                self._connection.execute("UPDATE entries SET used = ? WHERE cache = ? AND url = ?", (now_s, cache, url))
        return Entry(*row[:6])

    def put(self, cache: str, url: str, entry: Entry, now_s: float) -> int:
        """Replace what is there. How many others had to go. Raises StorageError if objects need the disk's rest."""
        size = len(cache) + len(url) + len(entry.headers) + len(entry.body) + _OVERHEAD_BYTES
        free = shutil.disk_usage(self._folder).free
        if free - size < self._min_free_bytes:
            raise StorageError(
                f"nothing is kept by caches: the disk has {free} bytes left, and {self._min_free_bytes} are for objects"
                " (storage.min_free_bytes)."
            )
        with self.writing():
            self._delete(cache, url)
            self._connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    cache, url, entry.status, entry.reason, entry.headers, entry.stored_s, entry.expires_s, now_s, size,
                    entry.body,
                ),
            )  # fmt: skip
            return self._make_room(now_s)

    def _make_room(self, now_s: float) -> int:
        execute = self._connection.execute
        execute(
            "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires <= ? LIMIT ?)", (now_s, _AT_ONCE)
        )
        gone = 0
        while self.bytes > self._max_bytes:
            execute("DELETE FROM entries WHERE rowid = (SELECT rowid FROM entries ORDER BY used, rowid LIMIT 1)")
            gone += 1
        return gone

    @property
    def bytes(self) -> int:
        """The size of what is stored."""
        (found,) = self._connection.execute("SELECT bytes FROM totals").fetchone() or (0,)
        return int(found)

    def delete(self, cache: str, url: str, now_s: float) -> bool:
        """Whether it was there."""
        with self.writing():
            found = self._connection.execute(
                "SELECT 1 FROM entries WHERE cache = ? AND url = ? AND expires > ?", (cache, url, now_s)
            ).fetchone()
            self._delete(cache, url)
        return found is not None

    def _delete(self, cache: str, url: str) -> None:
        # Not by INSERT OR REPLACE, which runs no trigger for the row that goes.
        self._connection.execute("DELETE FROM entries WHERE cache = ? AND url = ?", (cache, url))
