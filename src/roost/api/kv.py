"""`env.NAME` of a `kv_namespaces` entry. Source: platform documentation, Workers KV API (limits there).

Unlike the platform's, which is eventually consistent, a value that was put is what every later `get` of the node sees.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol

from roost.api.buffers import ArrayBuffer, to_bytes
from roost.api.http import Body
from roost.api.promises import Pending, begun, eager
from roost.api.streams import ReadableStream
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.js_values import JsDict, JsMap
from roost.values import to_unicode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

MAX_KEY_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 25 * 1024 * 1024
MAX_METADATA_BYTES: Final = 1024
MAX_LISTED: Final = 1000
MAX_KEYS: Final = 100
MIN_TTL_S: Final = 60
_TYPES: Final = ("text", "json", "arrayBuffer", "stream")


class KvPort(Protocol):
    """What carries operations to a namespace's file; a stored pair is `(value, metadata as JSON, expires_s)`."""

    def now_s(self) -> float: ...

    def get(self, keys: Sequence[str]) -> Awaitable[list[tuple[bytes, str | None, int | None] | None]]: ...

    def put(self, key: str, value: bytes, metadata: str | None, expires_s: int | None) -> Awaitable[None]: ...

    def delete(self, keys: Sequence[str]) -> Awaitable[None]: ...

    def list(self, prefix: str, after: str, limit: int) -> Awaitable[list[tuple[str, str | None, int | None]]]: ...


class KvNamespace:
    """A namespace of keys and values."""

    def __init__(self, port: KvPort) -> None:
        self._port = port

    @begun
    def get(self, key: Any, options: Any = None, **more: Any) -> Awaitable[Any]:
        """A value, None if there is none; of a list of at most 100 keys a Map. `type`: "text" (default), "json",
        "arrayBuffer" or "stream". Raises Error (as JsException) for a value that is not of its type."""
        kind = _type(options, more)
        if isinstance(key, list | tuple):
            finding = self._port.get([_key(each) for each in _few(key)])
            return Pending(
                finding, "KV get()", lambda found: JsMap(zip(key, [_value(pair, kind) for pair in found], strict=True))
            )
        return Pending(self._port.get([_key(key)]), "KV get()", lambda found: _value(found[0], kind))

    @begun
    def getWithMetadata(self, key: Any, options: Any = None, **more: Any) -> Awaitable[Any]:
        """The same as `{value, metadata}`."""
        kind = _type(options, more)
        keys = [_key(each) for each in _few(key)] if isinstance(key, list | tuple) else [_key(key)]

        def read(pairs: Any) -> Any:
            found = [JsDict(value=_value(pair, kind), metadata=_metadata(pair and pair[1])) for pair in pairs]
            return JsMap(zip(keys, found, strict=True)) if isinstance(key, list | tuple) else found[0]

        return Pending(self._port.get(keys), "KV getWithMetadata()", read)

    @begun
    def put(self, key: Any, value: Any, options: Any = None, **more: Any) -> Awaitable[None]:
        """Store str, bytes or a stream (at most 25 MiB). Options: `expiration` (seconds since 1970) or `expirationTtl` (at
        least 60 seconds), `metadata` (at most 1,024 bytes of JSON)."""
        chosen = _options(options, more, ("expiration", "expirationTtl", "metadata"))
        raw = _raw(value)
        if raw is None:
            return self._put_stream(key, value, chosen)
        return self._put(key, raw, chosen)

    @eager
    async def _put_stream(self, key: Any, value: Any, chosen: dict[str, Any]) -> None:
        _key(key)
        await self._put(key, await _read(value), chosen)

    def _put(self, key: Any, raw: bytes, chosen: dict[str, Any]) -> Awaitable[None]:
        if len(raw) > MAX_VALUE_BYTES:
            raise JsRangeError(f"KV PUT failed: the value has {len(raw)} bytes; at most {MAX_VALUE_BYTES} are allowed.")
        metadata = None
        if chosen.get("metadata") is not None:
            metadata = json.dumps(chosen["metadata"], separators=(",", ":"))
            if len(metadata.encode()) > MAX_METADATA_BYTES:
                raise JsRangeError(f"KV PUT failed: metadata may have at most {MAX_METADATA_BYTES} bytes of JSON.")
        return Pending(self._port.put(_key(key), raw, metadata, self._expiry(chosen)), "KV put()")

    def _expiry(self, chosen: dict[str, Any]) -> int | None:
        now_s = self._port.now_s()
        if (ttl := chosen.get("expirationTtl")) is not None:
            if int(ttl) < MIN_TTL_S:
                raise JsRangeError(f"KV PUT failed: expirationTtl is {ttl}; it must be at least {MIN_TTL_S} seconds.")
            return int(now_s) + int(ttl)
        if (at := chosen.get("expiration")) is not None:
            if int(at) < now_s + MIN_TTL_S:
                raise JsRangeError(f"KV PUT failed: expiration must be at least {MIN_TTL_S} seconds in the future.")
            return int(at)
        return None

    @begun
    def delete(self, key: Any) -> Awaitable[None]:
        """Remove a key, or each of at most 100; none of them needs to be there."""
        keys = [_key(each) for each in _few(key)] if isinstance(key, list | tuple) else [_key(key)]
        return Pending(self._port.delete(keys), "KV delete()")

    @begun
    def list(self, options: Any = None, **more: Any) -> Awaitable[JsDict]:
        """`{keys: [{name, expiration?, metadata?}], list_complete, cursor?}`, at most 1,000 at a time. Options: `prefix`,
        `limit`, `cursor`."""
        chosen = _options(options, more, ("prefix", "limit", "cursor"))
        limit = MAX_LISTED if chosen.get("limit") is None else int(chosen["limit"])
        if not 1 <= limit <= MAX_LISTED:
            raise JsRangeError(f"KV list: limit is {limit}; it must be between 1 and {MAX_LISTED}.")
        after = bytes.fromhex(_cursor(chosen.get("cursor"))).decode()
        finding = self._port.list(to_unicode(str(chosen.get("prefix") or "")), after, limit + 1)
        return Pending(finding, "KV list()", lambda found: _listed(found, limit))

    def __repr__(self) -> str:
        return "<KvNamespace>"


