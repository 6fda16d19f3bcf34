"""`asgi`: FastAPI, Starlette and other ASGI apps as workers, and WebSocket endpoints that hibernate. Served to worker code
as `asgi` and `workers.asgi`.

`fetch`, `websocket` and `entrypoint` have the platform's signatures. Better on purpose: an upgrade is answered when the app
answers it, so subprotocols, headers, refusals and denial responses work, and the lifespan runs once a process, not once a
request. `DurableApp` is Roost's own (docs/guides/asgi.md).

Source: ASGI 3.0, its HTTP and WebSocket (2.5) and lifespan (2.0) specifications; reference 1.7.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from roost.api.entrypoint import DurableObject, WorkerEntrypoint
from roost.api.http import Request, Response
from roost.api.runtime import require_context
from roost.api.websocket import WebSocket, WebSocketPair
from roost.values import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Scope = dict[str, Any]
    Message = dict[str, Any]
    App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_log = logging.getLogger("roost.worker")

_AHEAD: Final = 16  # pieces of a response body that the app may be ahead of its reader
_MAX_UNREAD: Final = 1_024  # messages of a client that the app has not asked for; then it is closed with 1013
_MAX_APPS: Final = 100  # whose lifespans are kept
_HOOK: Final = "roost.endpoint"
_MAX_REASON: Final = 123
_GRACE_TURNS: Final = 8  # of the loop, after the last piece of a stream
_ABSENT: Final = object()
_COLLECT_S: Final = 0.5


# --- scopes ----------------------------------------------------------------------------------------------------------


def _scope(kind: str, request: Request, env: Any, state: dict[str, Any]) -> Scope:
    url = urlsplit(request.url)
    secure = url.scheme in ("https", "wss")
    raw_path = url.path or "/"
    scheme = {"http": ("http", "https"), "websocket": ("ws", "wss")}[kind][secure]
    client = request.headers.get("cf-connecting-ip")
    scope: Scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii", "replace"),
        "query_string": url.query.encode("ascii", "replace"),
        "root_path": "",
        "headers": [(n.lower().encode("latin-1"), v.encode("latin-1", "replace")) for n, v in request.headers.pairs],
        "client": (client, 0) if client else None,
        "server": (url.hostname or "localhost", url.port or (443 if secure else 80)),
        "state": dict(state),
        "extensions": {},
        "env": env,
    }
    if kind == "http":
        scope["method"] = str(request.method)
    else:
        offered = str(request.headers.get("sec-websocket-protocol") or "")
        scope["subprotocols"] = [each.strip() for each in offered.split(",") if each.strip()]
        scope["extensions"] = {"websocket.http.response": {}}
    return scope


def request_to_scope(req: Any, env: Any, ws: bool = False) -> Scope:
    """The ASGI scope of a request, as the platform's `asgi.request_to_scope` makes it."""
    request = req if isinstance(req, Request) else Request(req)
    return _scope("websocket" if ws else "http", request, env, {})


def run_in_background(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
    """Let it go on after the response; its failure is logged."""
    task = asyncio.ensure_future(awaitable)
    require_context("run_in_background()").wait_until(task)
    return task


def _text_headers(headers: Any) -> list[tuple[str, str]]:
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers or ()]


# --- lifespan --------------------------------------------------------------------------------------------------------


class StartupError(RuntimeError):
    """An app has said that it cannot start."""


class _Lifespan:
    """An app's startup, once a process, and its shutdown with the host. An app without lifespan is left alone."""

    def __init__(self, app: App) -> None:
        self.app = app  # kept, so that its id() is not another's
        self.state: dict[str, Any] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        # Outside of whatever request is first: it belongs to none of them.
        self._task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._run())

    async def _run(self) -> None:
        events = iter([{"type": "lifespan.startup"}])

        async def receive() -> Message:
            for event in events:
                return event
            await self._end.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._settle(
                    StartupError(f"the ASGI app's startup failed: {message.get('message') or 'it does not say why'}")
                )
            else:  # complete; or it is an app that does not look at what it is asked
                self._settle(None)

        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self.app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - an app may not know of lifespans (ASGI, "Lifespan Protocol")
            _log.debug("asgi: no lifespan: %s", error)
        except BaseException as error:
            self._settle(StartupError(f"the ASGI app's startup ended: {error!r}"))
            raise
        self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if self._started.done():
            return
        if error is None:
            self._started.set_result(None)
        else:
            _lifespans.pop(id(self.app), None)  # the next request tries again
            self._started.set_exception(error)

    async def started(self) -> dict[str, Any]:
        await asyncio.shield(self._started)
        return self.state

    async def end(self, timeout_s: float) -> None:
        self._end.set()
        await asyncio.wait({self._task}, timeout=timeout_s)
        self._task.cancel()


