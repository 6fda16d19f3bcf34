"""Requests and their answers: which host, which client, and a 101 that makes a connection a WebSocket.

An exchange has two sides: who asked (a client's connection, or a host through a stub) and the host that answers. The
invariant: every exchange ends, by an answer, an abort, or the end of either side, and a socket that was accepted for a
client who never came is told so.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from roost.events import (
    Abort,
    Attach,
    BodyCredit,
    BodyData,
    CloseSocket,
    Request,
    Response,
    Send,
    SocketClose,
)
from roost.gateway.io.connection import State
from roost.gateway.routing.host_slot import Departed, HostSlot
from roost.gateway.routing.sockets import Owner, Relay, shared_tags
from roost.ids import slot_of
from roost.protocol.websocket import CloseCode

if TYPE_CHECKING:
    from roost.events import Call, ObjectRef, Result
    from roost.gateway.gateway import Gateway
    from roost.gateway.io.connection import Connection
    from roost.gateway.io.http_connection import HttpConnection
    from roost.gateway.routing.router import Router
    from roost.link.port import Link

_BINDING_WAITS_S = 30.0  # for the client's connection of an object on another host
_BREAKER_RETRY_S = 5
_NOT_RUNNING = "The worker is not running at the moment (see the server's log). Try again in a moment."


class Origin:
    """Who asked a request: a client's connection, or a host with its own number for it."""

    __slots__ = ("asker", "connection", "given_to", "nth", "request", "slot", "target")

    def __init__(self, connection: HttpConnection | None, slot: HostSlot | None, asker: Link | None = None) -> None:
        self.connection = connection
        self.slot = slot  # the asking host
        self.asker = asker  # its link
        self.target: HostSlot | None = None  # the answering host
        self.given_to: Link | None = None  # its link, once it has the request: a successor knows nothing of it
        self.nth = 0  # of the requests of that link
        self.request: Request | Call | None = None  # to give it again, if the host ends before it begins


class PendingBinding:
    """A 101 whose client's connection is not bound yet, and what the object has said in the meantime."""

    __slots__ = ("answer", "events", "slot")

    def __init__(self, slot: HostSlot, answer: Response) -> None:
        self.slot = slot
        self.answer = answer
        self.events: list[Send | CloseSocket | Attach] = []