def _listed(found: Any, limit: int) -> JsDict:
    keys = []
    for name, metadata, expires_s in found[:limit]:
        entry = JsDict(name=name)
        if expires_s is not None:
            entry["expiration"] = expires_s
        if metadata is not None:
            entry["metadata"] = _metadata(metadata)
        keys.append(entry)
    if len(found) <= limit:
        return JsDict(keys=keys, list_complete=True, cacheStatus=None)
    return JsDict(keys=keys, list_complete=False, cursor=found[limit - 1][0].encode().hex(), cacheStatus=None)


def _options(options: Any, more: dict[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    chosen = {**(dict(options) if options is not None else {}), **more}
    for name in chosen:
        if name not in allowed and name != "cacheTtl":
            raise JsTypeError(f"KV has no option {name!r} here; it has {', '.join(allowed)}.")
    return chosen


def _type(options: Any, more: dict[str, Any]) -> str:
    kind = options if isinstance(options, str) else _options(options, more, ("type",)).get("type") or "text"
    if kind not in _TYPES:
        raise JsTypeError(f"KV get: the type {kind!r} is unknown; it is one of {', '.join(_TYPES)}.")
    return str(kind)


def _key(key: Any) -> str:
    text = to_unicode(str(key))
    if not text or text in (".", ".."):
        raise JsTypeError(f"KV keys must not be empty, '.' or '..': {key!r}.")
    if (size := len(text.encode("utf-8", "replace"))) > MAX_KEY_BYTES:
        raise JsRangeError(f"A KV key has {size} bytes; at most {MAX_KEY_BYTES} are allowed.")
    return text


def _few(keys: Any) -> list[Any]:
    found = list(keys)
    if len(found) > MAX_KEYS:
        raise JsRangeError(f"{len(found)} keys at once; at most {MAX_KEYS} are allowed.")
    return found


def _cursor(value: Any) -> str:
    text = str(value or "")
    try:
        bytes.fromhex(text).decode()
    except ValueError as error:
        raise JsTypeError("KV list: the cursor is not one that list() has given.") from error
    return text


def _metadata(text: str | None) -> Any:
    found = None if text is None else json.loads(text)
    return JsDict(found) if isinstance(found, dict) else found


def _value(pair: tuple[bytes, str | None, int | None] | None, kind: str) -> Any:
    if pair is None:
        return None
    raw = pair[0]
    if kind == "text":
        return raw.decode("utf-8", "replace")
    if kind == "arrayBuffer":
        return ArrayBuffer(raw)
    if kind == "stream":
        return ReadableStream(raw)
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise JsException(f"KV get: the value is not JSON: {error}", "SyntaxError") from error
    return JsDict(found) if isinstance(found, dict) else found


def _raw(value: Any) -> bytes | None:
    """The bytes of a value that is there; None for one that must be read first."""
    return value.encode("utf-8", "replace") if isinstance(value, str) else to_bytes(value)


async def _read(value: Any) -> bytes:
    """A stream, as far as it may be stored."""
    if isinstance(value, Body):
        value = value.body if value.body is not None else ()
    if not hasattr(value, "__aiter__") and value != ():
        raise JsTypeError(
            f"KV put takes str, bytes or a stream, not {type(value).__name__}; use json.dumps(value) for objects."
        )
    pieces, size = [], 0
    async for piece in ReadableStream(value) if value == () else value:
        pieces.append(bytes(piece))
        size += len(pieces[-1])
        if size > MAX_VALUE_BYTES:
            raise JsRangeError(f"KV PUT failed: the stream has more than the {MAX_VALUE_BYTES} bytes that are allowed.")
    return b"".join(pieces)
