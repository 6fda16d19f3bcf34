"""HTTP as `fetch()` speaks it: requests that leave, with their redirects, and bodies that are read as they come.

Nothing is kept between two fetches but idle connections: no cookies, no credentials. What is sent is what the program gave,
with the URL's Host, and without what belongs to one connection only. Source: Fetch standard §4.4 to §4.8; RFC 9110 §7.6.1,
§15.4. Connections are `httpx2`'s; this module is the only one that knows it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import urllib.request
import zlib
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from roost.api.http import Request, Response
from roost.errors import JsException, JsTypeError
from roost.host.bodies import SenderGone
from roost.link.port import NO_CONTEXT
from roost.trust import client_context, why_untrusted

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    import httpx2

    from roost.host.limits import HostCounters

_log = logging.getLogger("roost.worker")

MAX_REDIRECTS: Final = 20
_CONNECT_S: Final = 10.0
_WRITE_S: Final = 60.0  # for one piece of a body that the server does not take
_ROOM_S: Final = 5.0  # for another fetch to be over, if all connections are in use
_IDLE_S: Final = 30.0
_MAX_IDLE: Final = 100
_PIECE_BYTES: Final = 256 * 1024
_REST_BYTES: Final = 64 * 1024
_REST_S: Final = 0.25
_NULL_BODY: Final = frozenset({101, 103, 204, 205, 304})
_NOT_PASSED_ON: Final = frozenset(
    {
        "connection", "content-length", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_OF_THE_BODY: Final = frozenset({"content-encoding", "content-language", "content-location", "content-type"})
_SECRETS: Final = frozenset({"authorization", "cookie"})
_DECODED: Final = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # zlib's window bits

Pairs = list[tuple[str, str]]


class HttpClient:
    """One host's. Its connections are opened at the first fetch."""

    def __init__(self, max_connections: int, ca_file: str | None, counters: HostCounters) -> None:
        self._max_connections = max_connections
        self._ca_file = ca_file
        self._counters = counters
        self._context: asyncio.Future[ssl.SSLContext] | None = None
        self._transports: dict[str | None, httpx2.AsyncHTTPTransport] = {}  # by the proxy's URL
        self._proxies: dict[str, str] = {}
        self._upload: Any = None
        self._closing: set[asyncio.Task[None]] = set()

    async def fetch(self, request: Request, opened: Callable[[FetchedBody], None]) -> Response:
        """The answer, once its head is there. `opened` gets the body that is to be read, if there is one. Raises TypeError
        (as JsException) if the network fails, or for a redirect that may not be followed."""
        self._counters.fetches += 1
        method, url = str(request.method), request.url
        left_out = _not_passed_on(request.headers.pairs)
        headers = [pair for pair in request.headers.pairs if pair[0].lower() not in left_out]
        body = request.take_body()
        length = getattr(body, "length", None)
        for redirects in range(MAX_REDIRECTS + 1):
            answer = await self._send(method, url, headers, body, length)
            location = _header(answer, b"location")
            if answer.status_code not in (301, 302, 303, 307, 308) or location is None or request.redirect == "manual":
                return self._response(method, url, answer, redirected=redirects > 0, opened=opened)
            await self._finish(answer)
            if request.redirect == "error":
                raise JsTypeError(f"Unexpected redirect: {url} answered {answer.status_code}, and redirect is 'error'.")
            target = _target(url, location)
            if urlsplit(target).scheme not in ("http", "https"):
                raise JsTypeError(f"{url} redirects to {target}, which is not http:// or https://.")
            if answer.status_code not in (307, 308) and _becomes_get(answer.status_code, method):
                method, body, length = "GET", b"", None
                headers = [pair for pair in headers if pair[0].lower() not in _OF_THE_BODY]
            elif not isinstance(body, bytes):
                raise JsTypeError(
                    f"{url} redirects a body that was a stream ({answer.status_code}); it cannot be sent again."
                )
            if _origin(target) != _origin(url):
                headers = [pair for pair in headers if pair[0].lower() not in _SECRETS]
            url = target
        raise JsTypeError(f"Too many redirects: {request.url} (more than {MAX_REDIRECTS}).")

    async def _send(self, method: str, url: str, headers: Pairs, body: Any, length: int | None) -> httpx2.Response:
        transport = await self._transport(url)
        import httpx2

        try:
            to = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise JsTypeError(f"Fetch API cannot load: {url} ({error})") from error
        fields = [("Host", to.netloc.decode("ascii")), *headers]
        stream: Any
        if isinstance(body, bytes):
            stream = httpx2.ByteStream(body)
            if body or method in ("POST", "PUT", "PATCH"):
                fields.append(("Content-Length", str(len(body))))
        else:
            stream = self._upload(body)
            fields.append(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length)))
        if to.userinfo and not any(name.lower() == "authorization" for name, _ in headers):
            raise JsTypeError(f"Fetch API cannot load: {to.copy_with(userinfo=b'')} (credentials in a URL are refused; send"
                              " an Authorization header).")  # fmt: skip
        outgoing = httpx2.Request(
            method,
            to,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in _decodable(fields)],
            stream=stream,
            extensions={"timeout": {"connect": _CONNECT_S, "read": None, "write": _WRITE_S, "pool": _ROOM_S}},
        )
        try:
            return await transport.handle_async_request(outgoing)
        except httpx2.PoolTimeout as error:
            self._counters.fetches_refused += 1
            raise JsException(
                f"fetch(): all {self._max_connections} connections of this host are in use (limits.max_fetch_connections);"
                " read the bodies of responses to their end, or cancel() them."
            ) from error
        except httpx2.TransportError as error:
            if isinstance(error.__cause__, SenderGone):
                raise error.__cause__ from None
            raise JsTypeError(f"Network connection failed: {_what_failed(error, to.host)}") from error

    def _response(
        self, method: str, url: str, answer: httpx2.Response, *, redirected: bool, opened: Callable[[FetchedBody], None]
    ) -> Response:
        pairs: Pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers.raw]
        coding = (_header(answer, b"content-encoding") or "").strip().lower()
        empty = method == "HEAD" or answer.status_code in _NULL_BODY or _header(answer, b"content-length") == "0"
        if not empty:
            dropped = {"transfer-encoding", "connection", "keep-alive"}
            if coding in _DECODED:
                dropped |= {"content-encoding", "content-length"}
            pairs = [pair for pair in pairs if pair[0].lower() not in dropped]
        body = FetchedBody(answer, "" if empty else coding, self._close_soon)
        reason = answer.extensions.get("reason_phrase", b"").decode("latin-1")
        if empty:
            body.let_go()
        else:
            opened(body)
        null = method == "HEAD" or answer.status_code in _NULL_BODY
        kept = None if null else b"" if empty else body
        response = Response.received(kept, answer.status_code, reason, pairs)
        response.url = url
        response.redirected = redirected
        return response

    async def _transport(self, url: str) -> httpx2.AsyncHTTPTransport:
        if self._context is None or (self._context.done() and (self._context.cancelled() or self._context.exception())):
            # Not a task: it would be the object's that fetches first, and end with it.
            self._context = asyncio.get_running_loop().run_in_executor(None, self._prepare)
        try:
            context = await asyncio.shield(self._context)
        except OSError as error:
            raise JsTypeError(f"fetch(): the certificates of {self._ca_file} cannot be read: {error}") from error
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme)
        if proxy is not None and urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = None
        transport = self._transports.get(proxy)
        if transport is None:
            import httpx2

            transport = self._transports[proxy] = httpx2.AsyncHTTPTransport(
                verify=context,
                limits=httpx2.Limits(
                    max_connections=self._max_connections, max_keepalive_connections=_MAX_IDLE, keepalive_expiry=_IDLE_S
                ),
                proxy=proxy,
                socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
            )
        return transport

    def _prepare(self) -> ssl.SSLContext:
        """In a thread: the import and the certificates take tens of milliseconds."""
        import httpx2  # slow to import, and most workers never fetch

        self._upload = type("_Upload", (_Upload, httpx2.AsyncByteStream), {})
        self._proxies = urllib.request.getproxies()
        return client_context(self._ca_file)

    @staticmethod
    async def _finish(answer: httpx2.Response) -> None:
        """Read a short rest, so that the connection may be used again; else close it."""
        try:
            async with asyncio.timeout(_REST_S):
                size = 0
                async for piece in answer.aiter_raw():
                    size += len(piece)
                    if size > _REST_BYTES:
                        break
        except Exception:  # noqa: BLE001 - nobody wants it
            pass
        finally:
            await answer.aclose()

    def _close_soon(self, answer: httpx2.Response) -> None:
        task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._finish(answer))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()


