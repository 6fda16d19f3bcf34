"""`Request` and `Response` as Python Workers write them. Source: reference 1.3; Fetch standard §2.2, §5.

Bodies are bytes, or a stream of bytes that is consumed once. No I/O: a stream is fed by whoever made it.

Long because `Request` and `Response` share their body, and the platform puts all of it on these two.
"""

from __future__ import annotations

import inspect
import json
import re
from http import HTTPMethod
from typing import TYPE_CHECKING, Any, Final, Self

from roost.api.abort import AbortSignal
from roost.api.buffers import ArrayBuffer, Blob, to_bytes
from roost.api.chunks import Chunks, options_of
from roost.api.forms import FormData, parse_form
from roost.api.headers import Headers
from roost.api.streams import ReadableStream
from roost.api.urls import normalised
from roost.errors import JsException, JsRangeError, JsTypeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from roost.api.websocket import WebSocket

_NOT_IN_REASON: Final = re.compile("[\r\n\0\u0100-\U0010ffff]").search
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:").match
_TEXT = "text/plain;charset=UTF-8"
_TEXT_FIELD = ("Content-Type", _TEXT)


class Body:
    """What requests and responses share: a body that is read once."""

    headers: Headers

    def __init__(self, body: bytes | AsyncIterator[bytes] | None) -> None:
        self._body = body
        self._stream: ReadableStream | None = None
        self.body_used = False

    @property
    def bodyUsed(self) -> bool:
        return self.body_used

    @property
    def body(self) -> ReadableStream | None:
        """The body as a stream of bytes; None if there is none."""
        if self._body is None:
            return None
        if self._stream is None:
            self._stream = ReadableStream(_Chunks(self))
        return self._stream

    def take_body(self) -> bytes | AsyncIterator[bytes]:
        """The body itself, which is used up by this. Raises OSError if it was used before."""
        if self.body_used:
            raise OSError("Body already used")
        self.body_used = self._body is not None
        return self._body if self._body is not None else b""

    @property
    def is_streamed(self) -> bool:
        """Whether the body comes in pieces."""
        return not isinstance(self._body, bytes | None)

    def watch_stream(self, watched: Callable[[Any], Any]) -> Any:
        """For the host: have the body that comes in pieces come through `watched(body)`, which is returned."""
        self._body = watched(self._body)
        return self._body

    def _cloned_body(self) -> bytes | AsyncIterator[bytes] | None:
        if self.body_used or (self._stream is not None and self._stream.locked):
            raise JsTypeError("This body was read already, or is being read; clone() before that.")
        if isinstance(self._body, bytes | None):
            return self._body
        one, other = ReadableStream(self._body).tee()
        self._body, self._stream = one.take(), None
        copied: AsyncIterator[bytes] = other.take()
        return copied

    async def bytes(self) -> Any:
        body = self.take_body()
        if isinstance(body, bytes):
            return body
        return b"".join([piece async for piece in body])

    async def buffer(self) -> ArrayBuffer:
        return ArrayBuffer(await self.bytes())

    arrayBuffer = array_buffer = buffer

    async def text(self) -> str:
        return str((await self.bytes()).decode("utf-8", "replace"))

    string = text

    async def json(self, **options: Any) -> Any:
        return json.loads(await self.bytes(), **options)

    async def blob(self) -> Blob:
        return Blob([await self.bytes()], self.headers.get("content-type", ""))

    async def form_data(self) -> FormData:
        """The fields of a form, URL-encoded or multipart."""
        return parse_form(await self.bytes(), str(self.headers.get("content-type", "")))

    formData = form_data


class _Chunks:
    """The source of `request.body`. The body counts as used from the first read on."""

    def __init__(self, owner: Body) -> None:
        self.owner = owner
        self._chunks: Chunks | None = None

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks is None:
            self._chunks = Chunks(self.owner.take_body())
        return bytes(await anext(self._chunks))

    async def aclose(self) -> None:
        if self._chunks is None:
            self._chunks = Chunks(b"" if self.owner.body_used else self.owner.take_body())
        await self._chunks.aclose()


