"""When a turn's writes commit, when they are on the disk, and when what they led to may leave.

Writes of one turn of the loop are one transaction. It commits at the end of the turn, on the loop, which costs no wait for
the disk; the fsync runs on a thread, one at a time an object, and confirms every commit made before it began. A log that
has grown is folded by the same thread, while no event begins.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import apsw

from roost.host.objects.delivered import Delivered
from roost.host.objects.output_gate import OutputGate
from roost.link.port import NO_CONTEXT
from roost.storage.database import Database
from roost.storage.errors import StorageError
from roost.storage.folding import LARGE_COMMITS, Folded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from roost.events import ObjectRef
    from roost.host.disk import Disk
    from roost.host.gateway_link import StoredGroup
    from roost.host.objects.delivered import Receipt

_log = logging.getLogger("roost.host")


class StorageOwner(Protocol):
    """The object whose storage it is."""

    def storage_failed(self, error: StorageError) -> None:
        """A write cannot be kept. Called once."""
        ...

    def block(self) -> Callable[[], None]:
        """Close the input gate until the returned function is called."""
        ...

    def is_redelivered(self, epoch: int, event: int) -> bool:
        """Whether a gateway that is there may redeliver an event that an earlier host had."""
        ...

    def has_received(self, epoch: int, life: int, group: int) -> bool:
        """Whether a gateway has a group that an earlier life has sent."""
        ...

    def groups_to_store(self) -> list[StoredGroup]:
        """What waits for a batch of writes, by epoch of its gateway."""
        ...

    def ask_to_confirm(self, epoch: int) -> Receipt | None:
        """What will tell whether a gateway has received all that was sent to it; None if it is not there."""
        ...

    def check_alarm_handler(self) -> None:
        """Raise TypeError (as JsException) if the class could not take an alarm."""
        ...


class Commits:
    """The writes of one object while it is awake. What only those need that use it is made when it is first used."""

    __slots__ = (
        "_alarm_after", "_alarm_changed", "_alarm_running", "_alarm_told", "_alarm_touched", "_batch", "_closed",
        "_commits", "_database_made", "_delivered", "_depth", "_disk", "_fold_at", "_folding", "_log_bytes", "_loop",
        "_on_disk", "_owner", "_ref", "_scheduled", "_sync_wanted", "_syncing", "_to_sync", "_touched_before",
        "_transactions", "_unblock", "_unconfirmed_syncing", "_unconfirmed_to_sync", "gate", "used",
    )  # fmt: skip

    def __init__(self, ref: ObjectRef, disk: Disk, owner: StorageOwner, gate: OutputGate | None = None) -> None:
        self.gate = gate or OutputGate()
        self.used = True  # since the last time that files were looked through for one to close
        self._ref = ref
        self._disk = disk
        self._loop = disk.loop
        self._owner = owner
        self._database_made: Database | None = None
        self._delivered: Delivered | None = None
        self._batch = 0  # of the open transaction; 0: none that holds output
        self._scheduled = False
        self._depth = 0
        self._transactions: asyncio.Lock | None = None
        self._commits = 0
        self._to_sync: tuple[int, ...] = ()  # batches committed and not yet on the disk
        self._unconfirmed_to_sync = False
        self._unconfirmed_syncing = False
        self._sync_wanted = False
        self._syncing: asyncio.Future[Folded | None] | None = None
        self._on_disk: Future[Any] | None = None
        self._closed = False
        self._log_bytes = 0
        self._fold_at = 0  # it was tried before and something held the log: not again before it has grown so much
        self._unblock: Callable[[], None] | None = None  # the log is to be folded: no event begins before it is
        self._folding = False
        self._alarm_running = False
        self._alarm_touched = False  # since the alarm's handler began
        self._alarm_changed = False  # in the open transaction
        self._alarm_told = False  # the index, of an earlier alarm; its log must reach the disk first
        self._alarm_after: tuple[int, int | None] | None = None  # to tell the index once that commit is on the disk
        self._touched_before: tuple[tuple[bool, bool], ...] = ()  # at the beginning of each nested transaction

    @property
    def _database(self) -> Database:
        database = self._database_made
        if database is None:
            path = self._disk.path(self._ref)
            disk, ref = self._disk, self._ref
            database = Database(
                path,
                ref.name,
                before_opening=lambda: disk.wait_for_earlier(path),
                opened=self._opened,
                is_known=lambda: disk.alarms.due_ms(ref) is not None,
                make_room=lambda: disk.make_room(self),
                will_write=lambda: disk.habits.writes(ref.class_name),
                max_log_bytes=disk.log_bounds.max_bytes * LARGE_COMMITS,
            )
            self._database_made = database
            if self._closed:
                database.close()  # what is used now belongs to an earlier life
        return database

    @property
    def delivered(self) -> Delivered:
        """What the object has finished and said."""
        if self._delivered is None:
            self._delivered = Delivered()
        return self._delivered

    def _opened(self) -> None:
        self._disk.opened(self)
        if self._database.was_left_unsynced:  # what it reads there may not be on the disk: nothing may leave before it is
            self._database.was_left_unsynced = False
            self._sync_too(self.gate.begin())

    def _alive(self) -> None:
        self.used = True
        if self.gate.broken is not None:
            raise self.gate.broken

    def _sync_too(self, batch: int) -> None:
        """A batch that has no commit of its own is durable once everything so far is."""
        self._to_sync += (batch,)
        self._sync_wanted = True
        if self._syncing is None:
            self._sync()

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
            wrote = self._commit_with_records(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the writes are not there
            self.fail(error)
            return
        if not wrote:
            if batch:
                self.gate.confirm(batch)  # it only read: no disk is needed for it
            if self._unblock is not None:
                self._sync_if_possible()
            return
        self._commits += 1
        if batch:
            self._to_sync += (batch,)
        self._sync_wanted = True
        self._look_at_log()
        if self.gate.broken is None and self._syncing is None:
            self._sync()

    # the log

    def _look_at_log(self) -> None:
        """A commit is over: if the log is large, no event begins until a thread has folded it. If it is so large that it
        may not grow any more (a handler that is running may go on writing meanwhile), fold it here and now."""
        size, before = self._database.log_bytes, self._log_bytes
        self._log_bytes = size
        if size < self._disk.fold_bytes or size < self._fold_at:
            return
        largest = self._disk.log_bounds.max_bytes
        if size - before > largest // 2:
            largest *= LARGE_COMMITS
        if size > largest // 2:
            self._fold_here()
        else:
            self.fold_soon()

    def could_fold(self, size: int) -> bool:
        """Whether it is of use to fold a log of that size now: it is not about to be, and nothing held it just before."""
        return self._unblock is None and size >= self._fold_at

    def fold_soon(self) -> None:
        """Fold the log as soon as no write is open; no event begins before that."""
        if self._unblock is None and self.gate.broken is None and not self._closed:
            self._unblock = self._owner.block()
            self._sync_if_possible()

    def _sync_if_possible(self) -> None:
        """Begin what waits for the disk's thread, if that is free."""
        if self._syncing is None and (self._sync_wanted or (self._unblock is not None and self._may_fold)):
            self._sync()

    @property
    def _may_fold(self) -> bool:
        """Whether no transaction is open, which would hold the log."""
        return not self._scheduled and not self._depth

    def _fold_here(self) -> None:
        """On the loop, which waits for the disk: what bounds the log whatever a handler does."""
        self._disk.folds_waited_for += 1
        try:
            if self._on_disk is not None:
                self._on_disk.exception()  # one at a time on a file
            folded = self._database.fold()
            if folded.held and (ended := self._database.end_cursors()):
                _log.warning("storage: %s: %d cursors that held its log were ended", self._ref.id[:8], ended)
                folded = self._database.fold()
        except (StorageError, apsw.Error, OSError) as error:
            self.fail(StorageError(f"the log has reached its bound (storage.max_log_bytes) and cannot be folded: {error}"))
            return
        self._folded(folded)

    def _sync_and_fold(self, *, alarm_first: bool) -> Folded:
        if alarm_first:
            self._disk.alarms.sync()
        database = self._database
        database.sync()
        try:
            return database.fold()
        except (apsw.Error, OSError) as error:  # the commits are on the disk: only the log stays long
            return Folded(0, 0, str(error))

    def _folded(self, folded: Folded) -> None:
        self._log_bytes = self._database.log_bytes
        self._fold_at = self._log_bytes + self._disk.fold_bytes if folded.held else 0
        self._disk.folded(self._ref, folded, self._log_bytes)

    def _commit_with_records(self, batch: int) -> bool:
        """Commit what is open with what belongs to it: the alarm's index, the finished events. Whether it wrote."""
        if self._alarm_changed:
            self._database.check_not_undone()  # else the index would learn of the alarm of before, and forget its pause
            self._tell_index()
        if batch and self.delivered.has_new and self._database.is_writing:
            self.load_delivered()
            groups = self._owner.groups_to_store()
            self._database.set_delivered(self.delivered.to_store(batch, groups, self._owner.ask_to_confirm))
        return self._database.commit()

    def _tell_index(self) -> None:
        """The alarm has changed: tell the index now if it comes earlier, once the commit is on the disk if not (W49)."""
        self._alarm_changed = False
        due_ms, told_ms = self._database.alarm_ms(), self._disk.alarms.due_ms(self._ref)
        if due_ms is not None and (told_ms is None or due_ms < told_ms):
            self._disk.tell_alarm(self._ref, due_ms)
            self._alarm_told, self._alarm_after = True, None
        else:
            self._alarm_after = (self._commits + 1, due_ms)

    def _sync(self) -> None:
        batches, self._to_sync = self._to_sync, ()
        told, self._alarm_told = self._alarm_told, False
        self._unconfirmed_syncing, self._unconfirmed_to_sync = self._unconfirmed_to_sync, False
        self._sync_wanted = False
        self._folding = self._unblock is not None and self._may_fold
        if self._folding:
            self._database.is_folding = True
            self._on_disk = self._disk.submit(partial(self._sync_and_fold, alarm_first=told))
        else:
            self._on_disk = self._disk.submit(self._sync_alarm_first if told else self._database.sync)
        self._syncing = asyncio.wrap_future(self._on_disk, loop=self._loop)
        commits = self._commits
        self._syncing.add_done_callback(lambda future: self._synced(future, batches, commits), context=NO_CONTEXT)

    def _sync_alarm_first(self) -> None:
        self._disk.alarms.sync()
        self._database.sync()

    def _synced(self, future: asyncio.Future[Folded | None], batches: tuple[int, ...], commits: int) -> None:
        self._syncing = None
        self._unconfirmed_syncing = False
        if self._folding and self._database_made is not None:
            self._database_made.is_folding = False
        if self._folding and self._unblock is not None:
            unblock, self._unblock = self._unblock, None
            unblock()
        error = None if future.cancelled() else future.exception()
        try:
            # Not for an object that was reset: the index is its successor's to tell.
            after = self._alarm_after if error is None and self.gate.broken is None else None
            if after is not None and after[0] <= commits:
                self._alarm_after = None
                self._disk.tell_alarm(self._ref, after[1])
        except StorageError as failure:
            error = failure
        if error is not None:
            self.fail(error)
            return
        for batch in batches:
            self.delivered.release(batch, self._owner.ask_to_confirm)
            self.gate.confirm(batch)
        if self.gate.broken is None and not self._closed:
            if (folded := future.result()) is not None:
                self._folded(folded)
            self._disk.log_is(self, self._log_bytes)
            self._sync_if_possible()
        if self._syncing is None:
            self._disk.close_some()

    def fail(self, error: BaseException) -> StorageError:
        """A write is lost: nothing that came of it may leave, and the object starts anew. The error as a StorageError."""
        failure = error if isinstance(error, StorageError) else StorageError(f"a write could not be kept: {error}")
        if self.gate.broken is None:
            self.give_up(failure)
            self._owner.storage_failed(failure)
        return failure

    def give_up(self, error: StorageError, *, without_alarm: bool = False) -> None:
        """The object is reset for another reason: undo what is not committed, and let nothing more out."""
        database = self._database_made
        try:
            if database is not None:
                database.rollback()
                if without_alarm and database.is_open:
                    database.set_alarm(None)
                    database.commit()
                    self._disk.tell_alarm(self._ref, None)
        except StorageError as failure:
            self._database.rollback()
            _log.error("host: the alarm of %s could not be deleted and runs again: %s", self._ref.id, failure)
        finally:
            self.gate.break_off(error)

    def load_delivered(self) -> Sequence[StoredGroup]:
        """What an earlier life has finished, once; returns what it has to send again, first of all."""
        if self.delivered.is_loaded:
            return []
        return self.delivered.load(self._database.delivered(), self._owner.is_redelivered, self._owner.has_received)

    @property
    def busy(self) -> bool:
        """Whether writes are on their way to the disk, so that the object must stay."""
        return (
            self.gate.shut or self._scheduled or self._syncing is not None or self._unblock is not None or bool(self._depth)
        )

    def park(self) -> bool:
        """Close the file, to be opened again when it is next used; whether that is possible at the moment."""
        database = self._database_made
        if self.busy or self._closed or database is None or not database.is_idle:
            return False
        self._database_made = None
        self._log_bytes = self._fold_at = 0
        self._disk.close(self._disk.path(self._ref), database, self._on_disk)
        return True