class Exchanges:
    """The requests under way at one gateway."""

    def __init__(self, gateway: Gateway, router: Router) -> None:
        self.gateway = gateway
        self.bindings: dict[int, PendingBinding] = {}  # 101s of objects elsewhere, waiting for the client's connection
        self._router = router
        self.origins: dict[int, Origin] = {}
        self.last_request = 0
        self._next_slot = 0
        self.one_host = False  # requests that name no object all go to the first host

    # asking

    def new_request(self, connection: HttpConnection) -> int:
        self.last_request += 2
        self.origins[self.last_request] = Origin(connection, None)
        return self.last_request

    def request(self, request: Request | Call) -> None:
        """Give a request to a host: the owner of its target object, or else the next one."""
        if request.target is not None:
            slot = self.slot_for(request.target)
        elif self.one_host:
            slot = self._router.slots[0]
        else:
            up = [slot for slot in self._router.slots if slot.link is not None] or self._router.slots
            self._next_slot += 1
            slot = up[self._next_slot % len(up)]
        origin = self.origins[request.request]
        origin.target = slot
        if slot.link is not None:
            self.give(request, slot)
        elif slot.breaker and slot.leaving is None:
            self._unavailable(request.request, slot.breaker, _BREAKER_RETRY_S)
        elif len(slot.waiting) < self.gateway.limits.max_waiting_requests:
            slot.waiting.append(request)
            if len(slot.waiting) == 1:
                self.wait_for_host(slot)
        else:
            self._unavailable(request.request)

    def wait_for_host(self, slot: HostSlot) -> None:
        """Refuse what waits for a host if none comes in time."""
        if slot.waiting:
            self.gateway.loop.call_later(self.gateway.limits.host_wait_s, self._host_wait_over, slot)

    def _host_wait_over(self, slot: HostSlot) -> None:
        while slot.waiting and slot.link is None:
            self._unavailable(slot.waiting.popleft().request)
        self.gateway.end_turn()

    def give(self, request: Request | Call, slot: HostSlot) -> None:
        """A request goes to its host, if anybody still waits for the answer."""
        origin = self.origins.get(request.request)
        if origin is not None:
            origin.given_to = slot.link
            origin.nth = slot.give(request)
            origin.request = None if type(request) is Request and request.more_body else request

    def open_breaker(self, slot: HostSlot, reason: str) -> None:
        """Nobody waits for that host any more, until the reason is gone (empty)."""
        slot.breaker = reason
        while reason and slot.link is None and slot.waiting:
            self._unavailable(slot.waiting.popleft().request, reason, _BREAKER_RETRY_S)
        self.gateway.end_turn()

    def _unavailable(self, request: int, text: str = _NOT_RUNNING, retry_after_s: int = 1) -> None:
        self.gateway.counters.refused_requests += 1
        origin = self.origins.get(request)
        if origin is None:
            return
        if origin.connection is not None:
            origin.connection.refuse(503, text, [("Retry-After", str(retry_after_s))])
        elif origin.asker is not None:
            origin.asker.send(Abort(request, text))
            self.origins.pop(request, None)

    def slot_for(self, ref: ObjectRef) -> HostSlot:
        return self._router.slots[slot_of(ref.id, len(self._router.slots))]

    def to_host(self, request: int, event: BodyData | BodyCredit | Abort) -> None:
        """What follows a client's request goes where the request went."""
        origin = self.origins.get(request)
        if origin is not None and origin.given_to is not None:
            origin.given_to.send(event)
        elif origin is not None and origin.target is not None and type(event) is BodyData:
            self._unavailable(request)  # the host has not come yet and the body does not fit into the wait

    def request_over(self, request: int) -> None:
        self.origins.pop(request, None)

    # answering

    def response(self, slot: HostSlot | Departed, event: Response) -> None:
        origin = self.origins.get(event.request)
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
            bound = self.bindings.pop(event.socket, None)
            if bound is None:
                origin.connection.refuse(502, "The object's socket is gone.")
                return
            self._bind(bound.slot, origin.connection, bound.answer, event.socket, event)
            self._router.from_host(bound.slot, bound.events)
        else:
            owner = slot if isinstance(slot, HostSlot) else slot.slot
            if owner is not slot and (event.binding is None or event.binding.object is None):
                origin.connection.refuse(503, "The worker was just replaced.", [("Retry-After", "1")])
                return
            self._bind(owner, origin.connection, event, origin.connection.number, event)

    def _nobody_waits(self, slot: HostSlot | Departed, event: Response) -> None:
        """The client left before its answer: a socket that was accepted for it ends, a body stops."""
        if event.status == 101 and event.binding is None:
            bound = self.bindings.pop(event.socket, None)
            if bound is not None:
                self._end_unbound(bound.slot, event.socket, bound.answer)
        elif event.status == 101:
            self._end_unbound(slot, event.socket, event)
        elif event.more_body and slot.current is not None:
            slot.current.send(Abort(event.request, "The client disconnected."))

    def _end_unbound(self, slot: HostSlot | Departed, number: int, answer: Response) -> None:
        """A socket whose client never came: its program hears of the end like of any other."""
        assert answer.binding is not None
        if answer.binding.relay:
            upstream = self._router.find(answer.binding.relay)
            if upstream is not None:
                upstream.close(CloseCode.GOING_AWAY, "The client left.")
            return
        if isinstance(slot, Departed):
            return  # its program goes anyway
        reason = "WebSocket disconnected without sending Close frame."
        slot.deliver(SocketClose(slot.next_event(), 0, number, CloseCode.ABNORMAL, reason, clean=False))

    def _binding_expired(self, number: int) -> None:
        self.unbound(number)
        self.gateway.end_turn()

    def unbound(self, number: int) -> None:
        """The client of a 101 will not come any more."""
        bound = self.bindings.pop(number, None)
        if bound is not None:
            self._end_unbound(bound.slot, number, bound.answer)

    def asked_by_host(self, request: int) -> bool:
        """Whether a stub asked, and not a client."""
        origin = self.origins.get(request)
        return origin is not None and origin.slot is not None

    def _response_to_host(self, slot: HostSlot | Departed, origin: Origin, event: Response) -> None:
        if event.status == 101 and event.binding is not None:
            # The asking host gets a reference (the number); the binding waits here for the client's connection.
            number = event.socket
            owner = slot if isinstance(slot, HostSlot) else slot.slot
            self.bindings[number] = PendingBinding(owner, event)
            self.gateway.loop.call_later(_BINDING_WAITS_S, self._binding_expired, number)
            event = Response(event.request, 101, event.reason, event.headers, b"", False, None, number)
        if origin.asker is not None:
            origin.asker.send(event)
        if not event.more_body:
            self.origins.pop(event.request, None)

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
        connection = http.websocket(number, slot.plain)
        for name, value in response.headers:
            if name.lower() == "sec-websocket-protocol":
                connection.protocol = value
        connection.out = http.out
        self.gateway.dirty.append(connection)  # `http` is there too, but without a descriptor it does nothing
        if number != http.number:
            self._router.aliases[number] = connection
        self.gateway.reactor.replace(http.fd, connection)
        http.fd = -1
        self.gateway.counters.upgrades += 1
        self.gateway.counters.sockets += 1
        if binding.relay:
            self._splice(connection, binding.relay)
        elif binding.object is not None:
            record = self.gateway.sockets.bind(connection, binding.object, slot)
            self.gateway.counters.hibernatable += 1
            connection.tags = shared_tags(binding.tags)
            connection.attachment = binding.attachment
            self.gateway.journal.bound(connection, record)
            if binding.auto_response is not None:
                record.auto = binding.auto_response
        if leftover or http.number in self._router.held_back or http.is_half_closed:
            self._router.held_back.discard(http.number)
            self.gateway.later.append((connection, leftover))

    def _splice(self, connection: Connection, upstream_number: int) -> None:
        upstream = self._router.find(upstream_number)
        if upstream is None or upstream.state != State.OPEN:
            connection.owner = Owner(None, 0)
            connection.close(CloseCode.INTERNAL_ERROR, "The upstream is gone.")
            return
        connection.owner = Relay(upstream)
        upstream.owner = Relay(connection)

    def stub_request(self, slot: HostSlot | Departed, event: Request) -> None:
        """A stub call of a host to an object elsewhere."""
        origin = Origin(None, slot if isinstance(slot, HostSlot) else slot.slot, slot.current)
        self.origins[event.request] = origin
        if event.upgrade:
            event = Request(
                event.request, event.method, event.url, event.headers, event.body, event.more_body, True,
                self.gateway.new_virtual_number(), event.peer, event.target, event.chain,
            )  # fmt: skip
        self.request(event)

    def stub_call(self, slot: HostSlot | Departed, event: Call) -> None:
        """A method call of a host on an object elsewhere."""
        owner = slot if isinstance(slot, HostSlot) else slot.slot
        self.origins[event.request] = Origin(None, owner, slot.current)
        self.request(event)

    def result(self, slot: HostSlot | Departed, event: Result) -> None:
        origin = self.origins.pop(event.request, None)
        if origin is not None and origin.asker is not None:
            origin.asker.send(event)

    def body_data(self, slot: HostSlot | Departed, event: BodyData) -> None:
        self.forward(slot, event)
        origin = self.origins.get(event.request)
        if event.last and origin is not None and origin.connection is None and origin.given_to is slot.current:
            del self.origins[event.request]

    def forward(self, slot: HostSlot | Departed, event: BodyData | BodyCredit | Abort) -> None:
        """Body traffic of a request: from the asked to the asker, or the other way."""
        origin = self.origins.get(event.request)
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
        if slot.current is not origin.given_to:
            if origin.given_to is not None:
                origin.given_to.send(event)
        elif origin.asker is not None:
            origin.asker.send(event)
        if type(event) is Abort:
            self.origins.pop(event.request, None)

    # a host's death

    def host_lost(self, slot: HostSlot, link: Link | None, *, departed: bool = False) -> None:
        """Requests that the host had begun end with 502, those that it had not wait for its successor; what it asked is no
        longer wanted. One that has `departed` had begun all that it was given."""
        begun = sys.maxsize if departed else slot.begun()
        again = [
            origin
            for origin in self.origins.values()
            if origin.given_to is link and origin.asker is not link and origin.request is not None and origin.nth > begun
        ]
        again.sort(key=lambda origin: origin.nth, reverse=True)
        for origin in again:
            assert origin.request is not None
            slot.waiting.appendleft(origin.request)
            origin.given_to = origin.request = None
            self.gateway.counters.requests_again += 1
        if again:
            self.wait_for_host(slot)
        waiting = {request.request for request in slot.waiting}
        for number, origin in list(self.origins.items()):
            if number in waiting and origin.asker is not link:
                continue
            if origin.given_to is link and link is not None:
                if origin.connection is not None:
                    origin.connection.on_abort(Abort(number, "The worker's host ended before it answered."))
                elif origin.asker is not None and origin.asker is not link:
                    origin.asker.send(Abort(number, "The object's host ended before it answered."))
                self.origins.pop(number, None)
            elif origin.asker is link and link is not None:
                if origin.given_to is not None:
                    origin.given_to.send(Abort(number, "The caller's host ended."))
                self.origins.pop(number, None)
        if departed:
            return
        for number, bound in list(self.bindings.items()):
            if bound.slot is slot:
                del self.bindings[number]
