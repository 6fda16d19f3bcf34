"""What all channels of a gateway share for one turn of its loop, and whom they tell.

A turn is one batch of ready descriptors or of a host's events. What is written in it waits in `dirty`; `end` flushes each
channel and link once. It must not know what a channel is, nor where its messages go: `socket_events`, `requests` and
`door` are ports, which `gateway.py` fills in.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from roost import memory
from roost.gateway.counters import Counters
from roost.gateway.io.access import Access
from roost.gateway.io.busy_poll import BusyPoll
from roost.gateway.io.reactor import Deadlines, Reactor
from roost.protocol.http import http_date
from roost.protocol.websocket import deflate_frame

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from roost.clock import Clock
    from roost.events import Abort, BodyCredit, BodyData, Request
    from roost.gateway.limits import GatewayLimits
    from roost.storage.assets import Assets

_log = logging.getLogger("roost.gateway")

_TRIM_AFTER_S = 5.0  # without a large message; it takes some milliseconds
_TRIM_EVERY_S = 60.0  # at most
_COUNT_BEGINS_NS = 1_767_225_600_000_000_000  # 2026-01-01
_COUNT_SHIFT = 15  # units of 33 us: 44 bits last for 18 years
FD_BITS = 20
FD_MASK = (1 << FD_BITS) - 1  # a number's descriptor; the rest of it is the time at which the socket came


class SocketEvents(Protocol):
    """Who hears what a WebSocket says. Exactly one of `closed` and `failed` is called for each."""

    def message(self, connection: Any, data: str | bytes) -> None: ...

    def closed(self, connection: Any, code: int, reason: str, *, clean: bool) -> None:
        """The client's end is over."""
        ...

    def failed(self, connection: Any, code: int, reason: str) -> None:
        """The client broke the protocol or a limit, and has been closed with `code`."""
        ...

    def descriptor_closed(self, connection: Any) -> None:
        """Nothing more leaves or arrives."""
        ...


class RequestSink(Protocol):
    """Who answers requests."""

    def new_request(self, connection: Any) -> int:
        """A number for the request that a client's connection is about to ask."""
        ...

    def request(self, request: Request) -> None: ...

    def to_host(self, request: int, event: BodyData | BodyCredit | Abort) -> None:
        """What follows a request goes where that went."""
        ...

    def request_over(self, request: int) -> None:
        """Its client wants no answer any more."""
        ...


class Door(Protocol):
    """Who counts those that come and go."""

    def left(self, fd: int) -> None:
        """That descriptor is closed."""
        ...


class RequestLog(Protocol):
    """Where the line of each request goes."""

    def line(self, method: str, target: str, status: int) -> None: ...

    def flush(self) -> None:
        """The turn is over: write its lines."""
        ...


class Pipelined(Protocol):
    """An HTTP connection whose next request has arrived already."""

    def begin_pipelined(self) -> None: ...

    def broken(self, error: Exception) -> None: ...


