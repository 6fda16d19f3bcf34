"""Answering requests: the worker's `fetch`, or an object's, and the way of its Response back, body or socket."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from roost.api.http import Request, Response
from roost.api.rpc import fault_of
from roost.api.socket_end import Accept, SocketEnd
from roost.api.state import ExecutionContext
from roost.api.urls import normalised
from roost.compat.pyodide.code import accepted_positionals
from roost.errors import JsTypeError, UnavailableError, WorkerError
from roost.events import BODY_WINDOW_BYTES, Abort, Binding
from roost.events import Request as RequestEvent
from roost.events import Response as ResponseEvent
from roost.host.bodies import BodyReader, BodyWriter, ReceiverGone
from roost.host.calls.outbound import same_gateway, without_compression
from roost.host.calls.stubs import SocketReference
from roost.host.objects.actor import Actor
from roost.host.worker.current import drop_unused, not_a_response
from roost.host.worker.io_context import WorkContext
from roost.host.worker.request_context import RequestContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from roost.host.calls.crons import Crons
    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.worker")

_SCHEDULED = "/cdn-cgi/handler/scheduled"


class Requests:
    """The requests under way on one host."""

    def __init__(self, surroundings: Surroundings, crons: Crons) -> None:
        self._surroundings = surroundings
        self._crons = crons
        self._takes = _arguments_of(surroundings.worker.entrypoint)
        self.open = 0
        self._writers: dict[tuple[int, int], BodyWriter] = {}  # by gateway and request

    def begin(self, gateway: GatewayLink, event: RequestEvent) -> None:
        """Start to serve; in place as far as it goes without waiting."""
        surroundings = self._surroundings
        context = RequestContext(surroundings, _label(event), surroundings.worker.compat, gateway)
        self.open += 1
        context.run_coroutine(self._serve(gateway, event, context), context.fresh_variables(), "request")

    async def _serve(self, gateway: GatewayLink, event: RequestEvent, context: RequestContext) -> None:
        body: Any = event.body or None
        if event.more_body:
            body = gateway.bodies[event.request] = BodyReader(gateway, event.request, event.body)
            body.length = _said_length(event.headers)
        request = Request.incoming(event.method, normalised(event.url) or event.url, event.headers, body)
        if event.peer:
            if "cf-connecting-ip" in request.headers:
                request.headers.delete("CF-Connecting-IP")  # never the client's word for it
            request.headers.pairs.append(("CF-Connecting-IP", event.peer))
        gateway.served[event.request] = request
        try:
            response = await self._run(event, request, context)
            await self._answer(gateway, event, response, context)
        except BaseException as error:  # noqa: BLE001 - the user's
            context.failed_in("fetch", error)
            self._error(gateway, event, error)
        finally:
            self.open -= 1
            gateway.served.pop(event.request, None)
            context.answered()
            gateway.bodies.pop(event.request, None)
            drop_unused(context.received)

    async def _run(self, event: RequestEvent, request: Request, context: RequestContext) -> Response:
        surroundings = self._surroundings
        if event.target is not None:
            actor: Actor = surroundings.objects.awaken(event.target, f"fetch {event.method}")
            return await actor.serve(request, event.chain)
        if surroundings.dev and urlsplit(request.url).path == _SCHEDULED:
            return await self._scheduled(request)
        return await self.fetch(request, context)

    async def _scheduled(self, request: Request) -> Response:
        """`roost dev` only: run the cron that a query names, now. Source: platform documentation, "Cron Triggers"."""
        query = parse_qs(urlsplit(request.url).query)
        cron = query.get("cron", [""])[0]
        given = query.get("time", [""])[0]
        at_ms = int(given) if given.isdigit() else round(time.time() * 1000)
        succeeded = await self._crons.run(cron, at_ms)
        return Response("ok" if succeeded else "exception", 200 if succeeded else 500)

    async def fetch(self, request: Request, context: RequestContext) -> Response:
        """The default entrypoint's answer."""
        surroundings = self._surroundings
        entrypoint = surroundings.worker.entrypoint
        ctx = ExecutionContext(context)
        if isinstance(entrypoint, type):
            handler = getattr(entrypoint(ctx, surroundings.worker.env), "fetch", None)
            if handler is None:
                raise WorkerError("class Default has no fetch method; add `async def fetch(self, request)`.")
            result = handler(request) if self._takes else handler()
        else:
            result = entrypoint(*(request, surroundings.worker.env, ctx)[: self._takes])
        response = await result if hasattr(result, "__await__") else result
        if not isinstance(response, Response):
            raise not_a_response("fetch", response)
        return response

    def _error(self, gateway: GatewayLink, event: RequestEvent, error: BaseException) -> None:
        if (
            self._writers.pop((gateway.index, event.request), None) is not None
        ):  # its head has left: the honest end is a cut
            gateway.link.send(Abort(event.request, "The worker failed."))
            return
        if event.target is not None:  # a stub of another host asked: its caller gets the exception
            fault = None if type(error) is WorkerError else fault_of(error)
            gateway.link.send(
                Abort(event.request, str(error) if fault is None else f"{fault.name}: {fault.message}", fault)
            )
            return
        headers = [("Content-Type", "text/plain;charset=UTF-8")]
        if isinstance(error, UnavailableError):
            headers.append(("Retry-After", str(error.retry_after_s)))
            gateway.link.send(ResponseEvent(event.request, 503, "", headers, b"Service Unavailable", False))
            return
        gateway.link.send(ResponseEvent(event.request, 500, "", headers, b"Internal Server Error", False))

    # responses

    async def _answer(self, gateway: GatewayLink, event: RequestEvent, response: Response, context: WorkContext) -> None:
        headers = response.headers.pairs
        if response.web_socket is not None:
            self._couple(gateway, event, response, response.web_socket, context)
            return
        if response.status == 101:
            raise JsTypeError("A response with status 101 must carry a WebSocket.")
        body = response.take_body()
        if isinstance(body, bytes) and len(body) > BODY_WINDOW_BYTES and event.method != "HEAD":
            headers = [*((n, v) for n, v in headers if n.lower() != "content-length"), ("Content-Length", str(len(body)))]
            body = _once(body)  # in pieces, so that no envelope is huge
        if isinstance(body, bytes):
            gateway.link.send(ResponseEvent(event.request, response.status, response.status_text, headers, body, False))
            return
        writer = self._writers[gateway.index, event.request] = BodyWriter(gateway, event.request)
        gateway.link.send(ResponseEvent(event.request, response.status, response.status_text, headers, b"", True))
        try:
            await writer.send(body)
        except ReceiverGone as error:
            _log.debug("response body: %s", error)
        self._writers.pop((gateway.index, event.request), None)

    def _couple(
        self, gateway: GatewayLink, event: RequestEvent, response: Response, client: SocketEnd, context: WorkContext
    ) -> None:
        """The client's connection becomes the other side of the pair's server end."""
        if not event.upgrade:
            raise JsTypeError(
                "Worker tried to return a WebSocket in a response to a request which did not contain the header "
                '"Upgrade: websocket".'
            )
        headers = response.headers.pairs
        if not context.compat.compression:
            headers = without_compression(headers)
        if (isinstance(client, SocketReference) or client.is_unaccepted_upstream) and not same_gateway(client, gateway):
            raise JsTypeError("This WebSocket came through another gateway than the client and cannot be passed on.")
        if isinstance(client, SocketReference):
            gateway.link.send(ResponseEvent(event.request, 101, "", headers, b"", False, None, client.socket_number))
            return
        if client.accepted_as != Accept.NONE:
            raise JsTypeError(
                "Can't return WebSocket in a Response after calling accept(): return the other end of its pair."
            )
        if client.is_used:
            raise JsTypeError("Can't return WebSocket that was already used in a response.")
        client.is_used = True
        if client.is_unaccepted_upstream:
            binding = Binding(relay=client.socket_number)
            gateway.relay(client, event.socket)
        else:
            binding = self._bind(gateway, event, client, context)
        gateway.link.send(ResponseEvent(event.request, 101, "", headers, b"", False, binding, event.socket))
        for item in client.take_kept():  # sent before the 101: it goes right behind it
            if item.kind == "message":
                text = isinstance(item.data, str)
                gateway.send_message(event.socket, item.data.encode() if isinstance(item.data, str) else item.data, text)
            elif item.kind == "close":
                gateway.close_socket(event.socket, item.code, item.reason)

    def _bind(self, gateway: GatewayLink, event: RequestEvent, client: SocketEnd, context: WorkContext) -> Binding:
        server = client.other_end
        if server is None:
            raise JsTypeError("Can't return a WebSocket made by its constructor or already connected.")
        owner = server.io_context
        if server.accepted_as == Accept.HIBERNATABLE and isinstance(owner, Actor):
            return owner.bind(server, gateway, event.socket)
        if server.io_context is None:
            server.io_context = context  # accepted later: until then its events wait
        port = server.io_context.port_for(gateway) if isinstance(server.io_context, WorkContext) else None
        gateway.adopt(server, event.socket, port)
        if isinstance(server.io_context, WorkContext):
            server.io_context.socket_opened(server)
        return Binding()

    def credit(self, gateway: GatewayLink, request: int, size: int) -> None:
        writer = self._writers.get((gateway.index, request))
        if writer is not None:
            writer.credit(size)

    def gateway_lost(self, gateway: GatewayLink) -> None:
        """Bodies that were on their way to that gateway end; its clients have gone."""
        for request in list(gateway.served.values()):
            request.client_left()
        for (index, _), writer in list(self._writers.items()):
            if index == gateway.index:
                writer.abort()

    def abort(self, gateway: GatewayLink, request: int) -> None:
        served = gateway.served.get(request)
        if served is not None:
            served.client_left()
        writer = self._writers.get((gateway.index, request))
        if writer is not None:
            writer.abort()


def _label(event: RequestEvent) -> str:
    """How logs name the request: without its query, which may hold secrets."""
    url = event.url
    start = url.find("/", url.find("://") + 3)
    end = url.find("?", start)
    return f"{event.method} {url[start:] if end < 0 else url[start:end]}" if start >= 0 else f"{event.method} /"


def _arguments_of(entrypoint: Any) -> int:
    """How many of its arguments the worker's fetch wants (relaxed calls, reference 1.2)."""
    if isinstance(entrypoint, type):
        function = getattr(entrypoint, "fetch", None)
        takes = 2 if function is None else accepted_positionals(function)
        return 1 if takes is None else min(takes - 1, 1)
    takes = accepted_positionals(entrypoint)
    return 3 if takes is None else takes


def _said_length(headers: list[tuple[str, str]]) -> int | None:
    return next((int(value) for name, value in headers if name.lower() == "content-length"), None)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
