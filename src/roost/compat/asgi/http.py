"""HTTP requests to an ASGI app: pieces of a body both ways, and what the app does later. Source: ASGI 3.0, HTTP."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from roost.api.http import Request, Response
from roost.api.runtime import require_context
from roost.compat.asgi.lifespan import started
from roost.compat.asgi.scope import make_scope, text_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from roost.compat.asgi.scope import App, Message

_AHEAD: Final = 16  # pieces of a response body that the app may be ahead of its reader
_GRACE_TURNS: Final = 8  # of the loop, after the last piece of a stream
_COLLECT_S: Final = 0.5


class Exchange:
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
            self.head.set_exception(as_exception(error or RuntimeError("The ASGI app ended without a response.")))
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
                raise as_exception(self._error)
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


def as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


class Body:
    """A response's body as it comes. Whoever lets go of it drops the rest."""

    def __init__(self, first: bytes, exchange: Exchange) -> None:
        self._first = first
        self._exchange = exchange

    def __aiter__(self) -> Body:
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
    whole = {**make_scope("http", request, env, await started(app)), **(scope or {})}
    exchange = Exchange(request)
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
            body = first if exchange.whole else Body(first, exchange)
        return Response(body, status, "", text_headers(head.get("headers")))
    except BaseException:
        exchange.drop()
        raise