_lifespans: dict[int, _Lifespan] = {}


async def _started(app: App) -> dict[str, Any]:
    lifespan = _lifespans.get(id(app))
    if lifespan is None:
        lifespan = _Lifespan(app)
        if len(_lifespans) < _MAX_APPS:  # else it makes an app for each request
            _lifespans[id(app)] = lifespan
    return await lifespan.started()


_apps: list[Any] = []  # that are served, as far as is known before their first request


def _serves(app: Any) -> None:
    if app is not None and not any(each is app for each in _apps) and len(_apps) < _MAX_APPS:
        _apps.append(app)


async def start_apps(timeout_s: float) -> None:
    """Run the startup of every app that the worker serves, before its first request. Raises StartupError if one cannot
    start, or has not within `timeout_s`."""
    for app in _apps:
        try:
            async with asyncio.timeout(timeout_s):
                await _started(app)
        except TimeoutError:
            _lifespans.pop(id(app), None)
            raise StartupError(f"the ASGI app has not started within {timeout_s:g} s (asgi.startup_s).") from None


def keeps_sockets() -> bool:
    """Whether an app of `entrypoint` may keep WebSockets in this process's memory, where another host's would miss them."""
    return any(_has_sockets(app) for app in _entrypoint_apps)


_entrypoint_apps: list[Any] = []


def _has_sockets(app: Any) -> bool:
    try:
        from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
        from starlette.staticfiles import StaticFiles
    except ImportError:
        return True  # another framework: nobody knows
    routes = getattr(app, "routes", None)
    if not isinstance(routes, list) or not all(isinstance(route, BaseRoute) for route in routes):
        return not isinstance(app, StaticFiles)
    for route in routes:
        if isinstance(route, WebSocketRoute):
            return True
        if isinstance(route, Mount | Host):
            if _has_sockets(getattr(route, "_base_app", route.app)):
                return True
        elif not isinstance(route, Route | Router) and _has_sockets(route):
            return True
    return False


async def end_lifespans(timeout_s: float) -> None:
    """Run the shutdown of every app that has started; for the host's end."""
    await asyncio.gather(*(lifespan.end(timeout_s) for lifespan in list(_lifespans.values())))
    _lifespans.clear()


# --- HTTP ------------------------------------------------------------------------------------------------------------


