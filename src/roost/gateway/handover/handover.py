"""A gateway hands everything it has to another process: descriptors, and what its parts say of themselves.

Sockets, links to hosts, the events that hosts owe an answer for: the successor goes on in the middle of all of it, and
neither clients nor hosts notice. `describe` and `rebuild` are each other's mirror; what one writes the other reads. What
cannot be moved is the state of a TLS session, so a connection with TLS is moved as a plain one whose other end the old
process keeps (`tls_pump`), and an HTTP request under way, which is waited for.

The invariant: between `freeze` and the successor's `begin` nobody reads or writes, so nothing is lost or doubled; and
until the successor has everything, `thaw` undoes it all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from roost.closes import RELAY_GONE
from roost.events import ENVELOPE_VERSION
from roost.gateway.handover.state import HANDOVER_VERSION, Handover
from roost.gateway.handover.tls_pump import TlsPump
from roost.gateway.io.connection import Connection, State
from roost.gateway.io.http_connection import HttpConnection
from roost.gateway.io.owner import Owner, Relay
from roost.gateway.io.tls import Sealed
from roost.gateway.io.turn import FD_MASK
from roost.gateway.io.upstream_connection import UpstreamConnection
from roost.link.port import MovableLink
from roost.link.unix import UnixLink

if TYPE_CHECKING:
    from roost.gateway.gateway import Gateway
    from roost.gateway.io.connection import SocketState
    from roost.gateway.io.http_connection import HttpState
    from roost.gateway.routing.host_slot import HostSlot, SlotState

_log = logging.getLogger("roost.gateway")

# --- the one who leaves ------------------------------------------------------------------------------------------------


async def quiesce(gateway: Gateway, timeout_s: float) -> None:
    """Let HTTP requests under way end, for so long; new ones wait in the kernel. WebSockets go on."""
    gateway.turn.quiescing = True
    for listener in gateway.listeners:
        listener.hold()
    deadline = gateway.turn.loop.time() + timeout_s
    while True:
        busy = 0
        for http in gateway.channels(HttpConnection):
            if http.between_requests:
                http.rewatch()
            else:
                busy += 1
        leaving = any(slot.leaving is not None or slot.departed for slot in gateway.slots)
        if not (busy or leaving or gateway.upgrades.pending):
            return
        if gateway.turn.loop.time() > deadline:
            _log.warning("gateway: %d requests have not ended in time and are cut", busy)
            return
        await asyncio.sleep(0.01)


def freeze(gateway: Gateway) -> None:
    """Stop: nothing is read or written from now on."""
    for http in gateway.channels(HttpConnection):
        if not http.between_requests:
            http.cut("The gateway is being replaced.")
    for number in list(gateway.upgrades.pending):
        gateway.upgrades.drop(number)
    for slot in gateway.slots:
        if slot.leaving is not None:
            slot.leaving.close()
            slot.on_closed("the gateway is being replaced")
        for departed in list(slot.departed):
            departed.close()
    for link in list(gateway.unknown_links):  # it comes again
        link.close()
    gateway.unknown_links.clear()
    gateway.end_turn()
    gateway.kept.pause()  # behind the last flush, which may find that one has ended
    gateway.turn.reactor.pause()
    for slot in gateway.slots:
        if isinstance(slot.link, MovableLink):
            slot.link.pause()


def thaw(gateway: Gateway) -> None:
    """Go on as if nothing had been."""
    gateway.turn.quiescing = False
    for slot in gateway.slots:
        if isinstance(slot.link, MovableLink):
            slot.link.resume()
    for http in gateway.channels(HttpConnection):
        http.rewatch()
    gateway.kept.resume()
    gateway.turn.reactor.start()
    for listener in gateway.listeners:
        listener.release()


def describe(gateway: Gateway, pumps: list[TlsPump], plain_ends: list[int]) -> tuple[Handover, list[int]]:
    """All that a frozen gateway has, and the descriptors to send with it. Connections with TLS get `pumps`, for the caller
    to start; what is sent for them is in `plain_ends`, and the caller's to close, also if this raises OSError."""
    descriptors: dict[int, int] = {}  # by the number that a state names: the descriptor that is sent
    channels: list[Connection | HttpConnection] = [*gateway.channels(Connection), *gateway.channels(HttpConnection)]
    for channel in channels:
        descriptors[channel.fd] = _plain_end(gateway, channel, pumps, plain_ends)
    ended = [connection for connection in gateway.turn.aliases.values() if connection.fd < 0]
    slots = []
    for slot in gateway.slots:
        slot_state, its_descriptors = slot.described(lambda request: gateway.exchanges.asked_by_host(request.request))
        slots.append(slot_state)
        descriptors.update((fd, fd) for fd in its_descriptors)
    order = sorted(descriptors)
    state = Handover(
        HANDOVER_VERSION,
        ENVELOPE_VERSION,
        gateway.router.epoch,
        gateway.turn.generation,
        gateway.sockets.last_actor,
        gateway.exchanges.last_request,
        gateway.turn.counters,
        [connection.described() for connection in (*gateway.channels(Connection), *ended)],
        [http.described() for http in gateway.channels(HttpConnection)],
        gateway.sockets.described(),
        slots,
        gateway.exchanges.described(),
        gateway.admission.addresses,
        order,
        gateway.exchanges.one_host,
    )
    return state, [descriptors[name] for name in order]


