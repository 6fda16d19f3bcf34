"""An object's storage behind its gates: when a turn's writes commit, and when what they led to may leave.

Writes of one turn of the loop are one transaction. It commits at the end of the turn, on the loop, which costs no wait for
the disk; the fsync runs on a thread, one at a time an object, and confirms every commit made before it began.
Fills in `api.storage.StorePort`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import apsw

from roost.host.gates import OutputGate
from roost.link.port import NO_CONTEXT
from roost.storage.database import Database, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from roost.api.storage import RunPort

_log = logging.getLogger("roost.host")

in_transaction: ContextVar[object | None] = ContextVar("roost_in_transaction", default=None)
"""The storage whose `transaction()` the current code runs in."""


class ActorStorage:
    """One object's. `failed(error)` is called once if a write cannot be kept; `blocker()` closes the input gate."""

    def __init__(
        self,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        disk: Executor,
        closing: dict[Path, Future[None]],
        failed: Callable[[StorageError], None],
        blocker: Callable[[], Callable[[], None]],
    ) -> None:
        self.gate = OutputGate()
        self.block = blocker
        self._path = path
        self._closing = closing
        self._database = Database(path, self._wait_for_earlier)
        self._loop = loop
        self._disk = disk
        self._failed = failed
        self._batch = 0  # of the open transaction; 0: none that holds output
        self._scheduled = False
        self._depth = 0
        self._transactions = asyncio.Lock()
        self._to_sync: deque[int] = deque()  # batches committed and not yet on the disk
        self._unconfirmed_to_sync = False
        self._sync_wanted = False
        self._syncing: asyncio.Future[None] | None = None
        self._on_disk: Future[None] | None = None
        self._closed = False

    # api.storage.StorePort

    def _alive(self) -> None:
        if self.gate.broken is not None:
            raise self.gate.broken

    def get(self, key: str) -> bytes | None:
        self._alive()
        return self._database.get(key)

    def put(self, key: str, value: bytes, *, unconfirmed: bool) -> None:
        self._writing(unconfirmed=unconfirmed)
        self._database.put(key, value)

    def delete(self, key: str, *, unconfirmed: bool) -> bool:
        self._writing(unconfirmed=unconfirmed)
        return self._database.delete(key)

    def list(self, **bounds: Any) -> Iterator[tuple[str, bytes]]:
        self._alive()
        return self._database.list(**bounds)

    def delete_all(self) -> None:
        self._writing()
        self._database.delete_all()

    def execute(self, sql: str, bindings: tuple[Any, ...]) -> RunPort:
        self._writing()
        return self._database.execute(sql, bindings)

    def size_bytes(self) -> int:
        self._alive()
        return self._database.size_bytes()

    def begin_nested(self) -> int:
        self._writing()
        self._database.savepoint(self._depth + 1)
        self._depth += 1
        return self._depth

    def end_nested(self, depth: int, *, keep: bool) -> None:
        try:
            if self.gate.broken is None:
                (self._database.release if keep else self._database.rollback_to)(depth)
        except (StorageError, apsw.Error) as error:
            raise self.fail(error) from error
        finally:
            self._depth -= 1
            if not self._depth and not self._scheduled:
                self._schedule()

    async def alone(self) -> Callable[[], None]:
        """Wait until no other `transaction()` of this object runs; call the result when this one is over."""
        await self._transactions.acquire()
        return self._transactions.release

    def enter_transaction(self) -> Callable[[], None]:
        """Mark the current code as inside `transaction()`; call the result at its end."""
        token = in_transaction.set(self)
        return lambda: in_transaction.reset(token)

    async def durable(self) -> None:
        if self._unconfirmed_to_sync and not self._batch and self.gate.broken is None:
            self._batch = self.gate.begin()  # so that there is something to wait for
        if in_transaction.get() is self:
            raise StorageError(
                "inside storage.transaction() nothing can wait for the transaction's own writes: call sync(), fetch() or a"
                " stub before or after it."
            )
        waiting: asyncio.Future[None] = self._loop.create_future()

        def release(error: Any) -> None:
            if not waiting.done():
                waiting.set_exception(error) if error is not None else waiting.set_result(None)

        self.gate.hold(release)
        await waiting

    # commits

    def _writing(self, *, unconfirmed: bool = False) -> None:
        self._alive()
        if not unconfirmed and not self._batch:
            self._batch = self.gate.begin()
        self._unconfirmed_to_sync = self._unconfirmed_to_sync or unconfirmed
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._commit, context=NO_CONTEXT)

    def _commit(self) -> None:
        self._scheduled = False
        if self._depth or self.gate.broken is not None:
            return  # a transaction is open: its end schedules the commit
        batch, self._batch = self._batch, 0
        try:
            wrote = self._database.commit()
        except (StorageError, apsw.Error) as error:
            self.fail(error)
            return
        if not wrote:
            if batch:
                self.gate.confirm(batch)  # it only read: no disk is needed for it
            return
        if batch:
            self._to_sync.append(batch)
        self._sync_wanted = True
        if self._syncing is None:
            self._sync()

    def _sync(self) -> None:
        batches = tuple(self._to_sync)
        self._to_sync.clear()
        self._sync_wanted = self._unconfirmed_to_sync = False
        self._on_disk = self._disk.submit(self._database.sync)
        self._syncing = asyncio.wrap_future(self._on_disk, loop=self._loop)
        self._syncing.add_done_callback(lambda future: self._synced(future, batches), context=NO_CONTEXT)

    def _synced(self, future: asyncio.Future[None], batches: tuple[int, ...]) -> None:
        self._syncing = None
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self.fail(error)
            return
        for batch in batches:
            self.gate.confirm(batch)
        if self._sync_wanted and self.gate.broken is None:
            self._sync()

    def fail(self, error: BaseException) -> StorageError:
        """A write is lost: nothing that came of it may leave, and the object starts anew. The error as a StorageError."""
        failure = error if isinstance(error, StorageError) else StorageError(f"a write could not be kept: {error}")
        if self.gate.broken is None:
            self.give_up(failure)
            self._failed(failure)
        return failure

    def give_up(self, error: StorageError) -> None:
        """The object is reset for another reason: undo what is not committed, and let nothing more out."""
        self._database.rollback()
        self.gate.break_off(error)

    # the end

    @property
    def busy(self) -> bool:
        """Whether writes are on their way to the disk, so that the object must stay."""
        return self.gate.shut or self._scheduled or self._syncing is not None or bool(self._depth)

    def close(self) -> None:
        """Close the file, and remove it if nothing is left in it. Not while `busy`, unless the gate is broken."""
        if self._closed:
            return
        self._closed = True
        if not self._database.is_open:
            self._database.close()  # nothing to do but to stay so
            return
        closing = self._closing[self._path] = self._disk.submit(_close, self._database, self._on_disk)

        def forget() -> None:
            if self._closing.get(self._path) is closing:
                del self._closing[self._path]

        def closed(_: Any) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(forget)

        closing.add_done_callback(closed)

    def _wait_for_earlier(self) -> None:
        """An earlier life of this object is just folding its log: a few milliseconds, and rare."""
        closing = self._closing.get(self._path)
        if closing is not None:
            closing.result(30)

    def close_now(self) -> None:
        """Commit, and close on this thread: at the end of the host."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.gate.broken is None and not self._depth:
                self._database.commit()
        except (StorageError, apsw.Error) as error:
            _log.error("host: the last writes of %s are lost: %s", self._path.stem, error)
        _close(self._database, self._on_disk)
        self.gate.break_off(StorageError("the host has ended."))


def _close(database: Database, running: Future[None] | None) -> None:
    try:
        if running is not None:
            running.exception(30)  # an fsync of this very file; the disk's threads are first come, first served
        if database.is_open and database.is_empty():
            database.destroy()
        else:
            database.close()
    except Exception:  # noqa: BLE001 - on a thread, where nobody else would see it
        _log.exception("host: a database could not be closed cleanly")
