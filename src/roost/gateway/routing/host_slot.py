"""One host's place at a gateway: what it is owed, whether a host is there or not.

It numbers events, keeps them until the host says done, and gives them to the successor of a host that died. The invariant:
an event of a hibernatable socket is either done or in `unfinished`/`late`, so no death of a host loses one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from roost.errors import RemoteProtocolError
from roost.events import (
    BEGUN_END,
    BEGUN_OFFSET,
    ENVELOPE_VERSION,
    Call,
    Hello,
    Leaving,
    Request,
    SocketClose,
    SocketError,
    SocketMessage,
    SocketOpened,
    Welcome,
)
from roost.gateway.routing.sockets import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from roost.events import Event
    from roost.gateway.routing.router import Router
    from roost.link.port import Link

_log = logging.getLogger("roost.gateway")

_MAX_ATTEMPTS = 5  # hosts that may die with one event unfinished before it is dropped
_MAX_BESIDES = 10_000  # groups that arrive before an earlier one: as many as wait for the disk at a time
COUNT_FROM_BYTES = 4096  # smaller messages are bounded by their number

_NONE: Final[frozenset[int]] = frozenset()

SocketEvent = SocketMessage | SocketClose | SocketError | SocketOpened


class HostSlot:
    """One host's place: its link while a host is there, and the events it owes an answer for. A link.Receiver."""

    def __init__(self, router: Router, index: int) -> None:
        self.index = index
        self.link: Link | None = None
        self.leaving: Link | None = None  # a host that ends in order: it gets nothing new, and finishes what it has
        self.departed: list[Departed] = []  # hosts that were replaced, and finish their requests
        self.plain = Owner(self, 0)
        self.full = False
        self.unfinished: deque[SocketEvent] = deque()
        self.late: dict[int, SocketEvent] = {}
        self.waiting: deque[Request | Call] = deque()  # requests that found no host here yet
        self.router = router
        self.last_event = 0
        self._large_bytes = 0
        self._ends = 0  # how many of `unfinished` and `late` are no messages
        self.attempts: dict[int, int] = {}
        self.breaker = ""  # why nobody should wait for a host: its code crashes again and again
        self.begun_file: Begun | None = None
        self.given = 0  # requests, to the host that is here
        self.heard = Heard(0)

    @property
    def current(self) -> Link | None:
        """The host that has what was given before: also one that is leaving."""
        return self.link if self.link is not None else self.leaving

    def leave(self) -> None:
        """The host wants nothing new. The echo tells it that whatever it was given lies before it."""
        if self.link is not None:
            self.leaving, self.link = self.link, None
            self.router.close_plain(self)
            self.leaving.send(Leaving())

    def depart(self) -> None:
        """The host that leaves has let go of its objects: a successor may come, while it finishes its requests."""
        if self.leaving is not None:
            link, self.leaving = self.leaving, None
            self.departed.append(Departed(self, link))
            link.start(self.departed[-1])
            self.forget_plain()

    def give(self, request: Request | Call) -> int:
        """Send a request to the host that is here; which one of its requests it is, from 1."""
        assert self.link is not None
        self.given += 1
        self.link.send(request)
        return self.given

    def begun(self) -> int:
        """How many of its requests the host has begun, also after its death; all, as far as we know, without its word."""
        return self.given if self.begun_file is None else self.begun_file.count()

    def next_event(self) -> int:
        """A number for an event: one counter for the whole process, as an object's record of finished events (by epoch and
        number) may move to another slot's host."""
        router = self.router
        self.last_event = router.last_event = router.last_event + 1
        return self.last_event

    def deliver(self, event: SocketClose | SocketError | SocketOpened) -> None:
        """Keep the event until it is done, and send it if a host is there. `Router.message` does so with messages."""
        self.unfinished.append(event)
        self._ends += 1
        if self.link is not None:
            self.link.send(event)
        elif not event.actor and self.leaving is not None:
            self.leaving.send(event)  # a plain socket's program is there

    def count_large(self, message: SocketMessage, sign: int) -> bool:
        """Whether there are too many bytes now."""
        self._large_bytes += sign * len(message.data)
        return self._large_bytes > self.router.gateway.limits.max_unfinished_bytes

    def give_to(self, actor: int, socket: int) -> None:
        """What is unfinished of a plain socket is an object's from now on: a host that dies does not take it along."""

        def theirs(event: SocketEvent) -> SocketEvent:
            return msgspec.structs.replace(event, actor=actor) if event.socket == socket and not event.actor else event

        if any(event.socket == socket for event in (*self.late.values(), *self.unfinished)):
            self.unfinished = deque(map(theirs, self.unfinished))
            self.late = {number: theirs(event) for number, event in self.late.items()}

    def update_full(self) -> None:
        """Decide, once a turn, whether clients of this host are held back."""
        link = self.link
        if not self.full and not self.unfinished and (link is None or not link.congested):
            return  # as nearly always; what is late only was not too much when it came
        limits = self.router.gateway.limits
        full = (
            len(self.unfinished) + len(self.late) > limits.max_unfinished_events
            or self._large_bytes > limits.max_unfinished_bytes
            or (link is not None and link.congested)
        )
        if self.full and not full:
            self.router.release_held(self)
        self.full = full

    def done(self, upto: int, stragglers: tuple[int, ...]) -> None:
        """The host has finished every event up to `upto`, but for the stragglers."""
        unfinished = self.unfinished
        if upto >= self.last_event and not (stragglers or self.late or self._ends or self._large_bytes or self.attempts):
            unfinished.clear()  # small messages only, and all of them: nearly always so in one process
            return
        running = set(stragglers) if stragglers else _NONE
        while unfinished and unfinished[0].event <= upto:
            event = unfinished.popleft()
            if running and event.event in running:
                self.late[event.event] = event
            elif type(event) is not SocketMessage or len(event.data) >= COUNT_FROM_BYTES:
                self._finished(event)
        if self.late:
            for number in [n for n in self.late if n <= upto and n not in running]:
                self._finished(self.late.pop(number))
        if self.attempts and not unfinished and not self.late:
            self.attempts.clear()

    def _finished(self, event: SocketEvent) -> None:
        if isinstance(event, SocketMessage):
            if len(event.data) >= COUNT_FROM_BYTES:
                self.count_large(event, -1)
            return
        self._ends -= 1
        if not isinstance(event, SocketOpened):
            self.router.end_finished(event)

    # the host's coming and going

    def attach(self, link: Link, hello: Hello) -> None:
        """A host is here: give it what its predecessor left unfinished, in order, then what waited."""
        self.link = link
        self.given = 0
        if self.begun_file is not None:
            self.begun_file.close()
        self.begun_file = Begun.open(hello.mark, hello.link) if hello.mark else None
        events = [*self.late.values(), *self.unfinished]
        events.sort(key=lambda event: event.event)
        self.late.clear()
        self.unfinished.clear()
        again: list[SocketEvent] = []
        for event in events:
            attempts = self.attempts.get(event.event, 0)
            if attempts >= _MAX_ATTEMPTS:
                self.router.gateway.counters.events_dropped += 1
                _log.error("gateway: an event of socket %d was dropped after %d hosts died with it", event.socket, attempts)
                self._finished(event)
                continue
            if attempts:
                self.router.gateway.counters.events_redelivered += 1
            again.append(event)
        before = events[-1].event if events else 0
        heard, self.heard = self.heard, Heard(hello.life)
        link.send(
            Welcome(
                self.router.gateway.epoch, before, [event.event for event in again],
                heard.life, heard.upto, sorted(heard.besides),
            )
        )  # fmt: skip
        self.unfinished.extend(again)
        for event in again:
            link.send(event)
        while self.waiting:
            self.router.exchanges.give(self.waiting.popleft(), self)

    def restore(
        self, last_event: int, unfinished: Iterable[SocketEvent], late: Iterable[SocketEvent], attempts: dict[int, int]
    ) -> None:
        """What another gateway was owed."""
        self.last_event = last_event
        self.router.last_event = max(self.router.last_event, last_event)
        self.unfinished.extend(unfinished)
        self.late.update((event.event, event) for event in late)
        self.attempts.update(attempts)
        self._count_again()

    def adopt_begun(self, fd: int, offset: int) -> None:
        """The host's count of begun requests, already open."""
        self.begun_file = Begun(fd, offset) if fd >= 0 else None

    def _count_again(self) -> None:
        events = (*self.late.values(), *self.unfinished)
        sizes = [len(event.data) for event in events if isinstance(event, SocketMessage)]
        self._large_bytes = sum(size for size in sizes if size >= COUNT_FROM_BYTES)
        self._ends = len(events) - len(sizes)

    def on_closed(self, reason: str) -> None:
        lost = self.current
        orderly, self.link, self.leaving = self.link is None, None, None
        unfinished = [*self.late, *(event.event for event in self.unfinished)]
        if (
            unfinished and not orderly
        ):  # handlers start in order: the oldest is the suspect, not those that waited behind it
            self.attempts[min(unfinished)] = self.attempts.get(min(unfinished), 0) + 1
        self.router.host_lost(self, lost)

    def on_drained(self) -> None:
        self.update_full()

    def on_events(self, events: Sequence[Event]) -> None:
        self.router.from_host(self, events)

    def forget_plain(self) -> None:
        """The host is gone, and with it the program's end of every plain socket: their events have no one to go to."""
        for event in [e for e in (*self.late.values(), *self.unfinished) if e.actor == 0]:
            if isinstance(event, SocketClose | SocketError):
                self.router.end_finished(event)
        self.late = {n: e for n, e in self.late.items() if e.actor}
        self.unfinished = deque(e for e in self.unfinished if e.actor)
        self._count_again()


