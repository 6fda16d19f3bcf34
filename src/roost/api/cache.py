"""`caches`: responses kept by URL, on the node's disk. Source: platform documentation, "Cache"; RFC 9111 §3, §5.2; RFC 9110
§13, §14.

As there, `Vary` is not looked at, and what a response says of its age is its life; without a word, its status decides.
"""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from roost.api.conditional import part_of, tag_matches
from roost.api.http import Request, Response
from roost.api.promises import eager
from roost.api.runtime import Stored, require_context
from roost.errors import JsRangeError, JsTypeError

if TYPE_CHECKING:
    from roost.api.headers import Headers

MAX_ENTRY_BYTES: Final = 32 * 1024 * 1024
_DEFAULT_LIVES_S: Final = {200: 7200, 203: 7200, 206: 7200, 301: 7200, 302: 1200, 303: 1200, 404: 180, 410: 180}
_DIRECTIVE: Final = re.compile(r'\s*([\w-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^,]*))?\s*(?:,|$)')


class Cache:
    """`caches.default`, or one that `caches.open(name)` gives."""

    def __init__(self, name: str) -> None:
        self._name = name

    @eager
    async def match(self, request: Any, options: Any = None, **more: Any) -> Response | None:
        """The response that was put, None if there is none. `If-None-Match`, `If-Modified-Since` and `Range` of the request
        are answered by 304 and 206. Option: `ignoreMethod`."""
        asked = _request(request)
        if not _is_get(asked, options, more):
            return None
        port = require_context("caches").caches
        found = await port.match(self._name, _key(asked))
        return None if found is None else _answer(asked, found, port.now_s())

    @eager
    async def put(self, request: Any, response: Any) -> None:
        """Keep a response for as long as it says (`Cache-Control`, `Expires`). Raises TypeError for what cannot be kept:
        another method than GET, 206, `Vary: *`; nothing is kept of what must not be (`no-store`, `private`, cookies)."""
        asked = _request(request)
        if str(asked.method) != "GET":
            raise JsTypeError("Cannot cache response to non-GET request.")
        if not isinstance(response, Response):
            raise JsTypeError(f"cache.put() needs a Response, not {type(response).__name__}.")
        if response.status == 206:
            raise JsTypeError("Cannot cache response to a range request (206 Partial Content).")
        if "*" in str(response.headers.get("vary") or ""):
            raise JsTypeError("Cannot cache response with 'Vary: *' header.")
        if response.body_used:
            raise JsTypeError(
                "Body has already been used. It can only be used once. Use tee() first if you need to read it twice."
            )
        port = require_context("caches").caches
        body = await _read(response)
        directives = _directives(response.headers)
        now_s = port.now_s()
        life_s = _life_s(response, directives, now_s)
        keep = [(name, value) for name, value in response.headers.pairs if name.lower() != "cf-cache-status"]
        if any(name.lower() == "set-cookie" for name, _ in keep):
            if "set-cookie" not in str(directives.get("private") or "").lower():
                return
            keep = [pair for pair in keep if pair[0].lower() != "set-cookie"]
        if life_s > 0:
            stored = (response.status, response.status_text, json.dumps(keep), body, now_s)
            await port.put(self._name, _key(asked), stored, now_s + life_s)

    @eager
    async def delete(self, request: Any, options: Any = None, **more: Any) -> bool:
        """Whether it was there."""
        asked = _request(request)
        if not _is_get(asked, options, more):
            return False
        return await require_context("caches").caches.delete(self._name, _key(asked))

    def __repr__(self) -> str:
        return "<Cache>"


class CacheStorage:
    """`js.caches`."""

    def __init__(self) -> None:
        self.default = Cache("")

    @eager
    async def open(self, name: str) -> Cache:
        """The cache of that name, apart from `default`."""
        text = str(name)
        if not text or len(text.encode("utf-8", "replace")) > 512:
            raise JsTypeError("A cache's name must have 1 to 512 bytes.")
        return Cache(text)


