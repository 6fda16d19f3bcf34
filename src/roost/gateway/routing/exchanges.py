"""Requests and their answers: which host, and which client or host gets what it says. `upgrades` has what becomes a socket.

An exchange has two sides: who asked (a client's connection, or a host through a stub) and the host that answers. The
invariant: every exchange ends, by an answer, an abort, or the end of either side.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from roost.events import Abort, BodyCredit, BodyData, Call, Request, Response
from roost.gateway.routing.host_slot import HostSlot, envelopes, events_of
from roost.ids import slot_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roost.events import ObjectRef, Result
    from roost.gateway.io.http_connection import HttpConnection
    from roost.gateway.io.turn import Turn
    from roost.gateway.routing.host_slot import Departed
    from roost.gateway.routing.upgrades import Upgrades
    from roost.link.port import Link

_BREAKER_RETRY_S = 5
_NOT_RUNNING = "The worker is not running at the moment (see the server's log). Try again in a moment."


class OriginState(msgspec.Struct, array_like=True):
    """A stub's request under way between two hosts, for another process."""

    request: int
    slot: int
    target: int
    nth: int
    given: bool
    envelope: bytes  # of the request, to give it again, if the host ends before it begins


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


class Exchanges:
    """The requests under way at one gateway."""

    def __init__(self, turn: Turn, slots: Sequence[HostSlot], upgrades: Upgrades) -> None:
        self._turn = turn
        self._slots = slots
        self._upgrades = upgrades
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
            slot = self._slots[0]
        else:
            up = [slot for slot in self._slots if slot.link is not None] or self._slots
            self._next_slot += 1
            slot = up[self._next_slot % len(up)]
        origin = self.origins[request.request]
        origin.target = slot
        if slot.link is not None:
            self.give(request, slot)
        elif slot.breaker and slot.leaving is None:
            self._unavailable(request.request, slot.breaker, _BREAKER_RETRY_S)
        elif len(slot.waiting) < self._turn.limits.max_waiting_requests:
            slot.waiting.append(request)
            if len(slot.waiting) == 1:
                self.wait_for_host(slot)
        else:
            self._unavailable(request.request)

    def wait_for_host(self, slot: HostSlot) -> None:
        """Refuse what waits for a host if none comes in time."""
        if slot.waiting:
            self._turn.loop.call_later(self._turn.limits.host_wait_s, self._host_wait_over, slot)

    def _host_wait_over(self, slot: HostSlot) -> None:
        while slot.waiting and slot.link is None:
            self._unavailable(slot.waiting.popleft().request)
        self._turn.end()

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
        self._turn.end()

    def _unavailable(self, request: int, text: str = _NOT_RUNNING, retry_after_s: int = 1) -> None:
        self._turn.counters.refused_requests += 1
        origin = self.origins.get(request)
        if origin is None:
            return
        if origin.connection is not None:
            origin.connection.refuse(503, text, [("Retry-After", str(retry_after_s))])
        elif origin.asker is not None:
            origin.asker.send(Abort(request, text))
            self.origins.pop(request, None)

    def slot_for(self, ref: ObjectRef) -> HostSlot:
        return self._slots[slot_of(ref.id, len(self._slots))]

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
        elif event.binding is None:
            if not self._upgrades.bind_pending(origin.connection, event):
                origin.connection.refuse(502, "The object's socket is gone.")
        elif slot is not slot.slot and event.binding.object is None:
            origin.connection.refuse(503, "The worker was just replaced.", [("Retry-After", "1")])
        else:
            self._upgrades.bind(slot.slot, origin.connection, event, origin.connection.number, event)

    def _nobody_waits(self, slot: HostSlot | Departed, event: Response) -> None:
        """The client left before its answer: a socket that was accepted for it ends, a body stops."""
        if event.status == 101 and event.binding is None:
            self._upgrades.drop(event.socket)
        elif event.status == 101:
            self._upgrades.end_unbound(slot, event.socket, event)
        elif event.more_body and slot.current is not None:
            slot.current.send(Abort(event.request, "The client disconnected."))

    def asked_by_host(self, request: int) -> bool:
        """Whether a stub asked, and not a client."""
        origin = self.origins.get(request)
        return origin is not None and origin.slot is not None

    def _response_to_host(self, slot: HostSlot | Departed, origin: Origin, event: Response) -> None:
        if event.status == 101 and event.binding is not None:
            # The asking host gets a reference (the number); the binding waits for the client's connection.
            self._upgrades.wait(slot.slot, event)
            event = Response(event.request, 101, event.reason, event.headers, b"", False, None, event.socket)
        if origin.asker is not None:
            origin.asker.send(event)
        if not event.more_body:
            self.origins.pop(event.request, None)

    def stub_request(self, slot: HostSlot | Departed, event: Request) -> None:
        """A stub call of a host to an object elsewhere."""
        origin = Origin(None, slot.slot, slot.current)
        self.origins[event.request] = origin
        if event.upgrade:
            event = Request(
                event.request, event.method, event.url, event.headers, event.body, event.more_body, True,
                self._turn.new_virtual_number(), event.peer, event.target, event.chain,
            )  # fmt: skip
        self.request(event)

    def stub_call(self, slot: HostSlot | Departed, event: Call) -> None:
        """A method call of a host on an object elsewhere."""
        self.origins[event.request] = Origin(None, slot.slot, slot.current)
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
        unbegun = [
            origin
            for origin in self.origins.values()
            if origin.given_to is link and origin.asker is not link and origin.request is not None and origin.nth > begun
        ]
        unbegun.sort(key=lambda origin: origin.nth, reverse=True)
        for origin in unbegun:
            assert origin.request is not None
            slot.waiting.appendleft(origin.request)
            origin.given_to = origin.request = None
            self._turn.counters.requests_again += 1
        if unbegun:
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
        if not departed:
            self._upgrades.host_lost(slot)

    # for another process

    def described(self) -> list[OriginState]:
        """The requests of hosts; a client's are waited for."""
        return [
            OriginState(
                number,
                origin.slot.index,
                -1 if origin.target is None else origin.target.index,
                origin.nth,
                origin.given_to is not None,
                envelopes([] if origin.request is None else [origin.request]),
            )
            for number, origin in self.origins.items()
            if origin.slot is not None
        ]

    def restore(self, told: OriginState) -> None:
        """One of those, when the slots have their links."""
        asking = self._slots[told.slot]
        origin = Origin(None, asking, asking.link)
        origin.target = self._slots[told.target] if told.target >= 0 else None
        origin.nth = told.nth
        origin.given_to = origin.target.link if told.given and origin.target is not None else None
        origin.request = next((event for event in events_of(told.envelope) if isinstance(event, Request | Call)), None)
        self.origins[told.request] = origin
