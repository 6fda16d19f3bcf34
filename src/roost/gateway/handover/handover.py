"""A gateway hands everything it has to another process: descriptors, and what it knows of each.

Sockets, links to hosts, the events that hosts owe an answer for: the successor goes on in the middle of all of it, and
neither clients nor hosts notice. `describe` and `rebuild` are each other's mirror; what one writes the other reads. What
cannot be moved is the state of a TLS session, so a connection with TLS is moved as a plain one whose other end the old
process keeps (`tls_pump`), and an HTTP request under way, which is waited for.

The invariant: between `freeze` and the successor's `begin` nobody reads or writes, so nothing is lost or doubled; and
until the successor has everything, `thaw` undoes it all.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from roost.errors import RemoteProtocolError
from roost.events import (
    ENVELOPE_VERSION,
    AutoResponse,
    Call,
    Dial,
    ObjectRef,
    Redial,
    Request,
    SocketClose,
    SocketError,
    SocketMessage,
    SocketOpened,
)
from roost.gateway.handover.tls_pump import TlsPump
from roost.gateway.io.connection import Backlog, ClientConnection, Connection, State, pieces
from roost.gateway.io.http_connection import HttpConnection
from roost.gateway.io.reactor import WRITE
from roost.gateway.io.tls import Sealed
from roost.gateway.limits import Counters
from roost.gateway.routing.exchanges import Origin
from roost.gateway.routing.host_slot import Heard
from roost.gateway.routing.sockets import ActorRecord, Owner, Relay, shared_tags
from roost.link.unix import UnixLink
from roost.protocol.envelope import Splitter, encode
from roost.protocol.websocket import CloseCode, DecoderState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from roost.events import Event
    from roost.gateway.gateway import Gateway
    from roost.gateway.routing.host_slot import HostSlot

_log = logging.getLogger("roost.gateway")

HANDOVER_VERSION: Final = 3
_SOCKET_EVENTS: Final = (SocketMessage, SocketClose, SocketError, SocketOpened)
_MAX_ENVELOPES_BYTES: Final = 1 << 30


class UpstreamState(msgspec.Struct, array_like=True):
    """How a dialled socket is dialled again. `waiting`: it is being."""

    dial: Dial
    redial: Redial | None
    attempts: int
    waiting: bool


class SocketState(msgspec.Struct, array_like=True):
    """One WebSocket. `fd`: its descriptor here, -1 if it is closed and only its end is not finished with."""

    fd: int
    number: int
    dialled: bool
    actor: int  # 0: not an object's
    slot: int  # a plain socket's host; -1: nobody's
    relay: int  # the number of the socket that it is joined to
    state: int
    tags: tuple[str, ...]
    attachment: bytes | None
    auto_at_ms: int
    protocol: str
    backlog: list[bytes]
    pong: bytes | None
    decoder: DecoderState | None
    closing_in_s: float | None
    held_back: bool
    deflate: int = 0
    upstream: UpstreamState | None = None


class HttpState(msgspec.Struct, array_like=True):
    """A client between two requests."""

    fd: int
    peer: str
    scheme: str


class RecordState(msgspec.Struct, array_like=True):
    """An object that has sockets here; the sockets in their order."""

    actor: int
    slot: int
    object: ObjectRef
    awake: bool
    auto: AutoResponse | None
    sockets: list[int]


class SlotState(msgspec.Struct, array_like=True):
    """A host's place. `link` is the descriptor of its link, -1 while no host is there."""

    link: int
    begun: int
    begun_offset: int
    given: int
    unread: bytes
    unsent: bytes
    last_event: int
    unfinished: bytes
    late: bytes
    attempts: dict[int, int]
    breaker: str
    waiting: bytes
    heard: tuple[int, int, list[int]]


class OriginState(msgspec.Struct, array_like=True):
    """A stub's request under way between two hosts."""

    request: int
    slot: int
    target: int
    nth: int
    given: bool
    again: bytes


