"""An actor: a Durable Object in memory, which is only a cache of its sockets' table at the gateways.

It wakes (roster, constructor), passes events through its gate in order, runs the handlers, and is forgotten when nothing
pins it. A message's handler is driven in place: starts keep the order of arrival, completions do not have to. It must not
know how bytes travel. What it is to others stands below it: to those that wait (`input_gate`), to its storage
(`stored_object`), to its sockets (`object_sockets`, `socket_handlers`), to its callers (`serving`).

Source: reference 4.1-4.3, and 3.4-3.5 of the observed behaviour.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

from roost.api.buffers import ArrayBuffer
from roost.api.namespace import DurableObjectId
from roost.api.runtime import current_context
from roost.api.socket_end import Accept
from roost.api.state import DurableObjectState
from roost.api.storage import DurableObjectStorage
from roost.closes import OBJECT_SLEEPS
from roost.errors import DurableObjectAbort, WorkerError
from roost.events import Asleep, DropSockets
from roost.host.objects.input_gate import NOBODY, Opening, Phase
from roost.host.objects.output_gate import OutputGate
from roost.host.objects.serving import Serving
from roost.host.worker.pins import NOTHING
from roost.host.worker.running import Suspended
from roost.storage.errors import StorageError

if TYPE_CHECKING:
    from roost.api.http import Request, Response
    from roost.api.socket_end import SocketEnd
    from roost.events import ObjectRef, SocketMessage
    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.loader import ObjectClass
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.worker")

_HIBERNATABLE: Final = Accept.HIBERNATABLE


class Actor(Serving):
    """One object while it is in memory. `api.state.ObjectHost` for its `ctx`."""

    owns_tasks: ClassVar[bool] = True

    __slots__ = ("_variables", "alarm_running", "looked_at", "pre_shutdown_at", "woke_for")

    def __init__(self, surroundings: Surroundings, ref: ObjectRef, kind: ObjectClass) -> None:
        """Sets what the classes below declare, all in one call: a wake makes one of these."""
        super().__init__(surroundings, ref.label, surroundings.worker.compat)
        self.ref = ref
        self.kind = kind
        self.phase = Phase.WAKING
        self.woke_for = ""
        self.looked_at = 0.0  # its last activity, when room was last made
        self.pre_shutdown_at = -1.0  # when preShutdown last ended
        self.alarm_running = False
        self._variables = contextvars.Context()  # every run has a copy
        self._variables.run(current_context.set, self)
        # input_gate
        self._waiting = NOBODY
        self._blocks = 0
        self._running = NOTHING
        self.calls_in_block = NOTHING
        # stored_object
        self.gate = OutputGate()
        self._store = None
        self._ports = {}
        # object_sockets
        self.sockets = {}
        self.asked = NOTHING
        self.asked_at = 0.0
        self.unanswered = NOTHING
        self._auto = None
        self._fetches = NOTHING
        self._listening = 0
        # socket_handlers
        self.instance = None
        self.built = False
        self.failure = None
        self._on_message = None
        # serving
        self._serving = NOTHING
        self._unfinished = NOTHING

    def fresh_variables(self) -> contextvars.Context:
        return self._variables.copy()

    # waking

    def wake(self) -> None:
        """All gateways have told of their sockets: build the instance and open the gate."""
        surroundings = self.surroundings
        if surroundings.links.some_are_redelivered:
            self.send_again()
        if (
            len(surroundings.links.here) > 1 and len(self.sockets) > 1
        ):  # gateways number them by the time at which they connected
            self.sockets = dict(sorted(self.sockets.items(), key=lambda pair: pair[0].socket_number))
        ctx = DurableObjectState(DurableObjectId(self.ref), self, self)
        surroundings.handled += 1
        try:
            self.instance = self._variables.copy().run(self.kind.build, ctx, surroundings.worker.env)
        except BaseException as error:  # noqa: BLE001 - the user's
            self.failed_in("constructor", error)
            self.reset(error)
            return
        if self.phase is not Phase.WAKING:
            return  # it aborted itself
        self.built = True
        self._on_message = self.kind.bound_message_handler(self.instance)
        self.phase = Phase.AWAKE
        self.last_active = surroundings.loop.time()
        if self._waiting or self._blocks:
            self._open_gate()
        else:
            self._waiting = None

    # messages

    def message(self, socket: SocketEnd, event: SocketMessage, gateway: GatewayLink) -> None:
        """A message: start its handler now, or keep it until the gate opens."""
        if self._waiting is not None:
            self._not_now(socket, event, gateway)
            return
        surroundings = self.surroundings
        self.last_active = surroundings.now
        number = event.event
        if number <= gateway.redelivery_upto and self._was_finished(number, gateway):
            gateway.finished(number)
            return
        if self._running and self._is_full() and number > gateway.redelivery_upto:
            self._shed(gateway, event)
            return
        handler = self._on_message
        if handler is None or socket.accepted_as != _HIBERNATABLE or socket.kept_items:
            if socket.accepted_as != _HIBERNATABLE or socket.kept_items or self._listening:
                super().message(socket, event, gateway)  # kept, behind what came before it was accepted, or for listeners
            return
        data = event.data
        if type(data) is bytes:
            data = ArrayBuffer(data)
        variables = self._variables.copy()
        mark = surroundings.mark
        if mark.object is not self or mark.gateway is not gateway:
            mark.about(self, gateway)
        words = mark.words
        words[1] = number
        try:
            # Calling an async handler only makes its coroutine: nothing of the user's runs yet.
            result = handler(socket, data) if self.kind.message_is_async else variables.run(handler, socket, data)
            if type(result) is CoroutineType or (hasattr(result, "send") and not isinstance(result, dict)):
                result = surroundings.runner.start(variables, result)
                if type(result) is Suspended:
                    result.then(partial(self._done, number, gateway))
                    gateway.running.add(number)
                    if self._running is NOTHING:
                        self._running = {}
                    self._running[gateway.index, number] = self.pin("webSocketMessage running")
                    return
        except BaseException as error:  # noqa: BLE001 - the user's
            self.failed_in("webSocketMessage", error)
        finally:
            words[1] = 0
        if self.gate.shut:  # also if it failed: what it wrote before counts
            self._done_when_durable(number, gateway)

    # why it is awake

    @property
    def running_events(self) -> set[tuple[int, int]]:
        """The messages whose handlers wait for something, as (epoch of the gateway, event)."""
        epochs = {gateway.index: gateway.epoch for gateway in self.surroundings.links}
        return {(epochs.get(index, 0), event) for index, event in self._running}

    @property
    def is_serving(self) -> bool:
        """Whether a request of it (with the body of its answer) or a `waitUntil` goes on."""
        return any(what.startswith(("fetch ", "waitUntil")) or "response body" in what for what in self.pins.values())

    @property
    def is_handling(self) -> bool:
        """Whether a handler, call or request of it runs, or has not begun though it may."""
        running = sum("running" in what for what in self.pins.values())
        waiting = sum(type(entry) is Opening for entry in self._waiting or ())  # pinned already
        return self.phase is Phase.WAKING or bool(self._unfinished) or running > waiting

    # api.state.ObjectHost

    def make_storage(self) -> DurableObjectStorage:
        return DurableObjectStorage(self.store, delete_all_alarm=self.compat.delete_all_alarm)

    async def fetch(self, request: Request) -> Response:
        if self.gate.shut:
            await self.store.durable()
        return await super().fetch(request)

    def abort(self, reason: str | None, *, retry_alarm: bool) -> NoReturn:
        error = DurableObjectAbort(reason or "The object was aborted.")
        if self.phase is not Phase.GONE:  # else the sockets are a successor's already
            self.reset(error, without_alarm=self.alarm_running and not retry_alarm)
            for gateway in self.surroundings.links.here:
                gateway.link.send(DropSockets(self.ref))
        raise error

    # its end

    def reset(self, error: BaseException, *, without_alarm: bool = False) -> None:
        """Forget the object, undoing what it has not committed. Its sockets stay; the next event builds it anew."""
        if self.phase is Phase.GONE:
            return
        if self.gate.broken is None and not isinstance(error, StorageError):
            failure = StorageError(f"{self.label} was reset: {type(error).__name__}: {error}")
            if self._store is not None:
                self._store.give_up(failure, without_alarm=without_alarm)
            else:
                self.gate.break_off(failure)
        self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """The object ends in failure: what waits fails, the sockets stay with the gateway, the next event tries again."""
        self.failure = error
        reset = WorkerError(f"{self.label} was reset: {type(error).__name__}: {error}")
        for ended in list(self._unfinished.values()):  # whoever waits for a call: its instance will never go on
            ended(None, reset)
        current = asyncio.current_task(self.surroundings.loop)
        for task in self._serving:
            if task is not current:
                task.cancel()
        waiting, self._waiting = self._waiting or NOBODY, NOBODY
        self.surroundings.objects.forget(self)
        self._leave()
        for entry in waiting:
            entry(error)

    def sleep(self) -> None:
        """Forget the instance; the sockets stay with their gateways."""
        self._waiting = NOBODY
        for socket in list(self._socket_pins):  # their pins have expired
            if socket.socket_port is not None and not socket.close_sent:
                socket.close_out(*OBJECT_SLEEPS)
            for gateway in self.surroundings.links.here:
                if gateway.sockets.get(socket.socket_number) is socket:
                    gateway.forget(socket)
        for gateway in {gateway for gateway in self.sockets.values() if gateway is not None}:
            gateway.link.send(Asleep(0, self.ref))
        self._leave()
        self._variables = contextvars.Context()  # the kept one refers to this actor: a cycle

    def _leave(self) -> None:
        self.phase = Phase.GONE
        self.is_over = True
        self.shut()
        self.end_rpc()
        if self._store is not None:
            self._store.close()
        for socket, gateway in self.sockets.items():
            if gateway is not None:
                gateway.forget(socket)
        self.sockets.clear()
        self.instance = self._on_message = None
