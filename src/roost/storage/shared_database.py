"""A SQLite file that the hosts of a node share: opened, set up once, and written under one lock at a time.

Everything here blocks on the disk; `host/calls/shared_files.py` has the threads.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, ClassVar, Final

import apsw

from roost.errors import RoostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BUSY_MS: Final = 5_000  # another host writes
_KEPT_LOG_BYTES: Final = 4 * 1024 * 1024  # what a log that has been folded keeps of its size


class SharedDatabase:
    """One file, for one thread at a time. Raises RoostError if it is of a newer format."""

    FORMAT: ClassVar[int] = 1
    SCHEMA: ClassVar[tuple[str, ...]] = ()
    SYNCHRONOUS: ClassVar[str] = "full"

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        self._inode = path.stat().st_ino
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
        connection.pragma("synchronous", self.SYNCHRONOUS)
        connection.pragma("journal_size_limit", _KEPT_LOG_BYTES)
        if connection.pragma("user_version") == self.FORMAT:
            return
        with self.writing():  # the one that comes second finds it done
            found = connection.pragma("user_version")
            if found not in (0, self.FORMAT):
                raise RoostError(f"{path} has format {found}; this Roost knows {self.FORMAT}.")
            for statement in self.SCHEMA:
                connection.execute(statement)
            connection.pragma("user_version", self.FORMAT)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that takes the write lock at once: one that took it later could not wait for another's."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def is_at(self, path: Path) -> bool:
        """Whether this is still the file there."""
        try:
            return path.stat().st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        self._connection.close()
