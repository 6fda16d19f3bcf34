"""A host's files: the threads that wait for the disk, how many databases are open at once, and the slot's alarm index.

Nothing here waits on the loop but for the rare file that is just being closed. The invariant: one connection of ours to a
file at a time.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from roost.errors import InternalError
from roost.storage.alarm_index import AlarmIndex, index_path, object_path
from roost.storage.folding import FOLD_BYTES, MAX_LOG_BYTES
from roost.storage.restoring import put_in_place

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from roost.clock import Clock
    from roost.events import ObjectRef
    from roost.storage.database import Database
    from roost.storage.folding import Folded
    from roost.storage.restoring import Restored

_log = logging.getLogger("roost.storage")

THREADS = 4  # fsyncs at once
_HELD_LOGGED_S = 60.0  # how often it is said that a log cannot be folded
_CLOSING_WAIT_S = 30
_FILES_A_DATABASE = 5  # the file, its log and shared memory, and two to sync by
_RESERVED_FILES = 128  # for links, requests, modules, the alarm index
_FEWEST_DATABASES = 8
_CLOSED_FOR_ROOM = 8
_LOOKS = 8


class LogBounds(NamedTuple):
    """How large a log of a host's open databases may be, and all of them together, in bytes."""

    max_bytes: int = MAX_LOG_BYTES
    total_bytes: int = 64 * MAX_LOG_BYTES


class Habits:
    """By class, the share of lives whose objects wrote, of those that used their storage; the later ones count for more."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}  # of the worker's classes

    def saw(self, class_name: str, *, wrote: bool) -> None:
        self._shares[class_name] = 0.9 * self._shares.get(class_name, 0.5) + 0.1 * wrote

    def writes(self, class_name: str) -> bool:
        """Whether an object of that class that reads is nearly certain to write."""
        return self._shares.get(class_name, 0.5) > 0.9


class OpenStorage(Protocol):
    """An object's storage whose file is open: `actor_storage.ActorStorage`."""

    used: bool

    def park(self) -> bool:
        """Close the file, to be opened again when it is next used; whether that is possible at the moment."""
        ...

    def could_fold(self, size: int) -> bool:
        """Whether it is of use to fold a log of that size now."""
        ...

    def fold_soon(self) -> None: ...