class Handover(msgspec.Struct, array_like=True):
    """A whole gateway."""

    version: int
    envelope: int
    epoch: int
    generation: int
    last_actor: int
    last_request: int
    counters: Counters
    sockets: list[SocketState]
    http: list[HttpState]
    records: list[RecordState]
    slots: list[SlotState]
    origins: list[OriginState]
    addresses: dict[int, str]
    descriptors: list[int]
    one_host: bool = False


# --- the one who leaves ------------------------------------------------------------------------------------------------


async def quiesce(gateway: Gateway, timeout_s: float) -> None:
    """Let HTTP requests under way end, for so long; new ones wait in the kernel. WebSockets go on."""
    gateway.quiescing = True
    for listener in gateway.listeners:
        listener.hold()
    deadline = gateway.loop.time() + timeout_s
    while True:
        busy = 0
        for http in _all(gateway, HttpConnection):
            if http.between_requests:
                gateway.rewatch(http)
            else:
                busy += 1
        leaving = any(slot.leaving is not None or slot.departed for slot in gateway.router.slots)
        if not (busy or leaving or gateway.router.exchanges.bindings):
            return
        if gateway.loop.time() > deadline:
            _log.warning("gateway: %d requests have not ended in time and are cut", busy)
            return
        await asyncio.sleep(0.01)


def freeze(gateway: Gateway) -> None:
    """Stop: nothing is read or written from now on."""
    for http in _all(gateway, HttpConnection):
        if not http.between_requests:
            http.cut("The gateway is being replaced.")
    for number in list(gateway.router.exchanges.bindings):
        gateway.router.exchanges.unbound(number)
    for slot in gateway.router.slots:
        if slot.leaving is not None:
            slot.leaving.close()
            slot.on_closed("the gateway is being replaced")
        for departed in list(slot.departed):
            departed.close()
    for link in list(gateway.unknown_links):  # it comes again
        link.close()
    gateway.unknown_links.clear()
    gateway.end_turn()
    gateway.outbound.pause()  # behind the last flush, which may find that one has ended
    gateway.reactor.pause()
    for slot in gateway.router.slots:
        if isinstance(slot.link, UnixLink):
            slot.link.pause()


def thaw(gateway: Gateway) -> None:
    """Go on as if nothing had been."""
    gateway.quiescing = False
    for slot in gateway.router.slots:
        if isinstance(slot.link, UnixLink):
            slot.link.resume()
    for http in _all(gateway, HttpConnection):
        gateway.rewatch(http)
    gateway.outbound.resume()
    gateway.reactor.start()
    for listener in gateway.listeners:
        listener.release()


