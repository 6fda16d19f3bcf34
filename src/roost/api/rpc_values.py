"""Arguments and results of calls: what structured clone carries, and beside it Request, Response, Headers, Blob, File,
FormData, Map, Date and errors.

Each of those travels as an object with one key that no program uses, `MARK`; a program's own object with that key is marked
itself. Bodies must be there: a stream is read first. Source: platform documentation, "Remote-procedure call (RPC)",
supported types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from roost.api.buffers import Blob, File
from roost.api.forms import FormData
from roost.api.headers import Headers
from roost.api.http import Request, Response
from roost.events import Fault
from roost.values import DataCloneError, JsMap, decode_js, encode, to_unicode

if TYPE_CHECKING:
    from collections.abc import Callable

MARK: Final = "\0roost"
_MARK_BYTES: Final = MARK.encode()


def encode_rpc(value: Any) -> bytes:
    """The bytes of arguments or a result. Raises DataCloneError with the path to what cannot travel."""
    try:
        data = encode(value)
    except DataCloneError:
        return encode(_marked(value, {}))
    return encode(_marked(value, {})) if _MARK_BYTES in data else data


def decode_rpc(data: bytes, error_of: Callable[[Fault], BaseException]) -> Any:
    """What `encode_rpc` was given. Raises ValueError for anything else."""
    value = decode_js(data)
    return _unmarked(value, error_of) if _MARK_BYTES in data else value


def _marked(value: Any, seen: dict[int, Any]) -> Any:
    """The same of what can be encoded, with its cycles; what cannot stays, and is refused with its path."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        return {MARK: kind(value)}
    if isinstance(value, dict | list | tuple):
        if id(value) in seen:
            return seen[id(value)][0]
        return _marked_container(value, seen)
    if isinstance(value, set | frozenset):
        return set(value)
    if isinstance(value, BaseException):
        return {MARK: _error(value)}
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if hasattr(value, "to_py") and hasattr(value, "getTime"):  # js.Date
        return value.to_py()
    return value


def _marked_container(value: Any, seen: dict[int, Any]) -> Any:
    if not isinstance(value, dict):
        items: list[Any] = []
        seen[id(value)] = items, value  # which must not go, else its id would be another's
        items += [_marked(item, seen) for item in value]
        return items
    if isinstance(value, JsMap):
        pairs: list[Any] = []
        seen[id(value)] = {MARK: ["map", pairs]}, value
        pairs += [[_marked(key, seen), _marked(item, seen)] for key, item in dict.items(value)]
        return seen[id(value)][0]
    plain: dict[Any, Any] = {}
    seen[id(value)] = ({MARK: ["object", plain]} if MARK in value else plain), value
    plain.update({key: _marked(item, seen) for key, item in value.items()})
    return seen[id(value)][0]


def _body_of(value: Request | Response) -> bytes | None:
    what = "request" if isinstance(value, Request) else "response"
    if value.body_used:
        raise DataCloneError(f"the {what}'s body was read already, so it cannot be sent.")
    if not isinstance(value._body, bytes | None):
        raise DataCloneError(
            f"the {what}'s body is a stream, which a call does not carry yet: read it first, by {what}.bytes(), or use"
            " fetch()."
        )
    value.take_body()
    return value._body


def _request(value: Request) -> list[Any]:
    return [
        "request",
        value.url,
        str(value.method),
        [list(pair) for pair in value.headers.pairs],
        _body_of(value),
        value.redirect,
    ]


def _response(value: Response) -> list[Any]:
    if value.web_socket is not None:
        raise DataCloneError("a response with a WebSocket cannot be sent by a call: use fetch().")
    headers = [list(pair) for pair in value.headers.pairs]
    return ["response", value.status, value.status_text, headers, _body_of(value), value.url]


def _error(value: BaseException) -> list[Any]:
    name = getattr(value, "name", None) or type(value).__name__
    message = getattr(value, "message", None)
    return ["error", to_unicode(str(name)), to_unicode(str(value) if message is None else str(message))]


def _form(value: FormData) -> list[Any]:
    return ["form", [[name, _marked(item, {})] for name, item in value._fields]]


_KINDS: Final[dict[type, Callable[[Any], list[Any]]]] = {
    Request: _request,
    Response: _response,
    Headers: lambda value: ["headers", [list(pair) for pair in value.pairs]],
    Blob: lambda value: ["blob", value.raw, value.content_type],
    File: lambda value: ["file", value.raw, value.name, value.content_type, value.last_modified],
    FormData: _form,
}


def _unmarked(value: Any, error_of: Callable[[Fault], BaseException], seen: dict[int, Any] | None = None) -> Any:
    seen = {} if seen is None else seen
    if isinstance(value, dict) and MARK in value and len(value) == 1:
        if not isinstance(value[MARK], list) or not value[MARK]:
            raise ValueError("an encoded value has no kind")
        kind, *parts = value[MARK]
        return _made(kind, parts, error_of, seen)
    if isinstance(value, list | dict) and id(value) not in seen:
        seen[id(value)] = value
        for key, item in list(enumerate(value) if isinstance(value, list) else value.items()):
            value[key] = _unmarked(item, error_of, seen)
    return value


def _made(kind: str, parts: list[Any], error_of: Callable[[Fault], BaseException], seen: dict[int, Any]) -> Any:
    match kind, parts:
        case "object", [dict() as plain]:
            if id(plain) in seen:
                return plain
            seen[id(plain)] = plain
            for key, item in list(plain.items()):
                plain[key] = _unmarked(item, error_of, seen)
            return plain
        case "map", [list() as pairs]:
            made = seen.get(id(pairs))
            if made is None:
                made = seen[id(pairs)] = JsMap()
                for key, item in pairs:
                    dict.__setitem__(made, _unmarked(key, error_of, seen), _unmarked(item, error_of, seen))
            return made
        case "request", [url, method, pairs, body, redirect]:
            request = Request.incoming(method, url, [(name, text) for name, text in pairs], _bytes(body))
            request.redirect = redirect
            return request
        case "response", [status, text, pairs, body, url]:
            response = Response.received(_bytes(body), status, text, [(name, field) for name, field in pairs])
            response.url = url
            return response
        case "headers", [pairs]:
            return Headers.of([(name, text) for name, text in pairs])
        case "blob", [raw, content_type]:
            return Blob([raw], content_type)
        case "file", [raw, name, content_type, modified]:
            return File([raw], name, content_type, last_modified=modified)
        case "form", [entries]:
            form = FormData()
            for name, item in entries:
                form.append(name, _unmarked(item, error_of, seen))
            return form
        case "error", [name, message]:
            return error_of(Fault(name, message))
    raise ValueError(f"an encoded value of kind {kind!r} is not known to this version")


def _bytes(body: bytes | None) -> bytes | None:
    return None if body is None else bytes(body)