class FetchedBody:
    """A body as it comes from a server, decoded. Its connection is free when it was read, or let go of."""

    def __init__(self, answer: httpx2.Response, coding: str, close_soon: Callable[[httpx2.Response], None]) -> None:
        self._answer: httpx2.Response | None = answer
        self._reason: BaseException | None = None  # of the signal that has aborted it
        self.when_over: Callable[[], None] | None = None  # nobody need abort it any more
        self._lost = ""  # why there is no more of it, though its end was not read
        pieces = aiter(answer.aiter_raw())
        self._pieces = _decoded(pieces, _DECODED[coding]) if coding in _DECODED else pieces
        self._close_soon = close_soon
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> FetchedBody:
        return self

    async def __anext__(self) -> bytes:
        if self._lost:
            if self._reason is not None:
                raise self._reason.with_traceback(None)
            raise JsTypeError(f"Network connection lost: {self._lost}.")
        if self._answer is None:
            raise StopAsyncIteration
        import httpx2

        try:
            while not (piece := await anext(self._pieces)):
                pass
        except StopAsyncIteration:
            await self.aclose()
            raise
        except (httpx2.TransportError, zlib.error, httpx2.StreamError) as error:
            if self._is_closed():  # it was closed while it was read: that is an end
                raise StopAsyncIteration from None
            if self._reason is not None:
                raise self._reason from None
            self._lost = f"{type(error).__name__}: {error}"
            await self.aclose()
            raise JsTypeError(f"Network connection lost: {self._lost}") from error
        except asyncio.CancelledError:
            self._lost = "a read of it was cancelled"
            self.let_go()
            raise
        return piece

    async def aclose(self) -> None:
        """Read no further."""
        answer = self._taken()
        if answer is not None:
            await answer.aclose()

    def _taken(self) -> httpx2.Response | None:
        answer, self._answer = self._answer, None
        over, self.when_over = self.when_over, None
        if over is not None:
            over()
        return answer

    def _is_closed(self) -> bool:
        return self._answer is None and not self._lost

    def abort(self, reason: BaseException) -> None:
        """`let_go`; reading it raises the reason."""
        if self._answer is not None:
            self._reason = reason
            self.let_go()

    def let_go(self) -> None:
        """`aclose`, from where nothing can be awaited; from any thread."""
        answer = self._taken()
        if answer is not None:
            self._lost = self._lost or "the request that fetched it has ended, or it was let go of"
        if answer is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_soon, answer, context=NO_CONTEXT)

    def __del__(self) -> None:
        self.let_go()