class Turn:
    """One gateway's. `end` is called at the end of each turn, and by whoever writes outside of one."""

    socket_events: SocketEvents
    requests: RequestSink
    door: Door

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        limits: GatewayLimits,
        end: Callable[[], None],
        random_bytes: Callable[[int], bytes],
        request_log: RequestLog | None = None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.limits = limits
        self.end = end
        self.random_bytes = random_bytes
        self.access = Access(limits.allowed_origins, limits.trusted_proxies)
        self.counters = Counters()
        polling_s = limits.busy_poll_us / 1e6
        busy_poll = BusyPoll(polling_s, self.counters) if polling_s else None
        self.reactor = Reactor(loop, end, busy_poll, clock.monotonic)
        self.assets: Assets | None = None
        self.dirty: list[Any] = []  # channels with something to write
        self.pipelined: list[Pipelined] = []
        self.early: list[tuple[Any, bytes]] = []  # a WebSocket, and what its client sent before its 101
        self.held_back: set[int] = set()  # numbers of channels that are not read at the moment
        self.aliases: dict[int, Any] = {}  # WebSockets by numbers that are not (or no longer) a descriptor's
        self.closing_due: dict[int, float] = {}
        self.draining = False
        self.quiescing = False  # another gateway is about to take over: no new requests, no new dials
        self.generation = 0
        self._deadlines = Deadlines(loop, self._expire)
        self._discarded: dict[int, int] = {}
        self._pings: dict[int, int] = {}
        self._large_at = self._trimmed_at = 0.0
        self._trims = False
        self._deflated: tuple[bytes, dict[int, bytes]] = (b"", {})  # the last frame, by window
        self._date = ("", 0)
        self.request_log = request_log
        self.lines_wait = False  # in `request_log`, for the end of the turn

    # channels

    def new_number(self, fd: int) -> int:
        """A socket's number: its descriptor's, and a count that grows with the time, so that an object's sockets at several
        gateways have an order: who connected first."""
        self.generation = max(self.generation + 1, (time.time_ns() - _COUNT_BEGINS_NS) >> _COUNT_SHIFT)
        return self.generation << FD_BITS | fd

    def new_virtual_number(self) -> int:
        """A number without a descriptor (0 is never a client's), for a socket whose client is bound later."""
        return self.new_number(0)

    def seen_number(self, number: int) -> None:
        """Another gateway has given that number: those of this one are later."""
        self.generation = max(self.generation, number >> FD_BITS)
        self.reactor.reserve(number & FD_MASK)

    def find(self, number: int) -> Any:
        """The channel of a number, also one whose descriptor is closed but whose end is not finished with; or None."""
        channel = self.reactor.table[number & FD_MASK]
        if channel is None or channel.number != number:
            return self.aliases.get(number)
        return channel

    def adopt(self, channel: Any) -> None:
        """Take over a channel with an open descriptor."""
        self.counters.connections += 1
        self.counters.sockets += channel.is_websocket
        self.reactor.register(channel.fd, channel)

    def closed(self, channel: Any, fd: int) -> None:
        """A channel has closed its descriptor."""
        self.counters.connections -= 1
        self.closing_due.pop(channel.number, None)
        self._discarded.pop(channel.number, None)
        self.held_back.discard(channel.number)
        if channel.is_websocket:
            self.counters.sockets -= 1
            self.socket_events.descriptor_closed(channel)
        self.door.left(fd)

    # deadlines and rates

    def close_deadline(self, channel: Any, in_s: float | None = None) -> None:
        """A closing handshake has begun. Of a descriptor that is closed already nobody would forget it."""
        if channel.fd < 0:
            return
        due = self.loop.time() + (self.limits.close_timeout_s if in_s is None else in_s)
        self.closing_due[channel.number] = due
        self._deadlines.add(due, channel.number)

    def look_again(self, number: int, in_s: float | None = None) -> None:
        """A connection has deadlines anew: it was accepted, here or elsewhere, or its client has ended its half."""
        self._deadlines.add(self.loop.time() + (self.limits.head_timeout_s if in_s is None else in_s), number)

    def discarded(self, number: int, size: int) -> int:
        """Count bytes that a closing client still sent; how many so far."""
        self._discarded[number] = self._discarded.get(number, 0) + size
        return self._discarded[number]

    def _expire(self, number: int, now: float) -> float | None:
        channel = self.find(number) if number & FD_MASK < len(self.reactor.table) else self.aliases.get(number)
        following: float | None = None if channel is None else channel.expire(now)
        self.end()
        return following

    def large_message(self) -> None:
        """One has come: once there have been none for a while, the memory that they took goes back to the system."""
        self._large_at = self.loop.time()
        if not self._trims:
            self._trims = True
            self.loop.call_later(_TRIM_AFTER_S, self._trim)

    def _trim(self) -> None:
        now = self.loop.time()
        due_at = max(self._large_at + _TRIM_AFTER_S, self._trimmed_at + _TRIM_EVERY_S if self._trimmed_at else 0.0)
        if due_at > now:
            self.loop.call_later(due_at - now, self._trim)
        else:
            self._trims = False
            self._trimmed_at = now
            memory.trim()

    def allow_ping(self, number: int) -> bool:
        """Count a ping; False if the client has sent too many in this second."""
        if not self._pings:
            self.loop.call_later(1.0, self._pings.clear)
        count = self._pings.get(number, 0) + 1
        self._pings[number] = count
        return count <= self.limits.max_pings_per_s

    # words

    def deflated(self, frame: bytes, bits: int) -> bytes:
        """A message's frame as those who agreed on a window of `bits` get it: a message to many is compressed once."""
        limits = self.limits
        if not limits.compress_min_bytes <= len(frame) <= limits.compress_max_bytes:
            return frame
        if self._deflated[0] is not frame:
            self._deflated = (frame, {})
        known = self._deflated[1]
        if bits not in known:
            known[bits] = deflate_frame(frame, bits, limits.compression_level)
            self.counters.deflated += 1
        return known[bits]

    def http_date(self) -> str:
        """The Date header's value, made once a second."""
        now = int(time.time())
        if self._date[1] != now:
            self._date = (http_date(now), now)
        return self._date[0]

    def log_request(self, method: str, target: str, status: int) -> None:
        if self.request_log is not None:
            self.request_log.line(method, target, status)
            self.lines_wait = True

    def log_worker_fault(self, target: str, text: str) -> None:
        _log.error("worker: the response to %s cannot be sent: %s", target, text)

    # the end, and another process

    def take_counters(self, counters: Counters) -> None:
        """Go on counting where another gateway was."""
        for name, value in msgspec.structs.asdict(counters).items():
            setattr(self.counters, name, value)

    def close(self) -> None:
        """Poll and expire no more. Channels are their owners' to close."""
        self._deadlines.close()
        self.reactor.close()
