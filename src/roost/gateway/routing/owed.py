"""What a host is owed, or owes: events until they are done, the groups of what it has said, the requests it has begun.

Plain state and decisions; `host_slot` has the link. The invariant: an event of a hibernatable socket is either done or in
`unfinished`/`stragglers`, so no death of a host loses one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from roost.events import BEGUN_END, BEGUN_OFFSET, SocketClose, SocketError, SocketEvent, SocketMessage, SocketOpened

if TYPE_CHECKING:
    from collections.abc import Iterable

    from roost.gateway.counters import Counters
    from roost.gateway.limits import GatewayLimits

_log = logging.getLogger("roost.gateway")

MAX_ATTEMPTS: Final = 5  # hosts that may die with one event unfinished before it is dropped
_MAX_BESIDES: Final = 10_000  # groups that arrive before an earlier one: as many as wait for the disk at a time
COUNT_FROM_BYTES: Final = 4096  # smaller messages are bounded by their number

_NONE: Final[frozenset[int]] = frozenset()


class Owed:
    """The events that one host's slot owes an answer for."""

    def __init__(self, limits: GatewayLimits, counters: Counters) -> None:
        self.unfinished: deque[SocketEvent] = deque()
        self.stragglers: dict[int, SocketEvent] = {}  # unfinished, though later ones are done
        self.attempts: dict[int, int] = {}  # hosts that have died with an event
        self.last_event = 0
        self._limits = limits
        self._counters = counters
        self._large_bytes = 0
        self._ends = 0  # how many of `unfinished` and `stragglers` are no messages

    def end_finished(self, event: SocketClose | SocketError) -> None:
        """The host is done with a socket's end."""
        raise NotImplementedError

    def keep(self, event: SocketClose | SocketError | SocketOpened) -> None:
        """Until it is done. The router does so with messages itself."""
        self.unfinished.append(event)
        self._ends += 1

    def count_large(self, message: SocketMessage, sign: int) -> bool:
        """Whether there are too many bytes now."""
        self._large_bytes += sign * len(message.data)
        return self._large_bytes > self._limits.max_unfinished_bytes

    def is_too_much(self, *, congested: bool) -> bool:
        """Whether clients have to wait."""
        limits = self._limits
        return (
            len(self.unfinished) + len(self.stragglers) > limits.max_unfinished_events
            or self._large_bytes > limits.max_unfinished_bytes
            or congested
        )

    def give_to(self, actor: int, socket: int) -> None:
        """What is unfinished of a plain socket is an object's from now on: a host that dies does not take it along."""

        def theirs(event: SocketEvent) -> SocketEvent:
            return msgspec.structs.replace(event, actor=actor) if event.socket == socket and not event.actor else event

        if any(event.socket == socket for event in (*self.stragglers.values(), *self.unfinished)):
            self.unfinished = deque(map(theirs, self.unfinished))
            self.stragglers = {number: theirs(event) for number, event in self.stragglers.items()}

    def done(self, upto: int, stragglers: tuple[int, ...]) -> None:
        """The host has finished every event up to `upto`, but for the stragglers."""
        unfinished = self.unfinished
        if upto >= self.last_event and not (
            stragglers or self.stragglers or self._ends or self._large_bytes or self.attempts
        ):
            unfinished.clear()  # small messages only, and all of them: nearly always so in one process
            return
        running = set(stragglers) if stragglers else _NONE
        while unfinished and unfinished[0].event <= upto:
            event = unfinished.popleft()
            if running and event.event in running:
                self.stragglers[event.event] = event
            elif type(event) is not SocketMessage or len(event.data) >= COUNT_FROM_BYTES:
                self._finished(event)
        if self.stragglers:
            for number in [n for n in self.stragglers if n <= upto and n not in running]:
                self._finished(self.stragglers.pop(number))
        if self.attempts and not unfinished and not self.stragglers:
            self.attempts.clear()

    def _finished(self, event: SocketEvent) -> None:
        if isinstance(event, SocketMessage):
            if len(event.data) >= COUNT_FROM_BYTES:
                self.count_large(event, -1)
            return
        self._ends -= 1
        if not isinstance(event, SocketOpened):
            self.end_finished(event)

    # hosts that die

    def suspect(self) -> None:
        """The host has died. Handlers start in order: its oldest event is the suspect, not those that waited behind it."""
        unfinished = [*self.stragglers, *(event.event for event in self.unfinished)]
        if unfinished:
            oldest = min(unfinished)
            self.attempts[oldest] = self.attempts.get(oldest, 0) + 1

    def redelivered(self) -> tuple[int, list[SocketEvent]]:
        """A successor is here: the number of the last event given before, and those it gets, in order. One that has
        killed too many hosts is dropped."""
        events = sorted((*self.stragglers.values(), *self.unfinished), key=lambda event: event.event)
        self.stragglers.clear()
        self.unfinished.clear()
        given: list[SocketEvent] = []
        for event in events:
            attempts = self.attempts.get(event.event, 0)
            if attempts >= MAX_ATTEMPTS:
                self._counters.events_dropped += 1
                _log.error("gateway: an event of socket %d was dropped after %d hosts died with it", event.socket, attempts)
                self._finished(event)
                continue
            if attempts:
                self._counters.events_redelivered += 1
            given.append(event)
        self.unfinished.extend(given)
        return events[-1].event if events else 0, given

    def forget_plain(self) -> None:
        """The host is gone, and with it the program's end of every plain socket: their events have no one to go to."""
        for event in [e for e in (*self.stragglers.values(), *self.unfinished) if e.actor == 0]:
            if isinstance(event, SocketClose | SocketError):
                self.end_finished(event)
        self.stragglers = {n: e for n, e in self.stragglers.items() if e.actor}
        self.unfinished = deque(e for e in self.unfinished if e.actor)
        self._count_again()

    def restore(
        self,
        last_event: int,
        unfinished: Iterable[SocketEvent],
        stragglers: Iterable[SocketEvent],
        attempts: dict[int, int],
    ) -> None:
        """What another gateway was owed."""
        self.last_event = last_event
        self.unfinished.extend(unfinished)
        self.stragglers.update((event.event, event) for event in stragglers)
        self.attempts.update(attempts)
        self._count_again()

    def _count_again(self) -> None:
        events = (*self.stragglers.values(), *self.unfinished)
        sizes = [len(event.data) for event in events if isinstance(event, SocketMessage)]
        self._large_bytes = sum(size for size in sizes if size >= COUNT_FROM_BYTES)
        self._ends = len(events) - len(sizes)