def _to_body(value: Any, headers: Headers, what: str) -> bytes | AsyncIterator[bytes] | None:
    """Body bytes or stream of what user code gave, with the default content type set."""
    if value is None:
        return None
    if isinstance(value, str):
        if not headers.pairs:
            headers.pairs.append(_TEXT_FIELD)
        elif "content-type" not in headers:
            headers.append("Content-Type", _TEXT)
        return value.encode("utf-8", "replace")
    if isinstance(value, FormData):
        form, kind = value.encoded()
        if "content-type" not in headers:
            headers.append("Content-Type", kind)
        return form
    if isinstance(value, Blob) and value.content_type and "content-type" not in headers:
        headers.append("Content-Type", value.content_type)
    raw = to_bytes(value)
    if raw is not None:
        return raw
    if isinstance(value, Body):
        return value.take_body()
    if getattr(value, "is_url_encoded", False):  # URLSearchParams
        if "content-type" not in headers:
            headers.append("Content-Type", "application/x-www-form-urlencoded;charset=UTF-8")
        return str(value).encode()
    if isinstance(value, ReadableStream):
        source = value.take()
        if isinstance(source, _Chunks):
            return source.owner.take_body()  # as it is: its length may be known
        return _Encoded(source)
    if hasattr(value, "__aiter__"):
        return _Encoded(value)
    raise TypeError(
        f"Unsupported type in {what}: {type(value).__name__}. Use None, str, bytes, Blob or an async iterator of bytes; "
        "for objects, Response.json(value)."
    )


class _Encoded(Chunks):
    """Pieces of text or bytes, as bytes."""

    async def __anext__(self) -> bytes:
        piece = await super().__anext__()
        return piece.encode("utf-8", "replace") if isinstance(piece, str) else bytes(piece)


class Request(Body):
    """An HTTP request. `Request(url_or_request, method=, headers=, body=)`."""

    # What a browser would tell of a request: there is none here, and these are the values that Fetch gives then.
    cache = "default"
    credentials = "same-origin"
    destination = ""
    integrity = ""
    keepalive = False
    mode = "cors"
    referrer = "about:client"
    referrer_policy = ""
    is_history_navigation = False
    _signal: AbortSignal | None = None  # that was given
    _client_signal: AbortSignal | None = None
    _client_left = False

    def __init__(self, input: Any, options: Any = None, **opts: Any) -> None:
        opts = {**_request_options(options), **opts}
        source = input if isinstance(input, Request) else None
        self.url: str = source.url if source else _absolute(str(getattr(input, "href", input)))
        self.method: str = _method(opts.get("method") or (source.method if source else "GET"))
        headers = opts.get("headers")
        self.headers = Headers(headers if headers is not None else (source.headers if source else None))
        body = opts.get("body")
        if body is None and source is not None and source._body is not None:
            body = source
        is_inherited = isinstance(body, Request) and body.method in ("GET", "HEAD")  # what a client sent so
        if body is not None and not is_inherited and self.method in ("GET", "HEAD"):
            raise JsTypeError("Request with a GET or HEAD method cannot have a body.")
        super().__init__(_to_body(body, self.headers, "Request"))
        self.redirect: str = opts.get("redirect") or (source.redirect if source else "follow")
        if self.redirect not in ("follow", "manual", "error"):
            raise JsTypeError(f"Invalid redirect value {self.redirect!r}: it is 'follow', 'manual' or 'error'.")
        self.cf: Any = opts.get("cf")
        signal = opts.get("signal", source._signal if source else None)
        if not isinstance(signal, AbortSignal | None):
            raise JsTypeError(f"signal is an AbortSignal, not {type(signal).__name__}.")
        self._signal = signal

    @property
    def signal(self) -> AbortSignal:
        """The signal that was given; of a request that came in, one that aborts when its client goes away before the
        answer has left."""
        if self._signal is not None:
            return self._signal
        if self._client_signal is None:
            self._client_signal = AbortSignal()
            if self._client_left:
                self._client_signal.abort_now(_client_left())
        return self._client_signal

    @property
    def given_signal(self) -> AbortSignal | None:
        """Not for workers: the signal that the program gave."""
        return self._signal

    def client_left(self) -> None:
        """Not for workers: its client has gone away."""
        self._client_left = True
        if self._client_signal is not None:
            self._client_signal.abort_now(_client_left())

    @classmethod
    def new(cls, input: Any, options: Any = None, **opts: Any) -> Self:
        return cls(input, options, **opts)

    @classmethod
    def incoming(
        cls, method: str, url: str, headers: list[tuple[str, str]], body: bytes | AsyncIterator[bytes] | None
    ) -> Self:
        """A request from the network: for the host, which has checked it already."""
        request = cls.__new__(cls)
        request.url = url
        request.method = _method(method)
        request.headers = Headers.of(headers)
        Body.__init__(request, body)
        request.redirect = "manual"
        request.cf = None
        return request

    @property
    def js_object(self) -> Self:
        return self

    _js_request = js_object

    def clone(self) -> Request:
        """A copy, before the body is used. Of a stream, what one of the two has not read is kept, up to 32 MiB."""
        copy = Request.incoming(self.method, self.url, list(self.headers.pairs), self._cloned_body())
        copy.redirect, copy.cf, copy._signal = self.redirect, self.cf, self._signal
        if copy._signal is None:
            copy._client_signal = self.signal
        return copy

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url}>"


