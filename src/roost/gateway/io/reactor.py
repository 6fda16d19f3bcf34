"""One epoll of its own over raw descriptors; that epoll is the only thing the event loop knows of.

An idle connection has no transport, task or buffer: a descriptor and its record in `table`. When anything is readable,
the loop makes one callback, which handles up to `BATCH` descriptors and then ends the turn: links and connections that
were written to are flushed once each. Measured: 3x to 10x an asyncio transport per connection (architecture, reactor).

It owns no descriptor: whoever registers one closes it, after `unregister`.
"""

from __future__ import annotations

import heapq
import logging
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from roost.gateway.io.busy_poll import BusyPoll

_log = logging.getLogger("roost.gateway")

READ: Final = 1  # EPOLLIN
WRITE: Final = 4  # EPOLLOUT
BATCH: Final = 512
_LOOKS: Final = 4  # between two turns of the loop, while awake for clients: 2 µs


class Pollable(Protocol):
    """What is registered: told once a turn when its descriptor is ready."""

    def ready(self, mask: int) -> None:
        """`mask` has READ, WRITE, or an error or hang-up bit (then reading tells which)."""
        ...

    def broken(self, error: Exception) -> None:
        """`ready` raised what it should not have; close and forget."""
        ...


class _Kqueue:
    """The epoll interface over kqueue, for macOS and the BSDs."""

    def __init__(self) -> None:
        self._queue: Any = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
        self._masks: dict[int, int] = {}

    def _change(self, fd: int, mask: int) -> None:
        before = self._masks.get(fd, 0)
        for bit, kind in ((READ, -1), (WRITE, -2)):  # EVFILT_READ, EVFILT_WRITE
            if (before ^ mask) & bit:
                flag = 1 if mask & bit else 2  # EV_ADD, EV_DELETE
                self._queue.control([select.kevent(fd, kind, flag)], 0)  # type: ignore[attr-defined,unused-ignore]
        self._masks[fd] = mask

    def register(self, fd: int, mask: int) -> None:
        self._change(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self._change(fd, mask)

    def unregister(self, fd: int) -> None:
        self._change(fd, 0)
        del self._masks[fd]

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        ready = self._queue.control(None, maxevents, timeout)
        return [(event.ident, READ if event.filter == -1 else WRITE) for event in ready]

    def fileno(self) -> int:
        return int(self._queue.fileno())

    def close(self) -> None:
        self._queue.close()


class Reactor:
    """The descriptors of one gateway. `end_of_turn` is called once after each batch."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end_of_turn: Callable[[], None],
        busy_poll: BusyPoll | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table: list[Any] = [None] * 1024
        self.in_turn = False
        self._loop = loop
        self._end_of_turn = end_of_turn
        self._busy_poll = busy_poll
        self._monotonic = monotonic
        self._looking = False
        self._polls = False
        self._epoll: Any = select.epoll() if sys.platform == "linux" else _Kqueue()

    def start(self) -> None:
        """Begin to poll. The loop must be running or about to."""
        self._polls = True
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def pause(self) -> None:
        """Poll no more until `start`; what is ready stays so."""
        self._polls = False
        self._loop.remove_reader(self._epoll.fileno())

    def close(self) -> None:
        """Stop polling. Registered descriptors are their owners' to close."""
        self._polls = False
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def register(self, fd: int, pollable: Pollable, mask: int = READ) -> None:
        """Watch `fd` for `pollable`."""
        self.reserve(fd)
        self.table[fd] = pollable
        self._epoll.register(fd, mask)

    def reserve(self, fd: int) -> None:
        """Let `table` have a place of that number, whoever may look there."""
        table = self.table
        if fd >= len(table):
            table.extend([None] * (fd + 1 - len(table) + len(table) // 2))

    def replace(self, fd: int, pollable: Pollable) -> None:
        """From now on `fd` belongs to `pollable` (an HTTP connection that became a WebSocket)."""
        self.table[fd] = pollable

    def watch(self, fd: int, mask: int) -> None:
        """Change what `fd` is watched for; 0 leaves only errors."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Forget `fd`, which is still open."""
        self.table[fd] = None
        self._epoll.unregister(fd)

    def wait(self) -> None:
        """Nothing is to be done until a client sends something: stay awake for it, if that is likely to be worth it."""
        busy_poll = self._busy_poll
        if busy_poll is not None and busy_poll.begin(self._monotonic()) and not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Look a few times. Then the loop has a turn that does not sleep, so that nothing else is held up."""
        busy_poll = self._busy_poll
        self._looking = False
        if busy_poll is None or not self._polls:
            return
        for _ in range(_LOOKS):
            ready = self._epoll.poll(0, BATCH)
            if ready:
                self._handle(ready)
                break
            before = self._monotonic()
            os.sched_yield()
            now = self._monotonic()
            if not busy_poll.goes_on(now, now - before):
                return
        if busy_poll.awake and not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _turn(self) -> None:
        self._handle(self._epoll.poll(0, BATCH))

    def _handle(self, ready: list[tuple[int, int]]) -> None:
        table = self.table
        self.in_turn = True
        if self._busy_poll is not None:
            self._busy_poll.end(self._monotonic())
        try:
            for fd, mask in ready:
                pollable = table[fd]
                if pollable is None:
                    continue  # closed earlier in this batch
                try:
                    pollable.ready(mask)
                except Exception as error:  # noqa: BLE001 - one connection's bug must not end the gateway
                    _log.exception("gateway: internal error on descriptor %d; the connection is closed", fd)
                    pollable.broken(error)
        finally:
            self.in_turn = False
        self._end_of_turn()


class Deadlines:
    """Coarse deadlines of many records with one timer; nothing ticks when nothing is due.

    `add(due, key)` with monotonic seconds; at that time `expire(key, now)` is called and returns the next time to look,
    or None. One entry a record at a time keeps the heap as small as the table.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[int, float], float | None]) -> None:
        self._loop = loop
        self._expire = expire
        self._heap: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0

    def add(self, due: float, key: int) -> None:
        heapq.heappush(self._heap, (due, key))
        if self._timer is None or due < self._armed_for:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._armed_for = self._heap[0][0]
            self._timer = self._loop.call_at(self._armed_for, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now + 0.01:
            _, key = heapq.heappop(self._heap)
            following = self._expire(key, now)
            if following is not None:
                heapq.heappush(self._heap, (max(following, now + 0.05), key))
        self._arm()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