class _Exchange:
    """One request and its response: pieces wait for their reader, at most `_AHEAD` of them."""

    def __init__(self, request: Request) -> None:
        self.head: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.complete = False
        self.gone = False  # nobody reads the rest
        self._discards = self._streamed = self._finishing = self._ended = False
        self._error: BaseException | None = None
        self._pieces: deque[bytes] = deque()
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()  # the response is complete, or its reader is gone
        self._request = request
        self._body: AsyncIterator[bytes] | None = None
        self._read = False

    # the app's side

    async def receive(self) -> Message:
        if self._read:
            await self._over.wait()
            return {"type": "http.disconnect"}
        try:
            if self._body is None:
                body = self._request.take_body()
                if isinstance(body, bytes):
                    self._read = True
                    return {"type": "http.request", "body": body, "more_body": False}
                self._body = aiter(body)
            piece = await anext(self._body, None)
        except ConnectionError:  # the client has stopped in the middle
            self._read = True
            self.drop()
            return {"type": "http.disconnect"}
        self._read = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(self, message: Message) -> None:
        if self.gone:
            raise OSError("The client disconnected.")
        if message["type"] == "http.response.start":
            if not self.head.done():
                self.head.set_result(message)
        elif message["type"] == "http.response.body" and not self.complete:
            if (piece := bytes(message.get("body", b""))) and not self._discards:
                self._pieces.append(piece)
            if not message.get("more_body"):
                if self._streamed:
                    self._finish(_GRACE_TURNS)  # an app that is about to raise has often sent its end first
                else:
                    self.complete = True
                    self._over.set()
            self._streamed = True
            self._came.set()
            while len(self._pieces) > _AHEAD and not self.gone:
                self._room.clear()
                await self._room.wait()

    def _finish(self, turns: int) -> None:
        """Complete, unless the app raises within so many turns of the loop."""
        self._finishing = True
        if turns and not self._ended:
            asyncio.get_running_loop().call_soon(self._finish, turns - 1)
        elif self._error is None:
            self.complete = True
            self._over.set()
            self._came.set()

    def ended(self, error: BaseException | None) -> bool:
        """The app has returned, or raised; whether its error has been passed on."""
        self._ended = True
        if self._finishing and not self.complete and error is None:
            self._finish(0)
        if not self.head.done():
            self.head.set_exception(_as_exception(error or RuntimeError("The ASGI app ended without a response.")))
            return True
        if self.complete or self.gone:
            return self.gone and (isinstance(error, OSError) or type(error).__name__ == "ClientDisconnect")
        self._error = error or RuntimeError("The ASGI app ended in the middle of its response.")
        self._came.set()
        return True

    # the reader's side

    async def next(self) -> bytes | None:
        """The next piece of the body, None at its end. Raises what the app has raised in the middle of it."""
        while not self._pieces:
            if self._error is not None:
                raise _as_exception(self._error)
            if self.complete:
                return None
            self._came.clear()
            await self._came.wait()
        self._room.set()
        return self._pieces.popleft()

    @property
    def whole(self) -> bool:
        """Nothing more comes than what was taken."""
        return self.complete and not self._pieces

    def discard(self) -> None:
        """The response has no body for its client; the app may go on."""
        self._discards = True
        self._pieces.clear()
        self._room.set()
        self._over.set()

    def drop(self) -> None:
        """Nobody reads on: the app is told by its next `send`."""
        self.gone = True
        self._pieces.clear()
        self._room.set()
        self._over.set()


class _Garbage:
    """Frees what an app's frames hold in cycles, such as the generator of a body that nobody reads any more: its `finally`
    runs soon after its client has gone, and not when garbage is next collected, which a host does seldom. Once a second at
    most, and only of what is young."""

    def __init__(self) -> None:
        self._waiting = False

    def collect_soon(self) -> None:
        if not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_later(_COLLECT_S, self._collect)

    def _collect(self) -> None:
        self._waiting = False
        gc.collect(1)


_garbage = _Garbage()


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


class _Body:
    """A response's body as it comes. Whoever lets go of it drops the rest."""

    def __init__(self, first: bytes, exchange: _Exchange) -> None:
        self._first = first
        self._exchange = exchange

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        piece = await self._exchange.next()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._exchange.drop()

    def __del__(self) -> None:
        self._exchange.drop()


async def fetch(app: App, req: Any, env: Any, ctx: Any = None, *, options: Any = None, scope: Any = None) -> Response:
    """The app's response to a request. Its body streams; what the app does after it goes on (background tasks).

    `scope` adds keys to the ASGI scope. What the app raises before its body has begun is raised here.
    """
    request = req if isinstance(req, Request) else Request(req)
    whole = {**_scope("http", request, env, await _started(app)), **(scope or {})}
    exchange = _Exchange(request)
    context = require_context("asgi.fetch()")

    async def run() -> None:
        try:
            await app(whole, exchange.receive, exchange.send)
        except BaseException as error:
            passed_on = exchange.ended(error)
            if not isinstance(error, Exception):
                raise
            if not passed_on:  # a framework that has answered with a 500 itself, or what goes on after the response
                context.failed_in("fetch", error)
            if exchange.gone:
                _garbage.collect_soon()
        else:
            exchange.ended(None)

    context.wait_until(asyncio.ensure_future(run()))
    try:
        head = await exchange.head
        status = int(head["status"])
        body: Any = None
        if status in (204, 205, 304) or str(request.method) == "HEAD":
            exchange.discard()
        else:
            first = await exchange.next() or b""
            body = first if exchange.whole else _Body(first, exchange)
        return Response(body, status, "", _text_headers(head.get("headers")))
    except BaseException:
        exchange.drop()
        raise