class _Upload:
    """A request's body that is a stream, as httpx2 takes one."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            if piece:
                yield piece

    async def aclose(self) -> None:
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


async def _decoded(pieces: AsyncIterator[bytes], bits: int) -> AsyncIterator[bytes]:
    """Uncompressed, in pieces of bounded size. Raises zlib.error for what is no such stream."""
    first = True
    decoder = zlib.decompressobj(bits)
    async for piece in pieces:
        rest = piece
        while rest:
            try:
                out = decoder.decompress(rest, _PIECE_BYTES)
            except zlib.error:
                if not first or bits != 47:
                    raise
                decoder = zlib.decompressobj(-15)  # "deflate" without zlib's frame, as some servers send it
                out = decoder.decompress(rest, _PIECE_BYTES)
            first = False
            yield out
            rest = decoder.unconsumed_tail
            if decoder.eof:
                rest = decoder.unused_data
                decoder = zlib.decompressobj(bits)
    yield decoder.flush()


def _not_passed_on(pairs: Pairs) -> frozenset[str]:
    named = [value for name, value in pairs if name.lower() == "connection"]
    if not named:
        return _NOT_PASSED_ON
    return _NOT_PASSED_ON | {each.strip().lower() for value in named for each in value.split(",")}


def _decodable(fields: Pairs) -> Pairs:
    """With an Accept-Encoding of what can be decoded here; a server must not choose another."""
    asked = [value for name, value in fields if name.lower() == "accept-encoding"]
    if not asked:
        return [*fields, ("Accept-Encoding", "gzip, deflate")]
    known = ("gzip", "x-gzip", "deflate", "identity")
    kept = [each.strip() for value in asked for each in value.split(",") if each.split(";")[0].strip().lower() in known]
    others = [pair for pair in fields if pair[0].lower() != "accept-encoding"]
    return [*others, ("Accept-Encoding", ", ".join(kept) or "identity")]


def _target(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        _origin(target)
    except ValueError as error:
        raise JsTypeError(f"{url} redirects to {location!r}, which is no URL: {error}.") from error
    return target


def _header(answer: httpx2.Response, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in answer.headers.raw if name.lower() == wanted), None)


def _becomes_get(status: int, method: str) -> bool:
    return (status == 303 and method not in ("GET", "HEAD")) or (status in (301, 302) and method == "POST")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _what_failed(error: BaseException, host: str) -> str:
    why = why_untrusted(error)
    if why:
        return f"the certificate of {host} is not trusted: {why}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
