"""The gateway: its parts put together, and the turn that they share.

It runs no worker code and keeps no object: only sockets and where they belong. Everything happens on one loop; a turn is
one batch of ready descriptors or of a host's events, after which each link and connection written to is flushed once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import resource
import socket
import sys
import time
from typing import TYPE_CHECKING, Protocol

from roost.gateway.io.access import Access
from roost.gateway.io.busy_poll import BusyPoll
from roost.gateway.io.connection import Backlog, Channel, Connection, State, flush_all
from roost.gateway.io.http_connection import HttpConnection
from roost.gateway.io.listener import RESERVED_FILES, Listener
from roost.gateway.io.reactor import WRITE, Deadlines, Reactor
from roost.gateway.io.tls import ServerTls, TlsHttpConnection
from roost.gateway.limits import Counters, GatewayLimits
from roost.gateway.routing.host_slot import check_hello
from roost.gateway.routing.journal import Journal
from roost.gateway.routing.router import Router
from roost.gateway.routing.sockets import SocketTable, shared_tags
from roost.gateway.upstreams.dialling import Outbound
from roost.protocol.http import http_date, simple_response
from roost.protocol.websocket import CloseCode, deflate_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from roost.clock import Clock
    from roost.events import Event
    from roost.gateway.routing.journal import Lost
    from roost.link.port import Link
    from roost.storage.assets import Assets

_log = logging.getLogger("roost.gateway")

_COUNT_BEGINS_NS = 1_767_225_600_000_000_000  # 2026-01-01
_COUNT_SHIFT = 15  # units of 33 us: 44 bits last for 18 years

_PROBES = 4  # of TCP keep-alive, until a client that answers none is gone
_SPREAD_FROM = 100  # sockets: fewer are closed at once when the gateway ends


class RequestLog(Protocol):
    """Where the line of each request goes."""

    def line(self, method: str, target: str, status: int) -> None: ...

    def flush(self) -> None:
        """The turn is over: write its lines."""
        ...


class Gateway:
    """One gateway on the running loop. `start` it, `add_host` links, `listen`; `drain` ends it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        *,
        slots: int,
        limits: GatewayLimits | None = None,
        request_log: RequestLog | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        ca_file: str | None = None,
        epoch: int | None = None,
        tls: ServerTls | None = None,
        journal: str | None = None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.limits = limits or GatewayLimits()
        self.access = Access(self.limits.allowed_origins, self.limits.trusted_proxies)
        self.tls = tls
        self.counters = Counters()
        self.random_bytes = random_bytes
        self.ca_file = ca_file
        self.epoch = int.from_bytes(random_bytes(8), "big") if epoch is None else epoch
        self.assets: Assets | None = None
        self.dirty: list[Channel] = []
        self._deflated: tuple[bytes, dict[int, bytes]] = (b"", {})  # the last frame, by window
        self.again: list[HttpConnection] = []  # connections with a pipelined request to begin
        self.later: list[tuple[Connection, bytes]] = []  # what a client sent before its 101
        polling_s = self.limits.busy_poll_us / 1e6
        self.busy_poll = BusyPoll(polling_s, self.counters) if polling_s else None
        self.reactor = Reactor(loop, self.end_turn, self.busy_poll, clock.monotonic)
        self.sockets = SocketTable()
        self.journal = Journal(journal)
        self.router = Router(self, slots)
        self.outbound = Outbound(self)
        self.file_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._deadlines = Deadlines(loop, self._expire)
        self.listeners: list[Listener] = []
        self.generation = 0
        self._request_log = request_log
        self._lines_wait = False
        self._per_address: dict[str, int] = {}
        self.addresses: dict[int, str] = {}  # by descriptor, only while there is a bound per address
        self._pings: dict[int, int] = {}
        self._date = ("", 0)
        self._refusals_logged_at = 0.0
        self._in_end = False
        self.draining = False
        self.quiescing = False  # another gateway is about to take over: no new requests, no new dials
        self.unknown_links: set[Link] = set()  # whose hello has not come
        self.closing_due: dict[int, float] = {}
        self._discarded: dict[int, int] = {}

    # life

    def start(self) -> None:
        """Begin to poll."""
        self.journal.start(self.sockets)
        self.reactor.start()

    def inherit(self, lost: Iterable[Lost]) -> None:
        """The gateway before was killed with these sockets: their objects hear of their ends."""
        for socket_lost in lost:
            self.generation = max(self.generation, socket_lost.number >> 20)
            slot = self.router.exchanges.slot_for(socket_lost.object)
            connection = Connection(self, -1, socket_lost.number, slot.plain)
            connection.state = State.GONE
            self.reactor.reserve(socket_lost.number & 0xFFFFF)
            record = self.sockets.bind(connection, socket_lost.object, slot)
            record.awake = False
            connection.tags = shared_tags(socket_lost.tags)
            connection.attachment, connection.protocol = socket_lost.attachment, socket_lost.protocol
            self.counters.hibernatable += 1
            self.counters.inherited += 1
            reason = "WebSocket disconnected without sending Close frame."
            self.router.closed(connection, CloseCode.ABNORMAL, reason, clean=False)

    def listen(self, sock: socket.socket) -> None:
        """Accept clients from a listening socket, which the gateway now owns."""
        listener = Listener(self, sock)
        listener.start()
        self.listeners.append(listener)

    def add_host(self, link: Link) -> None:
        """A host has connected; its hello says which slot it serves."""
        self.unknown_links.add(link)
        link.start(_Unknown(self, link))

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, finish requests, say 1001 to every WebSocket, and close what is left at `timeout_s`."""
        self.draining = True
        for listener in self.listeners:
            listener.close()
        deadline = self.loop.time() + timeout_s
        while self._open(HttpConnection, busy=True) and self.loop.time() < deadline - 1.0:
            await asyncio.sleep(0.02)
        for channel in self._open(HttpConnection):
            channel.lost()
        self.outbound.goodbye()
        await self._say_going_away(deadline)
        while self._open(Connection) and self.loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in self._open(Connection):
            connection.close(CloseCode.ABNORMAL, "The server has shut down.")  # type: ignore[attr-defined]
        for channel in self._open(Channel):
            channel.close_fd()
        await self.outbound.close()
        for slot in self.router.slots:
            if slot.link is not None:
                slot.link.flush()
        self._deadlines.close()
        self.reactor.close()
        self.journal.end()

    def end_pumped(self, pid: int) -> None:
        """Close the clients whose TLS sessions another process has, which is to end: WebSockets with 1012."""
        for channel in self._open(Channel):
            if _made_by(channel.fd) == pid:
                if isinstance(channel, Connection):
                    channel.close(CloseCode.SERVICE_RESTART, "The server was upgraded.")
                elif isinstance(channel, HttpConnection):
                    channel.cut("The server was upgraded.")
        self.end_turn()

    def handed_over(self) -> None:
        """Another process has everything: nothing here may touch it again."""
        for listener in self.listeners:
            listener.close()
        self._deadlines.close()
        self.reactor.close()
        self.reactor.table.clear()
        self.journal.leave()

    async def _say_going_away(self, deadline: float) -> None:
        """1001 to every WebSocket, in random order over a while, so that they do not all come back at once."""
        connections = self._open(Connection)
        random.shuffle(connections)
        began = self.loop.time()
        spread_s = min(self.limits.drain_spread_s, max(0.0, (deadline - began) / 2))
        told = 0
        while told < len(connections):
            passed = (self.loop.time() - began) / spread_s if spread_s and len(connections) >= _SPREAD_FROM else 1.0
            upto = max(told + 1, int(len(connections) * min(passed, 1.0)))
            for connection in connections[told:upto]:
                connection.close(CloseCode.GOING_AWAY, "The server is shutting down.")  # type: ignore[attr-defined]
            told = upto
            self.end_turn()
            if told < len(connections):
                await asyncio.sleep(0.02)

    def _open(self, kind: type[Channel], *, busy: bool = False) -> list[Channel]:
        return [
            channel
            for channel in self.reactor.table
            if isinstance(channel, kind) and (not busy or channel.busy)  # type: ignore[attr-defined]
        ]

    # turns

    def end_turn(self) -> None:
        """Flush what the turn wrote. Reentrant: a flush may cause more writes."""
        if self.reactor.in_turn or self._in_end:
            return
        self._in_end = True
        slots = self.router.slots
        try:
            while True:
                for slot in slots:
                    if slot.link is not None:
                        slot.link.flush()
                    if slot.leaving is not None:
                        slot.leaving.flush()
                    slot.update_full()
                if self.journal.lines:
                    self.journal.flush(self.sockets)
                if self.dirty:
                    self.flush_connections()
                elif self.later:
                    later, self.later = self.later, []
                    for connection, data in later:
                        try:
                            self.rewatch(connection)
                            if data:
                                connection.received(data)
                        except Exception as error:  # noqa: BLE001 - one connection's bug must not mute the others
                            _log.exception("gateway: internal error in what came early; the connection is closed")
                            connection.broken(error)
                elif self.again:
                    again, self.again = self.again, []
                    for http in again:
                        try:
                            http.again()
                        except Exception as error:  # noqa: BLE001 - likewise
                            _log.exception("gateway: internal error in a pipelined request; the connection is closed")
                            http.broken(error)
                else:
                    break
        finally:
            self._in_end = False
        if self._lines_wait and self._request_log is not None:
            self._lines_wait = False
            self._request_log.flush()
        for slot in slots:
            if slot.unfinished or slot.late:
                return  # its host will have something to say
        self.reactor.wait()

    def flush_connections(self) -> None:
        """Write what is queued for clients. What must not leave before the journal knows of it waits for `end_turn`."""
        if self.journal.lines:
            return
        dirty, self.dirty = self.dirty, []
        flush_all(dirty)

    # connections

    @property
    def is_full(self) -> bool:
        """Whether the process may open hardly any more files: what is left is for links, dials and files."""
        return self.open_files >= self.file_limit - RESERVED_FILES

    @property
    def open_files(self) -> int:
        """Connections, plus what the process needs besides them."""
        return self.counters.connections + 32

    def new_number(self, fd: int) -> int:
        """A socket's number: its descriptor's, and a count that grows with the time, so that an object's sockets at several
        gateways have an order: who connected first."""
        self.generation = max(self.generation + 1, (time.time_ns() - _COUNT_BEGINS_NS) >> _COUNT_SHIFT)
        return self.generation << 20 | fd

    def new_virtual_number(self) -> int:
        """A number without a descriptor (0 is never a client's), for a socket whose client is bound later."""
        return self.new_number(0)

    def accepted(self, sock: socket.socket, peer: str) -> None:
        """A new client: refuse it, or make it an `HttpConnection`."""
        self.counters.accepted += 1
        limits = self.limits
        if limits.max_connections and self.counters.connections >= limits.max_connections:
            self.counters.refused_connections += 1
            self._refuse(sock, "WebSocket connection limit exceeded: raise limits.max_connections or try again later.")
            return
        if self.is_full:
            self.counters.refused_connections += 1
            self._refuse(sock, "No more connections: this process may open no more files. Raise `ulimit -n` or --gateways.")
            return
        if limits.max_connections_per_address and not self.access.is_proxy(peer):
            if self._per_address.get(peer, 0) >= limits.max_connections_per_address:
                self.counters.refused_address += 1
                self._refuse(sock, "Too many connections from this address (limits.max_connections_per_address).")
                return
            self.count_address(sock.fileno(), peer)
        sock.setblocking(False)
        fd = sock.detach()
        if self.tls is None:
            http = HttpConnection(self, fd, self.new_number(fd), peer)
        else:
            http = TlsHttpConnection(self, fd, self.new_number(fd), peer, self.tls.pipe(self.loop.time()))
        self.adopt(http)
        self._deadlines.add(self.loop.time() + limits.head_timeout_s, http.number)

    def watch_over(self, sock: socket.socket, *, local: bool = False) -> None:
        """Send at once, and have the kernel notice a peer that has vanished.

        One on this machine (`local`), such as a proxy, cannot vanish unnoticed. It is not probed: Linux drops probes of
        more than about a thousand loopback sockets that are due at the same tick, and would end the sockets for it.
        """
        limits = self.limits
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, not local)
        if not local and hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, limits.tcp_keepalive_s))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, limits.tcp_timeout_s // _PROBES))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # the same for one who vanishes while he is owed something
            timeout_ms = 0 if local else 1000 * (limits.tcp_keepalive_s + limits.tcp_timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)

    def look_again(self, http: HttpConnection, in_s: float | None = None) -> None:
        """A connection has deadlines anew: another gateway had accepted it, or its client has ended its half."""
        self._deadlines.add(self.loop.time() + (self.limits.head_timeout_s if in_s is None else in_s), http.number)

    def count_address(self, fd: int, peer: str) -> None:
        """A descriptor belongs to a client of that address, for the bound per address."""
        self._per_address[peer] = self._per_address.get(peer, 0) + 1
        self.addresses[fd] = peer

    def adopt(self, channel: Channel) -> None:
        """Take over a channel with an open descriptor."""
        self.counters.connections += 1
        if isinstance(channel, Connection):
            self.counters.sockets += 1
        self.reactor.register(channel.fd, channel)

    def _refuse(self, sock: socket.socket, text: str) -> None:
        now = self.loop.time()
        if now - self._refusals_logged_at >= 1.0:
            self._refusals_logged_at = now
            _log.warning("gateway: %s (%d refused so far)", text, self.counters.refused_connections)
        sock.setblocking(False)
        try:
            sock.recv(65536)  # what is unread at close would turn the answer into a reset
        except OSError:
            pass
        try:
            sock.send(simple_response(503, text + "\n", [("Retry-After", "5")], close=True))
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        sock.close()

    def connection_closed(self, channel: Channel, fd: int) -> None:
        """A channel has closed its descriptor."""
        self.counters.connections -= 1
        self.closing_due.pop(channel.number, None)
        self._discarded.pop(channel.number, None)
        if isinstance(channel, Connection):
            self.counters.sockets -= 1
            self.router.connection_closed(channel)
        else:
            self.router.held_back.discard(channel.number)
        if fd in self.addresses:
            self._forget_address(self.addresses.pop(fd))
        for listener in self.listeners:
            if listener.paused:
                self.loop.call_soon(listener.resume)

    def _forget_address(self, peer: str) -> None:
        left = self._per_address.get(peer, 0) - 1
        if left > 0:
            self._per_address[peer] = left
        else:
            self._per_address.pop(peer, None)

    def rewatch(self, channel: Channel) -> None:
        """Watch a channel for what it wants now."""
        if channel.fd >= 0:
            blocked = type(channel.out) is Backlog
            self.reactor.watch(channel.fd, channel.wanted() | (WRITE if blocked else 0))

    # deadlines and rates

    def close_deadline(self, number: int, in_s: float | None = None) -> None:
        """A closing handshake has begun."""
        due = self.loop.time() + (self.limits.close_timeout_s if in_s is None else in_s)
        self.closing_due[number] = due
        self._deadlines.add(due, number)

    def discarded(self, number: int, size: int) -> int:
        """Count bytes that a closing client still sent; how many so far."""
        self._discarded[number] = self._discarded.get(number, 0) + size
        return self._discarded[number]

    def _expire(self, number: int, now: float) -> float | None:
        channel = self.reactor.table[number & 0xFFFFF] if number & 0xFFFFF < len(self.reactor.table) else None
        if channel is None or channel.number != number:
            channel = self.router.aliases.get(number)
        following = None
        if isinstance(channel, HttpConnection):
            following = channel.expire(now)
        elif isinstance(channel, Connection) and channel.fd >= 0 and self.closing_due.get(number, now + 1) <= now + 0.01:
            channel.expire()
        self.end_turn()
        return following

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
        if self._request_log is not None:
            self._request_log.line(method, target, status)
            self._lines_wait = True

    def log_worker_fault(self, target: str, text: str) -> None:
        _log.error("worker: the response to %s cannot be sent: %s", target, text)


