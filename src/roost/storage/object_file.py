"""An object's file as such: its format, what a first write that was cut short leaves, and whether files can be opened.

Layout (format 1, `docs/reference/storage.md`): `_cf_KV(key, value)`, values in `roost.values` encoding;
`_cf_METADATA(key, value)`.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from typing import TYPE_CHECKING, Final

import apsw

from roost.storage.errors import NeverWritten, StorageError
from roost.storage.folding import has_commits

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1
MAX_PAGES: Final = 10 * 1024**3 // 4096  # 10 GB (reference 5)
_FILES_TO_OPEN: Final = 6
SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS _cf_KV (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS _cf_METADATA (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
)


def out_of_files() -> bool:
    """Whether this process can open no more files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        opened = len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return limit != resource.RLIM_INFINITY and opened + _FILES_TO_OPEN > limit


def read_alarm(path: Path) -> tuple[str | None, int | None]:
    """Name and alarm (ms) of an object that nobody has open. Raises StorageError or apsw.Error for a damaged file,
    NeverWritten for one that was cut short at its birth."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        check_format(connection, path)
        found = dict(connection.execute("SELECT key, value FROM _cf_METADATA WHERE key IN ('name', 'alarm')"))
        return found.get("name"), found.get("alarm")
    finally:
        connection.close()


def check_format(connection: apsw.Connection, path: Path) -> None:
    """Raise StorageError unless the file is an object's of this format; NeverWritten if its object was never born.

    An object's first commit makes its tables. What a full disk or a kill leaves of it is an empty file, or one without a
    table and without a page in its log. Format 0 with anything else in it is damage.
    """
    version = connection.pragma("user_version")
    if version == FORMAT:
        return
    if version != 0:
        raise StorageError(f"{path} has format {version}; this Roost knows {FORMAT}.")
    if connection.execute("SELECT count(*) FROM sqlite_schema").get:
        raise StorageError(f"{path} is damaged: it has tables, but no format; `roost check` tells more.")
    if has_commits(f"{path}-wal"):
        raise StorageError(f"{path} is damaged: its log has commits, but it has no tables; `roost check` tells more.")
    raise NeverWritten(f"{path} is left of a first write that was cut short: its object has never written anything.")
