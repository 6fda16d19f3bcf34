"""An actor: a Durable Object in memory, which is only a cache of its sockets' table at the gateways.

It wakes (roster, constructor), passes events through its gate in order, runs the handlers, and is forgotten when nothing
pins it. A message's handler is driven in place: starts keep the order of arrival, completions do not have to. It must not
know how bytes travel.

Source: reference 4.1-4.3, and 3.4-3.5 of the observed behaviour.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from roost.api.buffers import ArrayBuffer
from roost.api.http import Response
from roost.api.namespace import DurableObjectId
from roost.api.runtime import current_context
from roost.api.socket_end import Accept, Item, SocketEnd
from roost.api.state import DurableObjectState
from roost.api.storage import DurableObjectStorage
from roost.api.websocket import WebSocket, WebSocketRequestResponsePair
from roost.closes import CloseCode
from roost.errors import DurableObjectAbort, JsException, JsTypeError, OverloadError, Superseded, WorkerError
from roost.events import (
    Asleep,
    AutoResponse,
    Binding,
    Chain,
    DropSockets,
    KeepSocket,
    ObjectRef,
    Roster,
    SetAutoResponse,
    SocketMessage,
)
from roost.host.bodies import WatchedBody
from roost.host.calls.answering import answer_when_durable
from roost.host.objects.actor_port import ActorPort
from roost.host.objects.actor_storage import ActorStorage
from roost.host.objects.blocking import block_while, call_chain, deadlock
from roost.host.objects.output_gate import OutputGate
from roost.host.worker.io_context import MAX_PENDING, Context, drop_unused, not_a_response, received_sockets, request_link
from roost.host.worker.pins import NOTHING
from roost.host.worker.rpc_table import RpcCall
from roost.host.worker.running import Suspended, in_context
from roost.link.port import NO_CONTEXT
from roost.storage.database import StorageError
from roost.values import JsDict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from roost.api.http import Request
    from roost.events import Headers, Redial, SocketClose, SocketError, SocketOpened
    from roost.host.calls.answering import Reply
    from roost.host.gateway_link import GatewayLink, Receipt
    from roost.host.host import Host, SocketEvent
    from roost.host.objects.delivered import Words
    from roost.host.worker.loader import ObjectClass
    from roost.host.worker.rpc_table import Export

_log = logging.getLogger("roost.worker")

Done = Callable[[Any, BaseException | None], None]

_current_fetch: ContextVar[object | None] = ContextVar("roost_current_fetch", default=None)

PIN_LISTENER = "listener on a hibernatable socket"

_HIBERNATABLE: Final = Accept.HIBERNATABLE
_NOBODY: Final = ()  # waits at a shut gate


class Phase(Enum):
    """WAKING → AWAKE → GONE; a constructor that fails goes from WAKING to GONE."""

    WAKING = "waking"
    AWAKE = "awake"
    GONE = "gone"


class Actor(Context):
    """One object while it is in memory. `api.state.ObjectHost` for its `ctx`."""

    __slots__ = (
        "_auto", "_blocks", "_fetches", "_listening", "_on_message", "_ports", "_running", "_serving",
        "_store", "_unfinished", "_variables", "_waiting", "alarm_running", "asked", "asked_at", "built", "calls_in_block",
        "failure", "farewell_at", "gate", "instance", "kind", "late", "looked_at", "phase", "ref", "sockets", "woke_for",
    )  # fmt: skip

    def __init__(self, host: Host, ref: ObjectRef, kind: ObjectClass) -> None:
        super().__init__(host, ref.label, host.worker.compat)
        self.ref = ref
        self.kind = kind
        self.phase = Phase.WAKING
        self.instance: Any = None
        self.built = False  # the constructor has succeeded; stays so
        self.woke_for = ""
        self.sockets: dict[SocketEnd, GatewayLink | None] = {}  # oldest first; None until the 101 has left
        self._waiting: deque[Any] | tuple[()] | None = _NOBODY  # None: the gate is open
        self.asked: dict[GatewayLink, None] = NOTHING  # gateways whose roster is awaited
        self.asked_at = 0.0
        self.late: dict[GatewayLink, None] = NOTHING  # those that were asked and are not waited for
        self._auto: AutoResponse | None = None
        self._fetches: dict[SocketEnd, object | None] = NOTHING
        self._on_message: Any = None
        self._listening = 0
        self._blocks = 0
        self.gate = OutputGate()
        self._store: ActorStorage | None = None
        self.calls_in_block: dict[int, ObjectRef] = NOTHING  # that a blockConcurrencyWhile of this object waits for
        self._unfinished: dict[int, Done] = NOTHING  # calls and alarms that run, by their pin
        self._serving: dict[asyncio.Task[Any], None] = NOTHING  # tasks that run its fetch
        self.alarm_running = False
        self.looked_at = 0.0  # its last activity, when room was last made
        self.farewell_at = -1.0  # when preShutdown last ended
        self.failure: BaseException | None = None  # what it ended with, if not in sleep
        self._ports: dict[int, ActorPort] = {}
        self._running: dict[tuple[int, int], int] = NOTHING  # pins of suspended message handlers, by link and event
        self._variables = contextvars.Context()  # every run has a copy
        self._variables.run(current_context.set, self)

    def fresh_variables(self) -> contextvars.Context:
        return self._variables.copy()

    @property
    def store(self) -> ActorStorage:
        """Its storage, made when it is first used: many a message needs none."""
        store = self._store
        if store is None:
            store = self._store = ActorStorage(self.ref, self.host.disk, self, self.gate)
            if self.phase is Phase.GONE:
                store.close()
        return store

    @property
    def is_writing(self) -> bool:
        """Whether writes are on their way to the disk, so that it must stay."""
        return self.gate.shut or (self._store is not None and self._store.busy)

    def check_may_wait(self) -> None:
        """Raise StorageError inside `transaction()`, whose own writes are on the disk only after it."""
        if self._store is not None:
            self._store.check_may_wait()

    def end_storage(self) -> None:
        """Commit and close on this thread: the host ends."""
        if self._store is not None:
            self._store.close_now()
        else:
            self.gate.break_off(StorageError("the host has ended."))

    # waking

    def ask(self, link: GatewayLink) -> None:
        """That gateway's roster is awaited."""
        if self.asked is NOTHING:
            self.asked = {}
            self.asked_at = self.host.loop.time()
        self.asked[link] = None

    def do_not_await(self, link: GatewayLink) -> None:
        """That gateway's roster is taken when it comes."""
        if self.late is NOTHING:
            self.late = {}
        self.late[link] = None

    def adopt(self, link: GatewayLink, roster: Roster, only: set[int] | None) -> None:
        """A gateway's sockets are the object's (`only` these, if given). Their events wait until it is awake."""
        self._auto = roster.auto_response or self._auto
        port = self.port_for(link)
        for entry in roster.sockets:
            if entry.socket not in link.sockets and (only is None or entry.socket in only):
                link.sockets[entry.socket] = socket = WebSocket.restored(entry, self, port)
                self.sockets[socket] = link

    def wake(self) -> None:
        """All gateways have told of their sockets: build the instance and open the gate."""
        host = self.host
        if host.some_come_again:
            self._say_again()
        if len(host.links) > 1 and len(self.sockets) > 1:  # gateways number them by the time at which they connected
            self.sockets = dict(sorted(self.sockets.items(), key=lambda pair: pair[0].socket_number))
        ctx = DurableObjectState(DurableObjectId(self.ref), self, self)
        host.handled += 1
        try:
            self.instance = self._variables.copy().run(self.kind.build, ctx, host.worker.env)
        except BaseException as error:  # noqa: BLE001 - the user's
            self.failed_in("constructor", error)
            self.reset(error)
            return
        if self.phase is not Phase.WAKING:
            return  # it aborted itself
        self.built = True
        self._on_message = self.kind.bound_message_handler(self.instance)
        self.phase = Phase.AWAKE
        self.last_active = host.loop.time()
        if self._waiting or self._blocks:
            self._open_gate()
        else:
            self._waiting = None

    def _open_gate(self) -> None:
        """Let the events go that waited, in order, unless the gate was shut again."""
        if self._blocks or self.phase is not Phase.AWAKE or self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        while waiting:
            entry = waiting.popleft()
            entry(None)
            shut_again: deque[Any] | tuple[()] | None = getattr(self, "_waiting")  # noqa: B009 - the entry may have changed it
            if shut_again is not None and self.phase is Phase.AWAKE:
                waiting.extend(shut_again)
                self._waiting = waiting
                return
            if type(entry) is _Opening:  # it begins in the next turn: those behind it later than that
                self._waiting = waiting
                self.host.loop.call_soon(self._open_gate, context=NO_CONTEXT)
                return

    def block(self) -> Callable[[], None]:
        """Start no new event until the returned function is called."""
        self._blocks += 1
        if self._waiting is None:
            self._waiting = _NOBODY
        pinned = self.pin("blockConcurrencyWhile or a transaction")
        blocking = True

        def unblock() -> None:
            nonlocal blocking
            if blocking:
                blocking = False
                self._blocks -= 1
                self.unpin(pinned)
                self.host.loop.call_soon(self._open_gate, context=NO_CONTEXT)

        return unblock

    @property
    def running_events(self) -> set[tuple[int, int]]:
        """The messages whose handlers wait for something, as (epoch of the gateway, event)."""
        epochs = {link.index: link.epoch for link in self.host.links}
        return {(epochs.get(index, 0), event) for index, event in self._running}

    @property
    def is_serving(self) -> bool:
        """Whether a request of it (with the body of its answer) or a `waitUntil` goes on."""
        return any(what.startswith(("fetch ", "waitUntil")) or "response body" in what for what in self.pins.values())

    @property
    def is_handling(self) -> bool:
        """Whether a handler, call or request of it runs, or has not begun though it may."""
        running = sum("running" in what for what in self.pins.values())
        waiting = sum(type(entry) is _Opening for entry in self._waiting or ())  # pinned already
        return self.phase is Phase.WAKING or bool(self._unfinished) or running > waiting

    @property
    def blocked(self) -> bool:
        """Whether a section of `blockConcurrencyWhile` (or a transaction) holds events back."""
        return self._blocks > 0

    def called_in_block(self, number: int, ref: ObjectRef) -> None:
        """A section of `blockConcurrencyWhile` waits for a call of another object."""
        if self.calls_in_block is NOTHING:
            self.calls_in_block = {}
        self.calls_in_block[number] = ref

    def block_while(self, callback: Callable[[], Any]) -> asyncio.Future[Any]:
        return block_while(self, callback)

    def abort(self, reason: str | None, *, retry_alarm: bool) -> NoReturn:
        error = DurableObjectAbort(reason or "The object was aborted.")
        if self.phase is not Phase.GONE:  # else the sockets are a successor's already
            self.reset(error, without_alarm=self.alarm_running and not retry_alarm)
            for link in self.host.links:
                link.link.send(DropSockets(self.ref))
        raise error

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

    def storage_failed(self, error: StorageError) -> None:
        _log.error("%s: %s; what was to be sent because of it is dropped, and the object is reset", self.label, error)
        self.reset(error)

    def _give_up(self, error: BaseException) -> None:
        """The object ends in failure: what waits fails, the sockets stay with the gateway, the next event tries again."""
        self.failure = error
        reset = WorkerError(f"{self.label} was reset: {type(error).__name__}: {error}")
        for ended in list(self._unfinished.values()):  # whoever waits for a call: its instance will never go on
            ended(None, reset)
        current = asyncio.current_task(self.host.loop)
        for task in self._serving:
            if task is not current:
                task.cancel()
        waiting, self._waiting = self._waiting or _NOBODY, _NOBODY
        self.host.actors.forget(self)
        self._leave()
        for entry in waiting:
            entry(error)

    def hold(self, link: GatewayLink, event: SocketEvent) -> None:
        """Keep an event until the gate opens; its socket may only be made known by the roster."""
        assert self._waiting is not None
        # What was given before has waited once already; how a socket ended is one event a socket.
        if type(event) is SocketMessage and event.event > link.given_before and self._is_full():
            self._shed(link, event)
        else:
            self._keep(lambda: self.host.socket_event(link, event), link, event.event)

    def _is_full(self) -> bool:
        return len(self._waiting or ()) + len(self._running) >= self.host.limits.max_queued_events

    def _shed(self, link: GatewayLink, event: SocketMessage) -> None:
        self.host.waking.shed(link, event, "Too many messages wait for this object; try again later.")
        link.running.discard(event.event)

    def _wait(self, entry: Any) -> None:
        """Keep a request or a call until the gate opens. Raises OverloadError if too many wait."""
        if self._is_full():
            self.host.counters.events_shed += 1
            raise OverloadError(f"Too many events wait for {self.label} (limits.max_queued_events); try again later.")
        self._queue(entry)

    def _queue(self, entry: Any) -> None:
        assert self._waiting is not None
        if self._waiting:
            self._waiting.append(entry)
        else:
            self._waiting = deque((entry,))

    # events from the network

    def message(self, socket: SocketEnd, event: SocketMessage, link: GatewayLink) -> None:
        """A message: start its handler now, or keep it until the gate opens."""
        if self._waiting is not None:
            self._not_now(socket, event, link)
            return
        host = self.host
        self.last_active = host.now
        number = event.event
        if number <= link.given_before and self._was_finished(number, link):
            link.finished(number)
            return
        if self._running and self._is_full() and number > link.given_before:
            self._shed(link, event)
            return
        handler = self._on_message
        if handler is None or socket.accepted_as != _HIBERNATABLE or socket.kept_items:
            if socket.kept_items and len(socket.kept_items) <= MAX_PENDING:
                socket.keep_item(Item("message", event.data))  # behind what came before it was accepted
            elif socket.accepted_as != Accept.HIBERNATABLE or self._listening:
                self._take_or_keep(socket, Item("message", event.data))
            return
        data = event.data
        if type(data) is bytes:
            data = ArrayBuffer(data)
        variables = self._variables.copy()
        mark = host.mark
        if mark.object is not self or mark.link is not link:
            mark.about(self, link)
        words = mark.words
        words[1] = number
        try:
            # Calling an async handler only makes its coroutine: nothing of the user's runs yet.
            result = handler(socket, data) if self.kind.message_is_async else variables.run(handler, socket, data)
            if type(result) is CoroutineType or (hasattr(result, "send") and not isinstance(result, dict)):
                result = host.runner.start(variables, result)
                if type(result) is Suspended:
                    result.then(partial(self._done, number, link))
                    link.running.add(number)
                    if self._running is NOTHING:
                        self._running = {}
                    self._running[link.index, number] = self.pin("webSocketMessage running")
                    return
        except BaseException as error:  # noqa: BLE001 - the user's
            self.failed_in("webSocketMessage", error)
        finally:
            words[1] = 0
        if self.gate.shut:  # also if it failed: what it wrote before counts
            self._done_when_durable(number, link)

    def _done(self, event: int, link: GatewayLink, result: Any, error: BaseException | None) -> None:
        self.unpin(self._running.pop((link.index, event), 0))
        if error is not None:
            self.failed_in("webSocketMessage", error)
        self._done_when_durable(event, link)

    def _done_when_durable(self, event: int, link: GatewayLink) -> None:
        """The gateway may forget an event only once what it wrote is on the disk (or the object was reset for it)."""
        link.running.add(event)
        if link.epoch:
            self.store.finished(link.epoch, event)
        self.gate.hold(partial(self._is_done, link, event))

    def _is_done(self, link: GatewayLink, event: int, error: BaseException | None) -> None:
        self.store.delivered.done(link.epoch, event)
        link.finished(event)

    def _was_finished(self, event: int, link: GatewayLink) -> bool:
        """Whether the host that was given this event before died between its commit and its `Done`."""
        try:
            known = self.store.was_finished(link.epoch, event)
        except (StorageError, ValueError) as error:
            _log.error("%s: what it has finished is not known: %s", self.label, error)
            return False
        self.host.counters.events_known += known
        return known

    def _say_again(self) -> None:
        """An earlier life may have died before all that it said had left: that goes before anything of this one."""
        try:
            said = self.store.load_delivered()
        except (StorageError, ValueError) as error:
            _log.error("%s: what it has finished is not known: %s", self.label, error)
            return
        for words in said:
            to = self._link_of(words[0])
            if to is not None:
                to.send_envelopes(words[3])
            else:
                self.host.say_later(words)
        for link in self.host.links:  # with it, so that it is not said a third time
            if done := {event for epoch, event in self.store.delivered.earlier if epoch == link.epoch}:
                link.running -= done
                self.host.loop.call_soon(link.say_done, context=NO_CONTEXT)

    def _not_now(self, socket: SocketEnd, event: Any, link: GatewayLink) -> None:
        """Keep an event until the gate opens; one for an actor that is gone goes to its successor."""
        if self.phase is Phase.GONE:
            link.forget(socket)
            self.host.socket_event(link, event)
        else:
            self.hold(link, event)

    def _keep(self, again: Any, link: GatewayLink, event: int) -> None:
        """Hold an event until the gate opens; it is not done before."""

        def entry(error: BaseException | None) -> None:
            link.running.discard(event)
            if error is None or type(error) is Superseded:
                again()
            link.say_done()

        link.running.add(event)
        self._queue(entry)

    def closed(self, socket: SocketEnd, event: SocketClose, link: GatewayLink) -> None:
        if socket.accepted_as != Accept.HIBERNATABLE:
            super().closed(socket, event, link)
        elif self._waiting is not None:
            self._not_now(socket, event, link)
        else:
            item = Item("close", code=event.code, reason=event.reason, clean=event.clean)
            self._end(socket, item, link, event.event)

    def failed(self, socket: SocketEnd, event: SocketError, link: GatewayLink) -> None:
        if socket.accepted_as != Accept.HIBERNATABLE:
            super().failed(socket, event, link)
        elif self._waiting is not None:
            self._not_now(socket, event, link)
        else:
            self._end(socket, Item("error", code=event.code, reason=event.message), link, event.event)

    def disconnected(self, socket: SocketEnd) -> None:
        """The gateway that held it is gone; the event of its end comes from the successor, with a socket of its own."""
        self.sockets.pop(socket, None)
        self._listener_gone(socket)
        socket.end_abnormally()

    def _end(self, socket: SocketEnd, item: Item, link: GatewayLink | None, event: int) -> None:
        """The socket's end: its handler runs while it is still listed, then it leaves."""
        if link is not None:
            link.ended.append(socket.socket_number)
        self.host.handled += 1
        self.last_active = self.host.now
        if item.kind == "close":
            socket.close_received = True
            args: tuple[Any, ...] = (socket, item.code, item.reason, item.clean)
            name = "webSocketClose"
        else:
            args = (socket, JsException(f"{item.reason} (protocolError.statusCode = {item.code})"))
            name = "webSocketError"
        if not item.clean or item.kind == "error":
            socket.end_abnormally()

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.failed_in(name, error)
            if item.clean and item.kind == "close" and not socket.close_sent and self.compat.auto_reply_to_close:
                socket.close_out(item.code, item.reason)
            self.sockets.pop(socket, None)
            self._listener_gone(socket)
            if link is not None:
                link.forget(socket)
                self._done_when_durable(event, link)

        handler = self.kind.handler(self.instance, name)
        if link is not None and event <= link.given_before and self._was_finished(event, link):
            handler = None
        if handler is None:
            if self._listening and socket.has_listeners:
                socket.dispatch_item(item)
            done(None)
            return
        if link is not None:
            link.running.add(event)
        self._handle(name, handler, args, done)

    def opened(self, socket: SocketEnd, event: SocketOpened, link: GatewayLink) -> None:
        """A kept upstream is connected again."""
        if self._waiting is not None:
            self._not_now(socket, event, link)
            return
        self.host.handled += 1
        self.last_active = self.host.now

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.failed_in("webSocketOpen", error)
            self._done_when_durable(event.event, link)

        handler = self.kind.handler(self.instance, "webSocketOpen")
        if handler is None or (event.event <= link.given_before and self._was_finished(event.event, link)):
            done(None)
            return
        link.running.add(event.event)
        self._handle("webSocketOpen", handler, (socket, JsDict(attempts=event.attempts)), done)

    def _handle(
        self, name: str, handler: Callable[..., Any], args: tuple[Any, ...], done: Callable[[BaseException | None], None]
    ) -> None:
        """Run a handler of a socket's event other than a message; `done` when it has ended."""
        pinned = 0

        def ended(_: Any, error: BaseException | None) -> None:
            self.unpin(pinned)
            done(error)

        variables = self.fresh_variables()
        try:
            result = variables.run(handler, *args)
            if hasattr(result, "send") and not isinstance(result, dict):
                if self.host.in_task():
                    self._as_task(self._then(result, ended), name)
                    return
                result = self.host.runner.start(variables, result)
                if type(result) is Suspended:
                    result.then(ended)
                    pinned = self.pin(f"{name} running")
                    return
        except BaseException as error:  # noqa: BLE001 - the user's
            ended(None, error)
            return
        ended(None, None)

    async def _then(self, coroutine: Any, done: Any) -> None:
        error: BaseException | None = None
        try:
            await coroutine
        except BaseException as failure:  # noqa: BLE001 - the user's
            error = failure
        done(None, error)

    def take(self, socket: SocketEnd, item: Item) -> None:
        """An event of a socket whose other end is in this process (no gateway between)."""
        if socket.accepted_as != Accept.HIBERNATABLE:
            super().take(socket, item)
        elif self._waiting is not None:
            self._wait(lambda error: None if error else self.take(socket, item))
        elif item.kind == "message":
            handler = self._on_message
            if handler is None:
                if self._listening:
                    socket.dispatch_item(item)
                return
            data = ArrayBuffer(item.data) if isinstance(item.data, bytes) else item.data
            self.run_callback(handler, socket, data, what="webSocketMessage")
        else:
            self._end(socket, item, None, 0)

    # requests

    async def serve(self, request: Request, chain: Chain) -> Response:
        """Run the object's `fetch`. Raises WorkerError if it cannot be woken, or what the handler raised."""
        pinned = self.pin(f"fetch {request.method} running")
        body: Any = None
        try:
            response = await self._serve(request, chain)
            if response.web_socket is None and response.is_streamed:
                body = response.watch_stream(lambda pieces: WatchedBody(pieces, partial(self.unpin, pinned)))
            return response
        finally:
            if body is None:
                self.unpin(pinned)

    async def _serve(self, request: Request, chain: Chain) -> Response:
        waited = False
        while self._waiting is not None and not (waited and self.phase is Phase.AWAKE and not self._blocks):
            if self.phase is Phase.GONE:
                if not self.built and self.failure is not None:
                    raise self._cannot_be_built(self.failure)
                return await self.host.waking.awaken(self.ref, "a request that waited").serve(request, chain)
            if why := deadlock(self, chain, self.host.actors):
                raise JsException(why)
            await self._opened()
            waited = True
        handler = self.kind.handler(self.instance, "fetch")
        if handler is None:
            raise WorkerError(f"{self.kind.name} has no fetch method; add `async def fetch(self, request)`.")
        token = object()
        variables = self.fresh_variables()
        variables.run(_current_fetch.set, token)
        variables.run(request_link.set, request_link.get())
        variables.run(call_chain.set, chain)
        returned: SocketEnd | None = None
        received: list[SocketEnd] = []
        variables.run(received_sockets.set, received)
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine: a task drives it
        if self._serving is NOTHING:
            self._serving = {}
        self._serving[task] = None
        try:
            response = await in_context(variables, self._call(handler, request))
            if not isinstance(response, Response):
                raise not_a_response(f"{self.kind.name}.fetch", response)
            returned = response.web_socket
            if self.gate.shut:
                await self.store.durable()
            return response
        except asyncio.CancelledError:
            if self.failure is None or not task.cancelling():
                raise
            task.uncancel()  # it was `_give_up`: the caller goes on
            raise WorkerError(f"{self.label} was reset: {type(self.failure).__name__}: {self.failure}") from self.failure
        except BaseException:
            if self.gate.shut and self.phase is not Phase.GONE:  # an error is an answer, too
                await asyncio.gather(self.store.durable(), return_exceptions=True)
            raise
        finally:
            self._serving.pop(task, None)
            self._drop_unbound(token, returned)
            drop_unused(received, returned)

    async def _opened(self) -> None:
        """Return when the gate opens (it may be shut again by then). Raises WorkerError if the object cannot be built."""
        opening = _Opening(self)
        self._wait(opening)
        await opening.future

    def _cannot_be_built(self, error: BaseException) -> WorkerError:
        failure = WorkerError(f"{self.label} cannot be built: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    # calls and alarms

    def begin_rpc(self, export: Export, method: str, arguments: bytes, chain: Chain, reply: Reply) -> None:
        call = RpcCall(self, method)

        def done(result: Any, error: BaseException | None) -> None:
            answer_when_durable(self, call, result, error, reply)

        what = export.name_of(method)
        self.run_event(lambda: export.start(method, arguments, call.received), what, chain, done)

    def run_event(self, start: Callable[[], Any], what: str, chain: Chain, done: Done) -> None:
        """Run `start()` of worker code when the gate lets it; `done(result, error)` once it has ended.

        Events begin in the order of these calls. The error is Superseded if it has not run and another actor is to run it.
        """
        if self.host.in_task():  # nothing may be driven in place inside a task
            self.host.loop.call_soon(self.run_event, start, what, chain, done, context=NO_CONTEXT)
        elif self.phase is Phase.GONE:
            done(None, self._cannot_be_built(self.failure or WorkerError("it is asleep")))
        elif self._waiting is None:
            self._run_event(start, what, chain, done)
        elif why := deadlock(self, chain, self.host.actors):
            done(None, JsException(why))
        else:

            def opened(error: BaseException | None) -> None:
                if error is None:
                    self.run_event(start, what, chain, done)
                else:  # Superseded: it is the successor's
                    done(None, error if type(error) is Superseded else self.not_run(error))

            try:
                self._wait(opened)
            except OverloadError as full:
                done(None, full)

    def not_run(self, error: BaseException) -> WorkerError:
        if not self.built:
            return self._cannot_be_built(error)
        return WorkerError(f"{self.label} was reset before the call began: {type(error).__name__}: {error}")

    def _run_event(self, start: Callable[[], Any], what: str, chain: Chain, done: Done) -> None:
        self.host.handled += 1
        variables = self.fresh_variables()
        variables.run(call_chain.set, chain)
        pinned = self.pin(f"{what} running")

        def ended(result: Any, error: BaseException | None) -> None:
            if self._unfinished.pop(pinned, None) is not None:  # else the object was reset, and its caller told
                self.unpin(pinned)
                done(result, error)

        if self._unfinished is NOTHING:
            self._unfinished = {}
        self._unfinished[pinned] = ended
        try:
            result = variables.run(start)
        except BaseException as error:  # noqa: BLE001 - the user's
            ended(None, error)
            return
        if hasattr(result, "__await__"):
            self.host.runner.run(variables, result, ended)
        else:
            ended(result, None)

    def comes_again(self, epoch: int, event: int) -> bool:
        for link in self.host.links:
            if link.epoch == epoch:
                return event in link.again
        return self.host.awaits_gateways  # it may be that one's

    def has_heard(self, epoch: int, life: int, group: int) -> bool:
        return any(link.epoch == epoch and link.has_heard(life, group) for link in self.host.links)

    def said_to_store(self) -> list[Words]:
        return [words for port in self._ports.values() for words in port.to_store()]

    def _link_of(self, epoch: int) -> GatewayLink | None:
        return next((link for link in self.host.links if link.epoch == epoch), None)

    def ask_to_confirm(self, epoch: int) -> Receipt | None:
        link = self._link_of(epoch)
        return None if link is None else link.ask_to_confirm()

    def check_alarm_handler(self) -> None:
        if self.phase is not Phase.WAKING and not self.kind.has("alarm"):
            raise JsTypeError(
                f"Your Durable Object class must have an alarm() handler in order to call setAlarm(): add `async def"
                f" alarm(self, info)` to {self.kind.name}."
            )

    @staticmethod
    async def _call(handler: Any, request: Request) -> Any:
        result = handler(request)
        return await result if hasattr(result, "__await__") else result

    def _drop_unbound(self, token: object, returned: SocketEnd | None) -> None:
        """Forget the sockets that this fetch accepted but whose other end it did not return: they never get a client."""
        for socket, fetch in list(self._fetches.items()):
            if fetch is token and (socket.other_end is None or socket.other_end is not returned):
                self.drop_unbound(socket)

    def drop_unbound(self, socket: SocketEnd) -> None:
        """Forget one accepted socket whose client will never come (unless its other end is used in this process)."""
        if self._fetches.pop(socket, self) is not self and (
            socket.other_end is None or socket.other_end.accepted_as == Accept.NONE
        ):
            self.sockets.pop(socket, None)
            self._listener_gone(socket)

    # api.state.ObjectHost

    def accept_hibernatable(self, socket: SocketEnd, tags: tuple[str, ...]) -> None:
        self._take_in(socket, tags, None)
        if self._fetches is NOTHING:
            self._fetches = {}
        self._fetches[socket] = _current_fetch.get()
        socket.accept_with(self, Accept.HIBERNATABLE)

    def keep_outbound(self, socket: SocketEnd, tags: tuple[str, ...], redial: Redial | None) -> None:
        link = next((link for link in self.host.links if link.sockets.get(socket.socket_number) is socket), None)
        if link is None or socket.has_failed or socket.io_context is not self:
            raise JsException("The upstream's WebSocket has ended, or was dialled by another object.")
        self._take_in(socket, tags, link)
        self.port_for(link).send(KeepSocket(socket.socket_number, self.ref, tags, socket.raw_attachment, redial))
        if self._auto is not None:
            self.port_for(link).send(SetAutoResponse(self.ref, self._auto))
        self.socket_ended(socket)  # it pins nothing any more
        socket.accept_with(self, Accept.HIBERNATABLE)
        socket.url = socket.dialled_url or None

    async def dial_kept(
        self,
        url: str,
        protocols: list[str],
        headers: Headers,
        tags: tuple[str, ...],
        attachment: bytes | None,
        redial: Redial,
    ) -> WebSocket:
        """A socket that is this object's at once; its gateway dials until it is open."""
        self._check_room()
        if self.gate.shut:
            await self.store.durable()
        socket = WebSocket()

        def kept(link: GatewayLink, number: int) -> None:
            """At once: what tells that it is open may be in the same batch."""
            socket.become_kept(url, attachment)
            if self.phase is not Phase.GONE:  # else it is in the roster of the next one
                self._take_in(socket, tags, link)
                socket.accept_with(self, Accept.HIBERNATABLE)
                link.adopt(socket, number, self.port_for(link))
                if self._auto is not None:
                    self.port_for(link).send(SetAutoResponse(self.ref, self._auto))

        keep = KeepSocket(0, self.ref, tags, attachment, redial)
        pinned = self.pin(f"dialling {url}")
        try:
            await self.host.outbound.dial_kept(url, protocols, headers, keep, kept)
        finally:
            self.unpin(pinned)
        return socket

    def _check_room(self) -> None:
        limit = self.host.limits.max_sockets_per_object
        if len(self.sockets) >= limit:
            self.host.counters.sockets_refused += 1
            raise JsException(f"only {limit} websockets can be accepted on a single Durable Object instance")

    def _take_in(self, socket: SocketEnd, tags: tuple[str, ...], link: GatewayLink | None) -> None:
        self._check_room()
        socket.socket_tags = tags
        self.sockets[socket] = link
        if socket.has_listeners:
            self.listener_on_hibernatable(socket)
        elif not self.kind.has("webSocketMessage") and self.kind.name not in self.host.warned_deaf:
            self.host.warned_deaf.add(self.kind.name)
            _log.warning(
                "%s has no webSocketMessage: messages on its sockets are dropped; add"
                " `async def webSocketMessage(self, ws, message)`.",
                self.kind.name,
            )

    def hibernatable(self) -> Iterable[Any]:
        return self.sockets

    def bind(self, socket: SocketEnd, link: GatewayLink, number: int) -> Binding:
        """The 101 leaves: the gateway's socket `number` is the other side from now on."""
        self._fetches.pop(socket, None)
        self.sockets[socket] = link
        link.adopt(socket, number, self.port_for(link))
        return Binding(self.ref, socket.socket_tags, socket.raw_attachment, self._auto)

    def set_auto_response(self, pair: WebSocketRequestResponsePair | None) -> None:
        self._auto = None if pair is None else AutoResponse(pair.request, pair.response)
        event = SetAutoResponse(self.ref, self._auto)
        for link in {link for link in self.sockets.values() if link is not None}:
            self.port_for(link).send(event)

    def port_for(self, link: GatewayLink) -> ActorPort:
        """What leaves for that gateway, behind the output gate."""
        port = self._ports.get(link.index)
        if port is None:
            port = self._ports[link.index] = ActorPort(self.gate, link)
        return port

    def dial(self, socket: SocketEnd, url: str, protocols: list[str]) -> None:
        self.gate.hold(lambda error: None if error else Context.dial(self, socket, url, protocols))

    async def fetch(self, request: Request) -> Response:
        if self.gate.shut:
            await self.store.durable()
        return await super().fetch(request)

    def make_storage(self) -> DurableObjectStorage:
        return DurableObjectStorage(self.store, delete_all_alarm=self.compat.delete_all_alarm)

    def get_auto_response(self) -> WebSocketRequestResponsePair | None:
        return None if self._auto is None else WebSocketRequestResponsePair(self._auto.request, self._auto.response)

    # listeners on hibernatable sockets (observed behaviour 3.4)

    def listener_on_hibernatable(self, socket: SocketEnd) -> None:
        has_handler = self.kind.has("webSocketMessage")
        if self.kind.name not in self.host.warned_listeners:
            self.host.warned_listeners.add(self.kind.name)
            effect = (
                "it never fires, because the class has webSocketMessage"
                if has_handler
                else "it is called, but keeps the object awake, and is lost when the host restarts"
            )
            _log.warning(
                "%s: a listener on a hibernatable socket: %s; use webSocketMessage(self, ws, message) instead.",
                self.kind.name,
                effect,
            )
        if not has_handler and not self._listening:
            self._listening = self.pin(PIN_LISTENER)

    def _listener_gone(self, socket: SocketEnd) -> None:
        if self._listening and not any(other.has_listeners for other in self.sockets):
            self.unpin(self._listening)
            self._listening = 0

    # sleeping

    def may_sleep(self, now: float, idle_s: float) -> bool:
        """Whether nothing pins the object and its last event is `idle_s` ago."""
        return (
            self.phase is Phase.AWAKE
            and (not self.pins or self.pins_expired(now))
            and not self.is_writing
            and now - self.last_active >= idle_s
            and None not in self.sockets.values()
        )

    def sleep(self) -> None:
        """Forget the instance; the sockets stay with their gateways."""
        self._waiting = _NOBODY
        for socket in list(self._socket_pins):  # their pins have expired
            if socket.socket_port is not None and not socket.close_sent:
                socket.close_out(CloseCode.GOING_AWAY, "The object sleeps.")
            for link in self.host.links:
                if link.sockets.get(socket.socket_number) is socket:
                    link.forget(socket)
        for link in {link for link in self.sockets.values() if link is not None}:
            link.link.send(Asleep(0, self.ref))
        self._leave()
        self._variables = contextvars.Context()  # the kept one refers to this actor: a cycle

    def _leave(self) -> None:
        self.phase = Phase.GONE
        self.is_over = True
        self.shut()
        self.end_rpc()
        if self._store is not None:
            self._store.close()
        for socket, link in self.sockets.items():
            if link is not None:
                link.forget(socket)
        self.sockets.clear()
        self.instance = self._on_message = None


class _Opening:
    """A request that waits for its object's gate."""

    __slots__ = ("_actor", "future")

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.future: asyncio.Future[None] = actor.host.loop.create_future()

    def __call__(self, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None or type(error) is Superseded:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._actor.not_run(error))