def describe(gateway: Gateway, pumps: list[TlsPump], plain_ends: list[int]) -> tuple[Handover, list[int]]:
    """All that a frozen gateway has, and the descriptors to send with it. Connections with TLS get `pumps`, for the caller
    to start; what is sent for them is in `plain_ends`, and the caller's to close, also if this raises OSError."""
    now = gateway.loop.time()
    sockets: list[SocketState] = []
    connections = _all(gateway, Connection)
    ended = [c for c in gateway.router.aliases.values() if c.fd < 0]
    descriptors: dict[int, int] = {}  # by the number that a state names: the descriptor that is sent
    for connection in (*connections, *ended):
        out = connection.out
        backlog = list(out.chunks) if isinstance(out, Backlog) else [] if out is None else pieces(out)
        pong = out.pong if isinstance(out, Backlog) else None
        if connection.fd >= 0:
            descriptors[connection.fd] = _plain_end(gateway, connection, pumps, plain_ends)
        owner = connection.owner
        due = gateway.closing_due.get(connection.number)
        sockets.append(
            SocketState(
                connection.fd,
                connection.number,
                isinstance(connection, ClientConnection),
                owner.actor,
                -1 if owner.slot is None else owner.slot.index,
                owner.other.number if isinstance(owner, Relay) else 0,
                int(connection.state),
                connection.tags,
                connection.attachment,
                connection.auto_at_ms,
                connection.protocol,
                [chunk for chunk in backlog if chunk],
                pong,
                None if connection.decoder is None else connection.decoder.state(),
                None if due is None else max(0.0, due - now),
                connection.number in gateway.router.held_back,
                connection.deflate,
                _upstream(connection),
            )
        )
    http_states = []
    for http in _all(gateway, HttpConnection):
        descriptors[http.fd] = _plain_end(gateway, http, pumps, plain_ends)
        http_states.append(HttpState(http.fd, http.peer, http.scheme))
    slots = [_slot_state(slot, descriptors) for slot in gateway.router.slots]
    origins = [
        OriginState(
            number,
            origin.slot.index,
            -1 if origin.target is None else origin.target.index,
            origin.nth,
            origin.given_to is not None,
            _envelopes([] if origin.request is None else [origin.request]),
        )
        for number, origin in gateway.router.exchanges.origins.items()
        if origin.slot is not None
    ]
    records = [
        RecordState(
            record.actor, record.slot.index if record.slot else -1, record.object, record.awake, record.auto,
            [connection.number for connection in record.sockets],
        )
        for record in gateway.sockets
    ]  # fmt: skip
    order = sorted(descriptors)
    state = Handover(
        HANDOVER_VERSION, ENVELOPE_VERSION, gateway.epoch, gateway.generation, gateway.sockets.last_actor,
        gateway.router.exchanges.last_request, gateway.counters, sockets, http_states, records, slots, origins,
        gateway.addresses, order, gateway.router.exchanges.one_host,
    )  # fmt: skip
    return state, [descriptors[name] for name in order]


def _upstream(connection: Connection) -> UpstreamState | None:
    if not isinstance(connection, ClientConnection) or connection.dial is None:
        return None
    return UpstreamState(connection.dial, connection.redial, connection.attempts, connection.waiting is not None)


def _plain_end(gateway: Gateway, channel: Connection | HttpConnection, pumps: list[TlsPump], plain_ends: list[int]) -> int:
    """The descriptor to hand over for a channel."""
    if not isinstance(channel, Sealed):
        return channel.fd
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # for the one who gets it: the flag is the descriptor's
    pumps.append(TlsPump(gateway.loop, channel.fd, channel.tls, ours))
    plain_ends.append(theirs.detach())
    return plain_ends[-1]


def _slot_state(slot: HostSlot, descriptors: dict[int, int]) -> SlotState:
    link = slot.link
    number = -1
    unread = unsent = b""
    if isinstance(link, UnixLink):
        number = link.fileno()
        descriptors[number] = number
        unread, unsent = link.unread, link.backlog
    begun = slot.begun_file
    if begun is not None and begun.fd >= 0:
        descriptors[begun.fd] = begun.fd
    return SlotState(
        number,
        -1 if begun is None else begun.fd,
        0 if begun is None else begun.offset,
        slot.given,
        unread,
        unsent,
        slot.last_event,
        _envelopes(slot.unfinished),
        _envelopes(slot.late.values()),
        slot.attempts,
        slot.breaker,
        _envelopes(request for request in slot.waiting if slot.router.exchanges.asked_by_host(request.request)),
        (slot.heard.life, slot.heard.upto, sorted(slot.heard.besides)),
    )


def _envelopes(events: Iterable[Event]) -> bytes:
    return b"".join(map(encode, events))


def _events(data: bytes) -> Sequence[Event]:
    return Splitter(_MAX_ENVELOPES_BYTES).feed(data)


_Kind = TypeVar("_Kind", Connection, HttpConnection)


def _all(gateway: Gateway, kind: type[_Kind]) -> list[_Kind]:
    return [channel for channel in gateway.reactor.table if isinstance(channel, kind)]


# --- the one who comes -------------------------------------------------------------------------------------------------


