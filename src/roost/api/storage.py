"""`ctx.storage`: the object's key-value store, its SQL and its transactions, as worker code calls them (reference 5).

Checks arguments and turns values into bytes and back; `StorePort` does the rest. Every operation completes within the
call, awaited or not, so no other event of the object can come between a read and a write.

Long because the platform's one class has two faces, `ctx.storage` and `ctx.storage.sql`, with a docstring for each
operation.
"""

from __future__ import annotations

import math
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, Self

from roost.api.aliases import with_snake_case
from roost.api.buffers import ArrayBuffer, to_bytes
from roost.api.promises import at_once, eager
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.js_values import JsDict, JsList, JsMap
from roost.values import decode_all_js, decode_js, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

MAX_PAIR_BYTES: Final = 2 * 1024 * 1024
MAX_KEYS: Final = 128
MAX_TIME_MS: Final = 8_640_000_000_000_000  # of a JavaScript Date
_READ_OPTIONS: Final = ("allowConcurrency", "noCache")
_WRITE_OPTIONS: Final = ("allowUnconfirmed", *_READ_OPTIONS)
_LIST_OPTIONS: Final = ("start", "startAfter", "end", "prefix", "reverse", "limit")


class RunPort(Protocol):
    """One execution of SQL."""

    @property
    def columns(self) -> list[str]: ...

    @property
    def rows_read(self) -> int: ...

    @property
    def rows_written(self) -> int: ...

    def next_row(self) -> tuple[Any, ...] | None: ...


class StorePort(Protocol):
    """The object's database behind its gates."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, value: bytes, *, unconfirmed: bool) -> None: ...

    def delete(self, key: str, *, unconfirmed: bool) -> bool: ...

    def list(
        self, *, start: str | None, after: str | None, end: str | None, prefix: str, reverse: bool, limit: int | None,
        whole: bool = False,
    ) -> Iterator[tuple[str, bytes]]: ...  # fmt: skip

    def delete_all(self, *, alarm_too: bool) -> None: ...

    def get_alarm(self) -> int | None: ...

    def set_alarm(self, due_ms: int | None, *, unconfirmed: bool = False) -> None:
        """A past time means now; None removes it."""
        ...

    def check_alarm_handler(self) -> None:
        """Raise TypeError (as JsException) if the class has no alarm handler."""
        ...

    def execute(self, sql: str, bindings: tuple[Any, ...]) -> RunPort: ...

    def size_bytes(self) -> int: ...

    def begin_nested(self) -> int:
        """Open a nested transaction; its depth."""
        ...

    def end_nested(self, depth: int, *, keep: bool) -> None: ...

    async def alone(self) -> Callable[[], None]:
        """Wait for the object's other async transactions; the returned function lets the next one begin."""
        ...

    def enter_transaction(self) -> Callable[[], None]: ...

    async def durable(self) -> None:
        """Return once every write so far is on the disk. Raises what made one fail."""
        ...

    def block(self) -> Callable[[], None]:
        """Start no new event of the object until the returned function is called."""
        ...


def _options(given: Any, more: dict[str, Any], allowed: tuple[str, ...], what: str) -> dict[str, Any]:
    options = {**(dict(given) if given is not None else {}), **more}
    for name in options:
        if name not in allowed:
            raise JsTypeError(f"{what} has no option {name!r}; it has {', '.join(allowed)}.")
    return options


def _key(key: Any) -> str:
    text = key if isinstance(key, str) else str(key)
    if not text and key != "":
        raise JsTypeError("A storage key must be a string.")
    return text


def _pair(key: Any, value: Any) -> tuple[str, bytes]:
    text, raw = _key(key), encode(value)
    if (size := len(text.encode("utf-8", "surrogatepass")) + len(raw)) > MAX_PAIR_BYTES:
        raise JsRangeError(f"The key and value of {text[:40]!r} are {size} bytes; at most {MAX_PAIR_BYTES} (2 MB) fit.")
    return text, raw


