"""Folding a database's log (`-wal`) into its file and emptying it, through a connection of its own.

Every commit of ours is appended to the log with `synchronous=OFF`, and SQLite never folds by itself. Two things must hold:

- *The log begins anew only when it is empty.* A writer that does not sync may overwrite an old log from its beginning, and
  a power loss may then leave the old header with new frames behind it, or old frames that undo what the file has. So the
  log is not restarted but truncated, and the truncation is synced before anything is appended.
- *A connection that has not read does not know that there is a log*: its checkpoint reports (-1, -1) and does nothing.

It must not know of objects or the loop. Everything here blocks on the disk. Source: SQLite documentation, "Write-Ahead
Logging" §2, §4; `PRAGMA wal_checkpoint`.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

if TYPE_CHECKING:
    from pathlib import Path

FOLD_BYTES: Final = 4 * 1024 * 1024  # a log of this size is folded when it suits
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
LARGE_COMMITS: Final = 4  # with a commit of more than half of the bound, the log may be this many times the bound


class Folded(NamedTuple):
    """What came of it. Pages are SQLite's frames; `held` says what keeps the log, empty if it is empty now."""

    pages: int
    moved: int
    held: str


def size_of(path: Path | str) -> int:
    """A file's size in bytes; 0 if it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def has_commits(log: Path | str) -> bool:
    """Whether a log has a whole transaction. Reads up to the end of the first; for logs of files that look empty.

    Source: SQLite documentation, "WAL-mode File Format" §4.1 to §4.2.
    """
    try:
        with open(log, "rb") as file:
            header = file.read(32)
            if len(header) < 32:
                return False
            words = "<" if header[3] == 0x82 else ">"
            page_bytes = int.from_bytes(header[8:12], "big")
            sums = struct.unpack(">II", header[24:])
            while len(frame := file.read(24)) == 24 and len(page := file.read(page_bytes)) == page_bytes:
                sums = _checksum(frame[:8] + page, words, sums)
                if frame[8:16] != header[16:24] or struct.unpack(">II", frame[16:]) != sums:
                    return False
                if any(frame[4:8]):
                    return True
    except OSError:
        pass
    return False


def _checksum(data: bytes, words: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, two in struct.iter_unpack(f"{words}II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second


def sync_path(path: Path | str) -> None:
    """Make a file, or the names in a folder, durable. Blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fold(path: Path, log_fd: int) -> Folded:
    """Move what the log has into the file, sync both, and empty the log. `log_fd` is an open descriptor of the log.

    A reader (a cursor, `roost storage dump`) or an open write lets it move only a part, and keeps the log as long as it is.
    Raises apsw.Error or OSError if the disk refuses; nothing is lost then.
    """
    other = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        other.pragma("synchronous", "full")  # the log before the file, the file before the log is emptied
        other.pragma("wal_autocheckpoint", 0)
        other.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        try:
            pages, moved = other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:  # somebody else folds it
            return Folded(0, 0, "another checkpoint")
        if moved < pages:
            return Folded(pages, moved, "a reader")
        try:
            other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return Folded(pages, moved, "a reader or an open write")
        os.fsync(log_fd)
        return Folded(pages, moved, "")
    finally:
        other.close()
