"""`DurableApp`: a Durable Object that is an ASGI app, with WebSocket endpoints that hibernate: docs/guides/asgi.md.

An endpoint is not kept but found again: the app routes to it once a handshake and once a wake, so middleware runs, and each
message is an event for a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final

from roost.api.entrypoint import DurableObject
from roost.api.http import Request, Response
from roost.closes import ENDPOINT_FAILED
from roost.compat.asgi.http import fetch
from roost.compat.asgi.lifespan import serves, started
from roost.compat.asgi.scope import is_upgrade, make_scope
from roost.compat.asgi.sockets import Handshake, listen, run_websocket
from roost.values import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.api.websocket import WebSocket
    from roost.compat.asgi.scope import Message, Scope

_log = logging.getLogger("roost.worker")

_HOOK: Final = "roost.endpoint"
_ABSENT: Final = object()


class DurableApp(DurableObject):
    """A Durable Object that is an ASGI app: `class Room(asgi.DurableApp): app = app`.

    A Starlette `WebSocketEndpoint` in its routes hibernates: each message is an event for a fresh endpoint, and
    `websocket.state` is the socket's attachment (at most 16,384 bytes together with the request's headers). The object's
    `ctx` and `env` are in the scope. Function endpoints work, too, but keep the object awake.
    """

    app: ClassVar[Any] = None

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        serves(cls.__dict__.get("app"))

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        _hook_endpoints()
        self._endpoints: weakref.WeakKeyDictionary[WebSocket, _Endpoint] = weakref.WeakKeyDictionary()
        self._turns: weakref.WeakKeyDictionary[WebSocket, asyncio.Lock] = weakref.WeakKeyDictionary()

    async def fetch(self, request: Request) -> Response:
        app = self._app()
        if not is_upgrade(request):
            return await fetch(app, request, self.env, self.ctx, scope={"ctx": self.ctx, "object": self})
        kept = _kept(request)
        scope = await self._scope(kept)
        incoming: asyncio.Queue[Message] = asyncio.Queue()
        incoming.put_nowait({"type": "websocket.connect"})

        def accept(server: WebSocket) -> None:
            if handshake.hibernates:
                self._turns[server] = turn  # no event of it before on_connect has ended
                server.serializeAttachment({**kept, "state": {}})
                self.ctx.acceptWebSocket(server)
            else:
                listen(server, incoming, handshake)

        async def connect(found: Any) -> None:
            handshake.hibernates = True
            endpoint = _Endpoint(type(found), found.scope)
            async with turn:
                await found.on_connect(_asgi_websocket()(found.scope, found.receive, found.send))
                if handshake.server is not None:
                    self._endpoints[handshake.server] = endpoint
                    endpoint.keep(handshake.server, kept, found.scope["state"])

        turn = asyncio.Lock()

        handshake = Handshake(accept)
        scope[_HOOK] = connect
        return await run_websocket(app, scope, incoming, handshake)

    def _app(self) -> Any:
        app = type(self).__dict__.get("app", type(self).app)  # not bound, if it is a function
        if app is None:
            raise TypeError(f"{type(self).__name__} has no app: `app = FastAPI()` in the class's body.")
        return app

    async def _scope(self, kept: dict[str, Any]) -> Scope:
        request = Request.incoming("GET", kept["url"], [(name, value) for name, value in kept["headers"]], None)
        shared = await started(self._app())
        return make_scope("websocket", request, self.env, shared) | {"ctx": self.ctx, "object": self}

    async def _endpoint(self, socket: WebSocket, kept: dict[str, Any]) -> _Endpoint:
        """Whose socket it is: the app's routes know; once for each time that the object is in memory."""
        endpoint = self._endpoints.get(socket)
        if endpoint is not None:
            return endpoint
        found: list[_Endpoint] = []

        async def remember(instance: Any) -> None:
            found.append(_Endpoint(type(instance), instance.scope))

        async def nothing(_: Message | None = None) -> Message:
            return {"type": "websocket.disconnect", "code": 1001}

        scope = await self._scope(kept)
        scope[_HOOK] = remember
        await self._app()(scope, nothing, nothing)
        if not found:
            raise RuntimeError(f"No WebSocketEndpoint serves {scope['path']} any more.")
        self._endpoints[socket] = found[0]
        return found[0]

    async def _event(self, socket: WebSocket) -> _Event:
        attachment = socket.deserializeAttachment()
        kept = {"url": attachment["url"], "headers": attachment["headers"]}
        return _Event(await self._endpoint(socket, kept), socket, kept, attachment["state"])

    def _turn(self, socket: WebSocket) -> asyncio.Lock:
        """One event of a socket after the other, as in a WebSocketEndpoint that does not hibernate."""
        turn = self._turns.get(socket)
        if turn is None:
            turn = self._turns[socket] = asyncio.Lock()
        return turn

    async def webSocketMessage(self, socket: WebSocket, message: Any) -> None:
        text = message if isinstance(message, str) else None
        received = {"type": "websocket.receive", "text": text, "bytes": None if text is not None else bytes(message)}
        async with self._turn(socket):
            try:
                event = await self._event(socket)
                try:
                    data = await event.endpoint.decode(event.websocket, received)
                    await event.endpoint.on_receive(event.websocket, data)
                finally:
                    event.keep()
            except Exception:
                socket.close(*ENDPOINT_FAILED)
                raise

    async def webSocketClose(self, socket: WebSocket, code: int, reason: str, clean: bool) -> None:
        await self._disconnected(socket, code)

    async def webSocketError(self, socket: WebSocket, error: Any) -> None:
        await self._disconnected(socket, 1006)

    async def _disconnected(self, socket: WebSocket, code: int) -> None:
        from starlette.websockets import WebSocketState

        async with self._turn(socket):
            event = await self._event(socket)
            event.websocket.client_state = WebSocketState.DISCONNECTED
            await event.endpoint.on_disconnect(event.websocket, code)


