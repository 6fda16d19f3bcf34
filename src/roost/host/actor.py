"""An actor: a Durable Object in memory, which is only a cache of its sockets' table at the gateways.

It wakes (roster, constructor), passes events through its gate in order, runs the handlers, and is forgotten when nothing
pins it. A message's handler is driven in place: starts keep the order of arrival, completions do not have to. It must not
know how bytes travel.

Source: reference 4.1-4.3, and 3.4-3.5 of the observed behaviour.
"""

from __future__ import annotations

import contextvars
import logging
from asyncio import CancelledError
from collections import deque
from contextvars import ContextVar
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from roost.api.buffers import ArrayBuffer
from roost.api.http import Response
from roost.api.namespace import DurableObjectId
from roost.api.state import MAX_SOCKETS, DurableObjectState
from roost.api.websocket import Accept, Item, WebSocket, WebSocketRequestResponsePair
from roost.errors import JsException, WorkerError
from roost.events import AutoResponse, Binding, ObjectRef, Roster, SetAutoResponse
from roost.host.io_context import Context, request_link
from roost.host.running import SUSPENDED, in_context

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from roost.api.http import Request
    from roost.events import SocketClose, SocketError, SocketMessage
    from roost.host.gateway_link import GatewayLink
    from roost.host.host import Host
    from roost.host.loader import ObjectClass

_log = logging.getLogger("roost.worker")

MAX_WAITING = 10_000  # events and requests that may wait for an object to wake

_current_fetch: ContextVar[object | None] = ContextVar("roost_current_fetch", default=None)

PIN_LISTENER = "listener on a hibernatable socket"


class Phase(Enum):
    """WAKING → AWAKE → GONE; a constructor that fails goes from WAKING to GONE."""

    WAKING = "waking"
    AWAKE = "awake"
    GONE = "gone"


