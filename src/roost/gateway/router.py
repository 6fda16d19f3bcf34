"""Whose event is this, and which link does it take? And back: which connection does the host speak to?

A `HostSlot` stands for a host whether one is connected or not: it numbers events, keeps them until the host says done,
and gives them to the successor of a host that died. The invariant: an event of a hibernatable socket is either done or
in `unfinished`/`late`, so no death of a host loses one.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from roost.errors import RemoteProtocolError
from roost.events import (
    ENVELOPE_VERSION,
    Abort,
    Asleep,
    Attach,
    AutoAnswered,
    BodyCredit,
    BodyData,
    CloseSocket,
    Dial,
    Dialled,
    Done,
    DropSockets,
    Hello,
    Request,
    Response,
    RosterRequest,
    Send,
    SetAutoResponse,
    SocketClose,
    SocketError,
    SocketMessage,
)
from roost.gateway.connection import Connection, State
from roost.gateway.sockets import ActorRecord, Owner, Relay
from roost.ids import slot_of
from roost.protocol.websocket import CloseCode, encode_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roost.events import Event, ObjectRef
    from roost.gateway.gateway import Gateway
    from roost.gateway.http_connection import HttpConnection
    from roost.link.port import Link

_log = logging.getLogger("roost.gateway")

_BINDING_WAITS_S = 30.0  # for the client's connection of an object on another host
_MAX_ATTEMPTS = 5  # hosts that may die with one event unfinished before it is dropped
_COUNT_FROM_BYTES = 4096  # smaller messages are bounded by their number

SocketEvent = SocketMessage | SocketClose | SocketError


class HostSlot:
    """One host's place: its link while a host is there, and the events it owes an answer for. A link.Receiver."""

    def __init__(self, router: Router, index: int) -> None:
        self.index = index
        self.link: Link | None = None
        self.plain = Owner(self, 0)
        self.full = False
        self.unfinished: deque[SocketEvent] = deque()
        self.late: dict[int, SocketEvent] = {}
        self.waiting: deque[Request] = deque()  # requests that found no host here yet
        self._router = router
        self._last_event = 0
        self._large_bytes = 0
        self._attempts: dict[int, int] = {}

    def next_event(self) -> int:
        self._last_event += 1
        return self._last_event

    def deliver(self, event: SocketEvent) -> None:
        """Keep the event until it is done, and send it if a host is there."""
        self.unfinished.append(event)
        if self.link is not None:
            self.link.send(event)

    def count_large(self, message: SocketMessage, sign: int) -> None:
        self._large_bytes += sign * len(message.data)

    def update_full(self) -> None:
        """Decide, once a turn, whether clients of this host are held back."""
        limits = self._router.gateway.limits
        full = (
            len(self.unfinished) + len(self.late) > limits.max_unfinished_events
            or self._large_bytes > limits.max_unfinished_bytes
            or (self.link is not None and self.link.congested)
        )
        if self.full and not full:
            self._router.release_held(self)
        self.full = full

    def done(self, upto: int, stragglers: tuple[int, ...]) -> None:
        """The host has finished every event up to `upto`, but for the stragglers."""
        unfinished = self.unfinished
        running = set(stragglers)
        while unfinished and unfinished[0].event <= upto:
            event = unfinished.popleft()
            if running and event.event in running:
                self.late[event.event] = event
            else:
                self._finished(event)
        if self.late:
            for number in [n for n in self.late if n <= upto and n not in running]:
                self._finished(self.late.pop(number))
        if self._attempts and not unfinished and not self.late:
            self._attempts.clear()

    def _finished(self, event: SocketEvent) -> None:
        if isinstance(event, SocketMessage):
            if len(event.data) >= _COUNT_FROM_BYTES:
                self.count_large(event, -1)
        else:
            self._router.end_finished(event)

    # the host's coming and going

    def attach(self, link: Link) -> None:
        """A host is here: give it what its predecessor left unfinished, in order, then what waited."""
        self.link = link
        events = [*self.late.values(), *self.unfinished]
        events.sort(key=lambda event: event.event)
        self.late.clear()
        self.unfinished.clear()
        for event in events:
            attempts = self._attempts.get(event.event, 0)
            if attempts >= _MAX_ATTEMPTS:
                self._router.gateway.counters.events_dropped += 1
                _log.error("gateway: an event of socket %d was dropped after %d hosts died with it", event.socket, attempts)
                self._finished(event)
                continue
            if attempts:
                self._router.gateway.counters.events_redelivered += 1
            self.unfinished.append(event)
            link.send(event)
        while self.waiting:
            request = self.waiting.popleft()
            if self._router.is_open(request.request):
                link.send(request)

    def on_closed(self, reason: str) -> None:
        self.link = None
        unfinished = [*self.late, *(event.event for event in self.unfinished)]
        if unfinished:  # handlers start in order: the oldest is the suspect, not those that waited behind it
            self._attempts[min(unfinished)] = self._attempts.get(min(unfinished), 0) + 1
        self._router.host_lost(self, reason)

    def on_drained(self) -> None:
        self.update_full()

    def on_events(self, events: Sequence[Event]) -> None:
        self._router.from_host(self, events)