def _absolute(url: str) -> str:
    found = normalised(url)
    if found is None:
        raise JsTypeError(f"Invalid URL: {url!r}: a request needs an absolute URL, such as https://example.com/path.")
    return found


def _client_left() -> JsException:
    return JsException("The client disconnected.", "AbortError")


def _request_options(options: Any) -> dict[str, Any]:
    """`Request(url, options)`: a dict, or another request, of which all but the URL is taken."""
    if isinstance(options, Request):
        body = {} if options._body is None else {"body": options}
        return {
            "method": options.method,
            "headers": options.headers,
            "redirect": options.redirect,
            "cf": options.cf,
            "signal": options._signal,
            **body,
        }
    return options if isinstance(options, dict) else {}


_METHODS: Final[dict[str, str]] = {method.value: method for method in HTTPMethod}


def _method(name: str) -> str:
    return _METHODS.get(name) or _METHODS.get(name.upper(), name)


class _JsonBoth:
    """`Response.json(data)` makes a response; `await response.json()` reads one."""

    def __get__(self, instance: Any, owner: type[Response]) -> Any:
        if instance is None:
            return owner.from_json
        return lambda **options: Body.json(instance, **options)


class FetchResponse(Body):
    """The base of `Response`, as the SDK has it; also what `fetch()` returns."""


