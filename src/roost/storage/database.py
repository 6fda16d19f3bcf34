"""One object's database: its key-value table, its SQL, and commits that are durable only once `sync` has returned.

WAL with `synchronous=OFF` and every fsync of our own: together what `FULL` promises, but the fsync can run on another
thread while the object goes on reading, and one fsync confirms every commit before it. SQLite syncs only in checkpoints.

The file is created at the first write. Layout (format 1, `docs/reference/storage.md`): `_cf_KV(key, value)`, values in
`roost.values` encoding; `_cf_METADATA(key, value)`.

It must not know of actors, gates or the loop. Source: SQLite documentation, "Write-Ahead Logging" §2.2, §6; reference 5.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote
from weakref import WeakSet, ref

import apsw

from roost.errors import ConfigError, JsException, RoostError
from roost.storage.folding import LARGE_COMMITS, MAX_LOG_BYTES, fold, has_commits, size_of, sync_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from roost.storage.folding import Folded

_log = logging.getLogger("roost.storage")

FORMAT: Final = 1
_FILES_TO_OPEN: Final = 6
MAX_PAGES: Final = 10 * 1024**3 // 4096  # 10 GB (reference 5)
_TRANSACTION_WORD: Final = re.compile(r"\s*(begin|commit|end|rollback|savepoint|release)\b", re.IGNORECASE)
_WRITE: Final = 2  # SQLITE_TXN_WRITE
_MAX_REMEMBERED: Final = 200
_CURSOR_ENDED: Final = (
    "this cursor was not read to its end while the object wrote more than its log may hold (storage.max_log_bytes); read"
    " cursors to their end, or with toArray(), before writing much."
)
_TOO_LARGE: Final = (
    "one transaction of the object has filled its log (%d MiB, four times storage.max_log_bytes): write in smaller parts,"
    " each with `await ctx.storage.sync()` after it, or raise the setting."
)
_LOOK_BYTES: Final = 4 * 1024 * 1024  # so much may be written before somebody looks how large the log is
_STATEMENT_BYTES: Final = _LOOK_BYTES // 8  # what a statement counts for
_LOOK_STEPS: Final = 200_000  # of SQLite's machine in one statement; some milliseconds
_BUSY_TIMEOUT_MS: Final = 10_000  # for its log to be folded while a handler goes on, or `roost storage` to look at the file

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS _cf_KV (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS _cf_METADATA (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
)
_READ_LENGTH: Final = 4 * 1024 * 1024  # of a value; an earlier Roost let so much be written
_WRITE_LENGTH: Final = 2_200_000  # as workerd has it: 2 MB, and room for the rest of the row
_OPTIMIZE: Final = re.compile(r"\s*pragma\s+optimize\s*(\(\s*\w*\s*\))?\s*;?\s*\Z", re.IGNORECASE)
_LIMITS: Final = {
    apsw.SQLITE_LIMIT_COLUMN: 100,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 32,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    apsw.SQLITE_LIMIT_LENGTH: _READ_LENGTH,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 5,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 100,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    apsw.SQLITE_LIMIT_ATTACHED: 0,
}
_DENIED_ACTIONS: Final = frozenset({apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH, apsw.SQLITE_TRANSACTION, apsw.SQLITE_SAVEPOINT})
_ALLOWED_PRAGMAS: Final = frozenset(
    {
        "table_info", "table_list", "table_xinfo", "index_info", "index_list", "index_xinfo", "foreign_key_list",
        "foreign_key_check", "foreign_keys", "defer_foreign_keys", "quick_check", "optimize", "data_version",
        "case_sensitive_like", "ignore_check_constraints", "legacy_alter_table", "recursive_triggers",
        "reverse_unordered_selects",
    }
)  # fmt: skip


_durable_folders: set[Path] = set()  # their names are on the disk; at most 256 a class


def _out_of_files() -> bool:
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


class StorageError(RoostError):
    """A commit could not be made durable: the disk is full or broken. The object is reset; what it held back is dropped."""


class NeverWritten(StorageError):
    """The file is what a cut first write has left: there is no object yet, and the next write makes it."""


class SqlError(JsException):
    """The user's SQL is wrong or forbidden; `.message` is SQLite's own, with the fix where we know one."""


class Database:
    """Open on first use; `close` before the file is used by anybody else."""

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        before_opening: Callable[[], None] = lambda: None,
        opened: Callable[[], None] = lambda: None,
        is_known: Callable[[], bool] = lambda: False,
        make_room: Callable[[], bool] = lambda: False,
        max_log_bytes: int = MAX_LOG_BYTES * LARGE_COMMITS,
    ) -> None:
        self._path = path
        self._name = name  # of the object: kept in the file, for those who read it without a worker
        self._before_opening = before_opening  # waits until an earlier owner has closed the same file
        self._opened = opened
        self._is_known = is_known  # whether somebody else says that the object has written
        self._make_room = make_room  # closes other files if the process can open no more; whether it could
        self._max_log_bytes = max_log_bytes  # with everything that is not yet committed
        self._log_bytes_before = 0  # the open transaction: a reader may hold what earlier ones wrote
        self._unseen_bytes = 0  # about as many were written since somebody looked how large the log is
        self.is_folding = False  # on a thread: what only read before could not write after it (BUSY_SNAPSHOT)
        self._unborn = False  # the file is what a cut first write has left
        self._connection: apsw.Connection | None = None
        self.was_left_unsynced = False  # found a log of an earlier life that may not be on the disk
        self._reader: apsw.Connection | None = None
        self._user_sql = self._limits_writes = False
        self._begun = False  # a transaction of ours is (or should be) open
        self._closed = False
        self._log_fd = -1
        self._file_fd = -1  # kept open: closing any descriptor of the file drops this process's locks on it (POSIX)
        self._is_new = False  # the file and its name may not be on the disk yet
        self._log_is_new = False  # nor the log's name
        self._rowless_cursor: Any = None
        self._rowless: set[str] = set()  # statements that write and never return rows: they need no description
        self._cursors: WeakSet[SqlRun | Listing] = WeakSet()  # that read rows as they are asked for

    # opening and closing

    @property
    def is_open(self) -> bool:
        return self._connection is not None or self._reader is not None

    @property
    def may_be_empty(self) -> bool:
        """Whether this life may have deleted what was there."""
        return self._connection is not None

    def exists(self) -> bool:
        """Whether the object has ever written (and not deleted everything since). Raises StorageError if the file is what
        a cut first write leaves, though the object is known to have written."""
        if self._connection is not None or self._reader is not None:
            return True
        if self._unborn:
            return False
        self._before_opening()
        if not self._path.exists():
            return False
        try:
            return self._reading() is not None
        except NeverWritten as error:
            self._check_unborn(error)
            return False

    def _check_unborn(self, error: NeverWritten) -> None:
        if not self._unborn:
            if self._is_known():
                raise StorageError(f"{self._path} is damaged: it is empty, but its object has an alarm.") from None
            self._unborn = True
            _log.warning("storage: %s", error)

    def _reading(self) -> apsw.Connection:
        """A connection to read by. Until the object first writes, one without locks, log and shared memory.

        Opening those is most of what waking to read costs (measured: 100 µs instead of 550). It is sound because nobody
        else writes the file (the node holds the folder, the host the object), and because there is no log to recover.
        """
        if self._connection is not None or self._closed:
            return self.connection()
        if self._reader is None:
            if size_of(f"{self._path}-wal") > 0:
                return self.connection()
            self._before_opening()
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            name = f"file:{quote(str(self._path))}?immutable=1"
            try:
                try:
                    reader = apsw.Connection(name, flags=flags)
                except apsw.CantOpenError:
                    if not _out_of_files() or not self._make_room():
                        raise
                    reader = apsw.Connection(name, flags=flags)
                try:
                    self._check_version(reader)
                except BaseException:
                    reader.close()
                    raise
            except apsw.Error as error:
                raise self._unreadable(error) from error
            self._reader = reader
            self._opened()
        return self._reader

    def _check_version(self, connection: apsw.Connection) -> None:
        version = connection.pragma("user_version")
        if version == FORMAT:
            return
        if version != 0:
            raise ConfigError(f"{self._path} has format {version}; this Roost knows {FORMAT}. Use the newer one.")
        check_format(connection, self._path)

    def connection(self) -> apsw.Connection:
        """The connection, opened (and the file created) if need be. Raises ConfigError for a newer format."""
        if self._closed:
            raise StorageError("the object was reset or is asleep; this handler belongs to its earlier life.")
        if self._connection is None:
            self._before_opening()
            # A file that an earlier life has not lived to sync is as good as new; so is a log that it has left.
            self.was_left_unsynced = size_of(f"{self._path}-wal") > 0
            self._is_new = self.was_left_unsynced or not size_of(self._path)
            self._log_is_new = True
            existed = self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                try:
                    connection = self._open(existed=existed)
                except (apsw.CantOpenError, apsw.IOError):
                    if not _out_of_files() or not self._make_room():
                        raise
                    connection = self._open(existed=existed)
            except apsw.Error as error:
                raise self._unreadable(error) from error
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            for limit, value in _LIMITS.items():
                connection.limit(limit, value)
            connection.set_authorizer(self._authorize)
            connection.set_progress_handler(self._log_is_full, _LOOK_STEPS)
            self._rowless_cursor = connection.cursor()
            self._connection = connection
            self._opened()
        return self._connection

    def _open(self, *, existed: bool) -> apsw.Connection:
        """Open the file; give one that was never written (or not to the end of its first commit) its tables."""
        connection = apsw.Connection(str(self._path))
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            connection.pragma("synchronous", "off")  # every sync is ours, on another thread; `close` turns it on
            if connection.pragma("journal_mode", "wal") != "wal":
                raise StorageError(f"{self._path}: SQLite cannot keep a log (-wal) on this file system.")
            connection.pragma("wal_autocheckpoint", 0)
            connection.pragma("foreign_keys", 1)
            connection.pragma("max_page_count", MAX_PAGES)
            try:
                self._check_version(connection)
            except NeverWritten as error:
                if existed:
                    self._check_unborn(error)
                self._is_new = True
                with connection:
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    if self._name is not None:
                        connection.execute("INSERT INTO _cf_METADATA VALUES ('name', ?)", (self._name,))
                    connection.pragma("user_version", FORMAT)
                self._unborn = False
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and no rows are being read: then it may be closed and opened again."""
        return self._connection is None or self._connection.txn_state() == apsw.SQLITE_TXN_NONE

    def close(self) -> None:
        """Close; SQLite folds the log into the file and syncs it."""
        self._closed = True
        self.rollback()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.pragma("synchronous", "normal")  # for the checkpoint that closing is
                connection.close()
            finally:
                for fd in (self._log_fd, self._file_fd):
                    if fd >= 0:
                        os.close(fd)
                self._log_fd = self._file_fd = -1

    def destroy(self) -> None:
        """Close and remove the files: an object that deleted everything leaves none."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            try:
                os.unlink(f"{self._path}{suffix}")
            except FileNotFoundError:
                pass

    # transactions

    def begin(self) -> None:
        """Begin a transaction unless one is open."""
        connection = self.connection()
        if not connection.in_transaction:
            self._check_not_undone()
            connection.execute("BEGIN IMMEDIATE" if self.is_folding else "BEGIN")
            self._begun = True
            self._log_bytes_before = self._log_size()

    def _check_not_undone(self) -> None:
        """SQLite ends the whole transaction by itself when the disk is full: what was in it is lost, and must not count."""
        if self._begun:  # and stays so until `rollback`: the commit must fail, too
            raise StorageError("the disk refused a write, and all writes of this turn were undone.")

    def commit(self) -> bool:
        """Commit what is open; whether there was anything to make durable. Raises StorageError."""
        connection = self._connection
        if connection is None or not connection.in_transaction:
            self._check_not_undone()
            return False
        wrote = self.is_writing
        try:
            connection.execute("COMMIT")
        except apsw.Error as error:
            self.rollback()
            raise StorageError(f"a write could not be committed: {error}") from error
        self._begun = False
        return wrote

    def rollback(self) -> None:
        """Undo what is not committed."""
        self._begun = False
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except apsw.Error as error:
                _log.warning("storage: a rollback failed, closing undoes it: %s", error)

    def savepoint(self, depth: int) -> None:
        self.begin()
        self.connection().execute(f"SAVEPOINT roost_{depth:d}")

    def release(self, depth: int) -> None:
        self.connection().execute(f"RELEASE roost_{depth:d}")

    def rollback_to(self, depth: int) -> None:
        connection = self.connection()
        if not connection.in_transaction:
            self._check_not_undone()
            return
        connection.execute(f"ROLLBACK TO roost_{depth:d}")
        connection.execute(f"RELEASE roost_{depth:d}")

    def sync(self) -> None:
        """Make every commit before this call durable. Blocks on the disk: for another thread. Raises StorageError."""
        try:
            if self._log_fd < 0:
                self._file_fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                self._log_fd = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            if self._is_new:  # before the log: one beside an empty file would be thrown away
                os.fsync(self._file_fd)
            os.fsync(self._log_fd)
            if self._is_new or self._log_is_new:
                sync_path(self._path.parent)
                if self._path.parent not in _durable_folders:
                    for folder in list(self._path.parents)[1:4]:
                        sync_path(folder)
                    _durable_folders.add(self._path.parent)
                self._is_new = self._log_is_new = False
            if not os.fstat(self._log_fd).st_nlink or not os.fstat(self._file_fd).st_nlink:
                raise StorageError(f"{self._path} was removed while it was in use.")
        except OSError as error:
            more = "; raise `ulimit -n`" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise StorageError(f"a write could not be made durable: {error}{more}") from error

    # the log

    @property
    def log_bytes(self) -> int:
        """How large the log is now; 0 until it has first been synced."""
        return os.fstat(self._log_fd).st_size if self._log_fd >= 0 else 0

    def _wrote(self, size: int) -> None:
        """About so many bytes are about to be written. Raises SqlError if the transaction has filled the log."""
        self._unseen_bytes += size
        if self._unseen_bytes >= _LOOK_BYTES:
            if self._log_is_full():
                raise SqlError(_TOO_LARGE % (self._max_log_bytes >> 20))
            self._unseen_bytes = 0

    def _log_is_full(self) -> bool:
        """Whether the open transaction has written as much as the log may hold. SQLite keeps 2 MB of it in memory."""
        return self.is_writing and self._log_size() - self._log_bytes_before >= self._max_log_bytes

    def _log_size(self) -> int:
        return self.log_bytes or size_of(f"{self._path}-wal")

    def fold(self) -> Folded:
        """Make every commit durable and empty the log, unless something holds it. Blocks on the disk. Raises
        StorageError, apsw.Error or OSError; nothing is lost then."""
        self.sync()
        return fold(self._path, self._log_fd)

    def end_cursors(self) -> int:
        """End what reads rows of the user's, as an open cursor keeps the log from being folded. How many there were."""
        open_cursors = [cursor for cursor in self._cursors if cursor.is_open]
        for cursor in open_cursors:
            cursor.end()
        return len(open_cursors)

    # key-value

    def get(self, key: str) -> bytes | None:
        if not self.exists():
            return None
        row = self._row("SELECT value FROM _cf_KV WHERE key = ?", (key,))
        return None if row is None else row[0]

    def put(self, key: str, value: bytes) -> None:
        self.begin()
        self._wrote(len(value))
        self._run("INSERT INTO _cf_KV VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2", (key, value))

    def delete(self, key: str) -> bool:
        if not self.exists():
            return False
        self.begin()
        before = self.connection().total_changes()
        self._run("DELETE FROM _cf_KV WHERE key = ?", (key,))
        return self.connection().total_changes() > before

    def list(
        self, *, start: str | None, after: str | None, end: str | None, prefix: str, reverse: bool, limit: int | None
    ) -> Iterator[tuple[str, bytes]]:
        """Pairs in the order of their keys' UTF-8 bytes; bounds keep their meaning when reversed."""
        if not self.exists():
            return iter(())
        conditions, bindings = [], []
        for condition, bound in (("key >= ?", start), ("key > ?", after), ("key < ?", end)):
            if bound is not None:
                conditions.append(condition)
                bindings.append(bound)
        if prefix:
            conditions += ["key >= ?", "substr(key, 1, ?) = ?"]
            bindings += [prefix, len(prefix), prefix]  # type: ignore[list-item]
            # The next string after all that begin with the prefix, so that the index ends the scan.
            if (last := ord(prefix[-1])) < 0xD7FF:
                conditions.append("key < ?")
                bindings.append(prefix[:-1] + chr(last + 1))
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = " ORDER BY key DESC" if reverse else " ORDER BY key"
        bound_limit = " LIMIT ?" if limit is not None else ""
        if limit is not None:
            bindings.append(limit)  # type: ignore[arg-type]
        sql = f"SELECT key, value FROM _cf_KV{where}{order}{bound_limit}"
        connection = self._reading()
        rows = connection.execute(sql, tuple(bindings))
        if connection is self._reader:
            return iter(rows.fetchall())  # type: ignore[arg-type] # the reader goes at the first write
        listing = Listing(rows)
        self._cursors.add(listing)
        return listing

    def delete_all(self) -> None:
        """Empty the database: all keys and all of the user's tables. `destroy` frees the disk once that is committed."""
        if not self.exists():
            return
        self.begin()
        connection = self.connection()
        connection.set_progress_handler(None)  # its writes are bounded by what there is: foreign keys go row by row
        try:
            names = connection.execute(
                "SELECT type, name FROM sqlite_schema"
                " WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
            ).get
            for kind, name in names or ():
                if name == "_cf_KV":
                    connection.execute("DELETE FROM _cf_KV")
                elif not name.startswith("_cf_"):
                    quoted = name.replace('"', '""')
                    connection.execute(f'DROP {kind.upper()} IF EXISTS "{quoted}"')
        finally:
            connection.set_progress_handler(self._log_is_full, _LOOK_STEPS)
            self._log_bytes_before = self._log_size()

    def is_empty(self) -> bool:
        """Whether no key, no metadata and no table of the user's is left."""
        row = self._row(
            "SELECT (SELECT count(*) FROM _cf_KV) + (SELECT count(*) FROM _cf_METADATA WHERE key = 'alarm')"
            " + (SELECT count(*) FROM sqlite_schema"
            " WHERE name NOT LIKE '!_cf!_%' ESCAPE '!' AND name NOT LIKE 'sqlite!_%' ESCAPE '!')",
            (),
        )
        return row is not None and row[0] == 0

    # what the runtime keeps beside the user's data

    @property
    def is_writing(self) -> bool:
        """Whether the open transaction has written."""
        return self._connection is not None and self._connection.txn_state() == _WRITE

    def delivered(self) -> bytes | None:
        """The finished socket events whose gateway may not know it (`host/objects/delivered.py`)."""
        if not self.exists():
            return None
        row = self._row("SELECT value FROM _cf_METADATA WHERE key = 'delivered'", ())
        return None if row is None else row[0]

    def set_delivered(self, events: bytes) -> None:
        self._run("INSERT INTO _cf_METADATA VALUES ('delivered', ?1) ON CONFLICT DO UPDATE SET value = ?1", (events,))

    def alarm_ms(self) -> int | None:
        """When the object's alarm is set for (ms since 1970), None if it has none."""
        if not self.exists():
            return None
        row = self._row("SELECT value FROM _cf_METADATA WHERE key = 'alarm'", ())
        return None if row is None else int(row[0])

    def set_alarm(self, due_ms: int | None) -> None:
        if due_ms is None:
            if self.exists():
                self.begin()
                self._run("DELETE FROM _cf_METADATA WHERE key = 'alarm'", ())
        else:
            self.begin()
            self._run("INSERT INTO _cf_METADATA VALUES ('alarm', ?1) ON CONFLICT DO UPDATE SET value = ?1", (due_ms,))

    # SQL

    def execute(self, sql: str, bindings: tuple[Any, ...]) -> SqlRun | RowlessRun:
        """Run the user's SQL up to its first row. Raises SqlError."""
        self._wrote(_STATEMENT_BYTES)
        if sql in self._rowless and self._connection is not None and self._connection.in_transaction:
            before = self._connection.total_changes()
            self._limit_length(writing=True)
            try:
                self._rowless_cursor.execute(sql, bindings)
            except apsw.Error:
                pass  # its statement changed nothing: the longer way says what is wrong
            else:
                return RowlessRun(self._connection.total_changes() - before)
        self.begin()
        connection = self.connection()
        run = SqlRun(connection, connection.total_changes(), self._limit_length)
        self._user_sql = _OPTIMIZE.match(sql) is None  # which looks at all tables, also at ours
        try:
            run.start(sql, bindings)
            if run.is_rowless and len(self._rowless) < _MAX_REMEMBERED:
                self._rowless.add(sql)
            if run.is_open:
                self._cursors.add(run)
        except apsw.Error as error:
            text = str(error)
            if isinstance(error, apsw.InterruptError) and not connection.in_transaction:
                text = _TOO_LARGE % (self._max_log_bytes >> 20)  # and SQLite has undone all of it
            elif _TRANSACTION_WORD.match(sql):
                text = (
                    "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not available in sql.exec(); use"
                    " ctx.storage.transactionSync() or ctx.storage.transaction() instead."
                )
            elif isinstance(error, apsw.TooBigError):
                text += f": a value, and all of a row, may have {_WRITE_LENGTH} bytes"
            elif isinstance(error, apsw.AuthError) and "not authorized" not in text:
                text += ": not authorized"
            raise SqlError(text) from error
        finally:
            self._user_sql = False
        return run

    def _limit_length(self, *, writing: bool) -> None:
        """What is written is bounded as on the platform; what an earlier Roost wrote can be read."""
        if writing is not self._limits_writes and self._connection is not None:
            self._limits_writes = writing
            self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, _WRITE_LENGTH if writing else _READ_LENGTH)

    def size_bytes(self) -> int:
        """Pages in use times their size (reference 5, `databaseSize`)."""
        if not self.exists():
            return 0
        pragma = self._reading().pragma
        return int((pragma("page_count") - pragma("freelist_count")) * pragma("page_size"))

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> int:
        """What the user's SQL may do. Ours is always allowed."""
        if not self._user_sql:
            return int(apsw.SQLITE_OK)
        if (
            action in _DENIED_ACTIONS
            or (first or "").lower().startswith("_cf_")
            or (second or "").lower().startswith("_cf_")
        ):
            return int(apsw.SQLITE_DENY)
        if action == apsw.SQLITE_PRAGMA and (first or "").lower() not in _ALLOWED_PRAGMAS:
            return int(apsw.SQLITE_DENY)
        if action == apsw.SQLITE_FUNCTION and (second or "").lower() == "load_extension":
            return int(apsw.SQLITE_DENY)
        return int(apsw.SQLITE_OK)

    def _run(self, sql: str, bindings: Sequence[Any]) -> None:
        try:
            self.connection().execute(sql, bindings)
        except apsw.Error as error:
            raise StorageError(f"a write failed: {error}") from error

    def _row(self, sql: str, bindings: tuple[Any, ...]) -> Any:
        try:
            return self._reading().execute(sql, bindings).fetchone()
        except apsw.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StorageError:
        if isinstance(error, apsw.CantOpenError | apsw.IOError) and _out_of_files():
            return StorageError(f"the object's file {self._path} cannot be opened: too many open files; raise `ulimit -n`.")
        if isinstance(error, apsw.FullError):
            return StorageError(f"the object's file {self._path} cannot be written: {error}; make room on its disk.")
        return StorageError(f"the object's file {self._path} cannot be read: {error}; `roost check` tells more.")