def _made_by(fd: int) -> int:
    """The process that made the pair of a unix socket; 0 for what is none (socket(7), SO_PEERCRED)."""
    sock = socket.socket(fileno=fd)
    try:
        if sock.family == socket.AF_UNIX and hasattr(socket, "SO_PEERCRED"):
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
        return 0
    except OSError:
        return 0
    finally:
        sock.detach()


class _Unknown:
    """The receiver of a link until its hello says which slot it serves."""

    def __init__(self, gateway: Gateway, link: Link) -> None:
        self._gateway = gateway
        self._link = link

    def on_events(self, events: Sequence[Event]) -> None:
        self._gateway.unknown_links.discard(self._link)
        slots = self._gateway.router.slots
        hello = check_hello(events[0] if events else None, len(slots))
        slot = slots[hello.slot]
        if slot.current is not None:  # its process is over: what it had still said and done is in the buffers
            slot.current.read_rest()
        if slot.current is not None:
            slot.current.close()
            slot.on_closed("a new host took its place")
        self._link.start(slot)
        self._gateway.router.exchanges.one_host = hello.one_host
        slot.attach(self._link, hello)
        if len(events) > 1:
            slot.on_events(events[1:])
        self._gateway.end_turn()

    def on_closed(self, reason: str) -> None:
        self._gateway.unknown_links.discard(self._link)
        _log.debug("gateway: a link closed before its hello: %s", reason)

    def on_drained(self) -> None:
        """Nothing was held back."""
