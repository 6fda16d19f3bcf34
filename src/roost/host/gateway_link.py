"""The host's end of a link: which sockets of that gateway are known here, and which events are not yet done."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from roost.events import Attach, CloseSocket, Confirm, Done, Event, Roster
from roost.link.port import NO_CONTEXT
from roost.protocol.envelope import Splitter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from roost.api.http import Request
    from roost.api.socket_end import SocketEnd, SocketPort
    from roost.host.bodies import BodyReader
    from roost.link.port import Link


_RELAY_WINDOW_S = 30.0
_MAX_ENDED = 4096  # more than a gateway may be behind with hearing that they are done


StoredGroup = tuple[int, int, int, bytes]
"""What was sent to a gateway: its process' epoch, the life and number of the group (events.GroupEnd), the envelopes."""


class Receipt:
    """Of what was sent on a link: `has_come` once the gateway has received it."""

    __slots__ = ("_gateway", "_number")

    def __init__(self, gateway: GatewayLink, number: int) -> None:
        self._gateway = gateway
        self._number = number

    @property
    def has_come(self) -> bool:
        """Also if the gateway is gone: it redelivers nothing."""
        return self._gateway.gone.is_set() or self._gateway.has_confirmed(self._number)


class GatewayEvents(Protocol):
    """Who hears what a gateway says."""

    def on_events(self, gateway: GatewayLink, events: Sequence[Event]) -> None: ...

    def gateway_lost(self, gateway: GatewayLink, reason: str) -> None: ...


class GatewayLink:
    """A link.Receiver, and the `SocketPort` of every socket that its gateway holds."""

    __slots__ = (
        "_confirmed",
        "_confirms",
        "_events",
        "_groups",
        "_loop",
        "_received_before",
        "abandoned",
        "bodies",
        "dials",
        "ended",
        "epoch",
        "gone",
        "index",
        "last_event",
        "left",
        "life",
        "link",
        "offered",
        "readers",
        "redelivered",
        "redelivery_upto",
        "relayed",
        "responses",
        "running",
        "served",
        "slow",
        "sockets",
        "waking",
        "welcome",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link, index: int, life: int, events: GatewayEvents) -> None:
        self._loop = loop
        self._events = events
        self.life = life  # of this process, for what its objects send (events.GroupEnd)
        self.abandoned = False  # handlers are being cancelled: what they end with is not done
        self.link = link
        self.index = index
        self.sockets: dict[int, SocketEnd] = {}
        self.last_event = 0
        self._groups = 0
        self._confirms = 0  # how often it was asked to confirm, and up to which of those it has
        self._confirmed = 0
        self._received_before: tuple[int, int, frozenset[int]] = (0, 0, frozenset())
        self.epoch = 0  # of the gateway process; 0: it never gives an event again
        self.redelivery_upto = 0  # events up to this may have been given to an earlier host
        self.ended: deque[int] = deque(maxlen=_MAX_ENDED)  # hibernatable sockets whose ends were told to their objects
        self.redelivered: set[int] = set()  # events that were given before and are still to come
        self.running: set[int] = set()
        self.offered: list[Roster] = []  # the pieces of one that came unasked, for the event right behind it
        self.waking: dict[int, list[Any]] = {}  # by the gateway's actor number: events that wait for its roster
        self.bodies: dict[int, BodyReader] = {}
        self.served: dict[int, Request] = {}  # requests that have not been answered
        self.responses: dict[int, Any] = {}  # futures of stub calls that went through this gateway
        self.dials: dict[int, Any] = {}
        self.readers: dict[int, BodyReader] = {}  # bodies of stub answers that the caller has not taken yet
        self.relayed: dict[int, int] = {}
        self.gone = asyncio.Event()
        self.welcome = False  # it has said who it is
        self.slow = False  # it has not answered in time, and nothing has come since
        self.left = False  # the gateway knows that this host is leaving, and gives it nothing more

    # api.runtime.SocketPort

    def send_message(self, number: int, payload: bytes, text: bool) -> None:
        self.link.send_to(number, payload, text)

    def close_socket(self, number: int, code: int, reason: str) -> None:
        self.link.send(CloseSocket(number, code, reason))

    def attach(self, number: int, attachment: bytes | None) -> None:
        self.link.send(Attach(number, attachment))

    def later(self, event: Event) -> None:
        """Send in a turn of its own, from whatever thread."""
        try:
            self._loop.call_soon_threadsafe(self.link.send, event, context=NO_CONTEXT)
        except RuntimeError:
            pass  # the loop is closed: so is the link

    # groups of what is sent (events.GroupEnd)

    def new_group(self) -> int:
        self._groups += 1
        return self._groups

    # what the gateway has received

    def ask_to_confirm(self) -> Receipt:
        """What will tell whether the gateway has received all that was sent until now, and in this turn."""
        rider = self.link.rider
        if rider is None:
            self._confirms += 1
            self.link.rider = Confirm(self._confirms)
        return Receipt(self, self._confirms)

    def confirmed(self, number: int) -> None:
        """The gateway has received what was sent before that one."""
        self._confirmed = number

    def has_confirmed(self, number: int) -> bool:
        return self._confirmed >= number

    def received_before(self, life: int, upto: int, besides: Iterable[int]) -> None:
        """What the gateway has of the host before this one."""
        self._received_before = (life, upto, frozenset(besides))

    def has_received(self, life: int, group: int) -> bool:
        """Whether the gateway has a whole group of an earlier life."""
        before, upto, besides = self._received_before
        return life == before and (group <= upto or group in besides)

    def send_envelopes(self, envelopes: bytes) -> None:
        """What an earlier host had to say to this gateway."""
        for event in Splitter(len(envelopes)).feed(envelopes):
            self.link.send(event)

    # sockets

    def adopt(self, socket: SocketEnd, number: int, port: SocketPort | None = None) -> None:
        """The gateway's socket `number` is this end's other side from now on, through `port` if it has a gate."""
        socket.connect_to(port or self, number)
        self.sockets[number] = socket

    def forget(self, socket: SocketEnd) -> None:
        if self.sockets.get(socket.socket_number) is socket:  # not a successor's
            del self.sockets[socket.socket_number]

    def relay(self, upstream: SocketEnd, client: int) -> None:
        """The gateway joins an upstream to a client's socket: pass on what arrives here until it has done so."""
        self.forget(upstream)
        self.relayed[upstream.socket_number] = client
        self._loop.call_later(_RELAY_WINDOW_S, self.relayed.pop, upstream.socket_number, None)

    def shrink(self) -> None:
        """A table that was large and is nearly empty is made anew: a dict never shrinks by itself."""
        self.sockets = dict(self.sockets)

    # link.Receiver

    def on_events(self, events: Sequence[Event]) -> None:
        self._events.on_events(self, events)

    def on_closed(self, reason: str) -> None:
        self.gone.set()
        self._events.gateway_lost(self, reason)

    def on_drained(self) -> None:
        """Reading goes on by itself."""

    # events done

    def finished(self, event: int) -> None:
        """A handler that had suspended is done with its event."""
        self.running.discard(event)
        self.send_done()

    def send_done(self) -> None:
        """Report progress: everything up to `last_event`, but for what still runs (the gateway bounds how many)."""
        if self.redelivered:
            self.redelivered = {event for event in self.redelivered if event > self.last_event or event in self.running}
        if not self.abandoned:
            self.link.send(Done(self.last_event, tuple(self.running) if self.running else ()))
