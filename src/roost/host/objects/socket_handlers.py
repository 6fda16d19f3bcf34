"""Handlers of a socket's events besides its messages: close, error, and a kept upstream that is open again.

An event is done once its handler has ended and what it wrote is on the disk: only then its gateway may forget it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from roost.api.buffers import ArrayBuffer
from roost.api.socket_end import Accept, Item, SocketEnd
from roost.errors import JsException
from roost.host.objects.object_sockets import ObjectSockets
from roost.host.worker.running import Suspended
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.events import SocketClose, SocketError, SocketOpened
    from roost.host.gateway_link import GatewayLink


class SocketHandlers(ObjectSockets):
    """An object as the ends of its sockets see it."""

    __slots__ = ("_on_message", "built", "failure", "instance")

    instance: Any
    built: bool  # the constructor has succeeded; stays so
    failure: BaseException | None  # what it ended with, if not in sleep
    _on_message: Any

    # events done

    def _done(self, event: int, gateway: GatewayLink, result: Any, error: BaseException | None) -> None:
        self.unpin(self._running.pop((gateway.index, event), 0))
        if error is not None:
            self.failed_in("webSocketMessage", error)
        self._done_when_durable(event, gateway)

    def _done_when_durable(self, event: int, gateway: GatewayLink) -> None:
        """The gateway may forget an event only once what it wrote is on the disk (or the object was reset for it)."""
        gateway.running.add(event)
        if gateway.epoch:
            self.store.finished(gateway.epoch, event)
        self.gate.hold(partial(self._is_done, gateway, event))

    def _is_done(self, gateway: GatewayLink, event: int, error: BaseException | None) -> None:
        self.store.delivered.done(gateway.epoch, event)
        gateway.finished(event)

    # ends

    def closed(self, socket: SocketEnd, event: SocketClose, gateway: GatewayLink) -> None:
        if socket.accepted_as != Accept.HIBERNATABLE:
            super().closed(socket, event, gateway)
        elif self._waiting is not None:
            self._not_now(socket, event, gateway)
        else:
            item = Item("close", code=event.code, reason=event.reason, clean=event.clean)
            self._end(socket, item, gateway, event.event)

    def failed(self, socket: SocketEnd, event: SocketError, gateway: GatewayLink) -> None:
        if socket.accepted_as != Accept.HIBERNATABLE:
            super().failed(socket, event, gateway)
        elif self._waiting is not None:
            self._not_now(socket, event, gateway)
        else:
            self._end(socket, Item("error", code=event.code, reason=event.message), gateway, event.event)

    def disconnected(self, socket: SocketEnd) -> None:
        """The gateway that held it is gone; the event of its end comes from the successor, with a socket of its own."""
        self.sockets.pop(socket, None)
        self._listener_gone(socket)
        socket.end_abnormally()

    def _end(self, socket: SocketEnd, item: Item, gateway: GatewayLink | None, event: int) -> None:
        """The socket's end: its handler runs while it is still listed, then it leaves."""
        if gateway is not None:
            gateway.ended.append(socket.socket_number)
        self.surroundings.handled += 1
        self.last_active = self.surroundings.now
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
            if gateway is not None:
                gateway.forget(socket)
                self._done_when_durable(event, gateway)

        handler = self.kind.handler(self.instance, name)
        if gateway is not None and event <= gateway.redelivery_upto and self._was_finished(event, gateway):
            handler = None
        if handler is None:
            if self._listening and socket.has_listeners:
                socket.dispatch_item(item)
            done(None)
            return
        if gateway is not None:
            gateway.running.add(event)
        self._handle(name, handler, args, done)

    def opened(self, socket: SocketEnd, event: SocketOpened, gateway: GatewayLink) -> None:
        """A kept upstream is connected again."""
        if self._waiting is not None:
            self._not_now(socket, event, gateway)
            return
        self.surroundings.handled += 1
        self.last_active = self.surroundings.now

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.failed_in("webSocketOpen", error)
            self._done_when_durable(event.event, gateway)

        handler = self.kind.handler(self.instance, "webSocketOpen")
        if handler is None or (event.event <= gateway.redelivery_upto and self._was_finished(event.event, gateway)):
            done(None)
            return
        gateway.running.add(event.event)
        self._handle("webSocketOpen", handler, (socket, JsDict(attempts=event.attempts)), done)

    # running a handler

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
                if self.surroundings.in_task():
                    self._as_task(self._then(result, ended), name)
                    return
                result = self.surroundings.runner.start(variables, result)
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
