"""One object's database: its key-value table, its SQL, and commits that are durable only once `sync` has returned.

WAL with `synchronous=OFF` and every fsync of our own: together what `FULL` promises, but the fsync can run on another
thread while the object goes on reading, and one fsync confirms every commit before it. SQLite syncs only in checkpoints.

The file is created at the first write. Layout (format 1, `docs/reference/storage.md`): `_cf_KV(key, value)`, values in
`roost.values` encoding; `_cf_METADATA(key, value)`.

It must not know of actors, gates or the loop. Source: SQLite documentation, "Write-Ahead Logging" §2.2, §6; reference 5.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote

import apsw

from roost.errors import ConfigError, JsException, RoostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_log = logging.getLogger("roost.storage")

FORMAT: Final = 1
_SYNCS_BETWEEN_CHECKPOINTS: Final = 100
CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
MAX_PAGES: Final = 10 * 1024**3 // 4096  # 10 GB (reference 5)
_TRANSACTION_WORD: Final = re.compile(r"\s*(begin|commit|end|rollback|savepoint|release)\b", re.IGNORECASE)
_WRITE: Final = 2  # SQLITE_TXN_WRITE
_MAX_REMEMBERED: Final = 200
_BUSY_TIMEOUT_MS: Final = 2000

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS _cf_KV (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS _cf_METADATA (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
)
_LIMITS: Final = {
    apsw.SQLITE_LIMIT_COLUMN: 100,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 32,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    apsw.SQLITE_LIMIT_LENGTH: 4 * 1024 * 1024,
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
    }
)  # fmt: skip


_durable_folders: set[Path] = set()  # their names are on the disk; at most 256 a class


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def sync_path(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fold_log(path: Path) -> None:
    """Fold a log into its file, through a connection of its own: the owner's goes on meanwhile. Blocks on the disk."""
    other = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.BusyError:
        pass  # the next time
    finally:
        other.close()


