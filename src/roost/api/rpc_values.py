"""Arguments and results of calls: what structured clone carries, and beside it Request, Response, Headers, Blob, File,
FormData, Map, Date and errors; functions, `RpcTarget`s and streams as references to where they stay.

Each of those travels as an object with one key that no program uses, `MARK`; a program's own object with that key is marked
itself. Source: platform documentation, "Remote-procedure call (RPC)", supported types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from roost.api.buffers import Blob, File
from roost.api.entrypoint import RpcTarget
from roost.api.forms import FormData
from roost.api.headers import Headers
from roost.api.http import Request, Response
from roost.api.rpc_streams import Readable, Writable, read_from, readable, writable
from roost.api.runtime import current_context
from roost.api.streams import ReadableStream
from roost.api.writable_streams import WritableStream
from roost.events import Fault
from roost.js_values import JsMap
from roost.values import DataCloneError, decode_js, encode, to_unicode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from roost.api.http import Body
    from roost.api.runtime import IoContext

MARK: Final = "\0roost"
_MARK_BYTES: Final = MARK.encode()


def encode_rpc(value: Any, context: IoContext | None = None, exported: list[Any] | None = None) -> bytes:
    """The bytes of arguments or a result that leave `context` (None: the current one); the references in them are appended
    to `exported`. Raises DataCloneError with the path to what cannot travel."""
    try:
        data = encode(value)
        if _MARK_BYTES not in data:
            return data
    except DataCloneError:
        pass
    leaving = _Leaving(context or current_context.get(None))
    try:
        data = encode(leaving.marked(value))
    except BaseException:
        leaving.withdraw()
        raise
    if exported is not None:
        exported += leaving.exported
    return data


def decode_rpc(
    data: bytes,
    error_of: Callable[[Fault], BaseException],
    context: IoContext | None = None,
    received: list[Any] | None = None,
) -> Any:
    """What `encode_rpc` was given, for `context` (None: the current one). The stubs in it are appended to `received`, but
    for streams. Raises ValueError for anything else."""
    value = decode_js(data)
    if _MARK_BYTES not in data:
        return value
    return _Arriving(error_of, context or current_context.get(None), received).unmarked(value)


class _Leaving:
    """One value on its way out of a context."""

    def __init__(self, context: IoContext | None) -> None:
        self._context = context
        self._seen: dict[int, Any] = {}
        self.exported: list[Any] = []

    def withdraw(self) -> None:
        """It does not leave."""
        if self._context is not None:
            self._context.withdraw_rpc(self.exported)

    def marked(self, value: Any) -> Any:
        """The same of what can be encoded, with its cycles; what cannot stays, and is refused with its path."""
        kind = _KINDS.get(type(value))
        if kind is not None:
            return {MARK: kind(self, value)}
        if isinstance(value, dict | list | tuple):
            if id(value) in self._seen:
                return self._seen[id(value)][0]
            return self._marked_container(value)
        if isinstance(value, set | frozenset):
            return set(value)
        if isinstance(value, BaseException):
            return {MARK: _error(value)}
        if isinstance(value, bytearray | memoryview):
            return bytes(value)
        if hasattr(type(value), "to_py") and hasattr(type(value), "getTime"):  # js.Date
            return value.to_py()
        if isinstance(value, RpcTarget) or (callable(value) and not isinstance(value, type)):
            return self.reference("stub", value)
        return value

    def reference(self, kind: str, target: Any) -> Any:
        """What stands for something that stays here."""
        if self._context is None:
            raise DataCloneError("functions, targets and streams can only be passed while a request or an event is served.")
        parts = self._context.export_rpc(target)
        self.exported.append(parts)
        return {MARK: [kind, *parts]}

    def _marked_container(self, value: Any) -> Any:
        seen = self._seen
        if not isinstance(value, dict):
            items: list[Any] = []
            seen[id(value)] = items, value  # which must not go, else its id would be another's
            items += [self.marked(item) for item in value]
            return items
        if isinstance(value, JsMap):
            pairs: list[Any] = []
            seen[id(value)] = {MARK: ["map", pairs]}, value
            pairs += [[self.marked(key), self.marked(item)] for key, item in dict.items(value)]
            return seen[id(value)][0]
        plain: dict[Any, Any] = {}
        seen[id(value)] = ({MARK: ["object", plain]} if MARK in value else plain), value
        plain.update({key: self.marked(item) for key, item in value.items()})
        return seen[id(value)][0]

    def body(self, value: Body) -> Any:
        """A body as bytes; a stream by reference."""
        if value.body_used:
            what = "request" if isinstance(value, Request) else "response"
            raise DataCloneError(f"the {what}'s body was read already, so it cannot be sent.")
        body = value.take_body() if value._body is not None else None
        return body if isinstance(body, bytes | None) else self.reference("readable", Readable(body))

    def request(self, value: Request) -> list[Any]:
        return ["request", value.url, str(value.method), _fields(value.headers), self.body(value), value.redirect]

    def response(self, value: Response) -> list[Any]:
        if value.web_socket is not None:
            raise DataCloneError("a response with a WebSocket cannot be sent by a call: use fetch().")
        return ["response", value.status, value.status_text, _fields(value.headers), self.body(value), value.url]

    def form(self, value: FormData) -> list[Any]:
        return ["form", [[name, self.marked(item)] for name, item in value._fields]]

    def readable(self, value: ReadableStream) -> list[Any]:
        parts: list[Any] = self.reference("readable", Readable(value.take()))[MARK]
        return parts

    def writable(self, value: WritableStream) -> list[Any]:
        parts: list[Any] = self.reference("writable", Writable(value))[MARK]
        return parts


def _fields(headers: Headers) -> list[list[str]]:
    return [list(pair) for pair in headers.pairs]


def _error(value: BaseException) -> list[Any]:
    name = getattr(value, "name", None) or type(value).__name__
    message = getattr(value, "message", None)
    return ["error", to_unicode(str(name)), to_unicode(str(value) if message is None else str(message))]


_KINDS: Final[dict[type, Callable[[_Leaving, Any], list[Any]]]] = {
    Request: _Leaving.request,
    Response: _Leaving.response,
    Headers: lambda _, value: ["headers", _fields(value)],
    Blob: lambda _, value: ["blob", value.raw, value.content_type],
    File: lambda _, value: ["file", value.raw, value.name, value.content_type, value.last_modified],
    FormData: _Leaving.form,
    ReadableStream: _Leaving.readable,
    WritableStream: _Leaving.writable,
}


class _Arriving:
    """One value that comes to a context."""

    def __init__(
        self, error_of: Callable[[Fault], BaseException], context: IoContext | None, received: list[Any] | None
    ) -> None:
        self._error_of = error_of
        self._context = context
        self._received = received
        self._seen: dict[int, Any] = {}

    def unmarked(self, value: Any) -> Any:
        if isinstance(value, dict) and MARK in value and len(value) == 1:
            if not isinstance(value[MARK], list) or not value[MARK]:
                raise ValueError("an encoded value has no kind")
            kind, *parts = value[MARK]
            return self._made(kind, parts)
        if isinstance(value, list | dict) and id(value) not in self._seen:
            self._seen[id(value)] = value
            for key, item in list(enumerate(value) if isinstance(value, list) else value.items()):
                value[key] = self.unmarked(item)
        return value

    def _made(self, kind: str, parts: list[Any]) -> Any:
        match kind, parts:
            case "object", [dict() as plain]:
                if id(plain) in self._seen:
                    return plain
                self._seen[id(plain)] = plain
                for key, item in list(plain.items()):
                    plain[key] = self.unmarked(item)
                return plain
            case "map", [list() as pairs]:
                made = self._seen.get(id(pairs))
                if made is None:
                    made = self._seen[id(pairs)] = JsMap()
                    for key, item in pairs:
                        dict.__setitem__(made, self.unmarked(key), self.unmarked(item))
                return made
            case "request", [url, method, pairs, body, redirect]:
                request = Request.incoming(method, url, _pairs(pairs), self._body(body))
                request.redirect = redirect
                return request
            case "response", [status, text, pairs, body, url]:
                response = Response.received(self._body(body), status, text, _pairs(pairs))
                response.url = url
                return response
            case "headers", [pairs]:
                return Headers.of(_pairs(pairs))
            case "blob", [raw, content_type]:
                return Blob([raw], content_type)
            case "file", [raw, name, content_type, modified]:
                return File([raw], name, content_type, last_modified=modified)
            case "form", [entries]:
                form = FormData()
                for name, item in entries:
                    form.append(name, self.unmarked(item))
                return form
            case "error", [name, message]:
                return self._error_of(Fault(name, message))
            case "stub", [str() as home, int() as number]:
                stub = self._stub(home, number)
                if self._received is not None:
                    self._received.append(stub)
                return stub
            case "readable", [str() as home, int() as number]:
                return readable(self._stub(home, number))
            case "writable", [str() as home, int() as number]:
                return writable(self._stub(home, number))
        raise ValueError(f"an encoded value of kind {kind!r} is not known to this version")

    def _stub(self, home: str, number: int) -> Any:
        if self._context is None:
            raise ValueError("a stub can only be received where a request or an event is being served")
        return self._context.adopt_rpc([home, number])

    def _body(self, body: Any) -> Any:
        if isinstance(body, dict) and MARK in body:
            _, home, number = body[MARK]
            return read_from(self._stub(home, number))
        return None if body is None else bytes(body)


def _pairs(fields: Iterable[Any]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in fields]
