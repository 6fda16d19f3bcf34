"""One object's database: its key-value table, its SQL, and commits that are durable only once `sync` has returned.

WAL with `synchronous=OFF` and every fsync of our own: together what `FULL` promises, but the fsync can run on another
thread while the object goes on reading, and one fsync confirms every commit before it. SQLite syncs only in checkpoints.

The file is created at the first write (`object_file` has its format). It must not know of actors, gates or the loop.

Source: SQLite documentation, "Write-Ahead Logging" §2.2, §6; reference 5.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import apsw

from roost.storage.errors import SqlError, StorageError
from roost.storage.folding import LARGE_COMMITS, MAX_LOG_BYTES, fold, size_of, sync_path
from roost.storage.kv_table import list_query
from roost.storage.opening import ObjectFile
from roost.storage.user_sql import (
    LIMITS,
    OPTIMIZE,
    READ_LENGTH,
    WRITE_LENGTH,
    Listing,
    RowlessRun,
    SqlRun,
    authorize,
    explained,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from roost.storage.folding import Folded

_log = logging.getLogger("roost.storage")

_TOO_LARGE: Final = (
    "one transaction of the object has filled its log (%d MiB, four times storage.max_log_bytes): write in smaller parts,"
    " each with `await ctx.storage.sync()` after it, or raise the setting."
)
_WRITE: Final = 2  # SQLITE_TXN_WRITE
_MAX_REMEMBERED: Final = 200
_LOOK_BYTES: Final = 4 * 1024 * 1024  # so much may be written before somebody looks how large the log is
_STATEMENT_BYTES: Final = _LOOK_BYTES // 8  # what a statement counts for
_LOOK_STEPS: Final = 200_000  # of SQLite's machine in one statement; some milliseconds

_durable_folders: set[Path] = set()  # their names are on the disk; at most 256 a class


class Database(ObjectFile):
    """Open on first use; `close` before the file is used by anybody else."""

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        before_opening: Callable[[], None] = lambda: None,
        opened: Callable[[], None] = lambda: None,
        is_known: Callable[[], bool] = lambda: False,
        make_room: Callable[[], bool] = lambda: False,
        will_write: Callable[[], bool] = lambda: False,
        max_log_bytes: int = MAX_LOG_BYTES * LARGE_COMMITS,
    ) -> None:
        super().__init__(path, name, before_opening, opened, is_known, make_room, will_write)
        self._max_log_bytes = max_log_bytes  # with everything that is not yet committed
        self._log_bytes_before = 0  # the open transaction: a reader may hold what earlier ones wrote
        self._unseen_bytes = 0  # about as many were written since somebody looked how large the log is
        self.is_folding = False  # on a thread: what only read before could not write after it (BUSY_SNAPSHOT)
        self._user_sql = self._limits_writes = False
        self._begun = False  # a transaction of ours is (or should be) open
        self._log_fd = -1
        self._file_fd = -1  # kept open: closing any descriptor of the file drops this process's locks on it (POSIX)
        self._rowless_cursor: Any = None
        self._rowless: set[str] = set()  # statements that write and never return rows: they need no description
        self._cursors: WeakSet[SqlRun | Listing] = WeakSet()  # that read rows as they are asked for

    # opening and closing

    def _prepare(self, connection: apsw.Connection) -> None:
        for limit, value in LIMITS.items():
            connection.limit(limit, value)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._log_is_full, _LOOK_STEPS)
        self._rowless_cursor = connection.cursor()

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
            self.check_not_undone()
            connection.execute("BEGIN IMMEDIATE" if self.is_folding else "BEGIN")
            self._begun = True
            self._log_bytes_before = self._log_size()

    def check_not_undone(self) -> None:
        """SQLite ends a transaction by itself when the disk is full: what was in it must not count. Raises StorageError."""
        connection = self._connection
        if self._begun and (connection is None or not connection.in_transaction):  # until `rollback`: no commit, too
            raise StorageError("the disk refused a write, and all writes of this turn were undone.")

    def commit(self) -> bool:
        """Commit what is open; whether there was anything to make durable. Raises StorageError."""
        connection = self._connection
        if connection is None or not connection.in_transaction:
            self.check_not_undone()
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
            self.check_not_undone()
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
        self, *, start: str | None, after: str | None, end: str | None, prefix: str, reverse: bool, limit: int | None,
        whole: bool = False,
    ) -> Iterator[tuple[str, bytes]]:  # fmt: skip
        """Pairs in the order of their keys' UTF-8 bytes; bounds keep their meaning when reversed. `whole`: they are all
        wanted, now."""
        if not self.exists():
            return iter(())
        sql, bindings = list_query(start=start, after=after, end=end, prefix=prefix, reverse=reverse, limit=limit)
        connection = self._reading()
        rows = connection.execute(sql, bindings)
        if whole or connection is self._reader:
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
        self._user_sql = OPTIMIZE.match(sql) is None  # which looks at all tables, also at ours
        try:
            run.start(sql, bindings)
            if run.is_rowless and len(self._rowless) < _MAX_REMEMBERED:
                self._rowless.add(sql)
            if run.is_open:
                self._cursors.add(run)
        except apsw.Error as error:
            if isinstance(error, apsw.InterruptError) and not connection.in_transaction:  # SQLite has undone all of it
                raise SqlError(_TOO_LARGE % (self._max_log_bytes >> 20)) from error
            raise SqlError(explained(error, sql)) from error
        finally:
            self._user_sql = False
        return run

    def _limit_length(self, *, writing: bool) -> None:
        """What is written is bounded as on the platform; what an earlier Roost wrote can be read."""
        if writing is not self._limits_writes and self._connection is not None:
            self._limits_writes = writing
            self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, WRITE_LENGTH if writing else READ_LENGTH)

    def size_bytes(self) -> int:
        """Pages in use times their size (reference 5, `databaseSize`)."""
        if not self.exists():
            return 0
        pragma = self._reading().pragma
        return int((pragma("page_count") - pragma("freelist_count")) * pragma("page_size"))

    def _authorize(self, *action: Any) -> int:
        """Ours is always allowed."""
        return authorize(*action) if self._user_sql else int(apsw.SQLITE_OK)