class _Endpoint:
    """The class of a socket's endpoint, the scope in which it was found, and the state that was there without it: the
    lifespan's and the middleware's."""

    def __init__(self, cls: Any, scope: Scope) -> None:
        self.cls = cls
        self.scope = scope
        self.shared = dict(scope.setdefault("state", {}))

    def keep(self, socket: WebSocket, kept: dict[str, Any], state: dict[str, Any]) -> None:
        """Make the state of the endpoint's own the socket's attachment."""
        own = {key: value for key, value in state.items() if self.shared.get(key, _ABSENT) is not value}
        attachment = {**kept, "state": own}
        if encode(attachment) != socket.raw_attachment:
            socket.serializeAttachment(attachment)


class _Event:
    """A fresh endpoint with its WebSocket, for one event."""

    def __init__(self, found: _Endpoint, socket: WebSocket, kept: dict[str, Any], state: dict[str, Any]) -> None:
        from starlette.websockets import WebSocketState

        handshake = Handshake(lambda _: None)
        handshake.server = socket
        scope = {**found.scope, "state": {**found.shared, **state}}
        send: Any = handshake.send
        self.websocket = _asgi_websocket()(scope, _no_receive, send)
        self.websocket.client_state = self.websocket.application_state = WebSocketState.CONNECTED
        self.endpoint = found.cls(scope, _no_receive, send)
        self.keep: Callable[[], None] = lambda: found.keep(socket, kept, scope["state"])


async def _no_receive() -> Message:
    raise RuntimeError("An endpoint that hibernates gets its messages by on_receive.")


def _asgi_websocket() -> Any:
    from starlette.websockets import WebSocket as AsgiWebSocket

    return AsgiWebSocket


def _kept(request: Request) -> dict[str, Any]:
    """What of a handshake an endpoint can ask for later; the parts that are of the handshake alone are left out."""
    handshake = ("connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions")
    headers = [[name, value] for name, value in request.headers.pairs if name.lower() not in handshake]
    return {"url": request.url, "headers": headers}


def _hook_endpoints() -> None:
    """Let `WebSocketEndpoint.dispatch` call the scope's hook in place of its loop; without one it is as ever. It is behind
    all routers and middleware, whatever they are."""
    from starlette.endpoints import WebSocketEndpoint

    dispatch: Any = WebSocketEndpoint.dispatch
    if getattr(dispatch, "roost", False):
        return

    async def hooked(self: Any) -> None:
        hook: Any = self.scope.get(_HOOK)
        await (dispatch(self) if hook is None else hook(self))

    hooked.roost = True  # type: ignore[attr-defined]
    WebSocketEndpoint.dispatch = hooked  # type: ignore[method-assign]
