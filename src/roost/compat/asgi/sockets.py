"""WebSockets of an ASGI app: it accepts or refuses the handshake, and an accepted socket stays in memory until it ends.

Source: ASGI 3.0, WebSocket (2.5).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from roost.api.http import Request, Response
from roost.api.runtime import require_context
from roost.api.websocket import WebSocket, WebSocketPair
from roost.closes import APP_BUSY, CloseCode
from roost.compat.asgi.lifespan import started
from roost.compat.asgi.scope import make_scope, text_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.compat.asgi.scope import App, Message, Scope

_log = logging.getLogger("roost.worker")

_MAX_UNREAD: Final = 1_024  # messages of a client that the app has not asked for; then it is closed with 1013
_MAX_REASON: Final = 123
_SENDABLE: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})


class Handshake:
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
                close_socket(self.server, message.get("code"), message.get("reason"))
            else:
                self._answer(Response("Forbidden", 403))
        elif kind == "websocket.http.response.start":
            self._denial = message
        elif kind == "websocket.http.response.body" and self._denial is not None:
            self._denied += bytes(message.get("body", b""))
            if not message.get("more_body"):
                headers = text_headers(self._denial.get("headers"))
                self._answer(Response(self._denied, int(self._denial["status"]), "", headers))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def _accepted(self, message: Message) -> None:
        client, server = WebSocketPair.new()
        server.binaryType = "arraybuffer"
        self._accept(server)
        self.server = server
        headers = text_headers(message.get("headers"))
        if message.get("subprotocol"):
            headers.append(("Sec-WebSocket-Protocol", message["subprotocol"]))
        self._answer(Response(None, 101, headers=headers, web_socket=client))

    def _answer(self, response: Response) -> None:
        if not self.answered.done():
            self.answered.set_result(response)


def close_socket(server: WebSocket, code: Any, reason: Any) -> None:
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
    whole = {**make_scope("websocket", request, env, await started(app)), **(scope or {})}
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    handshake = Handshake(lambda server: listen(server, incoming, handshake))
    return await run_websocket(app, whole, incoming, handshake)


def listen(server: WebSocket, incoming: asyncio.Queue[Message], handshake: Handshake) -> None:
    """Accept a socket; what comes waits for the app to ask for it."""
    server.accept()

    def on_message(event: Any) -> None:
        if handshake.closed:
            return  # by the app: it hears of the end only
        if incoming.qsize() >= _MAX_UNREAD:
            server.close(*APP_BUSY)
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


async def run_websocket(app: App, scope: Scope, incoming: asyncio.Queue[Message], handshake: Handshake) -> Response:
    async def run() -> None:
        code = 1000
        try:
            await app(scope, incoming.get, handshake.send)
        except BaseException as error:
            ended = isinstance(error, asyncio.CancelledError)
            code = CloseCode.SERVICE_RESTART if ended else CloseCode.INTERNAL_ERROR
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
