"""What worker code asks of the outside: HTTP by `fetch`, WebSockets by dialling through a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from roost.api.headers import Headers
from roost.api.http import Request, Response
from roost.api.socket_end import Item, SocketEnd
from roost.api.websocket import WebSocket
from roost.closes import CloseCode
from roost.errors import JsException, JsTypeError
from roost.events import Dial, DialKept, Dialled, KeepSocket
from roost.host.calls.http_client import HttpClient
from roost.host.worker.aborting import ends_body
from roost.host.worker.current import request_gateway

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.io_context import WorkContext
    from roost.host.worker.surroundings import Surroundings


_OF_THE_FRAMING: Final = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"})


class Outbound:
    """The outgoing side of one host."""

    def __init__(self, surroundings: Surroundings, ca_file: str | None) -> None:
        self._surroundings = surroundings
        self._last_dial = surroundings.links.unique_numbers()
        self._client = HttpClient(surroundings.limits.max_fetch_connections, ca_file, surroundings.counters)

    # WebSockets

    def dial(self, context: WorkContext, socket: SocketEnd, url: str, protocols: list[str]) -> None:
        """`new WebSocket(url)`: the socket hears `open`, or `error` and `close`."""
        pinned = context.pin(f"dialling {url}")

        def dialled(gateway: GatewayLink, outcome: Dialled) -> None:
            context.unpin(pinned)
            if not socket.is_connecting:  # closed by the program in the meantime
                if outcome.socket:
                    gateway.close_socket(outcome.socket, CloseCode.NORMAL, "")
                return
            if outcome.status != 101:
                socket.dial_failed(_why(outcome))
                return
            gateway.adopt(socket, outcome.socket, context.port_for(gateway))
            _agreed(socket, outcome)
            context.socket_opened(socket)
            socket.dispatch_item(Item("open"))

        def failed(reason: str) -> None:
            context.unpin(pinned)
            socket.dial_failed(reason)

        self._send(url, protocols, [], dialled, failed)

    async def dial_kept(
        self, url: str, protocols: list[str], headers: Any, keep: KeepSocket, kept: Callable[[GatewayLink, int], None]
    ) -> None:
        """Have an object's socket dialled; `kept(gateway, number)` once it has one. Raises Error (as JsException)."""
        answered: asyncio.Future[None] = self._surroundings.loop.create_future()

        def dialled(gateway: GatewayLink, outcome: Dialled) -> None:
            try:
                if not outcome.socket:
                    raise JsException(outcome.error)
                kept(gateway, outcome.socket)
            except JsException as error:
                if outcome.socket:
                    gateway.close_socket(outcome.socket, CloseCode.NORMAL, "")
                if not answered.done():
                    answered.set_exception(error)
            else:
                if not answered.done():
                    answered.set_result(None)

        def failed(reason: str) -> None:
            if not answered.done():
                answered.set_exception(JsException(f"The upstream cannot be dialled: {reason}."))

        self._send(url, protocols, headers, dialled, failed, keep)
        await answered

    def _send(
        self, url: str, protocols: list[str], headers: Any, dialled: Any, failed: Any, keep: KeepSocket | None = None
    ) -> None:
        links = self._surroundings.links.here
        gateway = request_gateway.get()
        if gateway is None or gateway not in links:
            if not links:
                self._surroundings.loop.call_soon(failed, "no gateway is connected")
                return
            gateway = links[0]
        if not self._surroundings.worker.compat.compression:
            headers = without_compression(headers)
        self._last_dial += 2
        number = self._last_dial + 1
        gateway.dials[number] = dialled
        dial = Dial(number, url, protocols, headers)
        gateway.link.send(dial if keep is None else DialKept(dial, keep))

    # fetch

    async def fetch(self, context: WorkContext, request: Request) -> Response:
        """An HTTP request, or an upgraded one. Raises TypeError (as JsException) for what cannot be fetched."""
        scheme = request.url.split(":", 1)[0]
        if scheme not in ("http", "https"):
            raise JsTypeError(f"Fetch API cannot load: {request.url} (the URL must begin with http:// or https://)")
        if str(request.headers.get("upgrade", "")).lower() == "websocket":
            return await self._upgrade(context, request)
        signal = request.given_signal
        opened = context.body_opened if signal is None else ends_body(signal, context.body_opened)
        return await self._client.fetch(request, opened)

    async def _upgrade(self, context: WorkContext, request: Request) -> Response:
        answered: asyncio.Future[tuple[GatewayLink, Dialled]] = self._surroundings.loop.create_future()

        def dialled(gateway: GatewayLink, outcome: Dialled) -> None:
            if not answered.done():
                answered.set_result((gateway, outcome))
                if outcome.socket:
                    _agreed(socket, outcome)
                    socket.upgrade_dialled(context, request.url)
                    gateway.adopt(socket, outcome.socket, context.port_for(gateway))
            elif outcome.socket:
                gateway.close_socket(outcome.socket, CloseCode.NORMAL, "")  # the caller no longer waits

        def failed(reason: str) -> None:
            if not answered.done():
                answered.set_exception(JsException(reason))

        socket = WebSocket()
        protocols = [p.strip() for p in str(request.headers.get("sec-websocket-protocol", "")).split(",") if p.strip()]
        headers = [(n, v) for n, v in request.headers.pairs if n.lower() != "sec-websocket-protocol"]
        self._send(request.url, protocols, headers, dialled, failed)
        _, outcome = await answered
        if outcome.status == 101:
            return Response(None, 101, "Switching Protocols", outcome.headers, socket)
        if outcome.status == 0:
            raise JsTypeError(f"Network connection failed: {outcome.error}")
        kept = [pair for pair in outcome.headers if pair[0].lower() not in _OF_THE_FRAMING]
        return Response.received(outcome.body, outcome.status, "", kept)

    async def close(self) -> None:
        await self._client.close()


def _agreed(socket: SocketEnd, outcome: Dialled) -> None:
    headers = Headers.of(outcome.headers)
    socket.handshake_agreed(headers.get("sec-websocket-protocol"), headers.get("sec-websocket-extensions"))


def without_compression(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of a handshake in which no extension is to be agreed on."""
    kept = [(name, value) for name, value in headers if name.lower() != "sec-websocket-extensions"]
    return [*kept, ("Sec-WebSocket-Extensions", "")]


def _why(outcome: Dialled) -> str:
    if outcome.status:
        return f"Failed to establish the WebSocket connection: expected status 101, the server answered {outcome.status}."
    return f"Failed to establish the WebSocket connection: {outcome.error}"


def same_gateway(socket: SocketEnd, gateway: GatewayLink) -> bool:
    """Whether the gateway holds the socket."""
    return gateway.sockets.get(socket.socket_number) is socket or socket.socket_port is gateway