def check(state: Handover, slots: int) -> None:
    """Raises RemoteProtocolError if this version cannot go on with it."""
    if state.version != HANDOVER_VERSION or state.envelope != ENVELOPE_VERSION:
        raise RemoteProtocolError(
            1002,
            f"the running gateway's state has version {state.version}/{state.envelope}, this Roost understands"
            f" {HANDOVER_VERSION}/{ENVELOPE_VERSION}: restart the node instead",
        )
    if len(state.slots) != slots:
        raise RemoteProtocolError(1002, f"the running gateway serves {len(state.slots)} hosts, not {slots}")


def rebuild(gateway: Gateway, state: Handover, placed: dict[int, int]) -> None:
    """Take over a fresh gateway's place in the world. `placed`: each descriptor's number here by its number there."""
    router = gateway.router
    gateway.epoch, gateway.generation = state.epoch, state.generation
    gateway.sockets.last_actor = state.last_actor
    gateway.router.exchanges.last_request = state.last_request
    gateway.router.exchanges.one_host = state.one_host
    gateway.counters = state.counters
    for slot, slot_state in zip(router.slots, state.slots, strict=True):
        _rebuild_slot(gateway, slot, slot_state, placed)
    for record in state.records:
        gateway.sockets.restore(
            ActorRecord(router.slots[record.slot], record.actor, record.object), awake=record.awake, auto=record.auto
        )
    connections = {told.number: _rebuild_socket(gateway, told, placed) for told in state.sockets}
    for told in state.sockets:
        if told.relay and told.relay in connections:
            connections[told.number].owner = Relay(connections[told.relay])
        elif told.relay:
            connections[told.number].close(CloseCode.INTERNAL_ERROR, "The other side of the relay is gone.")
    for record in state.records:
        here = gateway.sockets.by_actor(record.actor)
        assert here is not None
        for number in record.sockets:
            if number in connections:
                here.add(connections[number])
    for http in state.http:
        fd = placed[http.fd]
        os.set_blocking(fd, False)
        connection = HttpConnection(gateway, fd, gateway.new_number(fd), http.peer)
        connection.scheme = http.scheme
        gateway.reactor.register(fd, connection)
        gateway.look_again(connection)
    for asked in state.origins:
        origin = Origin(None, router.slots[asked.slot], router.slots[asked.slot].link)
        origin.target = router.slots[asked.target] if asked.target >= 0 else None
        origin.nth = asked.nth
        origin.given_to = origin.target.link if asked.given and origin.target is not None else None
        origin.request = next((event for event in _events(asked.again) if isinstance(event, Request | Call)), None)
        router.exchanges.origins[asked.request] = origin
    for fd, peer in state.addresses.items():
        if fd in placed:
            gateway.count_address(placed[fd], peer)


def _rebuild_slot(gateway: Gateway, slot: HostSlot, told: SlotState, placed: dict[int, int]) -> None:
    if told.link >= 0:
        sock = socket.socket(fileno=placed[told.link])
        slot.link = UnixLink(sock, gateway.loop, hold_reading=False, unread=told.unread, backlog=told.unsent)
    slot.restore(
        told.last_event,
        [event for event in _events(told.unfinished) if isinstance(event, _SOCKET_EVENTS)],
        [event for event in _events(told.late) if isinstance(event, _SOCKET_EVENTS)],
        told.attempts,
    )
    slot.given, slot.breaker = told.given, told.breaker
    slot.heard = Heard(*told.heard)
    slot.adopt_begun(placed.get(told.begun, -1), told.begun_offset)
    slot.waiting.extend(event for event in _events(told.waiting) if isinstance(event, Request | Call))


