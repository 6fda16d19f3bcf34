"""Stub calls: to an object on this host directly, to one elsewhere through a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from roost.api.http import Request, Response
from roost.api.rpc import error_of
from roost.api.runtime import current_context
from roost.api.websocket import WebSocket
from roost.errors import JsException, JsTypeError
from roost.events import Call
from roost.events import Request as RequestEvent
from roost.events import Response as ResponseEvent
from roost.host.actor import Actor
from roost.host.blocking import block_depth, chain_of_call
from roost.host.io_context import RequestContext, request_link
from roost.ids import slot_of
from roost.link.port import NO_CONTEXT
from roost.values import decode

if TYPE_CHECKING:
    import asyncio

    from roost.events import Chain, Fault, ObjectRef, Result
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

    def _new_request(self) -> int:
        self._last_request += 2
        return self._last_request

    # methods

    def call_object(self, ref: ObjectRef, method: str, arguments: bytes) -> asyncio.Future[Any]:
        """Begin a method call: behind the caller's writes, and behind the calls it made before."""
        loop = self._host.loop
        answered: asyncio.Future[Any] = loop.create_future()
        caller = calling_actor()
        chain = chain_of_call(caller)
        number = self._new_request()
        if caller is not None:
            pinned = caller.pin(f"call {ref.class_name}.{method}()")

            def over(_: Any) -> None:
                caller.unpin(pinned)
                caller.calls_in_block.pop(number, None)

            answered.add_done_callback(over, context=NO_CONTEXT)
        in_block = caller is not None and block_depth.get() > 0

        def begin_here() -> None:
            if caller is not None and in_block:
                caller.calls_in_block[number] = ref
            self._host.calls.begin(
                ref, method, arguments, chain, lambda value, fault, error: _settle(answered, value, fault, error)
            )

        def send(error: BaseException | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            elif slot_of(ref.id, self._host.slots) == self._host.slot:
                # In a turn of its own: nothing may be driven in place inside the caller's task.
                loop.call_soon(begin_here, context=NO_CONTEXT)
            else:
                self._call_elsewhere(Call(number, ref, method, arguments, chain), answered)

        if caller is None:
            send(None)
        else:
            caller.store.check_may_wait()
            caller.store.gate.hold(send)
        return answered

    def _call_elsewhere(self, event: Call, answered: asyncio.Future[Any]) -> None:
        link = self._link_to(event.target)
        result: asyncio.Future[Result] = self._host.loop.create_future()
        link.responses[event.request] = result

        def over(done: asyncio.Future[Result]) -> None:
            link.responses.pop(event.request, None)
            error = done.exception()
            if error is not None:
                _settle(answered, b"", None, error)
            else:
                _settle(answered, done.result().value, done.result().fault, None)

        result.add_done_callback(over, context=NO_CONTEXT)
        link.link.send(event)

    def _link_to(self, ref: ObjectRef) -> GatewayLink:
        """Always the same gateway for an object, so that calls arrive in their order."""
        links = self._host.links
        if not links:
            raise JsException("The object lives on another host, and no gateway is connected; try again.")
        return links[int(ref.id[:8], 16) % len(links)]

    # fetch

    async def fetch_object(self, ref: ObjectRef, request: Request) -> Response:
        caller = calling_actor()
        chain = chain_of_call(caller)
        number = self._new_request()
        if caller is None:
            return await self._fetch(number, ref, request, chain)
        if caller.store.gate.shut:
            await caller.store.durable()
        pinned = caller.pin(f"fetch to {ref.class_name}")
        if block_depth.get():
            caller.calls_in_block[number] = ref
        try:
            return await self._fetch(number, ref, request, chain)
        finally:
            caller.unpin(pinned)
            caller.calls_in_block.pop(number, None)

    async def _fetch(self, number: int, ref: ObjectRef, request: Request, chain: Chain) -> Response:
        host = self._host
        if slot_of(ref.id, host.slots) == host.slot:
            response = await host.awaken(ref, f"fetch {request.method}").serve(request, chain)
            context = current_context.get(None)
            if isinstance(context, RequestContext) and response.web_socket is not None:
                context.received.append(response.web_socket)
            return response
        return await self._fetch_elsewhere(number, ref, request, chain)

    async def _fetch_elsewhere(self, number: int, ref: ObjectRef, request: Request, chain: Chain) -> Response:
        upgrade = str(request.headers.get("upgrade", "")).lower() == "websocket"
        # What becomes a client's socket must go through the gateway that holds the client.
        link = request_link.get() if upgrade else None
        if link is None or link not in self._host.links:
            link = self._link_to(ref)
        body = await request.bytes()
        if len(body) > MAX_STUB_BODY_BYTES:
            raise JsTypeError(f"A body of {len(body)} bytes is too large for an object on another host (32 MiB).")
        answered: asyncio.Future[ResponseEvent] = self._host.loop.create_future()
        link.responses[number] = answered
        link.link.send(
            RequestEvent(
                number, str(request.method), request.url, request.headers.pairs, body, False, upgrade, 0, "", ref, chain
            )
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


def calling_actor() -> Actor | None:
    """The object whose code is running."""
    context = current_context.get(None)
    return context if isinstance(context, Actor) else None


def _settle(answered: asyncio.Future[Any], value: bytes, fault: Fault | None, error: BaseException | None) -> None:
    if answered.done():
        return
    if error is not None:
        answered.set_exception(error)
    elif fault is not None:
        answered.set_exception(error_of(fault))
    else:
        answered.set_result(decode(value))
