"""One host's place at a gateway, whether a host is there or not: its link, and what waits for it.

It numbers events, keeps them until the host says done (`owed`), and gives them to the successor of a host that died.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from roost.errors import RemoteProtocolError
from roost.events import (
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
from roost.gateway.io.owner import Owner
from roost.gateway.routing.owed import Begun, GroupsReceived, Owed
from roost.link.port import MovableLink
from roost.protocol.envelope import Splitter, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from roost.events import Event
    from roost.gateway.io.turn import Turn
    from roost.link.port import Link

_MAX_ENVELOPES_BYTES = 1 << 30
_SOCKET_EVENTS = (SocketMessage, SocketClose, SocketError, SocketOpened)


class SlotOwner(Protocol):
    """Who decides what becomes of what a host says, and of its sockets and requests when it comes and goes."""

    last_event: int
    epoch: int

    def from_host(self, slot: HostSlot | Departed, events: Sequence[Event]) -> None: ...

    def end_finished(self, event: SocketClose | SocketError) -> None: ...

    def release_held(self, slot: HostSlot) -> None:
        """The host has caught up: its clients may be read again."""
        ...

    def close_plain(self, slot: HostSlot) -> None:
        """The program's end of its plain sockets is about to go, or gone."""
        ...

    def host_lost(self, slot: HostSlot, link: Link | None) -> None: ...

    def departed_lost(self, departed: Departed) -> None: ...

    def give(self, request: Request | Call, slot: HostSlot) -> None:
        """A request that has waited goes to its host."""
        ...


class SlotState(msgspec.Struct, array_like=True):
    """A host's place, for another process. `link` is the descriptor of its link, -1 while no host is there."""

    link: int
    begun: int
    begun_offset: int
    given: int
    unread: bytes
    unsent: bytes
    last_event: int
    unfinished: bytes
    stragglers: bytes
    attempts: dict[int, int]
    breaker: str
    waiting: bytes
    groups: tuple[int, int, list[int]]