def _plain_end(gateway: Gateway, channel: Connection | HttpConnection, pumps: list[TlsPump], plain_ends: list[int]) -> int:
    """The descriptor to hand over for a channel."""
    if not isinstance(channel, Sealed):
        return channel.fd
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # for the one who gets it: the flag is the descriptor's
    pumps.append(TlsPump(gateway.turn.loop, channel.fd, channel.tls, ours))
    plain_ends.append(theirs.detach())
    return plain_ends[-1]


# --- the one who comes -------------------------------------------------------------------------------------------------


def rebuild(gateway: Gateway, state: Handover, placed: dict[int, int]) -> None:
    """Take over a fresh gateway's place in the world. `placed`: each descriptor's number here by its number there."""
    gateway.router.epoch, gateway.turn.generation = state.epoch, state.generation
    gateway.sockets.last_actor = state.last_actor
    gateway.exchanges.last_request = state.last_request
    gateway.exchanges.one_host = state.one_host
    gateway.turn.take_counters(state.counters)
    for slot, told in zip(gateway.slots, state.slots, strict=True):
        _rebuild_slot(gateway, slot, told, placed)
    for record in state.records:
        gateway.sockets.restore(record, gateway.slots[record.slot])
    connections = {told.number: _rebuild_socket(gateway, told, placed) for told in state.sockets}
    for told_socket in state.sockets:
        if told_socket.relay and told_socket.relay in connections:
            connections[told_socket.number].owner = Relay(connections[told_socket.relay])
        elif told_socket.relay:
            connections[told_socket.number].close(*RELAY_GONE)
    for record in state.records:
        gateway.sockets.restore_sockets(record, connections)
    for http in state.http:
        _rebuild_http(gateway, http, placed[http.fd])
    for asked in state.origins:
        gateway.exchanges.restore(asked)
    for fd, peer in state.addresses.items():
        if fd in placed:
            gateway.admission.count_address(placed[fd], peer)


def _rebuild_slot(gateway: Gateway, slot: HostSlot, told: SlotState, placed: dict[int, int]) -> None:
    link = None
    if told.link >= 0:
        sock = socket.socket(fileno=placed[told.link])
        link = UnixLink(sock, gateway.turn.loop, hold_reading=False, unread=told.unread, backlog=told.unsent)
    slot.adopt(told, link, placed.get(told.begun, -1))


def _rebuild_http(gateway: Gateway, told: HttpState, fd: int) -> None:
    os.set_blocking(fd, False)
    connection = HttpConnection(gateway.turn, fd, gateway.turn.new_number(fd), told.peer)
    connection.scheme = told.scheme
    gateway.turn.reactor.register(fd, connection)
    gateway.turn.look_again(connection.number)


def _rebuild_socket(gateway: Gateway, told: SocketState, placed: dict[int, int]) -> Connection:
    turn = gateway.turn
    fd = placed[told.fd] if told.fd >= 0 else -1
    record = gateway.sockets.by_actor(told.actor) if told.actor else None
    owner = record or (gateway.slots[told.slot].plain if told.slot >= 0 else Owner(None, 0))
    connection = (UpstreamConnection if told.dialled else Connection)(turn, fd, told.number, owner)
    connection.restore(told)
    if told.upstream is not None and told.upstream.waiting and isinstance(connection, UpstreamConnection):
        gateway.kept.interrupted.append(connection)
    turn.reactor.reserve(told.number & FD_MASK)
    if fd != told.number & FD_MASK or told.state != State.OPEN:  # its end may be told and not done
        turn.aliases[told.number] = connection
    if fd >= 0:
        os.set_blocking(fd, False)
        turn.reactor.register(fd, connection)
        if told.held_back:
            gateway.router.hold_again(connection)
        connection.rewatch()
        if told.closing_in_s is not None:
            turn.close_deadline(connection, told.closing_in_s)
    return connection


def begin(gateway: Gateway) -> None:
    """The one before has gone: read and write."""
    for slot in gateway.slots:
        if slot.link is not None:
            slot.link.start(slot)
        slot.update_full()
        gateway.exchanges.wait_for_host(slot)
    gateway.start()
    gateway.kept.go_on()
    gateway.end_turn()