class Listing:
    """Pairs of a `list`, read as they are asked for."""

    def __init__(self, rows: apsw.Cursor) -> None:
        self._rows = rows
        self._ended = self._finished = False

    @property
    def is_open(self) -> bool:
        """Whether it keeps a view of the database, until its last pair is read."""
        return not self._ended and not self._finished

    def end(self) -> None:
        """Give up the view of the database; whoever asks for another pair is told."""
        self._ended = True
        self._rows.close(True)

    def __iter__(self) -> Listing:
        return self

    def __next__(self) -> tuple[str, bytes]:
        if self._ended:
            raise SqlError(_CURSOR_ENDED)
        try:
            key, value = next(self._rows)
            return key, value
        except StopIteration:
            self._finished = True
            raise


class RowlessRun:
    """One execution of a statement that writes and returns no rows."""

    __slots__ = ("rows_written",)
    rows_read = 0
    columns: ClassVar[list[str]] = []

    def __init__(self, rows_written: int) -> None:
        self.rows_written = rows_written

    def next_row(self) -> None:
        return None


def _tracing(run: ref[SqlRun]) -> Callable[[apsw.Cursor, str, Any], bool]:
    def trace(cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        if (of := run()) is not None:
            of.statement_begins(cursor)
        return True

    return trace


class SqlRun:
    """One execution of the user's SQL: the columns of its last statement, and its rows as they are asked for."""

    def __init__(self, connection: apsw.Connection, changes_before: int, limit_length: Callable[..., None]) -> None:
        self.columns: list[str] = []
        self._limit_length = limit_length
        self.rows_read = 0
        self._connection = connection
        self._changes_before = changes_before
        self._written = 0
        self._finished = False
        self._readonly = True
        self._statements = 0
        self._rows: deque[tuple[Any, ...]] | None = None
        self._ended = False  # by us

    @property
    def is_open(self) -> bool:
        """Whether it keeps a view of the database, until its last row is read."""
        return self._rows is None and not self._finished and not self._ended

    def end(self) -> None:
        """Give up the view of the database; whoever asks for another row is told."""
        self._ended = True
        self._cursor.close(True)

    def start(self, sql: str, bindings: tuple[Any, ...]) -> None:
        self._cursor = self._connection.cursor()
        self._cursor.exec_trace = _tracing(ref(self))  # weakly: one that is dropped must let go of its view at once
        self._cursor.execute(sql, bindings)
        if not self._readonly:  # a writing statement with rows left would keep the commit from happening
            self._rows = deque(self._cursor)
        self._written = self._connection.total_changes() - self._changes_before

    def statement_begins(self, cursor: apsw.Cursor) -> None:
        """SQLite is about to run one."""
        self.columns = [column[0] for column in cursor.get_description()]
        self._readonly = cursor.is_readonly
        self._statements += 1
        self._limit_length(writing=not self._readonly)

    @property
    def is_rowless(self) -> bool:
        """Whether it was one statement that writes and returns no rows."""
        return self._statements == 1 and not self._readonly and not self.columns

    @property
    def rows_written(self) -> int:
        """Rows changed; of a statement that also returns rows, known once they have been read."""
        return self._written

    def next_row(self) -> tuple[Any, ...] | None:
        """The next row, None after the last. Raises SqlError."""
        if self._rows is not None:
            row = self._rows.popleft() if self._rows else None
            self.rows_read += row is not None
            return row
        if self._ended:
            raise SqlError(_CURSOR_ENDED)
        self._limit_length(writing=False)  # another statement may have run since
        try:
            row = next(self._cursor, None)
        except apsw.Error as error:
            raise SqlError(str(error)) from error
        if row is not None:
            self.rows_read += 1
        elif not self._finished:
            self._finished = True
            self._written = self._connection.total_changes() - self._changes_before
        return row


def close_database(database: Database, running: Future[Any] | None) -> None:
    """Close a file once its last fsync is over; remove it if nothing is left in it. For a thread: it waits."""
    try:
        if running is not None:
            running.exception(30)  # an fsync of this very file; the disk's threads are first come, first served
        if database.may_be_empty and database.is_empty():
            database.destroy()
        else:
            database.close()
    except Exception:  # noqa: BLE001 - on a thread, where nobody else would see it
        _log.exception("storage: a database could not be closed cleanly")
