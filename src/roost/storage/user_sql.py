"""The user's SQL: what it may do, its limits, and cursors that read rows as they are asked for.

Source: reference 5 (SQL limits, allowed pragmas); SQLite documentation, "Authorizer", "Run-Time Limits".
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import ref

import apsw

from roost.storage.errors import SqlError

if TYPE_CHECKING:
    from collections.abc import Callable

_TRANSACTION_WORD: Final = re.compile(r"\s*(begin|commit|end|rollback|savepoint|release)\b", re.IGNORECASE)
_CURSOR_ENDED: Final = (
    "this cursor was not read to its end while the object wrote more than its log may hold (storage.max_log_bytes); read"
    " cursors to their end, or with toArray(), before writing much."
)
READ_LENGTH: Final = 4 * 1024 * 1024  # of a value; an earlier Roost let so much be written
WRITE_LENGTH: Final = 2_200_000  # as workerd has it: 2 MB, and room for the rest of the row
OPTIMIZE: Final = re.compile(r"\s*pragma\s+optimize\s*(\(\s*\w*\s*\))?\s*;?\s*\Z", re.IGNORECASE)
LIMITS: Final = {
    apsw.SQLITE_LIMIT_COLUMN: 100,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 32,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    apsw.SQLITE_LIMIT_LENGTH: READ_LENGTH,
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


def authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """What the user's SQL may do: an authorizer of SQLite's."""
    if action in _DENIED_ACTIONS or (first or "").lower().startswith("_cf_") or (second or "").lower().startswith("_cf_"):
        return int(apsw.SQLITE_DENY)
    if action == apsw.SQLITE_PRAGMA and (first or "").lower() not in _ALLOWED_PRAGMAS:
        return int(apsw.SQLITE_DENY)
    if action == apsw.SQLITE_FUNCTION and (second or "").lower() == "load_extension":
        return int(apsw.SQLITE_DENY)
    return int(apsw.SQLITE_OK)


def explained(error: apsw.Error, sql: str) -> str:
    """SQLite's own words, with the fix where we know one."""
    text = str(error)
    if _TRANSACTION_WORD.match(sql):
        return (
            "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not available in sql.exec(); use"
            " ctx.storage.transactionSync() or ctx.storage.transaction() instead."
        )
    if isinstance(error, apsw.TooBigError):
        text += f": a value, and all of a row, may have {WRITE_LENGTH} bytes"
    elif isinstance(error, apsw.AuthError) and "not authorized" not in text:
        text += ": not authorized"
    return text


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
