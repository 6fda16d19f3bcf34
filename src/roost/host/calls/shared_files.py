"""Files that the hosts of a node share: one thread a host that waits for their disk, behind what the caller has written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import apsw

from roost.api.runtime import current_context
from roost.errors import OverloadError
from roost.host.calls.stubs import calling_actor
from roost.host.worker.io_context import WorkContext
from roost.link.port import NO_CONTEXT
from roost.storage.errors import StorageError
from roost.storage.shared_database import SharedDatabase

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from roost.host.worker.surroundings import Surroundings

MAX_WAITING: Final = 1_000
MAX_WAITING_BYTES: Final = 128 * 1024 * 1024  # of what is to be written

S = TypeVar("S", bound=SharedDatabase)


class SharedFiles(Generic[S]):
    """Open files of one kind. One thread: what one handler writes and then reads keeps its order."""

    def __init__(
        self,
        surroundings: Surroundings,
        kind: str,
        opened: Callable[[Path], S],
        begin_anew: Callable[[Path], None] | None = None,
    ) -> None:
        self._surroundings = surroundings
        self._kind = kind
        self._opened = opened
        self._begin_anew = begin_anew  # removes a file that is damaged; None: it stays for `roost check`
        self._executor: ThreadPoolExecutor | None = None
        self._waiting = self._waiting_bytes = 0
        self._open: dict[Path, S] = {}

    @property
    def is_full(self) -> bool:
        return self._waiting >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    def begin(self, path: Path, what: str, operation: Callable[[S], Any], size: int = 0) -> asyncio.Future[Any]:
        """An operation in the thread, behind those begun before and the writes that the calling object has made. `size`: of
        what it writes. Raises OverloadError."""
        if self.is_full:
            raise OverloadError(f"{self._waiting} {self._kind} operations are waiting for the disk; try again later.")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, f"roost {self._kind}")
        executor = self._executor
        loop = self._surroundings.loop
        caller = calling_actor()
        if caller is not None and caller.gate.shut:
            caller.check_may_wait()
        context = current_context.get(None)
        pinned = context.pin(what) if isinstance(context, WorkContext) else 0
        answered: asyncio.Future[Any] = loop.create_future()
        self._waiting += 1
        self._waiting_bytes += size

        def over(done: asyncio.Future[Any]) -> None:
            self._waiting -= 1
            self._waiting_bytes -= size
            if isinstance(context, WorkContext):
                context.unpin(pinned)
            if answered.done():
                return
            if done.cancelled():
                answered.cancel()
            elif (error := done.exception()) is not None:
                answered.set_exception(error)
            else:
                answered.set_result(done.result())

        def when_durable(broken: BaseException | None) -> None:
            if broken is not None:
                failed: asyncio.Future[Any] = loop.create_future()
                failed.set_exception(broken)
                over(failed)
                return
            try:
                running = loop.run_in_executor(executor, self._in_thread, path, operation)
            except RuntimeError as error:  # the host ends
                running = loop.create_future()
                running.set_exception(StorageError(f"the host ends: {error}"))
            running.add_done_callback(over, context=NO_CONTEXT)

        if caller is None or not caller.gate.shut:
            when_durable(None)
        else:
            caller.gate.hold(when_durable)
        return answered

    def _in_thread(self, path: Path, operation: Callable[[S], Any]) -> Any:
        try:
            try:
                return operation(self._opened_at(path))
            except (apsw.CorruptError, apsw.NotADBError):
                if self._begin_anew is None:
                    raise
                store = self._open.pop(path, None)
                if store is not None:
                    store.close()
                if store is None or store.is_at(path):  # else another host has begun anew already
                    self._begin_anew(path)
                return operation(self._opened_at(path))
        except apsw.Error as error:
            raise StorageError(
                f"the {self._kind} file {path} cannot be used: {error}; `roost check` tells more."
            ) from error

    def _opened_at(self, path: Path) -> S:
        if path not in self._open:
            self._open[path] = self._opened(path)
        return self._open[path]

    def close(self) -> None:
        """After the last operation. Blocks for as long as one takes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for store in self._open.values():
            store.close()
        self._open.clear()
