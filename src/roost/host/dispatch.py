"""A gateway's events: who handles each.

The body of `on_events` runs once a batch and its loop once an event. What fails there is ours, not the user's: it is
logged, and the rest of the batch goes on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from roost.api.socket_end import Accept
from roost.closes import LOST
from roost.errors import WorkerError
from roost.events import (
    Abort,
    Asleep,
    AutoAnswered,
    BodyCredit,
    BodyData,
    Call,
    Confirmed,
    Dialled,
    Leaving,
    Request,
    Response,
    Result,
    Roster,
    SocketClose,
    SocketError,
    SocketMessage,
    SocketOpened,
    WakingMessage,
    Welcome,
)
from roost.host.bodies import BodyReader
from roost.host.calls.stubs import raised
from roost.host.objects.actor import Actor
from roost.host.worker.surroundings import HostPhase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roost.events import Event
    from roost.host.calls.answering import MethodCalls
    from roost.host.calls.requests import Requests
    from roost.host.gateway_link import GatewayLink
    from roost.host.objects.registry import Actors
    from roost.host.objects.sleeping import Sleeping
    from roost.host.objects.waking import Waking
    from roost.host.spec import HostSpec
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.host")

_MAX_ENDED = 100_000
_SOCKET_EVENTS = frozenset({SocketMessage, WakingMessage, SocketClose, SocketError, SocketOpened})


class Dispatch:
    """One host's. `gateway_link.GatewayEvents`."""

    def __init__(
        self,
        surroundings: Surroundings,
        spec: HostSpec,
        actors: Actors,
        sleeping: Sleeping,
        waking: Waking,
        requests: Requests,
        calls: MethodCalls,
    ) -> None:
        self._surroundings = surroundings
        self._links = surroundings.links
        self._actors = actors
        self._sleeping = sleeping
        self._waking = waking
        self._requests = requests
        self._calls = calls
        self._gateways_outlive = spec.gateways_outlive
        self.not_again = spec.not_again  # events (epoch, number) that an earlier host hung in
        self._ended: set[int] = set()  # sockets of gateways that died, whose ends their objects know
        self._handlers: dict[type, Any] = {
            Request: self._request,
            Response: self._response,
            BodyData: self._body_data,
            BodyCredit: lambda gateway, event: requests.credit(gateway, event.request, event.size),
            Abort: self._abort,
            Dialled: self._dialled,
            Call: self._call,
            Result: self._result,
            AutoAnswered: self._auto_answered,
            Welcome: self._welcome,
            Leaving: self._left,
            Confirmed: lambda gateway, event: gateway.confirmed(event.number),
        }

    def on_events(self, gateway: GatewayLink, events: Sequence[Event]) -> None:
        """A batch from a gateway."""
        if self._links.are_awaited:
            if events and type(events[0]) is Welcome:
                self._welcome(gateway, events[0])
                events = events[1:]
            self._links.keep(gateway, events)
            return
        surroundings = self._surroundings
        surroundings.now = surroundings.loop.time()
        gateway.slow = False
        sockets = gateway.sockets
        before = gateway.last_event
        others = 0  # that are no socket events
        some_are_not_ours = self._links.leaving or self.not_again
        for event in events:
            try:
                surroundings.handled += 1
                if some_are_not_ours and self._is_passed_over(gateway, event):
                    continue
                if type(event) is SocketMessage:
                    gateway.last_event = event.event
                    socket = sockets.get(event.socket)
                    if socket is not None:
                        socket.io_context.message(socket, event, gateway)
                    else:
                        self._waking.unknown(gateway, event)
                elif type(event) is WakingMessage:
                    gateway.last_event = event.event
                    self._waking.message(gateway, event)
                elif type(event) is SocketClose or type(event) is SocketError:
                    gateway.last_event = event.event
                    if event.socket in self._ended:  # its gateway died before it heard that this is done
                        self._ended.discard(event.socket)
                    else:
                        self._waking.socket_event(gateway, event)
                elif type(event) is SocketOpened:
                    gateway.last_event = event.event
                    self._waking.socket_event(gateway, event)
                elif type(event) is Roster:
                    others += 1
                    self._waking.roster(gateway, event)
                else:
                    others += 1
                    self._handlers[type(event)](gateway, event)
            except Exception:  # noqa: BLE001
                # Ours, not the user's (that is caught where it runs): the rest of the batch must not be lost with it.
                _log.exception("host: internal error in %s; please report it", type(event).__name__)
        if gateway.offered and not gateway.offered[-1].more:
            gateway.offered = []
        if gateway.last_event != before:
            surroundings.counters.events += len(events) - others
            gateway.send_done()
        if self._sleeping.timer is None and len(self._actors):
            self._sleeping.arm()

    def _is_passed_over(self, gateway: GatewayLink, event: Any) -> bool:
        """Whether an event is not for this host."""
        if type(event) not in _SOCKET_EVENTS:
            return False
        if self._links.leaving:  # not done: the gateway gives it to the successor (but for a plain socket, which has none)
            if type(event) is not WakingMessage and not event.actor:
                self._waking.socket_event(gateway, event)
            return True
        if (gateway.epoch, event.event) in self.not_again:
            gateway.last_event = event.event
            self._surroundings.counters.events_given_up += 1
            return True
        return False

    def gateway_lost(self, gateway: GatewayLink, reason: str) -> None:
        """A gateway is gone, and with it all of its sockets."""
        if self._surroundings.phase is HostPhase.SERVING:
            _log.warning("host: gateway %d is gone: %s", gateway.index, reason)
        if gateway in self._links.here:
            self._links.here.remove(gateway)
        for number, socket in list(gateway.sockets.items()):
            context = socket.io_context
            if isinstance(context, Actor) and socket.accepted_as == Accept.HIBERNATABLE and self._gateways_outlive:
                context.disconnected(socket)  # its end is told by that gateway's successor
            elif context is not None:
                context.closed(socket, SocketClose(0, 0, number, *LOST, clean=False), gateway)
        for answered in gateway.responses.values():
            if not answered.done():
                answered.set_exception(WorkerError("The gateway that carried this call is gone."))
        for number, dialled in list(gateway.dials.items()):
            dialled(gateway, Dialled(number, 0, 0, [], "the gateway that dialled is gone"))
        gateway.dials.clear()
        for reader in [*gateway.bodies.values(), *gateway.readers.values()]:
            reader.abort("The gateway is gone.")
        self._ended.update(gateway.ended)
        if len(self._ended) > _MAX_ENDED:
            self._ended = set(gateway.ended)
        self._requests.gateway_lost(gateway)
        self._waking.gateway_lost(gateway)

    # a gateway's coming and going

    def _welcome(self, gateway: GatewayLink, event: Welcome) -> None:
        self._links.welcomed(gateway, event)
        for actor in self._actors:  # awake before this gateway was here
            self._waking.ask(actor, gateway)

    def _left(self, gateway: GatewayLink, event: Leaving) -> None:
        gateway.left = True

    def _auto_answered(self, gateway: GatewayLink, event: AutoAnswered) -> None:
        socket = gateway.sockets.get(event.socket)
        if socket is None:
            gateway.link.send(Asleep(event.actor))
        else:
            socket.auto_answered_ms = event.at_ms

    # requests, and answers to what this host has asked

    def _request(self, gateway: GatewayLink, event: Request) -> None:
        self._surroundings.counters.requests += 1
        self._surroundings.mark.begun(gateway.index)
        self._requests.begin(gateway, event)

    def _call(self, gateway: GatewayLink, event: Call) -> None:
        self._surroundings.mark.begun(gateway.index)
        self._calls.from_link(gateway, event)

    def _response(self, gateway: GatewayLink, event: Response) -> None:
        answered = gateway.responses.get(event.request)
        if (answered is None or answered.done()) and event.more_body:
            gateway.link.send(Abort(event.request, "The caller gave up."))
        if answered is not None and not answered.done():
            if event.more_body:  # at once: its pieces may be in this very batch
                reader = BodyReader(gateway, event.request, event.body)
                gateway.bodies[event.request] = gateway.readers[event.request] = reader
            answered.set_result(event)

    def _result(self, gateway: GatewayLink, event: Result) -> None:
        answered = gateway.responses.get(event.request)
        if answered is not None and not answered.done():
            answered.set_result(event)

    def _body_data(self, gateway: GatewayLink, event: BodyData) -> None:
        reader = gateway.bodies.get(event.request)
        if reader is not None:
            reader.feed(event)
            if event.last:
                gateway.bodies.pop(event.request, None)

    def _abort(self, gateway: GatewayLink, event: Abort) -> None:
        reader = gateway.bodies.pop(event.request, None)
        if reader is not None:
            reader.abort(event.reason)
        answered = gateway.responses.get(event.request)
        if answered is not None and not answered.done():
            answered.set_exception(raised(event.fault, event.reason))
        self._requests.abort(gateway, event.request)

    def _dialled(self, gateway: GatewayLink, event: Dialled) -> None:
        dialled = gateway.dials.pop(event.dial, None)
        if dialled is not None:
            dialled(gateway, event)