class Response(FetchResponse):
    """An HTTP response. `Response(body=None, status=None, status_text="", headers=None, web_socket=None)`."""

    def __init__(
        self,
        body: Any = None,
        status: int | None = None,
        status_text: str = "",
        headers: Any = None,
        web_socket: WebSocket | None = None,
    ) -> None:
        self.status: int
        self.status_text: str
        self.web_socket: WebSocket | None
        if isinstance(body, Response):
            if status is not None or status_text or headers is not None or web_socket is not None:
                raise ValueError("Response(response) takes no further options; build a new one from its body.")
            status, status_text, headers, web_socket = body.status, body.status_text, body.headers, body.web_socket
        self.status = 200 if status is None else int(status)
        if web_socket is not None and self.status != 101:
            raise JsRangeError("Responses with a WebSocket must have status code 101.")
        if self.status == 101 and web_socket is None:
            raise JsRangeError("Responses with status 101 must carry a WebSocket: Response(None, status=101, "
                               "web_socket=client).")  # fmt: skip
        if self.status != 101 and not 200 <= self.status <= 599:
            raise JsRangeError(f"Responses may only be constructed with status codes 200 to 599, not {self.status}.")
        if status_text and _NOT_IN_REASON(str(status_text)):
            raise JsTypeError("The status text must not have line breaks, NUL or characters beyond Latin-1.")
        self.status_text = status_text
        self.headers = Headers(headers)
        self.web_socket = web_socket
        self.url = ""
        self.redirected = False
        self.type = "default"
        super().__init__(_to_body(body, self.headers, "Response"))
        if self._body and self.status in (101, 204, 205, 304):
            raise JsTypeError(f"Response with null body status ({self.status}) cannot have a body.")

    @classmethod
    def received(
        cls, body: AsyncIterator[bytes] | bytes | None, status: int, reason: str, headers: list[tuple[str, str]]
    ) -> Self:
        """What a server has answered: for the host, as it came."""
        response = cls.__new__(cls)
        response.status, response.status_text, response.web_socket = status, reason, None
        response.headers = Headers.of(headers)
        response.url, response.redirected, response.type = "", False, "default"
        Body.__init__(response, body)
        return response

    @classmethod
    def new(cls, body: Any = None, options: Any = None, **opts: Any) -> Self:
        """`Response.new(body, status=, statusText=, headers=, webSocket=)`, as proxied JavaScript is called."""
        if isinstance(options, Response):  # `new Response(body, response)`: its status and headers
            same = {name: getattr(options, name) for name in ("status", "status_text", "headers", "web_socket")}
            options = same
        opts = options_of(options, opts)
        return cls(
            body,
            opts.get("status"),
            opts.get("statusText") or opts.get("status_text") or "",
            opts.get("headers"),
            opts.get("webSocket") or opts.get("web_socket"),
        )

    json = _JsonBoth()

    @classmethod
    def from_json(cls, data: Any, status: int = 200, status_text: str = "", headers: Any = None) -> Self:
        """A JSON response; raises TypeError for what JSON cannot carry."""
        fields = Headers(headers)
        if "content-type" not in fields:
            fields.append("Content-Type", "application/json")
        return cls(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(), status, status_text, fields)

    @classmethod
    def redirect(cls, url: Any, status: int = 302) -> Self:
        if status not in (301, 302, 303, 307, 308):
            raise JsRangeError(f"{status} is not a redirect status code.")
        target = str(getattr(url, "href", url))
        if not _ABSOLUTE(target):
            raise JsTypeError(f"Unable to parse URL: {target!r}: a redirect needs an absolute URL here, there is no base.")
        return cls(None, status, headers={"Location": target})

    @classmethod
    def error(cls) -> Self:
        raise JsTypeError("Response.error() has no meaning on a server.")

    @property
    def webSocket(self) -> WebSocket | None:
        return self.web_socket

    @property
    def statusText(self) -> str:
        return self.status_text

    @property
    def ok(self) -> bool:
        return 200 <= self.status <= 299

    @property
    def js_object(self) -> Self:
        return self

    js_response = js_object

    def replace_body(self, body: Any) -> Response:
        copy = Response(body, self.status, self.status_text, self.headers)
        copy.url = self.url
        return copy

    def clone(self) -> Response:
        if self.web_socket is not None:
            raise JsTypeError("Cannot clone a response to a WebSocket handshake.")
        copy = Response.received(self._cloned_body(), self.status, self.status_text, list(self.headers.pairs))
        copy.url, copy.redirected = self.url, self.redirected
        return copy

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


def is_response(value: Any) -> bool:
    """Whether a handler's result can be answered with."""
    return isinstance(value, Response) and not inspect.iscoroutine(value)
