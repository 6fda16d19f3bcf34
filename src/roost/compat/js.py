"""`js`: the JavaScript globals that Cloudflare's Python sources import. Served to worker code by `host/worker/loader.py`.

The proxy protocol is kept where sources use it: `.new(...)`, trailing keyword options, `object_values()`.
Source: reference 1.4.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any, Self

from roost.api.abort import AbortController, AbortSignal
from roost.api.buffers import ArrayBuffer, Blob, File
from roost.api.cache import CacheStorage
from roost.api.coding_streams import (
    CompressionStream,
    DecompressionStream,
    FixedLengthStream,
    TextDecoderStream,
    TextEncoderStream,
)
from roost.api.entrypoint import fetch
from roost.api.forms import FormData
from roost.api.headers import Headers
from roost.api.http import Request, Response
from roost.api.runtime import require_context
from roost.api.streams import ReadableStream
from roost.api.websocket import WebSocket, WebSocketPair, WebSocketRequestResponsePair
from roost.api.writable_streams import IdentityTransformStream, TransformStream, WritableStream
from roost.compat.builtins import (
    JSON,
    Array,
    Date,
    Error,
    Map,
    Math,
    Object,
    RegExp,
    Set,
    atob,
    btoa,
    decodeURI,
    decodeURIComponent,
    encodeURI,
    encodeURIComponent,
    isNaN,
    parseFloat,
    parseInt,
    structuredClone,
)
from roost.compat.crypto_keys import CryptoKey
from roost.compat.subtle import SubtleCrypto
from roost.compat.url import URL, URLSearchParams
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Uint8Array = ArrayBuffer
DataView = ArrayBuffer

_console = logging.getLogger("roost.worker")


class TypeErrorConstructor:
    """`js.TypeError.new(message)`."""

    @staticmethod
    def new(message: str = "") -> JsTypeError:
        return JsTypeError(message)


class RangeErrorConstructor:
    """`js.RangeError.new(message)`."""

    @staticmethod
    def new(message: str = "") -> JsRangeError:
        return JsRangeError(message)


TypeError = TypeErrorConstructor
RangeError = RangeErrorConstructor


class Promise:
    """Promises are asyncio's futures: `Promise.resolve`, `reject`, `all`, `race`, `allSettled`, `Promise.new(executor)`."""

    @staticmethod
    def new(executor: Callable[..., Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def resolve(value: Any = None) -> None:
            if not future.done():
                future.set_result(value)

        def reject(reason: Any = None) -> None:
            if not future.done():
                future.set_exception(reason if isinstance(reason, BaseException) else JsException(str(reason)))

        executor(resolve, reject)
        return future

    @staticmethod
    def resolve(value: Any = None) -> asyncio.Future[Any]:
        return Promise.new(lambda resolve, _: resolve(value))

    @staticmethod
    def reject(reason: Any = None) -> asyncio.Future[Any]:
        return Promise.new(lambda _, reject: reject(reason))

    @staticmethod
    async def all(promises: Iterable[Any]) -> list[Any]:
        return list(await asyncio.gather(*promises))

    @staticmethod
    async def allSettled(promises: Iterable[Any]) -> list[JsDict]:
        results = await asyncio.gather(*promises, return_exceptions=True)
        return [
            JsDict(status="rejected", reason=result)
            if isinstance(result, BaseException)
            else JsDict(status="fulfilled", value=result)
            for result in results
        ]

    @staticmethod
    async def race(promises: Iterable[Any]) -> Any:
        waiting = [asyncio.ensure_future(promise) for promise in promises]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in waiting if task in done).result()


class TextEncoder:
    """`TextEncoder.new().encode(text)`."""

    encoding = "utf-8"

    @classmethod
    def new(cls) -> Self:
        return cls()

    def encode(self, text: str = "") -> ArrayBuffer:
        return ArrayBuffer(text.encode("utf-8", "replace"))


class TextDecoder:
    """`TextDecoder.new(label, fatal=False).decode(buffer)`."""

    def __init__(self, label: str = "utf-8", *, fatal: bool = False) -> None:
        self.encoding = label
        self.fatal = fatal

    @classmethod
    def new(cls, label: str = "utf-8", options: Any = None, *, fatal: bool = False) -> Self:
        return cls(label, fatal=bool((options or {}).get("fatal", fatal)))

    def decode(self, buffer: Any = b"") -> str:
        return bytes(buffer).decode(self.encoding, "strict" if self.fatal else "replace")


class _Console:
    """`console.log` and its siblings, as lines of the worker's log."""

    @staticmethod
    def _text(values: tuple[Any, ...]) -> str:
        return " ".join(str(value) for value in values)

    def log(self, *values: Any) -> None:
        _console.info("%s", self._text(values))

    info = log

    def debug(self, *values: Any) -> None:
        _console.debug("%s", self._text(values))

    def warn(self, *values: Any) -> None:
        _console.warning("%s", self._text(values))

    def error(self, *values: Any) -> None:
        _console.error("%s", self._text(values))

    trace = debug


console = _Console()


class _Crypto:
    """`crypto.randomUUID()`, `crypto.getRandomValues(buffer)` and `crypto.subtle`."""

    subtle = SubtleCrypto()

    def randomUUID(self) -> str:
        return str(uuid.uuid4())

    def getRandomValues(self, buffer: Any) -> Any:
        if isinstance(buffer, bytearray):
            buffer[:] = secrets.token_bytes(len(buffer))
            return buffer
        return ArrayBuffer(secrets.token_bytes(len(buffer)))


crypto = _Crypto()
caches = CacheStorage()


def setTimeout(function: Callable[..., Any], delay_ms: float = 0, *args: Any) -> int:
    """Call `function(*args)` after so many milliseconds. The object stays awake until then."""
    return require_context("setTimeout()").set_timer(function, args, delay_ms, repeat=False)


def setInterval(function: Callable[..., Any], delay_ms: float = 0, *args: Any) -> int:
    """Call `function(*args)` every so many milliseconds. The object stays awake until it is cleared."""
    return require_context("setInterval()").set_timer(function, args, delay_ms, repeat=True)


def clearTimeout(timer: int | None = None) -> None:
    """Cancel a timeout or an interval."""
    if timer is not None:
        require_context("clearTimeout()").clear_timer(timer)


clearInterval = clearTimeout


def queueMicrotask(function: Callable[[], Any]) -> None:
    """Call `function()` soon."""
    setTimeout(function, 0)


class performance:
    """`performance.now()` in milliseconds."""

    @staticmethod
    def now() -> float:
        return time.perf_counter() * 1000


null = None
undefined = None
Infinity = float("inf")
NaN = float("nan")
globalThis = sys.modules[__name__]

__all__ = [
    "JSON",
    "URL",
    "AbortController",
    "AbortSignal",
    "Array",
    "ArrayBuffer",
    "Blob",
    "CompressionStream",
    "CryptoKey",
    "DataView",
    "Date",
    "DecompressionStream",
    "Error",
    "File",
    "FixedLengthStream",
    "FormData",
    "Headers",
    "IdentityTransformStream",
    "Map",
    "Math",
    "Object",
    "Promise",
    "RangeError",
    "ReadableStream",
    "RegExp",
    "Request",
    "Response",
    "Set",
    "TextDecoder",
    "TextDecoderStream",
    "TextEncoder",
    "TextEncoderStream",
    "TransformStream",
    "TypeError",
    "URLSearchParams",
    "Uint8Array",
    "WebSocket",
    "WebSocketPair",
    "WebSocketRequestResponsePair",
    "WritableStream",
    "atob",
    "btoa",
    "caches",
    "clearInterval",
    "clearTimeout",
    "console",
    "crypto",
    "decodeURI",
    "decodeURIComponent",
    "encodeURI",
    "encodeURIComponent",
    "fetch",
    "globalThis",
    "isNaN",
    "null",
    "parseFloat",
    "parseInt",
    "performance",
    "queueMicrotask",
    "setInterval",
    "setTimeout",
    "structuredClone",
    "undefined",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"js.{name} is not provided by Roost. Worker code runs on CPython: use Python's own library for it, "
        "or see docs/reference/compatibility.md."
    )
