"""Objects that wake: which sockets they have at each gateway is told or asked for, and what came for them waits meanwhile.

A gateway sends the roster of an object that sleeps with the message that wakes it (`WakingMessage`), or ahead of it; for
any other event of a socket that is not known here it is asked for. The invariant: an object is built when each gateway has
said which sockets it has, or has had its time to do so; until then its events are in `GatewayLink.waking` or held by the
actor, and count as running.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from roost.closes import OBJECT_BUSY
from roost.errors import ConfigError, OverloadError, QuarantineError, UnavailableError
from roost.events import Roster, RosterRequest, SocketClose, SocketMessage, SocketOpened, WakingMessage
from roost.host.links import GATEWAY_WAITS_S, ONE_MORE_POLL_S
from roost.host.objects.actor import Actor
from roost.host.objects.input_gate import Phase
from roost.host.worker.surroundings import HostPhase

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from roost.events import ObjectRef, SocketEvent
    from roost.host.gateway_link import GatewayLink
    from roost.host.objects.registry import Actors
    from roost.host.objects.sleeping import Sleeping
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.host")

_ROOM_RETRY_S = 0.5
_ELSEWHERE: Any = object()  # awaited like a gateway's roster: that an earlier host lets go of the object


class Waking:
    """One host's. `surroundings.Objects`."""

    check_alarms: Callable[[], None]
    """An object is here whose alarm may be due."""

    def __init__(
        self, surroundings: Surroundings, actors: Actors, sleeping: Sleeping, quarantined: frozenset[tuple[str, str]]
    ) -> None:
        self._surroundings = surroundings
        self._actors = actors
        self._sleeping = sleeping
        self.get = actors.get
        self.forget = actors.forget
        self.quarantined = quarantined  # objects (class, id) that have brought their hosts down
        self._quarantine_told: set[tuple[str, str]] = set()
        self._slow: asyncio.TimerHandle | None = None

    def socket_event(self, gateway: GatewayLink, event: SocketEvent) -> None:
        """An event of a socket that may not be known here (yet)."""
        socket = gateway.sockets.get(event.socket)
        if socket is None or socket.io_context is None:
            self.unknown(gateway, event)
        elif type(event) is SocketMessage:
            self._surroundings.handled += 1  # many may have waited for one gate
            socket.io_context.message(socket, event, gateway)
        elif type(event) is SocketClose:
            socket.io_context.closed(socket, event, gateway)
        elif type(event) is SocketOpened:
            socket.io_context.opened(socket, event, gateway)
        else:
            socket.io_context.failed(socket, event, gateway)

    def unknown(self, gateway: GatewayLink, event: Any) -> None:
        """A socket of a sleeping object: ask its gateway whose it is, and keep the event until then."""
        waking = gateway.waking.get(event.actor)
        if event.actor == 0 and type(event) is SocketMessage and event.socket in gateway.relayed:
            payload = event.data.encode() if isinstance(event.data, str) else event.data
            gateway.send_message(gateway.relayed[event.socket], payload, isinstance(event.data, str))
        elif event.actor == 0:
            self._surroundings.counters.events_unknown += 1  # a plain socket of an earlier host, or one already over
        elif waking is not None:
            gateway.running.add(event.event)
            waking.append(event)
        else:
            gateway.running.add(event.event)
            offered, gateway.offered = gateway.offered, []
            if offered and offered[0].actor == event.actor:
                self._wake_by(gateway, offered[0], [event])  # its end is told at the end of this batch
                for piece in offered[1:]:
                    self._further(gateway, piece)
            else:
                gateway.waking[event.actor] = [event]
                gateway.link.send(RosterRequest(event.actor, None))

    def message(self, gateway: GatewayLink, event: WakingMessage) -> None:
        """A message for an object that its gateway believes asleep."""
        roster = event.roster
        data: Any = event.binary if event.string is None else event.string
        message = SocketMessage(event.event, roster.actor, event.socket, data)
        if roster.object is None or roster.actor in gateway.waking:
            self.roster(gateway, roster)
            self.socket_event(gateway, message)
        else:
            self._wake_by(gateway, roster, [message])

    def roster(self, gateway: GatewayLink, roster: Roster) -> None:
        surroundings = self._surroundings
        if roster.piece:
            self._further(gateway, roster)
            return
        events = gateway.waking.pop(roster.actor, []) if roster.actor else []
        if roster.object is None:  # the socket is over and its record gone
            for event in events:
                gateway.running.discard(event.event)
            surroundings.counters.events_unknown += len(events)
        elif not events and self._actors.get(roster.object) is None:
            gateway.offered = [roster]  # for the event behind it; or answered too late
            return
        else:
            self._wake_by(gateway, roster, events)
        gateway.send_done()

    def _further(self, gateway: GatewayLink, roster: Roster) -> None:
        """Another piece of the roster before it. No event is between them."""
        assert roster.object is not None
        if gateway.offered and gateway.offered[0].actor == roster.actor:
            gateway.offered.append(roster)
        elif self._actors.get(roster.object) is not None:  # else there was no room for it
            self._wake_by(gateway, roster, [])
            gateway.send_done()

    def _wake_by(self, gateway: GatewayLink, roster: Roster, events: list[Any]) -> None:
        """A gateway's sockets of an object are known: build it, if that was all that it waits for, and give it the events.
        Those that have to wait are in `gateway.running` until it is their turn."""
        surroundings = self._surroundings
        if surroundings.phase is HostPhase.RELEASED:
            return  # not done: the successor's
        assert roster.object is not None
        actor = self._actors.get(roster.object)
        if actor is not None and actor.phase is Phase.GONE:
            actor = None
        if actor is None or actor.phase is Phase.WAKING:
            try:
                actor = actor or self._new_actor(roster.object, f"{type(events[0]).__name__}", ask_all_but=gateway)
            except OverloadError as error:
                kept = []
                for event in events:
                    if type(event) is SocketMessage and event.event > gateway.redelivery_upto:
                        gateway.running.discard(event.event)
                        self.shed(gateway, event, str(error))
                    else:
                        gateway.running.add(event.event)
                        kept.append(event)
                if kept:  # how a socket ended, and what was given before, waits for room
                    gateway.waking[roster.actor] = kept
                    surroundings.loop.call_later(_ROOM_RETRY_S, gateway.link.send, RosterRequest(roster.actor, None))
                return
            except (ConfigError, QuarantineError) as error:  # the class is gone from the code; its sockets stay
                key = roster.object.class_name, roster.object.id
                if key not in self._quarantine_told:  # once an object: its clients may go on sending
                    self._quarantine_told.add(key)
                    _log.error("host: events of %s are dropped: %s", roster.object.name, error)
                for event in events:
                    gateway.running.discard(event.event)
                return
            if roster.more:
                actor.ask(gateway)
            else:
                actor.asked.pop(gateway, None)
            actor.adopt(gateway, roster, None)
            if actor.asked:
                for event in events:
                    actor.hold(gateway, event)
                return
            actor.wake()
            for event in events:
                gateway.running.discard(event.event)
                if actor.phase is not Phase.GONE:
                    self.socket_event(gateway, event)
            return
        late = gateway in actor.unanswered
        if not roster.more:
            actor.unanswered.pop(gateway, None)
        actor.adopt(gateway, roster, None if late else {event.socket for event in events})
        for event in events:  # it was awake after all: what it does not know of is over
            gateway.running.discard(event.event)
            if event.socket in gateway.sockets:
                self.socket_event(gateway, event)

    def awaken(self, ref: ObjectRef, why: str) -> Actor:
        """The object's actor, which may still be waking. Raises ConfigError for a class that is not bound."""
        actor = self._actors.get(ref)
        if actor is None:
            actor = self._new_actor(ref, why, ask_all_but=None)
            self._wake_if_ready(actor)
        return actor

    def _new_actor(self, ref: ObjectRef, why: str, ask_all_but: GatewayLink | None) -> Actor:
        surroundings = self._surroundings
        if surroundings.phase is HostPhase.RELEASED:
            raise UnavailableError("this code was just replaced; try again.")
        kind = surroundings.worker.classes.get(ref.class_name)
        if kind is None:
            raise ConfigError(f"The worker has no Durable Object class {ref.class_name!r}.")
        if (ref.class_name, ref.id) in self.quarantined:
            surroundings.counters.events_quarantined += 1
            raise QuarantineError(
                f"{ref.label} has twice brought its host down and is not woken any more;"
                f" mend it, then `roost objects release {ref.id}`."
            )
        if len(self._actors) >= surroundings.limits.max_live_objects:
            self._make_room()
        actor = Actor(surroundings, ref, kind)
        actor.woke_for = why
        self._actors.add(actor)
        surroundings.counters.wakes += 1
        for gateway in surroundings.links.here:
            if gateway is not ask_all_but:
                self.ask(actor, gateway)
        if (ref.class_name, ref.id) in surroundings.elsewhere:
            actor.ask(_ELSEWHERE)
        self._sleeping.arm()
        return actor

    def _make_room(self) -> None:
        """Put some objects to sleep. Raises OverloadError if all are busy."""
        if not self._sleeping.make_room():
            self._surroundings.counters.wakes_refused += 1
            raise OverloadError(
                f"{len(self._actors)} objects are awake and none can sleep (limits.max_live_objects);"
                " try again in a moment."
            )

    def shed(self, gateway: GatewayLink, event: SocketEvent, reason: str) -> None:
        """There is no room for an event: its client is told to come back later."""
        self._surroundings.counters.events_shed += 1
        if type(event) is SocketMessage:
            gateway.close_socket(event.socket, OBJECT_BUSY.code, reason)

    def came(self, objects: Iterable[tuple[str, str]]) -> None:
        """An earlier host has let these objects go: they may wake here."""
        surroundings = self._surroundings
        surroundings.elsewhere.difference_update(objects)
        for actor in list(self._actors):
            if _ELSEWHERE in actor.asked and (actor.ref.class_name, actor.ref.id) not in surroundings.elsewhere:
                del actor.asked[_ELSEWHERE]
                self._wake_if_ready(actor)
        self.check_alarms()  # it may have set one

    def _wake_if_ready(self, actor: Actor) -> None:
        if actor.phase is Phase.WAKING and not actor.asked:
            actor.wake()

    def ask(self, actor: Actor, gateway: GatewayLink) -> None:
        """Ask a gateway for an object's sockets; the object waits, unless that gateway is known not to answer."""
        gateway.link.send(RosterRequest(0, actor.ref))
        if gateway.slow or actor.phase is not Phase.WAKING:
            actor.do_not_await(gateway)
            return
        actor.ask(gateway)
        if self._slow is None:
            self._slow = self._surroundings.loop.call_later(GATEWAY_WAITS_S, self._do_not_wait_soon)

    def _do_not_wait_soon(self) -> None:
        self._slow = self._surroundings.loop.call_later(ONE_MORE_POLL_S, self._do_not_wait)

    def _do_not_wait(self) -> None:
        """A gateway that hangs must not keep objects from waking: they learn of their sockets there when it answers."""
        surroundings = self._surroundings
        self._slow = None
        for actor in self._actors:
            if actor.phase is Phase.WAKING and actor.asked:
                if surroundings.loop.time() - actor.asked_at < GATEWAY_WAITS_S:
                    self._slow = self._slow or surroundings.loop.call_later(GATEWAY_WAITS_S, self._do_not_wait)
                    continue
                for gateway in [gateway for gateway in actor.asked if gateway is not _ELSEWHERE]:
                    if not gateway.slow:
                        _log.warning("host: gateway %d does not answer; objects wake without its sockets", gateway.index)
                    gateway.slow = True
                    actor.do_not_await(gateway)
                actor.asked = {gateway: None for gateway in actor.asked if gateway is _ELSEWHERE}
                self._wake_if_ready(actor)

    def gateway_lost(self, gateway: GatewayLink) -> None:
        """It need not be waited for any more."""
        for actor in self._actors:
            actor.asked.pop(gateway, None)
            actor.unanswered.pop(gateway, None)
            self._wake_if_ready(actor)