def _few(keys: Any, what: str) -> list[Any]:
    found = list(keys)
    if len(found) > MAX_KEYS:
        raise JsRangeError(f"{what} takes at most {MAX_KEYS} keys; {len(found)} were given.")
    return found


def _list_bounds(options: dict[str, Any]) -> dict[str, Any]:
    start, after = options.get("start"), options.get("startAfter")
    if start is not None and after is not None:
        raise JsTypeError("list() cannot be called with both start and startAfter.")
    limit = options.get("limit")
    if limit is not None and (not isinstance(limit, int) or limit <= 0):
        raise JsTypeError(f"List limit must be positive, not {limit!r}.")
    return {
        "start": start,
        "after": after,
        "end": options.get("end"),
        "prefix": options.get("prefix") or "",
        "reverse": bool(options.get("reverse")),
        "limit": limit,
    }


@with_snake_case
class _Operations:
    """The async key-value operations, which the storage and a transaction share."""

    def __init__(self, store: StorePort) -> None:
        self._store = store

    @at_once
    def get(self, key: Any, options: Any = None, **more: Any) -> Any:
        """The value of a key (None if missing), or of up to 128 keys as a dict without the missing ones."""
        _options(options, more, _READ_OPTIONS, "get()")
        if isinstance(key, list | tuple | set):
            found = JsMap()
            for one in sorted(map(_key, _few(key, "get()")), key=str.encode):
                if (raw := self._store.get(one)) is not None:
                    found[one] = decode_js(raw)
            return found
        raw = self._store.get(_key(key))
        return None if raw is None else decode_js(raw)

    @at_once
    def put(self, key: Any, value: Any = None, options: Any = None, **more: Any) -> None:
        """Store one value, or up to 128 pairs from a dict. Writes without an await between them commit together."""
        if isinstance(key, dict):
            chosen = _options(value, more, _WRITE_OPTIONS, "put()")
            pairs = [_pair(name, item) for name, item in _few(key.items(), "put()")]
        else:
            chosen = _options(options, more, _WRITE_OPTIONS, "put()")
            pairs = [_pair(key, value)]
        for name, raw in pairs:
            self._store.put(name, raw, unconfirmed=bool(chosen.get("allowUnconfirmed")))

    @at_once
    def delete(self, key: Any, options: Any = None, **more: Any) -> bool | int:
        """Whether the key was there; for up to 128 keys, how many were."""
        unconfirmed = bool(_options(options, more, _WRITE_OPTIONS, "delete()").get("allowUnconfirmed"))
        if isinstance(key, list | tuple | set):
            return sum(self._store.delete(_key(one), unconfirmed=unconfirmed) for one in _few(key, "delete()"))
        return self._store.delete(_key(key), unconfirmed=unconfirmed)

    @at_once
    def list(self, options: Any = None, **more: Any) -> dict[str, Any]:
        """Pairs in the order of their keys' UTF-8 bytes."""
        chosen = _options(options, more, (*_LIST_OPTIONS, *_READ_OPTIONS), "list()")
        keys, raws = tuple(zip(*self._store.list(**_list_bounds(chosen), whole=True), strict=True)) or ((), ())
        return JsMap(zip(keys, decode_all_js(raws), strict=True))

    @at_once
    def setAlarm(self, scheduled: Any, options: Any = None, **more: Any) -> None:
        """Have `alarm(self, info)` called at a time (ms since 1970, or a datetime); it replaces the one set before.

        A past time means now. Raises TypeError for a time that is none, or if the class has no alarm handler.
        """
        chosen = _options(options, more, _WRITE_OPTIONS, "setAlarm()")
        self._store.check_alarm_handler()
        self._store.set_alarm(_time_ms(scheduled), unconfirmed=bool(chosen.get("allowUnconfirmed")))

    @at_once
    def getAlarm(self, options: Any = None, **more: Any) -> int | None:
        """When the alarm is set for (ms since 1970). None if there is none, and while its handler runs."""
        _options(options, more, _READ_OPTIONS, "getAlarm()")
        return self._store.get_alarm()

    @at_once
    def deleteAlarm(self, options: Any = None, **more: Any) -> None:
        """Remove the alarm. A handler that runs is not stopped."""
        chosen = _options(options, more, _WRITE_OPTIONS, "deleteAlarm()")
        self._store.set_alarm(None, unconfirmed=bool(chosen.get("allowUnconfirmed")))