class Departed:
    """The link of a host that another has replaced: it answers what it has begun, and owes no events. A link.Receiver, and
    in the router's hands as much of a `HostSlot` as answers need."""

    leaving: Link | None = None

    def __init__(self, slot: HostSlot, link: Link) -> None:
        self.slot = slot
        self.index = slot.index
        self.link = link
        self.heard = Heard(0)

    @property
    def current(self) -> Link:
        return self.link

    def done(self, upto: int, stragglers: tuple[int, ...]) -> None:
        """Its last word on events was said before it departed."""

    def on_closed(self, reason: str) -> None:
        if self in self.slot.departed:
            self.slot.departed.remove(self)
            self.slot.router.departed_lost(self)

    def close(self) -> None:
        """It had its time."""
        self.link.close()
        self.on_closed("the gateway is being replaced")

    def on_drained(self) -> None:
        """Nobody was held back for it."""

    def on_events(self, events: Sequence[Event]) -> None:
        self.slot.router.from_host(self, events)


class Heard:
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


def check_hello(event: Event | None, slots: int) -> Hello:
    """A new host's hello. Raises RemoteProtocolError if it is not for us."""
    if type(event) is not Hello:
        raise RemoteProtocolError(1002, "a host must say hello first")
    if event.version != ENVELOPE_VERSION:
        raise RemoteProtocolError(1002, f"a host speaks envelope version {event.version}, not {ENVELOPE_VERSION}")
    if event.slots != slots or not 0 <= event.slot < slots:
        raise RemoteProtocolError(1002, f"a host serves slot {event.slot} of {event.slots}, but there are {slots}")
    return event