def _rebuild_socket(gateway: Gateway, told: SocketState, placed: dict[int, int]) -> Connection:
    fd = placed[told.fd] if told.fd >= 0 else -1
    record = gateway.sockets.by_actor(told.actor) if told.actor else None
    owner: Owner
    if record is not None:
        owner = record
    elif told.slot >= 0:
        owner = gateway.router.slots[told.slot].plain
    else:
        owner = Owner(None, 0)
    connection = (ClientConnection if told.dialled else Connection)(gateway, fd, told.number, owner)
    connection.state = told.state
    connection.tags = shared_tags(told.tags)
    connection.attachment = told.attachment
    connection.auto_at_ms = told.auto_at_ms
    connection.protocol = told.protocol
    connection.deflate = told.deflate
    if told.upstream is not None and isinstance(connection, ClientConnection):
        connection.dial, connection.redial = told.upstream.dial, told.upstream.redial
        connection.attempts = told.upstream.attempts
        if told.upstream.waiting:
            gateway.outbound.to_dial_again.append(connection)
    gateway.reactor.reserve(told.number & 0xFFFFF)
    if told.decoder is not None:
        connection.decoder = connection.new_decoder()
        connection.decoder.restore(told.decoder)
    if fd != told.number & 0xFFFFF or told.state != State.OPEN:  # its end may be told and not done
        gateway.router.aliases[told.number] = connection
    if fd >= 0:
        os.set_blocking(fd, False)
        gateway.reactor.register(fd, connection)
        if told.backlog or told.pong:
            connection.out = backlog = Backlog(*(told.backlog or [told.pong or b""]))
            backlog.pong = told.pong if told.backlog else None
        if told.held_back:
            gateway.router.hold_again(connection)
        gateway.reactor.watch(fd, connection.wanted() | (WRITE if connection.out is not None else 0))
        if told.closing_in_s is not None:
            gateway.close_deadline(connection.number, told.closing_in_s)
    return connection


def begin(gateway: Gateway) -> None:
    """The one before has gone: read and write."""
    router = gateway.router
    for slot in router.slots:
        if slot.link is not None:
            slot.link.start(slot)
        slot.update_full()
        router.exchanges.wait_for_host(slot)
    gateway.start()
    gateway.outbound.go_on()
    gateway.end_turn()


# --- descriptors -------------------------------------------------------------------------------------------------------

_BATCH: Final = 200  # the kernel takes 253 in one message
_LENGTH_BYTES: Final = 8


def send(sock: socket.socket, state: Handover, descriptors: Sequence[int]) -> None:
    """The state and its descriptors, over a blocking unix socket."""
    data = msgspec.msgpack.encode(state)
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    for start in range(0, len(descriptors), _BATCH):
        socket.send_fds(sock, [b"d"], descriptors[start : start + _BATCH])
        if sock.recv(1) != b"k":
            raise ConnectionError("the successor did not take the descriptors")


def receive(sock: socket.socket) -> tuple[Handover, dict[int, int]]:
    """What `send` sent: the state, and each descriptor's number here by its number there. Raises OSError, ValueError."""
    size = int.from_bytes(_exactly(sock, _LENGTH_BYTES), "big")
    state = msgspec.msgpack.decode(_exactly(sock, size), type=Handover)
    placed: dict[int, int] = {}
    for start in range(0, len(state.descriptors), _BATCH):
        wanted = state.descriptors[start : start + _BATCH]
        _, received, _, _ = socket.recv_fds(sock, 1, len(wanted))
        if len(received) != len(wanted):
            raise ConnectionError(f"{len(received)} of {len(wanted)} descriptors arrived")
        placed.update(zip(wanted, _place(received, wanted), strict=True))
        sock.sendall(b"k")
    return state, placed


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("the other gateway ended in the middle")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _place(received: list[int], wanted: list[int]) -> list[int]:
    """Give each descriptor its number of before, if that is free: a socket's number tells its descriptor's. Ascending
    batches, so that what a later one wants is not in the way of an earlier."""
    aside = []
    for fd in received:
        try:
            aside.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1))
        except OSError:  # too near the limit: it keeps the number it has
            aside.append(fd)
        else:
            os.close(fd)
    found = []
    for fd, number in zip(aside, wanted, strict=True):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
            found.append(number)
        else:
            found.append(fd)
    return found