# --- WebSockets ------------------------------------------------------------------------------------------------------


class _Handshake:
    """What an app answers to an upgrade: accepted, or the response that refuses it."""

    def __init__(self, accept: Callable[[WebSocket], None]) -> None:
        self.answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.server: WebSocket | None = None
        self.closed = False  # by the app
        self.hibernates = False
        self.gone = False  # the client: the app hears so by an OSError, as of any server (ASGI 3.0, "Disconnect")
        self._accept = accept
        self._denial: Message | None = None
        self._denied = b""

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self._accepted(message)
        elif kind == "websocket.send":
            if self.server is None:
                raise RuntimeError("websocket.send before websocket.accept")
            if self.gone:
                raise OSError("The client has disconnected.")
            self.server.send(message["text"] if message.get("text") is not None else message.get("bytes") or b"")
        elif kind == "websocket.close":
            self.closed = True
            if self.server is not None:
                _close(self.server, message.get("code"), message.get("reason"))
            else:
                self._answer(Response("Forbidden", 403))
        elif kind == "websocket.http.response.start":
            self._denial = message
        elif kind == "websocket.http.response.body" and self._denial is not None:
            self._denied += bytes(message.get("body", b""))
            if not message.get("more_body"):
                headers = _text_headers(self._denial.get("headers"))
                self._answer(Response(self._denied, int(self._denial["status"]), "", headers))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def _accepted(self, message: Message) -> None:
        client, server = WebSocketPair.new()
        server.binaryType = "arraybuffer"
        self._accept(server)
        self.server = server
        headers = _text_headers(message.get("headers"))
        if message.get("subprotocol"):
            headers.append(("Sec-WebSocket-Protocol", message["subprotocol"]))
        self._answer(Response(None, 101, headers=headers, web_socket=client))

    def _answer(self, response: Response) -> None:
        if not self.answered.done():
            self.answered.set_result(response)


_SENDABLE: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})


def _close(server: WebSocket, code: Any, reason: Any) -> None:
    """Close in any case: an app's mistake in the code is 1011, a reason is cut to what fits (RFC 6455 §5.5.1, §7.4)."""
    wanted = 1000 if code is None else int(code)
    if wanted not in _SENDABLE:
        _log.warning("asgi: close code %d cannot be sent; 1011 is", wanted)
        wanted = 1011
    text = str(reason or "").encode("utf-8", "replace")[:_MAX_REASON].decode("utf-8", "ignore")
    server.close(wanted, text)


async def websocket(app: App, req: Any, env: Any = None, *, scope: Any = None) -> Response:
    """The app's answer to an upgrade: 101, a refusal (403) or a denial response. An accepted socket stays in memory until
    it ends; `DurableApp` is for sockets that hibernate."""
    request = req if isinstance(req, Request) else Request(req)
    whole = {**_scope("websocket", request, env, await _started(app)), **(scope or {})}
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    handshake = _Handshake(lambda server: _listen(server, incoming, handshake))
    return await _run_websocket(app, whole, incoming, handshake)


def _listen(server: WebSocket, incoming: asyncio.Queue[Message], handshake: _Handshake) -> None:
    """Accept a socket; what comes waits for the app to ask for it."""
    server.accept()

    def on_message(event: Any) -> None:
        if handshake.closed:
            return  # by the app: it hears of the end only
        if incoming.qsize() >= _MAX_UNREAD:
            server.close(1013, "Too many messages wait for the app.")
            return
        text = event.data if isinstance(event.data, str) else None
        incoming.put_nowait({"type": "websocket.receive", "text": text, "bytes": None if text is not None else event.data})

    def on_end(event: Any) -> None:
        if handshake.gone:
            return
        handshake.gone = True
        if handshake.closed:
            while not incoming.empty():
                incoming.get_nowait()
        code = event.code if event.type == "close" else 1006
        incoming.put_nowait({"type": "websocket.disconnect", "code": code, "reason": event.reason})

    server.addEventListener("message", on_message)
    server.addEventListener("close", on_end)
    server.addEventListener("error", on_end)