class Actor(Context):
    """One object while it is in memory. `api.state.ObjectHost` for its `ctx`."""

    def __init__(self, host: Host, ref: ObjectRef, kind: ObjectClass) -> None:
        super().__init__(host, f"{ref.class_name}({ref.name or ref.id[:8]})", host.worker.compat)
        self.ref = ref
        self.kind = kind
        self.phase = Phase.WAKING
        self.instance: Any = None
        self.woke_for = ""
        self.sockets: dict[WebSocket, GatewayLink | None] = {}  # oldest first; None until the 101 has left
        self._waiting: deque[Any] | None = deque()  # None: the gate is open
        self.asked: set[GatewayLink] = set()  # gateways whose roster is awaited
        self._rosters: dict[int, Roster] = {}
        self._auto: AutoResponse | None = None
        self._fetches: dict[WebSocket, object | None] = {}
        self._on_message: Any = None
        self._listening = 0
        self._running: dict[tuple[int, int], int] = {}  # pins of suspended message handlers, by link and event
        self._variables = super().fresh_variables()

    def fresh_variables(self) -> contextvars.Context:
        return self._variables.copy()

    # waking

    def roster(self, link: GatewayLink, roster: Roster) -> None:
        """One gateway has told of its sockets."""
        self.asked.discard(link)
        self._rosters[link.index] = roster

    def wake(self, links: Iterable[GatewayLink]) -> None:
        """All rosters are here: build the instance and open the gate."""
        for link in links:
            roster = self._rosters.get(link.index)
            if roster is None:
                continue
            self._auto = roster.auto_response or self._auto
            for entry in roster.sockets:
                if entry.socket not in link.sockets:
                    self._restore(link, entry)
        self._rosters.clear()
        ctx = DurableObjectState(DurableObjectId(self.ref), self, self)
        try:
            self.instance = self.fresh_variables().run(self.kind.build, ctx, self.host.worker.env)
        except Exception as error:  # noqa: BLE001 - the user's
            self.failed_in("constructor", error)
            self._give_up(error)
            return
        self._on_message = self.kind.bound_message_handler(self.instance)
        self.phase = Phase.AWAKE
        self.last_active = self.host.loop.time()
        waiting, self._waiting = self._waiting or deque(), None
        for entry in waiting:
            entry(None)

    def _restore(self, link: GatewayLink, entry: Any) -> None:
        socket = WebSocket()
        socket._tags = tuple(entry.tags)
        socket._attachment = entry.attachment
        socket._auto_at_ms = entry.auto_at_ms
        socket._close_out = entry.close_sent
        socket.protocol = entry.protocol
        link.adopt(socket, entry.socket)
        socket.accept_with(self, Accept.HIBERNATABLE)
        self.sockets[socket] = link

    def _give_up(self, error: BaseException) -> None:
        """The constructor failed: what waited fails, the sockets stay with the gateway, the next event tries again."""
        waiting, self._waiting = self._waiting or deque(), deque()
        self.host.actors.forget(self)
        self._leave()
        for entry in waiting:
            entry(error)

    def hold(self, link: GatewayLink, event: SocketMessage | SocketClose | SocketError) -> None:
        """Keep an event of a socket that only the roster will make known."""
        self._keep(lambda: self.host.socket_event(link, event), link, event.event)

    def _wait(self, entry: Any) -> bool:
        assert self._waiting is not None
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append(entry)
        return True

    # events from the network

    def message(self, socket: WebSocket, event: SocketMessage, link: GatewayLink) -> None:
        """A message: start its handler now, or keep it until the gate opens."""
        if self._waiting is not None:
            self._not_now(socket, event, link)
            return
        self.last_active = self.host.now
        handler = self._on_message
        if handler is None or socket._accept is not Accept.HIBERNATABLE:
            if socket._accept is not Accept.HIBERNATABLE or self._listening:
                self._take_or_keep(socket, Item("message", event.data))
            return
        data = event.data
        if type(data) is bytes:
            data = ArrayBuffer(data)
        variables = self.fresh_variables()
        try:
            if not self.kind.message_is_async:
                result = variables.run(handler, socket, data)
                if not hasattr(result, "send"):
                    return
            else:
                result = handler(socket, data)
            number = event.event
            done = partial(self._done, number, link)
            if self.host.runner.start(variables, result, done) is SUSPENDED:
                link.running.add(number)
                self._running[link.index, number] = self.pin("webSocketMessage running")
        except (Exception, CancelledError) as error:  # noqa: BLE001 - the user's
            self.failed_in("webSocketMessage", error)

    def _done(self, event: int, link: GatewayLink, result: Any, error: BaseException | None) -> None:
        self.unpin(self._running.pop((link.index, event), 0))
        if error is not None:
            self.failed_in("webSocketMessage", error)
        link.finished(event)

    def _not_now(self, socket: WebSocket, event: Any, link: GatewayLink) -> None:
        """Keep an event until the gate opens; one for an actor that is gone goes to its successor."""
        if self.phase is Phase.GONE:
            link.forget(socket)
        else:
            self._keep(lambda: self.host.socket_event(link, event), link, event.event)
            return
        self.host.socket_event(link, event)

    def _keep(self, again: Any, link: GatewayLink, event: int) -> None:
        """Hold an event until the gate opens; it is not done before."""

        def entry(error: BaseException | None) -> None:
            link.running.discard(event)
            if error is None:
                again()
            link.say_done()

        link.running.add(event)
        if not self._wait(entry):
            link.running.discard(event)
            self.host.counters.events_shed += 1

    def closed(self, socket: WebSocket, event: SocketClose, link: GatewayLink) -> None:
        if socket._accept is not Accept.HIBERNATABLE:
            super().closed(socket, event, link)
        elif self._waiting is not None:
            self._not_now(socket, event, link)
        else:
            item = Item("close", code=event.code, reason=event.reason, clean=event.clean)
            self._end(socket, item, link, event.event)

    def failed(self, socket: WebSocket, event: SocketError, link: GatewayLink) -> None:
        if socket._accept is not Accept.HIBERNATABLE:
            super().failed(socket, event, link)
        elif self._waiting is not None:
            self._not_now(socket, event, link)
        else:
            self._end(socket, Item("error", code=event.code, reason=event.message), link, event.event)

    def _end(self, socket: WebSocket, item: Item, link: GatewayLink | None, event: int) -> None:
        """The socket's end: its handler runs while it is still listed, then it leaves."""
        self.last_active = self.host.now
        if item.kind == "close":
            socket._close_in = True
            args: tuple[Any, ...] = (socket, item.code, item.reason, item.clean)
            name = "webSocketClose"
        else:
            args = (socket, JsException(f"{item.reason} (protocolError.statusCode = {item.code})"))
            name = "webSocketError"
        if not item.clean or item.kind == "error":
            socket._failed = True
            socket._ready = False
        pinned = 0

        def done(_: Any, error: BaseException | None) -> None:
            self.unpin(pinned)
            if error is not None:
                self.failed_in(name, error)
            if item.clean and item.kind == "close" and not socket._close_out:
                socket.close_out(item.code, item.reason)
            self.sockets.pop(socket, None)
            self._listener_gone(socket)
            if link is not None:
                link.forget(socket)
                link.finished(event)

        handler = self.kind.handler(self.instance, name)
        if handler is None:
            if self._listening and socket.has_listeners:
                socket.dispatch(item)
            done(None, None)
            return
        variables = self.fresh_variables()
        if link is not None:
            link.running.add(event)
        try:
            result = variables.run(handler, *args)
            if hasattr(result, "send"):
                if self.host.in_task():
                    self._as_task(self._then(result, done), name)
                    return
                result = self.host.runner.start(variables, result, done)
                if result is SUSPENDED:
                    pinned = self.pin(f"{name} running")
                    return
        except (Exception, CancelledError) as error:  # noqa: BLE001 - the user's
            done(None, error)
            return
        done(None, None)

    async def _then(self, coroutine: Any, done: Any) -> None:
        error: BaseException | None = None
        try:
            await coroutine
        except (Exception, CancelledError) as failure:  # noqa: BLE001 - the user's
            error = failure
        done(None, error)

    def take(self, socket: WebSocket, item: Item) -> None:
        """An event of a socket whose other end is in this process (no gateway between)."""
        if socket._accept is not Accept.HIBERNATABLE:
            super().take(socket, item)
        elif self._waiting is not None:
            self._wait(lambda error: None if error else self.take(socket, item))
        elif item.kind == "message":
            handler = self._on_message
            if handler is None:
                if self._listening:
                    socket.dispatch(item)
                return
            data = ArrayBuffer(item.data) if isinstance(item.data, bytes) else item.data
            self.run_callback(handler, socket, data, what="webSocketMessage")
        else:
            self._end(socket, item, None, 0)

    # requests

    async def serve(self, request: Request) -> Response:
        """Run the object's `fetch`. Raises WorkerError if it cannot be woken, or what the handler raised."""
        pinned = self.pin(f"fetch {request.method} running")
        try:
            return await self._serve(request)
        finally:
            self.unpin(pinned)

    async def _serve(self, request: Request) -> Response:
        if self._waiting is not None:
            opened: asyncio.Future[None] = self.host.loop.create_future()

            def entry(error: BaseException | None) -> None:
                if opened.done():
                    return
                if error is None:
                    opened.set_result(None)
                else:
                    failure = WorkerError(f"{self.label} cannot be built: {type(error).__name__}: {error}")
                    failure.__cause__ = error
                    opened.set_exception(failure)

            if not self._wait(entry):
                self.host.counters.events_shed += 1
                raise WorkerError(f"{self.label} has too many waiting requests.")
            await opened
        handler = self.kind.handler(self.instance, "fetch")
        if handler is None:
            raise WorkerError(f"{self.kind.name} has no fetch method; add `async def fetch(self, request)`.")
        token = object()
        variables = self.fresh_variables()
        variables.run(_current_fetch.set, token)
        variables.run(request_link.set, request_link.get())
        returned: WebSocket | None = None
        try:
            response = await in_context(variables, self._call(handler, request))
            if not isinstance(response, Response):
                raise WorkerError(f"{self.kind.name}.fetch returned {type(response).__name__}, not a Response.")
            returned = response.web_socket
            return response
        finally:
            self._drop_unbound(token, returned)

    @staticmethod
    async def _call(handler: Any, request: Request) -> Any:
        result = handler(request)
        return await result if hasattr(result, "__await__") else result

    def _drop_unbound(self, token: object, returned: WebSocket | None) -> None:
        """Forget the sockets that this fetch accepted but whose other end it did not return: they never get a client."""
        for socket, fetch in list(self._fetches.items()):
            if fetch is token and (socket._peer is None or socket._peer is not returned):
                self.drop_unbound(socket)

    def drop_unbound(self, socket: WebSocket) -> None:
        """Forget one accepted socket whose client will never come (unless its other end is used in this process)."""
        if self._fetches.pop(socket, self) is not self and (socket._peer is None or socket._peer._accept is Accept.NONE):
            self.sockets.pop(socket, None)
            self._listener_gone(socket)

    # api.state.ObjectHost

    def accept_hibernatable(self, socket: WebSocket, tags: tuple[str, ...]) -> None:
        if len(self.sockets) >= MAX_SOCKETS:
            raise JsException(f"only {MAX_SOCKETS} websockets can be accepted on a single Durable Object instance")
        socket._tags = tags
        self.sockets[socket] = None
        self._fetches[socket] = _current_fetch.get()
        if socket.has_listeners:
            self.listener_on_hibernatable(socket)
        socket.accept_with(self, Accept.HIBERNATABLE)

    def hibernatable(self) -> Iterable[WebSocket]:
        return self.sockets

    def bind(self, socket: WebSocket, link: GatewayLink, number: int) -> Binding:
        """The 101 leaves: the gateway's socket `number` is the other side from now on."""
        self._fetches.pop(socket, None)
        self.sockets[socket] = link
        link.adopt(socket, number)
        return Binding(self.ref, socket._tags, socket._attachment, self._auto)

    def set_auto_response(self, pair: WebSocketRequestResponsePair | None) -> None:
        self._auto = None if pair is None else AutoResponse(pair.request, pair.response)
        for link in {link for link in self.sockets.values() if link is not None}:
            link.link.send(SetAutoResponse(self.ref, self._auto))

    def get_auto_response(self) -> WebSocketRequestResponsePair | None:
        return None if self._auto is None else WebSocketRequestResponsePair(self._auto.request, self._auto.response)

    # listeners on hibernatable sockets (observed behaviour 3.4)

    def listener_on_hibernatable(self, socket: WebSocket) -> None:
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

    def _listener_gone(self, socket: WebSocket) -> None:
        if self._listening and not any(other.has_listeners for other in self.sockets):
            self.unpin(self._listening)
            self._listening = 0

    # sleeping

    def may_sleep(self, now: float, idle_s: float) -> bool:
        """Whether nothing pins the object and its last event is `idle_s` ago."""
        return (
            self.phase is Phase.AWAKE
            and not self.pins
            and now - self.last_active >= idle_s
            and None not in self.sockets.values()
        )

    def sleep(self) -> None:
        """Forget the instance; the sockets stay with their gateways."""
        self._waiting = deque()
        self._leave()
        self._variables = contextvars.Context()  # the kept one refers to this actor: a cycle

    def _leave(self) -> None:
        self.phase = Phase.GONE
        self.shut()
        for socket, link in self.sockets.items():
            if link is not None:
                link.forget(socket)
        self.sockets.clear()
        self.instance = self._on_message = None
