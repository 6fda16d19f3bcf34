"""Stub calls: to an object on this host directly, to one elsewhere through a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from roost.api.http import Request, Response
from roost.api.runtime import current_context
from roost.api.websocket import WebSocket
from roost.errors import JsException, JsTypeError
from roost.events import Request as RequestEvent
from roost.events import Response as ResponseEvent
from roost.host.actor import Actor
from roost.host.io_context import RequestContext, request_link
from roost.ids import slot_of

if TYPE_CHECKING:
    import asyncio

    from roost.events import ObjectRef
    from roost.host.gateway_link import GatewayLink
    from roost.host.host import Host


MAX_STUB_BODY_BYTES = 32 * 1024 * 1024


class SocketReference(WebSocket):
    """The client end of a pair whose server end is an object on another host: it can only be passed on in a Response."""

    __slots__ = ()

    def accept(self, options: Any = None, *, allowHalfOpen: bool = False) -> NoReturn:
        raise JsTypeError(
            "This WebSocket belongs to an object on another host and can only be returned to the client; accept() on it is "
            "not supported by Roost yet."
        )


class StubCaller:
    """`api.namespace.ObjectCaller` of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last_request = host.unique_numbers() + 1  # odd, and not one that a predecessor used

    async def fetch_object(self, ref: ObjectRef, request: Request) -> Response:
        host = self._host
        caller = current_context.get(None)
        if isinstance(caller, Actor) and caller.store.gate.shut:
            await caller.store.durable()
        if slot_of(ref.id, host.slots) == host.slot:
            response = await host.awaken(ref, f"fetch {request.method}").serve(request)
            if response.web_socket is not None and isinstance(caller, RequestContext):
                caller.received.append(response.web_socket)
            return response
        return await self._remote(ref, request)

    async def _remote(self, ref: ObjectRef, request: Request) -> Response:
        if not self._host.links:
            raise JsException("The object lives on another host, and no gateway is connected; try again.")
        link = request_link.get()
        if link is None or link not in self._host.links:
            link = self._host.links[0]
        body = await request.bytes()
        if len(body) > MAX_STUB_BODY_BYTES:
            raise JsTypeError(f"A body of {len(body)} bytes is too large for an object on another host (32 MiB).")
        self._last_request += 2
        number = self._last_request
        upgrade = str(request.headers.get("upgrade", "")).lower() == "websocket"
        answered: asyncio.Future[ResponseEvent] = self._host.loop.create_future()
        link.responses[number] = answered
        link.link.send(
            RequestEvent(number, str(request.method), request.url, request.headers.pairs, body, False, upgrade, 0, "", ref)
        )
        try:
            return self._response(link, await answered)
        finally:
            link.responses.pop(number, None)

    def _response(self, link: GatewayLink, event: ResponseEvent) -> Response:
        if event.status == 101:
            socket = SocketReference()
            socket._number = event.socket
            socket._port = link
            return Response(None, 101, event.reason, event.headers, socket)
        body: Any = event.body
        if event.more_body:
            body = link.readers.pop(event.request)
        if event.status in (204, 205, 304):
            body = None
        return Response(body, event.status, event.reason, event.headers)