def read_alarm(path: Path) -> tuple[str | None, int | None]:
    """Name and alarm (ms) of an object that nobody has open. Raises StorageError or apsw.Error for a damaged file."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        if connection.pragma("user_version") != FORMAT:
            raise StorageError(f"{path} has format {connection.pragma('user_version')}; this Roost knows {FORMAT}.")
        found = dict(connection.execute("SELECT key, value FROM _cf_METADATA WHERE key IN ('name', 'alarm')"))
        return found.get("name"), found.get("alarm")
    finally:
        connection.close()


class StorageError(RoostError):
    """A commit could not be made durable: the disk is full or broken. The object is reset; what it held back is dropped."""


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
    ) -> None:
        self._path = path
        self._name = name  # of the object: kept in the file, for those who read it without a worker
        self._before_opening = before_opening  # waits until an earlier owner has closed the same file
        self._opened = opened
        self._connection: apsw.Connection | None = None
        self.was_left_unsynced = False  # found a log of an earlier life that may not be on the disk
        self._reader: apsw.Connection | None = None
        self._user_sql = False
        self._begun = False  # a transaction of ours is (or should be) open
        self._closed = False
        self._log_fd = -1
        self._file_fd = -1  # kept open: closing any descriptor of the file drops this process's locks on it (POSIX)
        self._is_new = False
        self._rowless_cursor: Any = None
        self._rowless: set[str] = set()  # statements that write and never return rows: they need no description
        self._syncs_since_checkpoint = 0

    # opening and closing

    @property
    def is_open(self) -> bool:
        return self._connection is not None or self._reader is not None

    @property
    def may_be_empty(self) -> bool:
        """Whether this life may have deleted what was there."""
        return self._connection is not None

    def exists(self) -> bool:
        """Whether the object has ever written (and not deleted everything since)."""
        if self._connection is not None or self._reader is not None:
            return True
        self._before_opening()
        return self._path.exists()

    def _reading(self) -> apsw.Connection:
        """A connection to read by. Until the object first writes, one without locks, log and shared memory.

        Opening those is most of what waking to read costs (measured: 100 µs instead of 550). It is sound because nobody
        else writes the file (the node holds the folder, the host the object), and because there is no log to recover.
        """
        if self._connection is not None or self._closed:
            return self.connection()
        if self._reader is None:
            if _size(Path(f"{self._path}-wal")) > 0:
                return self.connection()
            self._before_opening()
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            try:
                reader = apsw.Connection(f"file:{quote(str(self._path))}?immutable=1", flags=flags)
                self._check_format(reader)
            except apsw.Error as error:
                raise self._unreadable(error) from error
            self._reader = reader
            self._opened()
        return self._reader

    def _check_format(self, connection: apsw.Connection) -> int:
        version = connection.pragma("user_version")
        if version not in (0, FORMAT):
            connection.close()
            raise ConfigError(f"{self._path} has format {version}; this Roost knows {FORMAT}. Use the newer one.")
        return int(version)

    def connection(self) -> apsw.Connection:
        """The connection, opened (and the file created) if need be. Raises ConfigError for a newer format."""
        if self._closed:
            raise StorageError("the object was reset or is asleep; this handler belongs to its earlier life.")
        if self._connection is None:
            self._before_opening()
            # A file that an earlier life has not lived to sync is as good as new; so is a log that it has left.
            self.was_left_unsynced = _size(Path(f"{self._path}-wal")) > 0
            self._is_new = self.was_left_unsynced or not _size(self._path)
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                connection = apsw.Connection(str(self._path))
                connection.set_busy_timeout(_BUSY_TIMEOUT_MS)  # `roost storage` may look at the file
                connection.pragma("synchronous", "off")  # every sync is ours, on another thread; `close` turns it on
                connection.pragma("journal_mode", "wal")
                connection.pragma("wal_autocheckpoint", 0)
                connection.pragma("foreign_keys", 1)
                connection.pragma("max_page_count", MAX_PAGES)
                version = self._check_format(connection)
            except apsw.Error as error:
                raise self._unreadable(error) from error
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            if version == 0:
                with connection:
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    if self._name is not None:
                        connection.execute("INSERT INTO _cf_METADATA VALUES ('name', ?)", (self._name,))
                    connection.pragma("user_version", FORMAT)
            for limit, value in _LIMITS.items():
                connection.limit(limit, value)
            connection.set_authorizer(self._authorize)
            self._rowless_cursor = connection.cursor()
            self._connection = connection
            self._opened()
        return self._connection

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
            connection.pragma("synchronous", "normal")  # for the checkpoint that closing is
            connection.close()
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
            connection.execute("BEGIN")
            self._begun = True

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
                self._log_fd = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(self._log_fd)
            if self._is_new:  # a log beside an empty file would be thrown away
                if self._file_fd < 0:
                    self._file_fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                os.fsync(self._file_fd)
                sync_path(self._path.parent)
                if self._path.parent not in _durable_folders:
                    for folder in list(self._path.parents)[1:4]:
                        sync_path(folder)
                    _durable_folders.add(self._path.parent)
                self._is_new = False
            size = os.fstat(self._log_fd).st_size
            self._syncs_since_checkpoint += 1
            if size > CHECKPOINT_BYTES and self._syncs_since_checkpoint > _SYNCS_BETWEEN_CHECKPOINTS:
                self._syncs_since_checkpoint = 0  # the log does not shrink, so its size alone would ask every time
                fold_log(self._path)
        except (OSError, apsw.Error) as error:
            raise StorageError(f"a write could not be made durable: {error}") from error

    # key-value

    def get(self, key: str) -> bytes | None:
        if not self.exists():
            return None
        row = self._row("SELECT value FROM _cf_KV WHERE key = ?", (key,))
        return None if row is None else row[0]

    def put(self, key: str, value: bytes) -> None:
        self.begin()
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
        return iter(rows)

    def delete_all(self) -> None:
        """Empty the database: all keys and all of the user's tables. `destroy` frees the disk once that is committed."""
        if not self.exists():
            return
        self.begin()
        connection = self.connection()
        names = connection.execute(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        ).get
        for kind, name in names or ():
            if name == "_cf_KV":
                connection.execute("DELETE FROM _cf_KV")
            elif not name.startswith("_cf_"):
                quoted = name.replace('"', '""')
                connection.execute(f'DROP {kind.upper()} IF EXISTS "{quoted}"')

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
        """The finished socket events whose gateway may not know it (`host/delivered.py`)."""
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
        if sql in self._rowless and self._connection is not None and self._connection.in_transaction:
            before = self._connection.total_changes()
            try:
                self._rowless_cursor.execute(sql, bindings)
            except apsw.Error:
                pass  # its statement changed nothing: the longer way says what is wrong
            else:
                return RowlessRun(self._connection.total_changes() - before)
        self.begin()
        connection = self.connection()
        run = SqlRun(connection, connection.total_changes())
        self._user_sql = True
        try:
            run.start(sql, bindings)
            if run.is_rowless and len(self._rowless) < _MAX_REMEMBERED:
                self._rowless.add(sql)
        except apsw.Error as error:
            text = str(error)
            if _TRANSACTION_WORD.match(sql):
                text = (
                    "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not available in sql.exec(); use"
                    " ctx.storage.transactionSync() or ctx.storage.transaction() instead."
                )
            elif isinstance(error, apsw.AuthError) and "not authorized" not in text:
                text += ": not authorized"
            raise SqlError(text) from error
        finally:
            self._user_sql = False
        return run

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
        return StorageError(f"the object's file {self._path} cannot be read: {error}; `roost check` tells more.")


class RowlessRun:
    """One execution of a statement that writes and returns no rows."""

    __slots__ = ("rows_written",)
    rows_read = 0
    columns: ClassVar[list[str]] = []

    def __init__(self, rows_written: int) -> None:
        self.rows_written = rows_written

    def next_row(self) -> None:
        return None


class SqlRun:
    """One execution of the user's SQL: the columns of its last statement, and its rows as they are asked for."""

    def __init__(self, connection: apsw.Connection, changes_before: int) -> None:
        self.columns: list[str] = []
        self.rows_read = 0
        self._connection = connection
        self._changes_before = changes_before
        self._written = 0
        self._finished = False
        self._readonly = True
        self._statements = 0
        self._rows: deque[tuple[Any, ...]] | None = None

    def start(self, sql: str, bindings: tuple[Any, ...]) -> None:
        self._cursor = self._connection.cursor()
        self._cursor.exec_trace = self._trace
        self._cursor.execute(sql, bindings)
        if not self._readonly:  # a writing statement with rows left would keep the commit from happening
            self._rows = deque(self._cursor)
        self._written = self._connection.total_changes() - self._changes_before

    def _trace(self, cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        self.columns = [column[0] for column in cursor.get_description()]
        self._readonly = cursor.is_readonly
        self._statements += 1
        return True

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
