"""The gateway: its parts put together, its life, and the end of a turn.

It runs no worker code and keeps no object: only sockets and where they belong. Everything happens on one loop; a turn is
one batch of ready descriptors or of a host's events, after which each link and connection written to is flushed once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from roost.closes import LOST, SHUT_DOWN, SHUTTING_DOWN, UPGRADED
from roost.gateway.io.admission import Admission
from roost.gateway.io.channel import Channel
from roost.gateway.io.connection import Connection, State
from roost.gateway.io.http_connection import HttpConnection
from roost.gateway.io.listener import Listener
from roost.gateway.io.turn import Turn
from roost.gateway.limits import GatewayLimits
from roost.gateway.routing.exchanges import Exchanges
from roost.gateway.routing.host_slot import HostSlot, check_hello
from roost.gateway.routing.journal import Journal
from roost.gateway.routing.router import Router
from roost.gateway.routing.sockets import SocketTable
from roost.gateway.routing.upgrades import Upgrades
from roost.gateway.upstreams.dialling import Dialler
from roost.gateway.upstreams.kept import KeptUpstreams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from roost.clock import Clock
    from roost.events import Event
    from roost.gateway.io.tls import ServerTls
    from roost.gateway.io.turn import RequestLog
    from roost.gateway.routing.journal import Lost
    from roost.link.port import Link

_log = logging.getLogger("roost.gateway")

_SPREAD_FROM: Final = 100  # sockets: fewer are closed at once when the gateway ends
_Kind = TypeVar("_Kind", bound=Channel)


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
        turn = self.turn = Turn(loop, clock, limits or GatewayLimits(), self.end_turn, random_bytes, request_log)
        self.slots = [HostSlot(turn, index) for index in range(slots)]
        self.sockets = SocketTable(turn.counters, Journal(journal))
        self.upgrades = Upgrades(turn, self.sockets)
        self.exchanges = Exchanges(turn, self.slots, self.upgrades)
        epoch = int.from_bytes(random_bytes(7), "big") >> 3 if epoch is None else epoch  # below 2^53: JSON carries it
        self.router = Router(turn, self.slots, self.sockets, self.exchanges, self.upgrades, epoch)
        self.dialler = Dialler(turn, ca_file)
        self.kept = KeptUpstreams(turn, self.dialler, self.router)
        self.admission = Admission(turn, tls)
        self.router.upstreams = self.kept
        turn.socket_events, turn.requests, turn.door = self.router, self.exchanges, self.admission
        self.listeners: list[Listener] = []
        self.unknown_links: set[Link] = set()  # whose hello has not come
        self._in_end = False

    # life

    def start(self) -> None:
        """Begin to poll."""
        self.sockets.start_journal()
        self.turn.reactor.start()

    def inherit(self, lost: Iterable[Lost]) -> None:
        """The gateway before was killed with these sockets: their objects hear of their ends."""
        for socket_lost in lost:
            self.turn.seen_number(socket_lost.number)
            slot = self.exchanges.slot_for(socket_lost.object)
            connection = Connection(self.turn, -1, socket_lost.number, slot.plain)
            connection.state = State.GONE
            connection.protocol = socket_lost.protocol
            record = self.sockets.bind(connection, socket_lost.object, slot, socket_lost.tags, socket_lost.attachment)
            record.awake = False
            self.turn.counters.inherited += 1
            self.router.closed(connection, *LOST, clean=False)

    def listen(self, sock: socket.socket) -> None:
        """Accept clients from a listening socket, which the gateway now owns."""
        listener = Listener(self.turn, self.admission, sock)
        listener.start()
        self.listeners.append(listener)

    def add_host(self, link: Link) -> None:
        """A host has connected; its hello says which slot it serves."""
        self.unknown_links.add(link)
        link.start(_Unknown(self, link))

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, finish requests, say 1001 to every WebSocket, and close what is left at `timeout_s`."""
        turn, loop = self.turn, self.turn.loop
        turn.draining = True
        for listener in self.listeners:
            listener.close()
        deadline = loop.time() + timeout_s
        while any(http.busy for http in self.channels(HttpConnection)) and loop.time() < deadline - 1.0:
            await asyncio.sleep(0.02)
        for http in self.channels(HttpConnection):
            http.lost()
        self.kept.goodbye()
        await self._say_going_away(deadline)
        while self.channels(Connection) and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in self.channels(Connection):
            connection.close(*SHUT_DOWN)
        for channel in self.channels(Channel):
            channel.close_fd()
        await self.stop_dialling()
        for slot in self.slots:
            if slot.link is not None:
                slot.link.flush()
        turn.close()
        self.sockets.journal.end()

    async def stop_dialling(self) -> None:
        """Give up what is being dialled; what is kept waits for `kept.resume`."""
        self.kept.pause()
        await self.dialler.close()

    def end_pumped(self, pid: int) -> None:
        """Close the clients whose TLS sessions another process has, which is to end: WebSockets with 1012."""
        for channel in self.channels(Channel):
            if _made_by(channel.fd) == pid:
                if isinstance(channel, Connection):
                    channel.close(*UPGRADED)
                elif isinstance(channel, HttpConnection):
                    channel.cut(UPGRADED.reason)
        self.end_turn()

    def handed_over(self) -> None:
        """Another process has everything: nothing here may touch it again."""
        for listener in self.listeners:
            listener.close()
        self.turn.close()
        self.turn.reactor.table.clear()
        self.sockets.journal.leave()

    async def _say_going_away(self, deadline: float) -> None:
        """1001 to every WebSocket, in random order over a while, so that they do not all come back at once."""
        loop = self.turn.loop
        connections = self.channels(Connection)
        random.shuffle(connections)
        began = loop.time()
        spread_s = min(self.turn.limits.drain_spread_s, max(0.0, (deadline - began) / 2))
        told = 0
        while told < len(connections):
            passed = (loop.time() - began) / spread_s if spread_s and len(connections) >= _SPREAD_FROM else 1.0
            upto = max(told + 1, int(len(connections) * min(passed, 1.0)))
            for connection in connections[told:upto]:
                connection.close(*SHUTTING_DOWN)
            told = upto
            self.end_turn()
            if told < len(connections):
                await asyncio.sleep(0.02)

    def channels(self, kind: type[_Kind]) -> list[_Kind]:
        """All open ones of a kind."""
        return [channel for channel in self.turn.reactor.table if isinstance(channel, kind)]

    # what the node orders

    def open_breaker(self, slot: int, reason: str) -> None:
        """Nobody waits for that host any more, until the reason is gone (empty)."""
        self.exchanges.open_breaker(self.slots[slot], reason)

    # turns

    def end_turn(self) -> None:
        """Flush what the turn wrote. Reentrant: a flush may cause more writes."""
        turn = self.turn
        if turn.reactor.in_turn or self._in_end:
            return
        self._in_end = True
        slots, journal = self.slots, self.sockets.journal
        try:
            while True:
                for slot in slots:
                    if slot.link is not None:
                        slot.link.flush()
                    if slot.leaving is not None:
                        slot.leaving.flush()
                    slot.update_full()
                if journal.lines:
                    journal.flush(self.sockets.live)
                if turn.dirty:
                    self.router.flush_connections()
                elif turn.early:
                    early, turn.early = turn.early, []
                    for connection, data in early:
                        try:
                            connection.rewatch()
                            if data:
                                connection.received(data)
                        except Exception as error:  # noqa: BLE001 - one connection's bug must not mute the others
                            _log.exception("gateway: internal error in what came early; the connection is closed")
                            connection.broken(error)
                elif turn.pipelined:
                    pipelined, turn.pipelined = turn.pipelined, []
                    for http in pipelined:
                        try:
                            http.begin_pipelined()
                        except Exception as error:  # noqa: BLE001 - likewise
                            _log.exception("gateway: internal error in a pipelined request; the connection is closed")
                            http.broken(error)
                else:
                    break
        finally:
            self._in_end = False
        if turn.lines_wait:
            turn.lines_wait = False
            turn.request_log.flush()  # type: ignore[union-attr]
        for slot in slots:
            if slot.unfinished or slot.stragglers:
                return  # its host will have something to say
        turn.reactor.wait()


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
        gateway = self._gateway
        gateway.unknown_links.discard(self._link)
        hello = check_hello(events[0] if events else None, len(gateway.slots))
        slot = gateway.slots[hello.slot]
        if slot.current is not None:  # its process is over: what it had still said and done is in the buffers
            slot.current.read_rest()
        if slot.current is not None:
            slot.current.close()
            slot.on_closed("a new host took its place")
        self._link.start(slot)
        gateway.exchanges.one_host = hello.one_host
        slot.attach(self._link, hello)
        if len(events) > 1:
            slot.on_events(events[1:])
        gateway.end_turn()

    def on_closed(self, reason: str) -> None:
        self._gateway.unknown_links.discard(self._link)
        _log.debug("gateway: a link closed before its hello: %s", reason)

    def on_drained(self) -> None:
        """Nothing was held back."""