class HostSlot(Owed):
    """One host's place: its link while a host is there, and the events it owes an answer for. A link.Receiver."""

    owner: SlotOwner

    def __init__(self, turn: Turn, index: int) -> None:
        super().__init__(turn.limits, turn.counters)
        self.index = index
        self.slot = self  # a `Departed` has the slot that it was of
        self.link: Link | None = None
        self.leaving: Link | None = None  # a host that ends in order: it gets nothing new, and finishes what it has
        self.departed: list[Departed] = []  # hosts that were replaced, and finish their requests
        self.plain = Owner(self, 0)
        self.full = False  # its clients are held back
        self.waiting: deque[Request | Call] = deque()  # requests that found no host here yet
        self.breaker = ""  # why nobody should wait for a host: its code crashes again and again
        self.given = 0  # requests, to the host that is here
        self.groups_received = GroupsReceived(0)
        self._begun: Begun | None = None

    @property
    def current(self) -> Link | None:
        """The host that has what was given before: also one that is leaving."""
        return self.link if self.link is not None else self.leaving

    # events

    def next_event(self) -> int:
        """A number for an event: one counter for the whole process, as an object's record of finished events (by epoch and
        number) may move to another slot's host."""
        owner = self.owner
        self.last_event = owner.last_event = owner.last_event + 1
        return self.last_event

    def deliver(self, event: SocketClose | SocketError | SocketOpened) -> None:
        """Keep the event until it is done, and send it if a host is there. `Router.message` does so with messages."""
        self.keep(event)
        if self.link is not None:
            self.link.send(event)
        elif not event.actor and self.leaving is not None:
            self.leaving.send(event)  # a plain socket's program is there

    def end_finished(self, event: SocketClose | SocketError) -> None:
        self.owner.end_finished(event)

    def update_full(self) -> None:
        """Decide, once a turn, whether clients of this host are held back."""
        link = self.link
        if not self.full and not self.unfinished and (link is None or not link.congested):
            return  # as nearly always; stragglers alone were not too much when they came
        full = self.is_too_much(congested=link is not None and link.congested)
        if self.full and not full:
            self.owner.release_held(self)
        self.full = full

    # requests

    def give(self, request: Request | Call) -> int:
        """Send a request to the host that is here; which one of its requests it is, from 1."""
        assert self.link is not None
        self.given += 1
        self.link.send(request)
        return self.given

    def begun(self) -> int:
        """How many of its requests the host has begun, also after its death; all, as far as we know, without its word."""
        return self.given if self._begun is None else self._begun.count()

    # the host's coming and going

    def attach(self, link: Link, hello: Hello) -> None:
        """A host is here: give it what its predecessor left unfinished, in order, then what waited."""
        self.link = link
        self.given = 0
        if self._begun is not None:
            self._begun.close()
        self._begun = Begun.open(hello.mark, hello.link) if hello.mark else None
        before, given = self.redelivered()
        groups, self.groups_received = self.groups_received, GroupsReceived(hello.life)
        link.send(
            Welcome(
                self.owner.epoch, before, [event.event for event in given],
                groups.life, groups.upto, sorted(groups.besides),
            )
        )  # fmt: skip
        for event in given:
            link.send(event)
        while self.waiting:
            self.owner.give(self.waiting.popleft(), self)

    def leave(self) -> None:
        """The host wants nothing new. The echo tells it that whatever it was given lies before it."""
        if self.link is not None:
            self.leaving, self.link = self.link, None
            self.owner.close_plain(self)
            self.leaving.send(Leaving())

    def depart(self) -> None:
        """The host that leaves has let go of its objects: a successor may come, while it finishes its requests."""
        if self.leaving is not None:
            link, self.leaving = self.leaving, None
            self.departed.append(Departed(self, link))
            link.start(self.departed[-1])
            self.forget_plain()

    # link.Receiver

    def on_events(self, events: Sequence[Event]) -> None:
        self.owner.from_host(self, events)

    def on_closed(self, reason: str) -> None:
        lost = self.current
        orderly, self.link, self.leaving = self.link is None, None, None
        if not orderly:
            self.suspect()
        self.owner.host_lost(self, lost)

    def on_drained(self) -> None:
        self.update_full()

    # for another process

    def described(self, is_moved: Callable[[Request | Call], bool]) -> tuple[SlotState, list[int]]:
        """All that a successor must know of it, and the descriptors that the state names. Of the requests that wait those
        go along that are `is_moved`."""
        link, begun = self.link, self._begun
        number, unread, unsent = -1, b"", b""
        descriptors = []
        if isinstance(link, MovableLink):
            number, unread, unsent = link.fileno(), link.unread, link.backlog
            descriptors.append(number)
        if begun is not None and begun.fd >= 0:
            descriptors.append(begun.fd)
        groups = self.groups_received
        state = SlotState(
            number,
            -1 if begun is None else begun.fd,
            0 if begun is None else begun.offset,
            self.given,
            unread,
            unsent,
            self.last_event,
            envelopes(self.unfinished),
            envelopes(self.stragglers.values()),
            self.attempts,
            self.breaker,
            envelopes(request for request in self.waiting if is_moved(request)),
            (groups.life, groups.upto, sorted(groups.besides)),
        )
        return state, descriptors

    def adopt(self, told: SlotState, link: Link | None, begun_fd: int) -> None:
        """Go on where another process was, with the descriptors that it had."""
        self.link = link
        self.restore(
            told.last_event,
            [event for event in events_of(told.unfinished) if isinstance(event, _SOCKET_EVENTS)],
            [event for event in events_of(told.stragglers) if isinstance(event, _SOCKET_EVENTS)],
            told.attempts,
        )
        self.owner.last_event = max(self.owner.last_event, told.last_event)
        self.given, self.breaker = told.given, told.breaker
        self.groups_received = GroupsReceived(*told.groups)
        self._begun = Begun(begun_fd, told.begun_offset) if begun_fd >= 0 else None
        self.waiting.extend(event for event in events_of(told.waiting) if isinstance(event, Request | Call))


class Departed:
    """The link of a host that another has replaced: it answers what it has begun, and owes no events. A link.Receiver, and
    in the router's hands as much of a `HostSlot` as answers need."""

    leaving: Link | None = None

    def __init__(self, slot: HostSlot, link: Link) -> None:
        self.slot = slot
        self.index = slot.index
        self.link = link
        self.groups_received = GroupsReceived(0)

    @property
    def current(self) -> Link:
        return self.link

    def done(self, upto: int, stragglers: tuple[int, ...]) -> None:
        """Its last word on events was said before it departed."""

    def on_closed(self, reason: str) -> None:
        if self in self.slot.departed:
            self.slot.departed.remove(self)
            self.slot.owner.departed_lost(self)

    def close(self) -> None:
        """It had its time."""
        self.link.close()
        self.on_closed("the gateway is being replaced")

    def on_drained(self) -> None:
        """Nobody was held back for it."""

    def on_events(self, events: Sequence[Event]) -> None:
        self.slot.owner.from_host(self, events)


def envelopes(events: Iterable[Event]) -> bytes:
    """Events as they travel, for another process."""
    return b"".join(map(encode, events))


def events_of(data: bytes) -> Sequence[Event]:
    """What `envelopes` has made of them."""
    return Splitter(_MAX_ENVELOPES_BYTES).feed(data)


def check_hello(event: Event | None, slots: int) -> Hello:
    """A new host's hello. Raises RemoteProtocolError if it is not for us."""
    if type(event) is not Hello:
        raise RemoteProtocolError(1002, "a host must say hello first")
    if event.version != ENVELOPE_VERSION:
        raise RemoteProtocolError(1002, f"a host speaks envelope version {event.version}, not {ENVELOPE_VERSION}")
    if event.slots != slots or not 0 <= event.slot < slots:
        raise RemoteProtocolError(1002, f"a host serves slot {event.slot} of {event.slots}, but there are {slots}")
    return event