class Disk:
    """One host's. Without a data folder (tests) the files are in a temporary one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        data: Path | None,
        clock: Clock,
        *,
        slot: int = 0,
        slots: int = 1,
        max_open: int = 1000,
        log_bounds: LogBounds | None = None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.log_bounds = log_bounds or LogBounds()
        self.fold_bytes = min(FOLD_BYTES, self.log_bounds.max_bytes // 4)  # from this size on a log is folded
        self.habits = Habits()
        self.parked = 0  # files closed because too many were open
        self.logs_folded = 0
        self.folds_held = 0  # that did not empty their log, as something held it
        self.folds_waited_for = 0  # by the whole host: a log had reached its bound
        self.log_bytes = 0  # of all open databases
        self._logs: dict[OpenStorage, int] = {}
        self._held_logged_at = -_HELD_LOGGED_S
        self.alarm_changed: Callable[[], None] = lambda: None
        self._scratch = None if data is not None else tempfile.TemporaryDirectory(prefix="roost-scratch-")
        self.data = data if data is not None else Path(self._scratch.name)  # type: ignore[union-attr]
        self.alarms = AlarmIndex(index_path(self.data, slot, slots))
        self._max_open = self._bounded_by_files(max_open)
        self._executor = ThreadPoolExecutor(THREADS, "roost disk")
        self._closing: dict[Path, Future[None]] = {}
        self._open: OrderedDict[OpenStorage, None] = OrderedDict()

    def path(self, ref: ObjectRef) -> Path:
        """An object's file."""
        try:
            return object_path(self.data, ref)
        except ValueError as error:
            raise InternalError(str(error)) from error

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Work for a disk thread."""
        return self._executor.submit(work, *arguments)

    def tell_alarm(self, ref: ObjectRef, due_ms: int | None) -> None:
        """The alarm of an object is now then. Raises StorageError."""
        if due_ms is None:
            self.alarms.remove(ref)
        else:
            self.alarms.put(ref, due_ms)
            self.alarm_changed()

    # open files

    @property
    def open_files(self) -> int:
        return len(self._open)

    @staticmethod
    def _bounded_by_files(wanted: int) -> int:
        """As many databases as the process may open, if that is fewer: each takes five descriptors."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            return wanted
        possible = max(_FEWEST_DATABASES, (limit - _RESERVED_FILES) // _FILES_A_DATABASE)
        if possible < wanted:
            _log.warning(
                "storage: %d objects' files may be open at once instead of %d (limits.max_open_databases): this process may"
                " open %d files; raise `ulimit -n`", possible, wanted, limit,
            )  # fmt: skip
        return min(wanted, possible)

    def make_room(self, but: OpenStorage | None = None) -> bool:
        """No file can be opened: close those least used; whether that was possible. What is busy stays."""
        closed = 0
        for storage in list(self._open):
            if storage is not but and storage.park():
                del self._open[storage]
                self.log_is(storage, 0)
                self.parked += 1
                closed += 1
                if closed >= _CLOSED_FOR_ROOM:
                    break
        for closing in list(self._closing.values()):
            closing.exception(_CLOSING_WAIT_S)
        return closed > 0

    def opened(self, storage: OpenStorage) -> None:
        """One more is open."""
        self._open[storage] = None
        self.close_some(storage)

    def close_some(self, but: OpenStorage | None = None) -> None:
        """If too many are open, close those that were not used for longest (second chance; a few looks a call)."""
        for _ in range(_LOOKS):
            if len(self._open) <= self._max_open:
                return
            oldest = next(iter(self._open))
            if not oldest.used and oldest is not but and oldest.park():
                del self._open[oldest]
                self.log_is(oldest, 0)
                self.parked += 1
            else:
                oldest.used = False
                self._open.move_to_end(oldest)

    def forget(self, storage: OpenStorage) -> None:
        self._open.pop(storage, None)
        self.log_is(storage, 0)

    # logs

    def log_is(self, storage: OpenStorage, size: int) -> None:
        """How large an open database's log is now. If all of them are too large together, the largest is folded."""
        self.log_bytes += size - self._logs.get(storage, 0)
        if size:
            self._logs[storage] = size
        else:
            self._logs.pop(storage, None)
        if self.log_bytes > self.log_bounds.total_bytes:
            able = [each for each, its_size in self._logs.items() if each.could_fold(its_size)]
            if able:
                max(able, key=self._logs.__getitem__).fold_soon()

    def folded(self, ref: ObjectRef, folded: Folded, size: int) -> None:
        """A log was folded, or could not be: then that is counted, and said once a minute."""
        if not folded.held:
            self.logs_folded += 1
            return
        self.folds_held += 1
        if self.loop.time() - self._held_logged_at >= _HELD_LOGGED_S:
            self._held_logged_at = self.loop.time()
            _log.warning(
                "storage: the log of %s(%s) has %d bytes and cannot be folded: %s holds it (%d of %d pages were moved; %d"
                " such cases so far)",
                ref.class_name, ref.name or ref.id[:8], size, folded.held, folded.moved, folded.pages, self.folds_held,
            )  # fmt: skip

    def close(self, path: Path, database: Database, running: Future[None] | None) -> None:
        """Close a database on a thread; who opens the same file meanwhile waits."""
        closing = self._closing[path] = self.submit(close_database, database, running)

        def forget() -> None:
            if self._closing.get(path) is closing:
                del self._closing[path]

        def closed(_: Any) -> None:
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(forget)

        closing.add_done_callback(closed)

    def fold_left(self, ref: ObjectRef, fold: Callable[[Path], int]) -> Future[int] | None:
        """Fold what a killed host has left of an object that is not awake, on a thread; who opens it meanwhile waits. None
        if it is being closed just now."""
        path = self.path(ref)
        if path in self._closing:
            return None
        folding: Future[Any] = self.submit(fold, path)
        self._closing[path] = folding

        def over(_: Any) -> None:
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(forget)

        def forget() -> None:
            if self._closing.get(path) is folding:
                del self._closing[path]

        folding.add_done_callback(over)
        return folding

    async def closed(self) -> None:
        """Wait until every file that is being closed is closed: another process may open it."""
        await asyncio.gather(*map(asyncio.wrap_future, list(self._closing.values())), return_exceptions=True)

    async def replace(self, restored: Restored) -> None:
        """Put a restored file in its object's place, which must not be awake; who opens it meanwhile waits."""
        path = self.path(restored.ref)
        earlier = self._closing.get(path)

        def swap() -> None:
            if earlier is not None:
                earlier.exception(_CLOSING_WAIT_S)
            put_in_place(self.data, restored)

        told_ms = self.alarms.due_ms(restored.ref)
        if restored.alarm_ms is not None and (told_ms is None or restored.alarm_ms < told_ms):
            self.tell_alarm(restored.ref, restored.alarm_ms)  # an earlier one is told before, any other after
        swapping = self._closing[path] = self.submit(swap)
        try:
            await asyncio.wrap_future(swapping)
            self.tell_alarm(restored.ref, restored.alarm_ms)
        finally:
            if self._closing.get(path) is swapping:
                del self._closing[path]

    def wait_for_earlier(self, path: Path) -> None:
        """An earlier life of this object is just folding its log: a few milliseconds, and rare."""
        closing = self._closing.get(path)
        if closing is not None:
            closing.result(_CLOSING_WAIT_S)

    def end(self) -> None:
        """Wait for the threads; nothing is used after this."""
        self._executor.shutdown(wait=True)
        self.alarms.close()
        if self._scratch is not None:
            self._scratch.cleanup()


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
