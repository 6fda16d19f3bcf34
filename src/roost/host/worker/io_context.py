"""Where worker code runs: what it started, what keeps it awake, and how its failures are told.

`WorkContext` is what an object (`Actor`) and a stateless request (`RequestContext`) share. What pins it is a table with a
name for each entry, so that "why is it awake?" always has an answer. It fills in the api's `IoContext` port.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from roost import memory
from roost.api.runtime import CachePort, Compat, current_context
from roost.api.socket_end import Accept, Item
from roost.closes import NOT_ACCEPTED
from roost.errors import JsException, WorkerError
from roost.host.bodies import SenderGone
from roost.host.worker.aborting import unless_aborted
from roost.host.worker.pins import NOTHING, Pins
from roost.host.worker.promise import Promise
from roost.host.worker.rpc_calls import begin_in_request
from roost.host.worker.rpc_table import RpcSession
from roost.host.worker.running import Suspended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from roost.api.http import Request, Response
    from roost.api.rpc_stubs import RpcStub
    from roost.api.socket_end import SocketEnd, SocketPort
    from roost.events import Chain, SocketClose, SocketError, SocketMessage
    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.aborting import Abortable
    from roost.host.worker.rpc_table import Export, Reply
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.worker")

MAX_TIMERS = 10_000
MAX_PENDING = 1_000  # events that may wait for a socket to be accepted


class WorkContext(Pins):
    """The surroundings of running worker code. `label` names it in logs: `Room(lobby)`, `GET /`."""

    owns_tasks: ClassVar[bool] = False
    """Whether a task that worker code starts keeps it awake, and ends with it."""

    __slots__ = ("__weakref__", "_rpc", "_socket_pins", "_timers", "_waited_for", "is_over", "label")

    def __init__(self, surroundings: Surroundings, label: str, compat: Compat) -> None:
        self.surroundings = surroundings
        self.is_over = False
        self.label = label
        self.compat = compat
        self.pins: dict[int, str] = NOTHING
        self.last_active = surroundings.now
        self._last_pin = 0
        self._timers: dict[int, asyncio.TimerHandle] = NOTHING
        self._socket_pins: dict[SocketEnd, int] = NOTHING
        self._io_pins: dict[int, float] = NOTHING  # until when a pin counts, for those that do not for ever
        self._waited_for: dict[asyncio.Task[None], None] = NOTHING
        self._rpc: RpcSession | None = None

    def fresh_variables(self) -> contextvars.Context:
        """Context variables for one run of worker code: only who it belongs to is set.

        Not kept: a context that knows its variables and they it would be a cycle, and there is one each request.
        """
        variables = contextvars.Context()
        variables.run(current_context.set, self)
        return variables

    def port_for(self, gateway: GatewayLink) -> SocketPort:
        """What this context's sockets speak through: an object's waits for its writes."""
        return gateway

    # running

    def run_callback(self, function: Callable[..., Any], *args: Any, what: str) -> None:
        """Call user code; if it is async, run it in place or as a task of this context."""
        variables = self.fresh_variables()
        try:
            result = variables.run(function, *args)
        except BaseException as error:  # noqa: BLE001 - the user's
            self.failed_in(what, error)
            return
        if inspect.iscoroutine(result):
            self.run_coroutine(result, variables, what)
        elif inspect.isawaitable(result):
            self.wait_until(result)

    def run_coroutine(self, coroutine: Any, variables: contextvars.Context, what: str) -> None:
        """Run a coroutine of user code in this context; in place if nothing else is running."""
        if self.surroundings.in_task():
            self._as_task(coroutine, what)
            return
        pinned = 0

        def done(result: Any, error: BaseException | None) -> None:
            self.unpin(pinned)
            if error is not None:
                self.failed_in(what, error)

        try:
            result = self.surroundings.runner.start(variables, coroutine)
            if type(result) is Suspended:
                result.then(done)
                pinned = self.pin(what)
        except BaseException as error:  # noqa: BLE001 - the user's
            self.failed_in(what, error)

    def _as_task(self, awaitable: Any, what: str, pinned: int = 0) -> asyncio.Task[None]:
        pinned = pinned or self.pin(what)

        async def run() -> None:
            try:
                await awaitable
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - the user's, also sys.exit()
                self.failed_in(what, error)
            finally:
                self.unpin(pinned)

        return self.surroundings.spawn(run(), self.fresh_variables())

    def failed_in(self, what: str, error: BaseException) -> None:
        """The user's code raised: a log line with its traceback. Nothing else changes."""
        if isinstance(error, asyncio.CancelledError):
            return
        text = str(error) if isinstance(error, JsException) else f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError):
            text = f"MemoryError: {str(error) or memory.what_failed()}"
        if isinstance(error, SenderGone):  # nobody's fault here: no traceback
            self.fresh_variables().run(_log.info, "%s: a body was not complete: %s", what, error)
        elif isinstance(
            error, WorkerError
        ):  # ours: its text is all there is to say, and its cause was logged where it rose
            self.fresh_variables().run(_log.error, "%s failed: %s", what, error)
        else:
            self.fresh_variables().run(_log.error, "%s failed: %s", what, text, exc_info=error)

    def wait_until(self, awaitable: Awaitable[Any]) -> None:
        if not inspect.isawaitable(awaitable):
            raise TypeError(f"waitUntil() needs an awaitable, not {type(awaitable).__name__}.")
        task = self._as_task(awaitable, "waitUntil", self.pin_io("waitUntil", dated=True))
        self._wait_for(task)
        task.add_done_callback(self._wait_over)

    def _wait_for(self, task: asyncio.Task[None]) -> None:
        if self._waited_for is NOTHING:
            self._waited_for = {}
        self._waited_for[task] = None

    def _wait_over(self, task: asyncio.Task[None]) -> None:
        self._waited_for.pop(task, None)

    def started(self, task: asyncio.Task[Any], what: str) -> None:
        """A task that worker code has started by itself."""
        if self.is_over:
            task.cancel()  # a task that was cancelled with its object has made another
            return
        pinned = self.pin_io(what)
        self._wait_for(task)

        def over(_: Any) -> None:
            self.unpin(pinned)
            self._waited_for.pop(task, None)

        task.add_done_callback(over)

    # timers

    def set_timer(self, function: Callable[..., Any], args: tuple[Any, ...], delay_ms: float, *, repeat: bool) -> int:
        if not callable(function):
            raise TypeError(f"setTimeout() needs a function, not {type(function).__name__}.")
        if len(self._timers) >= MAX_TIMERS:
            raise RuntimeError(f"More than {MAX_TIMERS} timers are pending in {self.label}.")
        delay = max(0.0, float(delay_ms or 0)) / 1000
        what = "setInterval" if repeat else "setTimeout"
        number = self.pin_io(what)
        loop = self.surroundings.loop

        def due() -> None:
            if repeat:
                self._timers[number] = loop.call_later(max(delay, 0.001), due)
                if number not in self._io_pins or self._io_pins[number] >= loop.time():
                    self.last_active = loop.time()  # else it keeps nothing awake any more
            else:
                self._timers.pop(number, None)
                self.unpin(number)
            self.run_callback(function, *args, what=f"{what} callback")

        if self._timers is NOTHING:
            self._timers = {}
        self._timers[number] = loop.call_later(delay, due)
        return number

    def clear_timer(self, timer: int) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()
            self.unpin(timer)

    # the outside

    def dial(self, socket: SocketEnd, url: str, protocols: list[str]) -> None:
        self.surroundings.outside.dial(self, socket, url, protocols)

    async def fetch(self, request: Request) -> Response:
        pinned = self.pin(f"fetch {request.url.split('?', 1)[0]}")
        try:
            response: Response = await unless_aborted(request.given_signal, self.surroundings.outside.fetch(self, request))
            return response
        finally:
            self.unpin(pinned)

    def body_opened(self, body: Abortable) -> None:
        """A response of `fetch` that is to be read. An object may keep it; a request's are let go of at its end."""

    @property
    def caches(self) -> CachePort:
        return self.surroundings.caches

    # what is passed by reference

    @property
    def rpc(self) -> RpcSession:
        """What this context has exported and holds, made when it is first used."""
        if self._rpc is None:
            self._rpc = RpcSession(self, self.surroundings.rpc)
        return self._rpc

    def end_rpc(self) -> None:
        """What it has exported is gone, and what it holds is let go."""
        if self._rpc is not None:
            self._rpc.close()

    def export_rpc(self, target: Any) -> list[Any]:
        return self.rpc.export(target)

    def withdraw_rpc(self, references: list[Any]) -> None:
        self.rpc.withdraw(references)

    def adopt_rpc(self, reference: list[Any]) -> RpcStub:
        return self.rpc.adopt(*reference)

    def begin_rpc(self, export: Export, method: str, arguments: bytes, chain: Chain, reply: Reply) -> None:
        """Run a call on what this context has exported."""
        begin_in_request(self, export, method, arguments, chain, reply)

    # promises

    def promise(self, coroutine: Coroutine[Any, Any, Any], what: str) -> Promise:
        return Promise(self, self.surroundings.loop, coroutine, what)

    def begin(self, coroutine: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        """A task of this context in the current variables; it ends with the context."""
        task = asyncio.Task(coroutine, loop=self.surroundings.loop)
        self.started(task, what)
        return task

    def future(self) -> asyncio.Future[Any]:
        return self.surroundings.loop.create_future()

    # socket events

    def deliver(self, socket: SocketEnd, item: Item) -> None:
        """An event that did not come over the network: in a later turn, so that `send` never re-enters a handler."""
        pinned = self.pin("event on a socket pair")

        def hand_over() -> None:
            self.unpin(pinned)
            self.take(socket, item)

        self.surroundings.loop.call_soon(hand_over)

    def deliver_pending(self, socket: SocketEnd) -> None:
        pinned = self.pin("events that waited for accept()")

        def hand_over() -> None:
            self.unpin(pinned)
            while socket.kept_items:
                self.take(socket, socket.kept_items.pop(0))

        self.surroundings.loop.call_soon(hand_over)

    def take(self, socket: SocketEnd, item: Item) -> None:
        """Give an item to an accepted socket's listeners."""
        socket.dispatch_item(item)

    def message(self, socket: SocketEnd, event: SocketMessage, gateway: GatewayLink) -> None:
        """A message from the network for a socket of this context."""
        self.last_active = self.surroundings.now
        self._take_or_keep(socket, Item("message", event.data))
        if len(socket.kept_items) > MAX_PENDING:
            socket.take_kept()
            gateway.forget(socket)
            gateway.close_socket(event.socket, *NOT_ACCEPTED)

    def closed(self, socket: SocketEnd, event: SocketClose, gateway: GatewayLink) -> None:
        gateway.forget(socket)
        self._take_or_keep(socket, Item("close", code=event.code, reason=event.reason, clean=event.clean))
        self.socket_ended(socket)

    def failed(self, socket: SocketEnd, event: SocketError, gateway: GatewayLink) -> None:
        gateway.forget(socket)
        reason = f"{event.message} (protocolError.statusCode = {event.code})"
        self._take_or_keep(socket, Item("error", code=event.code, reason=reason))
        if socket.is_dialled:  # an upstream's end is always a close event, too
            self._take_or_keep(socket, Item("close", code=event.code, reason=event.message, clean=False))
        self.socket_ended(socket)

    def _take_or_keep(self, socket: SocketEnd, item: Item) -> None:
        if socket.accepted_as == Accept.NONE and item.kind == "message" and not socket.kept_items:
            self.fresh_variables().run(
                _log.warning,
                "a message came for a WebSocket that nobody accepted: call server.accept() or ctx.acceptWebSocket(server).",
            )
        if socket.accepted_as == Accept.NONE and item.kind == "close" and socket.socket_port is not None:
            socket.close_out(item.code, item.reason)  # nobody else will answer it
        if socket.accepted_as == Accept.NONE or socket.kept_items:
            socket.keep_item(item)
        else:
            socket.dispatch_item(item)

    def socket_ended(self, socket: SocketEnd) -> None:
        """A socket that pinned this context no longer does."""
        self.unpin(self._socket_pins.pop(socket, 0))

    def socket_opened(self, socket: SocketEnd) -> None:
        """A socket that lives in memory pins this context."""
        if socket not in self._socket_pins:
            pin = self.pin_io if socket.url is not None else self.pin
            if self._socket_pins is NOTHING:
                self._socket_pins = {}
            self._socket_pins[socket] = pin(_socket_pin(socket))

    def listener_on_hibernatable(self, socket: SocketEnd) -> None:
        """A listener was added to a hibernatable socket: see `Actor`."""

    def drop_unbound(self, socket: SocketEnd) -> None:
        """A socket's client will never come."""

    def shut(self) -> None:
        """Cancel timers and what waitUntil waits for."""
        current = asyncio.current_task(self.surroundings.loop)
        for task in self._waited_for:
            if task is not current:
                task.cancel()
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()


def _socket_pin(socket: SocketEnd) -> str:
    kind = "outbound WebSocket" if socket.url is not None else "accepted WebSocket"
    return f"{kind} {socket.url or socket.socket_number}"