class GroupsReceived:
    """Which groups of what a host's objects say have arrived whole: all up to a number, and some besides."""

    __slots__ = ("besides", "life", "upto")

    def __init__(self, life: int, upto: int = 0, besides: Iterable[int] = ()) -> None:
        self.life = life
        self.upto = upto
        self.besides = set(besides)

    def add(self, group: int) -> None:
        if group != self.upto + 1:
            if len(self.besides) < _MAX_BESIDES:  # else it may be said once more
                self.besides.add(group)
            return
        self.upto = group
        while self.besides and self.upto + 1 in self.besides:
            self.upto += 1
            self.besides.discard(self.upto)


class Begun:
    """A host's count of the requests that it has begun (`host/worker/mark.py`), readable after its death."""

    def __init__(self, fd: int, offset: int) -> None:
        self.fd = fd
        self.offset = offset

    @classmethod
    def open(cls, path: str, link: int) -> Begun:
        """The count of one link, in the file that a `Hello` names."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            fd = -1
            _log.warning("gateway: what a host has begun cannot be read: %s", error)
        return cls(fd, BEGUN_OFFSET + 8 * link)

    def count(self) -> int:
        """All of them if it cannot be read: then none is given again."""
        if self.fd < 0 or self.offset + 8 > BEGUN_END:
            return sys.maxsize
        return int.from_bytes(os.pread(self.fd, 8, self.offset), sys.byteorder)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