async def _run_websocket(app: App, scope: Scope, incoming: asyncio.Queue[Message], handshake: _Handshake) -> Response:
    async def run() -> None:
        code = 1000
        try:
            await app(scope, incoming.get, handshake.send)
        except BaseException as error:
            code = 1012 if isinstance(error, asyncio.CancelledError) else 1011
            if not handshake.answered.done():
                handshake.answered.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
                return
            raise
        finally:
            if (
                handshake.server is not None
                and not handshake.closed
                and not handshake.gone
                and (code != 1000 or not handshake.hibernates)
            ):
                handshake.server.close(code)
            if not handshake.answered.done():
                handshake.answered.set_result(Response("Forbidden", 403))

    require_context("asgi.websocket()").wait_until(asyncio.ensure_future(run()))
    return await handshake.answered


def _is_upgrade(request: Request) -> bool:
    return str(request.headers.get("upgrade") or "").lower() == "websocket"


def entrypoint(app: App, *, options: Any = None) -> type[WorkerEntrypoint]:
    """A `Default` class that serves an app: `Default = asgi.entrypoint(app)`."""
    _serves(app)
    _entrypoint_apps.append(app)

    class Default(WorkerEntrypoint):
        async def fetch(self, request: Request) -> Response:
            if _is_upgrade(request):
                return await websocket(app, request, self.env)
            return await fetch(app, request, self.env, self.ctx)

    return Default


# --- endpoints that hibernate ----------------------------------------------------------------------------------------


class DurableApp(DurableObject):
    """A Durable Object that is an ASGI app: `class Room(asgi.DurableApp): app = app`.

    A Starlette `WebSocketEndpoint` in its routes hibernates: each message is an event for a fresh endpoint, and
    `websocket.state` is the socket's attachment (at most 16,384 bytes together with the request's headers). The object's
    `ctx` and `env` are in the scope. Function endpoints work, too, but keep the object awake.
    """

    app: ClassVar[Any] = None

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        _serves(cls.__dict__.get("app"))

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        _hook_endpoints()
        self._endpoints: weakref.WeakKeyDictionary[WebSocket, _Endpoint] = weakref.WeakKeyDictionary()
        self._turns: weakref.WeakKeyDictionary[WebSocket, asyncio.Lock] = weakref.WeakKeyDictionary()

    async def fetch(self, request: Request) -> Response:
        app = self._app()
        if not _is_upgrade(request):
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
                _listen(server, incoming, handshake)

        async def connect(found: Any) -> None:
            handshake.hibernates = True
            endpoint = _Endpoint(type(found), found.scope)
            async with turn:
                await found.on_connect(_asgi_websocket()(found.scope, found.receive, found.send))
                if handshake.server is not None:
                    self._endpoints[handshake.server] = endpoint
                    endpoint.keep(handshake.server, kept, found.scope["state"])

        turn = asyncio.Lock()

        handshake = _Handshake(accept)
        scope[_HOOK] = connect
        return await _run_websocket(app, scope, incoming, handshake)

    def _app(self) -> Any:
        app = type(self).__dict__.get("app", type(self).app)  # not bound, if it is a function
        if app is None:
            raise TypeError(f"{type(self).__name__} has no app: `app = FastAPI()` in the class's body.")
        return app

    async def _scope(self, kept: dict[str, Any]) -> Scope:
        request = Request.incoming("GET", kept["url"], [(name, value) for name, value in kept["headers"]], None)
        shared = await _started(self._app())
        return _scope("websocket", request, self.env, shared) | {"ctx": self.ctx, "object": self}

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
                socket.close(1011)
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

        handshake = _Handshake(lambda _: None)
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


def __getattr__(name: str) -> Any:
    """`asgi.env`: the worker's `env` as a FastAPI dependency, for HTTP and WebSocket endpoints."""
    if name != "env":
        raise AttributeError(f"asgi has no {name!r}; it has fetch, websocket, entrypoint, env and DurableApp.")
    from fastapi import Depends
    from starlette.requests import HTTPConnection

    def worker_env(connection: HTTPConnection) -> Any:
        return connection.scope["env"]

    # FastAPI reads the annotation at run time, where this module's are text.
    worker_env.__annotations__ = {"connection": HTTPConnection}
    return Depends(worker_env)