def _request(request: Any) -> Request:
    return request if isinstance(request, Request) else Request(request)


def _is_get(request: Request, options: Any, more: dict[str, Any]) -> bool:
    chosen = {**(dict(options) if options is not None else {}), **more}
    ignore = chosen.get("ignoreMethod") or chosen.get("ignore_method")
    return bool(ignore) or str(request.method) == "GET"


def _key(request: Request) -> str:
    return request.url.partition("#")[0]


async def _read(response: Response) -> bytes:
    """Raises RangeError for what is too large, as soon as it is."""
    pieces, size = [], 0
    source = response.take_body()
    if isinstance(source, bytes):
        pieces.append(source)
        size = len(source)
    else:
        async for piece in source:
            pieces.append(bytes(piece))
            size += len(pieces[-1])
            if size > MAX_ENTRY_BYTES:
                break
    if size > MAX_ENTRY_BYTES:
        raise JsRangeError(f"cache.put(): the body is larger than the {MAX_ENTRY_BYTES} bytes (32 MiB) that are allowed.")
    return b"".join(pieces)


def _directives(headers: Headers) -> dict[str, str]:
    text = str(headers.get("cache-control") or "")
    return {name.lower(): value.strip().strip('"') for name, value in _DIRECTIVE.findall(text)}


def _life_s(response: Response, directives: dict[str, str], now_s: float) -> float:
    """For how long it may be kept: 0 for not at all."""
    private = directives.get("private")
    if "no-store" in directives or "no-cache" in directives or private == "":
        return 0
    for name in ("s-maxage", "max-age"):
        if name in directives:
            value = directives[name]
            return int(value[:10]) if value.isascii() and value.isdigit() else 0
    expires = response.headers.get("expires")
    if expires is not None:
        try:
            return parsedate_to_datetime(str(expires)).timestamp() - now_s
        except (ValueError, TypeError, OverflowError):
            return 0  # a date that is none has passed (RFC 9111 §5.3)
    return _DEFAULT_LIVES_S.get(response.status, 0)


def _answer(request: Request, stored: Stored, now_s: float) -> Response:
    status, reason, fields, body, stored_s = stored
    headers = [(name, value) for name, value in json.loads(fields) if name.lower() != "age"]
    headers += [("CF-Cache-Status", "HIT"), ("Age", str(max(0, int(now_s - stored_s))))]
    by_name = {name.lower(): value for name, value in headers}
    if status == 200 and _is_unchanged(request, by_name):
        return Response.received(None, 304, "", [pair for pair in headers if pair[0].lower() != "content-length"])
    if status == 200 and (wanted := part_of(str(request.headers.get("range") or ""), len(body))) is not None:
        return _part(headers, body, wanted)
    return Response.received(None if status in (204, 304) else body, status, reason, headers)


def _is_unchanged(request: Request, headers: dict[str, str]) -> bool:
    """RFC 9110 §13.2.2: a list of tags goes before a date."""
    tags = request.headers.get("if-none-match")
    if tags is not None:
        tag = headers.get("etag")
        return tag is not None and tag_matches(str(tags), tag.removeprefix("W/"))
    since, changed = request.headers.get("if-modified-since"), headers.get("last-modified")
    if since is None or changed is None:
        return False
    try:
        return parsedate_to_datetime(changed) <= parsedate_to_datetime(str(since))
    except (ValueError, TypeError, OverflowError):
        return False


def _part(headers: list[tuple[str, str]], body: bytes, wanted: list[int]) -> Response:
    rest = [pair for pair in headers if pair[0].lower() != "content-length"]
    if not wanted:
        return Response.received(None, 416, "", [*rest, ("Content-Range", f"bytes */{len(body)}")])
    first, last = wanted
    piece = body[first : last + 1]
    fields = [("Content-Range", f"bytes {first}-{last}/{len(body)}"), ("Content-Length", str(len(piece)))]
    return Response.received(piece, 206, "", [*rest, *fields])