def _time_ms(scheduled: Any) -> int:
    """A time in ms since 1970, from a number or a datetime (without time zone: local time, as in Python)."""
    if isinstance(scheduled, datetime):
        number = scheduled.timestamp() * 1000
    elif isinstance(scheduled, int | float) and not isinstance(scheduled, bool):
        number = scheduled
    else:
        raise JsTypeError(f"setAlarm() needs a time: ms since 1970 or a datetime, not {type(scheduled).__name__}.")
    if not math.isfinite(number) or not 0 < number <= MAX_TIME_MS:
        raise JsTypeError(f"setAlarm() cannot be called with an alarm time <= 0, or beyond {MAX_TIME_MS}: {scheduled!r}.")
    return math.ceil(number)


class Transaction(_Operations):
    """What the callback of `storage.transaction` gets."""

    rolled_back = False

    def rollback(self) -> None:
        """Undo the transaction's writes when the callback returns."""
        self.rolled_back = True


@with_snake_case
class DurableObjectStorage(_Operations):
    """`ctx.storage`."""

    def __init__(self, store: StorePort, *, delete_all_alarm: bool = True) -> None:
        super().__init__(store)
        self._delete_all_alarm = delete_all_alarm

    @cached_property
    def kv(self) -> SyncKv:
        """The same keys, without await."""
        return SyncKv(self._store)

    @cached_property
    def sql(self) -> SqlStorage:
        return SqlStorage(self._store)

    @at_once
    def deleteAll(self, options: Any = None, **more: Any) -> None:
        """Delete everything, from compatibility date 2026-02-24 the alarm too. The file goes when the object sleeps."""
        _options(options, more, _WRITE_OPTIONS, "deleteAll()")
        self._store.delete_all(alarm_too=self._delete_all_alarm)

    @eager
    async def sync(self) -> None:
        """Return once every write made before is on the disk."""
        await self._store.durable()

    @eager
    async def transaction(self, callback: Callable[[Transaction], Awaitable[Any]]) -> Any:
        """Run `callback(txn)`; its writes are kept together if it returns, and undone if it raises. Events wait."""
        transaction = Transaction(self._store)
        unblock = self._store.block()
        try:
            release = await self._store.alone()
            try:
                return await self._in_transaction(transaction, callback)
            finally:
                release()
        finally:
            unblock()

    async def _in_transaction(self, transaction: Transaction, callback: Callable[[Transaction], Awaitable[Any]]) -> Any:
        depth = self._store.begin_nested()
        leave = self._store.enter_transaction()
        keep = False
        try:
            result = await callback(transaction)
            keep = not transaction.rolled_back
            return result
        finally:
            leave()
            self._store.end_nested(depth, keep=keep)

    def transactionSync(self, callback: Callable[[], Any]) -> Any:
        """Run `callback()`; its writes are kept together if it returns, and undone if it raises. May be nested."""
        depth = self._store.begin_nested()
        keep = False
        try:
            result = callback()
            if hasattr(result, "__await__"):
                if hasattr(result, "close"):
                    result.close()
                raise JsTypeError("transactionSync() needs a function that is not async; use transaction() for those.")
            keep = True
            return result
        finally:
            self._store.end_nested(depth, keep=keep)

    def _no_bookmarks(self, *_: Any, **__: Any) -> NoReturn:
        raise JsException(
            "Point-in-time recovery is not in Roost (nor in Cloudflare's local development): use `roost storage dump` and"
            " `roost storage restore`."
        )

    getCurrentBookmark = getBookmarkForTime = onNextSessionRestoreBookmark = snapshot = _no_bookmarks