class Origin:
    """Who asked a request: a client's connection, or a host with its own number for it."""

    __slots__ = ("connection", "slot", "target")

    def __init__(self, connection: HttpConnection | None, slot: HostSlot | None) -> None:
        self.connection = connection
        self.slot = slot  # the asking host
        self.target: HostSlot | None = None  # the answering host


class PendingBinding:
    """A 101 whose client's connection is not bound yet, and what the object has said in the meantime."""

    __slots__ = ("answer", "events", "slot")

    def __init__(self, slot: HostSlot, answer: Response) -> None:
        self.slot = slot
        self.answer = answer
        self.events: list[Send | CloseSocket | Attach] = []


class Router:
    """The gateway's decisions. Owns no descriptor and no link."""

    def __init__(self, gateway: Gateway, slots: int) -> None:
        self.gateway = gateway
        self.slots = [HostSlot(self, index) for index in range(slots)]
        self.held_back: set[int] = set()  # numbers of connections that are not read at the moment
        self.aliases: dict[int, Connection] = {}  # numbers that are not (or no longer) a descriptor's
        self._held_for: dict[int, list[Connection]] = {}
        self._origins: dict[int, Origin] = {}
        self._last_request = 0
        self._next_slot = 0
        self._bindings: dict[int, PendingBinding] = {}  # 101s of objects elsewhere, waiting for the client's connection

    # clients → hosts

    def message(self, connection: Connection, data: str | bytes) -> None:
        """A whole message from a client: answer it here, or give it to the host that owns the object."""
        owner = connection.owner
        gateway = self.gateway
        gateway.counters.messages_in += 1
        if owner.auto is not None and data == owner.auto.request:
            gateway.counters.auto_responses += 1
            connection.auto_at_ms = gateway.clock.wall_ms()
            connection.send_frame(encode_message(owner.auto.response.encode(), True))
            if owner.awake and owner.slot.link is not None:  # type: ignore[attr-defined,union-attr]
                owner.slot.link.send(AutoAnswered(owner.actor, connection.number, connection.auto_at_ms))  # type: ignore[union-attr]
            return
        slot = owner.slot
        if slot is None:
            payload = data.encode() if type(data) is str else data
            owner.other.send_frame(encode_message(payload, type(data) is str))  # type: ignore[attr-defined,arg-type]
            return
        slot._last_event = number = slot._last_event + 1
        message = SocketMessage(number, owner.actor, connection.number, data)
        slot.unfinished.append(message)
        if slot.link is not None:
            slot.link.send(message)
        if len(data) >= _COUNT_FROM_BYTES:
            slot.count_large(message, 1)
        if not number & 0x3FF:
            slot.update_full()  # besides once a turn: one turn may bring a million tiny messages
        if slot.full:
            self._hold_back(connection, slot)

    def closed(self, connection: Connection, code: int, reason: str, *, clean: bool) -> None:
        """A client's end is over. The host is told once, and its record stays until the host has finished with it."""
        owner = connection.owner
        if owner.slot is None:
            if isinstance(owner, Relay):
                owner.other.close(code, reason)
            return
        event = SocketClose(owner.slot.next_event(), owner.actor, connection.number, code, reason, clean)
        self._tell_end(connection, owner.slot, event)

    def failed(self, connection: Connection, code: int, reason: str) -> None:
        """A client broke the protocol or a limit; it has been closed with `code`."""
        counters = self.gateway.counters
        counters.closed_too_big += code == CloseCode.TOO_BIG
        counters.closed_protocol_error += code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA)
        owner = connection.owner
        if owner.slot is None:
            if isinstance(owner, Relay):
                owner.other.close(CloseCode.INTERNAL_ERROR, "The other side of the relay failed.")
            return
        event = SocketError(owner.slot.next_event(), owner.actor, connection.number, code, reason)
        self._tell_end(connection, owner.slot, event)

    def _tell_end(self, connection: Connection, slot: HostSlot, event: SocketClose | SocketError) -> None:
        self.aliases[connection.number] = connection  # found by number even when the descriptor is reused
        if type(connection.owner) is Owner and slot.link is None:
            self.end_finished(event)  # its host, and with it the program's end of the socket, is gone already
        else:
            slot.deliver(event)

    def end_finished(self, event: SocketClose | SocketError) -> None:
        """The host is done with a socket's end (or never knew the socket)."""
        connection = self.aliases.get(event.socket)
        if connection is None:
            return
        owner = connection.owner
        if isinstance(owner, ActorRecord):
            self.gateway.sockets.forget(owner, event.socket)
            self.gateway.counters.hibernatable -= 1
        if connection.fd < 0:
            del self.aliases[event.socket]
        # else: the closing handshake is still under way; `connection_closed` removes it

    def connection_closed(self, connection: Connection) -> None:
        """The descriptor is closed. The number is forgotten unless the host still owes an answer to the end."""
        self.held_back.discard(connection.number)
        if connection.number in self.aliases:
            owner = connection.owner
            if not isinstance(owner, ActorRecord) or connection.number not in owner.sockets:
                del self.aliases[connection.number]

    def _hold_back(self, connection: Connection, slot: HostSlot) -> None:
        if connection.number not in self.held_back and connection.fd >= 0:
            self.gateway.counters.clients_held_back += 1
            self.held_back.add(connection.number)
            self._held_for.setdefault(slot.index, []).append(connection)
            self.gateway.rewatch(connection)

    def release_held(self, slot: HostSlot) -> None:
        """The host has caught up: read its clients again."""
        for connection in self._held_for.pop(slot.index, []):
            self.held_back.discard(connection.number)
            if connection.fd >= 0:
                self.gateway.rewatch(connection)

    # requests

    def new_request(self, connection: HttpConnection) -> int:
        self._last_request += 2
        self._origins[self._last_request] = Origin(connection, None)
        return self._last_request

    def request(self, request: Request) -> None:
        """Give a request to a host: the owner of its target object, or else the next one."""
        if request.target is not None:
            slot = self.slot_for(request.target)
        else:
            up = [slot for slot in self.slots if slot.link is not None] or self.slots
            self._next_slot += 1
            slot = up[self._next_slot % len(up)]
        origin = self._origins[request.request]
        origin.target = slot
        if slot.link is not None:
            slot.link.send(request)
        elif len(slot.waiting) < self.gateway.limits.max_waiting_requests:
            slot.waiting.append(request)
            if len(slot.waiting) == 1:
                self.gateway.loop.call_later(self.gateway.limits.host_wait_s, self._host_wait_over, slot)
        else:
            self._unavailable(request.request)

    def _host_wait_over(self, slot: HostSlot) -> None:
        while slot.waiting and slot.link is None:
            self._unavailable(slot.waiting.popleft().request)
        self.gateway.end_turn()

    def _unavailable(self, request: int) -> None:
        self.gateway.counters.refused_requests += 1
        origin = self._origins.get(request)
        if origin is None:
            return
        if origin.connection is not None:
            text = "The worker is not running at the moment (see the server's log). Try again in a moment."
            origin.connection.refuse(503, text, [("Retry-After", "1")])
        elif origin.slot is not None and origin.slot.link is not None:
            origin.slot.link.send(Abort(request, "The object's host is not running; try again."))
            self._origins.pop(request, None)

    def slot_for(self, ref: ObjectRef) -> HostSlot:
        return self.slots[slot_of(ref.id, len(self.slots))]

    def to_host(self, request: int, event: BodyData | BodyCredit | Abort) -> None:
        """What follows a client's request goes where the request went."""
        origin = self._origins.get(request)
        if origin is not None and origin.target is not None and origin.target.link is not None:
            origin.target.link.send(event)
        elif origin is not None and origin.target is not None and type(event) is BodyData:
            self._unavailable(request)  # the host has not come yet and the body does not fit into the wait

    def is_open(self, request: int) -> bool:
        """Whether anybody still waits for the answer."""
        return request in self._origins

    def request_over(self, request: int) -> None:
        self._origins.pop(request, None)

    # hosts → clients

    def from_host(self, slot: HostSlot, events: Sequence[Event]) -> None:
        """A batch from a host; connections written to are flushed once, at its end."""
        table = self.gateway.reactor.table
        aliases = self.aliases
        counters = self.gateway.counters
        for event in events:
            try:
                kind = type(event)
                if kind is Send:
                    frame = encode_message(event.payload, event.text)  # type: ignore[union-attr]
                    number: int
                    for number in event.sockets:  # type: ignore[union-attr,assignment]
                        connection = table[number & 0xFFFFF]
                        if connection is None or connection.number != number:
                            connection = aliases.get(number)
                            if connection is None:
                                if number in self._bindings:
                                    self._bindings[number].events.append(Send([number], event.payload, event.text))  # type: ignore[union-attr]
                                else:
                                    counters.sends_to_closed += 1
                                continue
                        if not connection.send_frame(frame):
                            counters.sends_to_closed += 1
                    counters.sends += len(event.sockets)  # type: ignore[union-attr]
                elif kind is Done:
                    slot.done(event.event, event.stragglers)  # type: ignore[union-attr]
                else:
                    self._HANDLERS[kind](self, slot, event)
            except Exception:  # noqa: BLE001 - one event's bug must not lose the rest of the batch
                _log.exception("gateway: internal error in %s; please report it", type(event).__name__)
        self.gateway.end_turn()

    def find(self, number: int) -> Connection | None:
        """The WebSocket of a number, also one whose descriptor is closed but whose end is not finished with."""
        connection = self.gateway.reactor.table[number & 0xFFFFF]
        if connection is None or connection.number != number:
            return self.aliases.get(number)
        return connection if isinstance(connection, Connection) else None

    def _close(self, slot: HostSlot, event: CloseSocket) -> None:
        connection = self.find(event.socket)
        if connection is not None:
            connection.close(event.code, event.reason)
        elif event.socket in self._bindings:
            self._bindings[event.socket].events.append(event)

    def _attach_value(self, slot: HostSlot, event: Attach) -> None:
        connection = self.find(event.socket)
        if connection is not None:
            connection.attachment = event.attachment
        elif event.socket in self._bindings:
            self._bindings[event.socket].events.append(event)

    def _set_auto(self, slot: HostSlot, event: SetAutoResponse) -> None:
        record = self.gateway.sockets.get(event.object)
        if record is not None:
            record.auto = event.auto_response

    def _drop(self, slot: HostSlot, event: DropSockets) -> None:
        record = self.gateway.sockets.get(event.object)
        if record is not None:
            for number, connection in list(record.sockets.items()):
                self.gateway.sockets.forget(record, number)
                self.gateway.counters.hibernatable -= 1
                self.aliases.pop(number, None)
                connection.owner = Owner(None, 0)
                connection.close(CloseCode.ABNORMAL, "The object was reset.")

    def _roster(self, slot: HostSlot, event: RosterRequest) -> None:
        if slot.link is not None:
            slot.link.send(self.gateway.sockets.roster(event.actor, event.object))

    def _response(self, slot: HostSlot, event: Response) -> None:
        origin = self._origins.get(event.request)
        if origin is None:
            self._nobody_waits(slot, event)
            return
        if origin.connection is None:
            self._response_to_host(slot, origin, event)
            return
        if event.status != 101:
            origin.connection.on_response(event)
            return
        if event.binding is None:
            bound = self._bindings.pop(event.socket, None)
            if bound is None:
                origin.connection.refuse(502, "The object's socket is gone.")
                return
            self._bind(bound.slot, origin.connection, bound.answer, event.socket, event)
            self.from_host(bound.slot, bound.events)
        else:
            self._bind(slot, origin.connection, event, origin.connection.number, event)

    def _nobody_waits(self, slot: HostSlot, event: Response) -> None:
        """The client left before its answer: a socket that was accepted for it ends, a body stops."""
        if event.status == 101 and event.binding is None:
            bound = self._bindings.pop(event.socket, None)
            if bound is not None:
                self._end_unbound(bound.slot, event.socket, bound.answer)
        elif event.status == 101:
            self._end_unbound(slot, event.socket, event)
        elif event.more_body and slot.link is not None:
            slot.link.send(Abort(event.request, "The client disconnected."))

    def _end_unbound(self, slot: HostSlot, number: int, answer: Response) -> None:
        """A socket whose client never came: its program hears of the end like of any other."""
        assert answer.binding is not None
        if answer.binding.relay:
            upstream = self.find(answer.binding.relay)
            if upstream is not None:
                upstream.close(CloseCode.GOING_AWAY, "The client left.")
            return
        reason = "WebSocket disconnected without sending Close frame."
        slot.deliver(SocketClose(slot.next_event(), 0, number, CloseCode.ABNORMAL, reason, clean=False))

    def _binding_expired(self, number: int) -> None:
        bound = self._bindings.pop(number, None)
        if bound is not None:
            self._end_unbound(bound.slot, number, bound.answer)
            self.gateway.end_turn()

    def _response_to_host(self, slot: HostSlot, origin: Origin, event: Response) -> None:
        if event.status == 101 and event.binding is not None:
            # The asking host gets a reference (the number); the binding waits here for the client's connection.
            number = event.socket
            self._bindings[number] = PendingBinding(slot, event)
            self.gateway.loop.call_later(_BINDING_WAITS_S, self._binding_expired, number)
            event = Response(event.request, 101, event.reason, event.headers, b"", False, None, number)
        if origin.slot is not None and origin.slot.link is not None:
            origin.slot.link.send(event)
        if not event.more_body:
            self._origins.pop(event.request, None)

    def _bind(self, slot: HostSlot, http: HttpConnection, answer: Response, number: int, response: Response) -> None:
        """The client's connection becomes the WebSocket that a worker accepted."""
        binding = answer.binding
        assert binding is not None
        try:
            leftover = http.upgraded(response)
        except ValueError as error:
            self.gateway.log_worker_fault("101", str(error))
            http.refuse(500, "Internal Server Error")
            self._end_unbound(slot, number, answer)
            return
        connection = Connection(self.gateway, http.fd, number, slot.plain)
        for name, value in response.headers:
            if name.lower() == "sec-websocket-protocol":
                connection.protocol = value
        connection.out = http.out
        self.gateway.dirty.append(connection)  # `http` is there too, but without a descriptor it does nothing
        if number != http.number:
            self.aliases[number] = connection
        self.gateway.reactor.replace(http.fd, connection)
        http.fd = -1
        self.gateway.counters.upgrades += 1
        self.gateway.counters.sockets += 1
        if binding.relay:
            self._splice(connection, binding.relay)
        elif binding.object is not None:
            record = self.gateway.sockets.bind(connection, binding.object, slot)
            self.gateway.counters.hibernatable += 1
            connection.tags = record.shared_tags(binding.tags)
            connection.attachment = binding.attachment
            if binding.auto_response is not None:
                record.auto = binding.auto_response
        if leftover or http.number in self.held_back:
            self.held_back.discard(http.number)
            self.gateway.later.append((connection, leftover))

    def _splice(self, connection: Connection, upstream_number: int) -> None:
        upstream = self.find(upstream_number)
        if upstream is None or upstream.state != State.OPEN:
            connection.owner = Owner(None, 0)
            connection.close(CloseCode.INTERNAL_ERROR, "The upstream is gone.")
            return
        connection.owner = Relay(upstream)
        upstream.owner = Relay(connection)

    def _stub_request(self, slot: HostSlot, event: Request) -> None:
        """A stub call of a host to an object elsewhere."""
        origin = Origin(None, slot)
        self._origins[event.request] = origin
        if event.upgrade:
            event = Request(
                event.request, event.method, event.url, event.headers, event.body, event.more_body, True,
                self.gateway.new_virtual_number(), event.peer, event.target,
            )  # fmt: skip
        self.request(event)

    def _body_data(self, slot: HostSlot, event: BodyData) -> None:
        self._forward(slot, event)
        origin = self._origins.get(event.request)
        if event.last and origin is not None and origin.connection is None and origin.target is slot:
            del self._origins[event.request]

    def _forward(self, slot: HostSlot, event: BodyData | BodyCredit | Abort) -> None:
        """Body traffic of a request: from the asked to the asker, or the other way."""
        origin = self._origins.get(event.request)
        if origin is None:
            return
        if origin.connection is not None:
            if type(event) is BodyData:
                origin.connection.on_body(event)
            elif type(event) is BodyCredit:
                origin.connection.on_credit(event)
            elif type(event) is Abort:
                origin.connection.on_abort(event)
            return
        other = origin.slot if slot is origin.target else origin.target
        if other is not None and other.link is not None:
            other.link.send(event)
        if type(event) is Abort:
            self._origins.pop(event.request, None)

    def _asleep(self, slot: HostSlot, event: Asleep) -> None:
        record = self.gateway.sockets.by_actor(event.actor)
        if record is not None:
            record.awake = False

    def _dial(self, slot: HostSlot, event: Dial) -> None:
        self.gateway.outbound.dial(slot, event)

    def _hello(self, slot: HostSlot, event: Hello) -> None:
        raise RemoteProtocolError(1002, "a host said hello twice")

    # a host's death

    def host_lost(self, slot: HostSlot, reason: str) -> None:
        """Requests end with 502, plain sockets with 1012; hibernatable sockets notice nothing."""
        for number, origin in list(self._origins.items()):
            if origin.target is slot:
                if origin.connection is not None:
                    origin.connection.on_abort(Abort(number, "The worker's host ended before it answered."))
                elif origin.slot is not None and origin.slot.link is not None:
                    origin.slot.link.send(Abort(number, "The object's host ended before it answered."))
                self._origins.pop(number, None)
            elif origin.slot is slot:
                if origin.target is not None and origin.target.link is not None:
                    origin.target.link.send(Abort(number, "The caller's host ended."))
                self._origins.pop(number, None)
        for connection in [c for c in self.gateway.reactor.table if isinstance(c, Connection)]:
            if connection.owner is slot.plain:
                self.gateway.counters.closed_host_lost += 1
                connection.close(CloseCode.SERVICE_RESTART, "The worker restarted.")
        for number, bound in list(self._bindings.items()):
            if bound.slot is slot:
                del self._bindings[number]
        for event in [e for e in (*slot.late.values(), *slot.unfinished) if e.actor == 0]:
            if not isinstance(event, SocketMessage):
                self.end_finished(event)
        slot.late = {n: e for n, e in slot.late.items() if e.actor}
        slot.unfinished = deque(e for e in slot.unfinished if e.actor)
        slot._large_bytes = sum(
            len(e.data)
            for e in (*slot.late.values(), *slot.unfinished)
            if type(e) is SocketMessage and len(e.data) >= _COUNT_FROM_BYTES
        )
        self.gateway.end_turn()

    def dialled(self, slot: HostSlot, event: Dialled) -> None:
        """Tell the asking host how its dial ended."""
        if slot.link is not None:
            slot.link.send(event)

    _HANDLERS: dict[Any, Any] = {  # noqa: RUF012 - a constant table
        CloseSocket: _close,
        Attach: _attach_value,
        SetAutoResponse: _set_auto,
        DropSockets: _drop,
        RosterRequest: _roster,
        Response: _response,
        Request: _stub_request,
        BodyData: _body_data,
        BodyCredit: _forward,
        Abort: _forward,
        Asleep: _asleep,
        Dial: _dial,
        Hello: _hello,
    }


def check_hello(event: Event | None, slots: int) -> int:
    """The slot a new host serves. Raises RemoteProtocolError if it is not one of ours."""
    if type(event) is not Hello:
        raise RemoteProtocolError(1002, "a host must say hello first")
    if event.version != ENVELOPE_VERSION:
        raise RemoteProtocolError(1002, f"a host speaks envelope version {event.version}, not {ENVELOPE_VERSION}")
    if event.slots != slots or not 0 <= event.slot < slots:
        raise RemoteProtocolError(1002, f"a host serves slot {event.slot} of {event.slots}, but there are {slots}")
    return event.slot
