"""An object's storage behind its gates: what is read and written, transactions, the alarm's handler, the end.

When writes commit and reach the disk is in `commits`.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import apsw

from roost.host.disk import close_database
from roost.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from roost.api.storage import RunPort

from roost.host.objects.commits import Commits

_log = logging.getLogger("roost.host")

in_transaction: ContextVar[object | None] = ContextVar("roost_in_transaction", default=None)
"""The storage whose `transaction()` the current code runs in."""


class ActorStorage(Commits):
    """One object's storage, as worker code, the alarm's handler and the actor use it. Fills in `api.storage.StorePort`."""

    __slots__ = ()

    def block(self) -> Callable[[], None]:
        return self._owner.block()

    def check_alarm_handler(self) -> None:
        self._owner.check_alarm_handler()

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

    def delete_all(self, *, alarm_too: bool) -> None:
        self._writing()
        self._database.delete_all()
        if alarm_too:
            self.set_alarm(None)

    def get_alarm(self) -> int | None:
        """When the alarm is set for (ms); None while its handler runs, unless that has set a new one."""
        self._alive()
        return None if self._alarm_running and not self._alarm_touched else self._database.alarm_ms()

    def set_alarm(self, due_ms: int | None, *, unconfirmed: bool = False) -> None:
        self._writing(unconfirmed=unconfirmed)
        self._database.set_alarm(None if due_ms is None else max(due_ms, self._disk.clock.wall_ms()))
        self._alarm_touched = self._alarm_changed = True

    def execute(self, sql: str, bindings: tuple[Any, ...]) -> RunPort:
        if not self._batch or self.gate.broken is not None:
            self._writing()
        return self._database.execute(sql, bindings)

    def size_bytes(self) -> int:
        self._alive()
        return self._database.size_bytes()

    def begin_nested(self) -> int:
        self._writing()
        self._database.savepoint(self._depth + 1)
        self._depth += 1
        self._touched_before += ((self._alarm_touched, self._alarm_changed),)
        return self._depth

    def end_nested(self, depth: int, *, keep: bool) -> None:
        try:
            if self.gate.broken is None:
                (self._database.release if keep else self._database.rollback_to)(depth)
        except (StorageError, apsw.Error) as error:
            raise self.fail(error) from error
        finally:
            *rest, before = self._touched_before
            self._touched_before = tuple(rest)
            if not keep:
                self._alarm_touched, self._alarm_changed = before
            self._depth -= 1
            if not self._depth and not self._scheduled:
                self._schedule()

    async def alone(self) -> Callable[[], None]:
        """Wait until no other `transaction()` of this object runs; call the result when this one is over."""
        if in_transaction.get() is self:
            return lambda: None  # nested in it
        if self._transactions is None:
            self._transactions = asyncio.Lock()
        await self._transactions.acquire()
        return self._transactions.release

    def enter_transaction(self) -> Callable[[], None]:
        """Mark the current code as inside `transaction()`; call the result at its end."""
        token = in_transaction.set(self)
        return lambda: in_transaction.reset(token)

    def check_may_wait(self) -> None:
        """Raise StorageError inside `transaction()`, whose own writes are on the disk only after it."""
        if in_transaction.get() is self:
            raise StorageError(
                "inside storage.transaction() nothing can wait for the transaction's own writes: call sync(), fetch() or a"
                " stub before or after it."
            )

    async def durable(self) -> None:
        self.check_may_wait()
        if (self._unconfirmed_to_sync or self._unconfirmed_syncing) and not self._batch and self.gate.broken is None:
            if self._scheduled or self._depth:
                self._batch = self.gate.begin()  # so that there is something to wait for
            else:
                self._sync_too(self.gate.begin())
        waiting: asyncio.Future[None] = self._loop.create_future()

        def release(error: Any) -> None:
            if not waiting.done():
                waiting.set_exception(error) if error is not None else waiting.set_result(None)

        self.gate.hold(release)
        await waiting

    # socket events

    def was_finished(self, epoch: int, event: int) -> bool:
        """Whether an earlier life of the object has finished this event and its writes are stored. Raises StorageError,
        ValueError."""
        self.load_delivered()
        return self.delivered.was_finished(epoch, event)

    def finished(self, epoch: int, event: int) -> None:
        """A socket event ends now: its number is committed with what it has just written, or with what comes next."""
        if self.gate.shut:
            self.delivered.finished(epoch, event)

    # the alarm's handler

    def begin_alarm(self) -> None:
        """The handler begins: from now on there is no alarm, but the stored one stays until `end_alarm`."""
        self._alarm_running, self._alarm_touched = True, False

    def end_alarm(self, *, keep: bool) -> None:
        """The handler has ended. Forget the alarm that it ran for, unless it is to `keep`, or a new one was set."""
        self._alarm_running = False
        if not self._alarm_touched and not keep:
            self.set_alarm(None)

    # the end

    def close(self) -> None:
        """Close the file, and remove it if nothing is left in it. Not while `busy`, unless the gate is broken."""
        if self._closed:
            return
        self._closed = True
        database = self._database_made
        if database is None:
            return
        if database.is_open:
            self._disk.habits.saw(self._ref.class_name, wrote=self._commits > 0)
            self._disk.close(self._disk.path(self._ref), database, self._on_disk)
            self._disk.forget(self)
        else:
            database.close()  # nothing to do but to stay so

    def close_now(self) -> None:
        """Commit, and close on this thread: at the end of the host."""
        if self._closed:
            return
        self._closed = True
        database = self._database_made
        try:
            if database is not None and self.gate.broken is None and not self._depth:
                self._commit_with_records(self._batch)
        except Exception as error:  # noqa: BLE001 - the other objects are to be closed, too
            self._alarm_after = None
            _log.error("host: the last writes of %s are lost: %s", self._ref.id, error)
        if database is not None:
            close_database(database, self._on_disk)
        if self._alarm_after is not None and self.gate.broken is None:
            try:
                self._disk.tell_alarm(self._ref, self._alarm_after[1])
            except StorageError as error:
                _log.error("host: the alarm of %s: %s", self._ref.id, error)
        self.gate.break_off(StorageError("the host has ended."))