class SyncKv:
    """`ctx.storage.kv`: the same keys, without await."""

    def __init__(self, store: StorePort) -> None:
        self._store = store

    def get(self, key: Any) -> Any:
        raw = self._store.get(_key(key))
        return None if raw is None else decode_js(raw)

    def put(self, key: Any, value: Any) -> None:
        name, raw = _pair(key, value)
        self._store.put(name, raw, unconfirmed=False)

    def delete(self, key: Any) -> bool:
        return self._store.delete(_key(key), unconfirmed=False)

    def list(self, options: Any = None, **more: Any) -> Iterator[tuple[str, Any]]:
        """Pairs, read as they are asked for."""
        bounds = _list_bounds(_options(options, more, _LIST_OPTIONS, "kv.list()"))
        return ((key, decode_js(raw)) for key, raw in self._store.list(**bounds))


class SqlStorage:
    """`ctx.storage.sql`."""

    def __init__(self, store: StorePort) -> None:
        self._store = store

    def exec(self, query: str, *bindings: Any) -> SqlCursor:
        """Run SQL; several statements are allowed, the cursor is the last one's. Values: None, numbers, str, bytes."""
        for value in bindings:
            if type(value) not in _AS_THEY_ARE:
                bindings = tuple(map(_to_sql, bindings))
                break
        return SqlCursor(self._store.execute(query, bindings))

    @property
    def databaseSize(self) -> int:
        return self._store.size_bytes()

    database_size = databaseSize


_AS_THEY_ARE: Final = frozenset({str, float, type(None)})


def _to_sql(value: Any) -> Any:
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise JsRangeError(f"{value} does not fit into an SQL integer (64 bits).")
        return value
    raw = to_bytes(value)
    if raw is None:
        raise JsTypeError(f"A bound SQL value must be None, a number, str or bytes, not {type(value).__name__}.")
    return raw


def _from_sql(value: Any) -> Any:
    return ArrayBuffer(value) if isinstance(value, bytes) else value


class _Next:
    """What `next()` of a JavaScript iterator returns."""

    __slots__ = ("done", "value")

    def __init__(self, value: Any, *, done: bool) -> None:
        self.value = value
        self.done = done


@with_snake_case
class SqlCursor:
    """The rows of a query, read once. Iterable; `raw()` shares its position."""

    __slots__ = ("_first", "_run", "_started")

    def __init__(self, run: RunPort) -> None:
        self._run = run
        self._first = run.next_row() if run.columns else None
        self._started = False

    def _row(self) -> tuple[Any, ...] | None:
        if not self._started:
            self._started = True
            return self._first
        return None if self._first is None else self._run.next_row()

    def _as_dict(self, row: tuple[Any, ...]) -> JsDict:
        return JsDict(zip(self._run.columns, map(_from_sql, row), strict=False))

    @property
    def columnNames(self) -> list[str]:
        return list(self._run.columns)

    @property
    def rowsRead(self) -> int:
        return self._run.rows_read

    @property
    def rowsWritten(self) -> int:
        return self._run.rows_written

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> JsDict:
        row = self._row()
        if row is None:
            raise StopIteration
        return self._as_dict(row)

    def next(self) -> _Next:
        row = self._row()
        return _Next(None, done=True) if row is None else _Next(self._as_dict(row), done=False)

    def toArray(self) -> list[JsDict]:
        return JsList(self)

    def one(self) -> JsDict:
        """The only row. Raises Error (as JsException) for none or several."""
        rows = [row for _ in range(2) if (row := self._row()) is not None]
        if len(rows) != 1:
            count = "no" if not rows else "more than one"
            raise JsException(f"Expected exactly one result from SQL query, but got {count} results.")
        return self._as_dict(rows[0])

    def raw(self) -> RawRows:
        return RawRows(self._row)


@with_snake_case
class RawRows:
    """Rows as lists."""

    def __init__(self, row: Callable[[], tuple[Any, ...] | None]) -> None:
        self._row = row

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Any]:
        row = self._row()
        if row is None:
            raise StopIteration
        return list(map(_from_sql, row))

    def next(self) -> _Next:
        row = self._row()
        return _Next(None, done=True) if row is None else _Next(list(map(_from_sql, row)), done=False)

    def toArray(self) -> list[list[Any]]:
        return list(self)
