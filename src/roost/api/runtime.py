"""What the values in worker code need from the host around them: ports, and the context that is current.

The api does no I/O. Whatever sends, waits or dials goes through `IoContext`, which `host/worker/io_context.py` fills in.
One is current (by context variable) while any worker code runs: an object's, or a request's.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from roost.errors import JsException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from roost.api.socket_end import Item, SocketEnd


class Compat(msgspec.Struct, frozen=True):
    """What the worker's compatibility date and flags choose; the defaults are the newest date's. `node/dates.py` has the
    table. Source: reference 1.2, 2.1-2.4, 4.5, 5."""

    compression: bool = True  # permessage-deflate is negotiated
    no_global_handlers: bool = True  # a module-level on_fetch is not an entrypoint
    delete_all_alarm: bool = True  # deleteAll() deletes the alarm, too
    close_reason_limit: bool = True  # a close reason has at most 123 bytes
    standard_binary_type: bool = True  # binary messages come as Blob; else as ArrayBuffer
    auto_reply_to_close: bool = True  # the runtime answers a peer's Close
    io_pins: bool = True  # waitUntil and calls of others keep an object awake
    strict_close_codes: bool = False  # close() takes 1000 and 3000-4999 only

    @property
    def binary_type(self) -> str:
        return "blob" if self.standard_binary_type else "arraybuffer"


Stored = tuple[int, str, str, bytes, float]
"""Status, reason, headers as JSON, body, and when it was stored (seconds since 1970)."""


class CachePort(Protocol):
    """What carries operations to the node's file."""

    def now_s(self) -> float: ...

    def match(self, cache: str, url: str) -> Awaitable[Stored | None]: ...

    def put(self, cache: str, url: str, stored: Stored, expires_s: float) -> Awaitable[None]: ...

    def delete(self, cache: str, url: str) -> Awaitable[bool]: ...


class IoContext(Protocol):
    """Where worker code runs: an object, or one request of a stateless worker."""

    compat: Compat

    @property
    def caches(self) -> CachePort:
        """Where `caches` keeps responses."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it has ended: nothing runs in it any more."""
        ...

    def wait_until(self, awaitable: Awaitable[Any]) -> None:
        """Keep the context alive until `awaitable` ends; its failure is logged."""
        ...

    def run_callback(self, function: Callable[..., Any], *args: Any, what: str) -> None:
        """Call user code (sync or async) in this context; failures are logged as `what`."""
        ...

    def deliver(self, socket: SocketEnd, item: Item) -> None:
        """An event for an accepted socket that did not come over the network: hand it over in a later turn."""
        ...

    def deliver_pending(self, socket: SocketEnd) -> None:
        """Hand over, in a later turn, what waited for the socket to be accepted; what comes meanwhile stays behind it."""
        ...

    def socket_opened(self, socket: SocketEnd) -> None:
        """An accepted socket on the network lives in this context from now on."""
        ...

    def set_timer(self, function: Callable[..., Any], args: tuple[Any, ...], delay_ms: float, *, repeat: bool) -> int: ...

    def clear_timer(self, timer: int) -> None: ...

    def dial(self, socket: SocketEnd, url: str, protocols: list[str]) -> None:
        """Open `new WebSocket(url)`; the socket hears of the outcome."""
        ...

    async def fetch(self, request: Any) -> Any:
        """The `api.http.Response` to an `api.http.Request` of worker code."""
        ...

    def promise(self, coroutine: Coroutine[Any, Any, Any], what: str) -> Awaitable[Any]:
        """Begin a coroutine where the result is awaited, or else in the next turn of the loop (or in its own); a failure
        nobody awaits is logged."""
        ...

    def export_rpc(self, target: Any) -> list[Any]:
        """The reference by which others can call `target`, a function or an `RpcTarget` (`api.rpc_stubs`), in this
        context: its home and number. Raises RangeError (as JsException) if there are too many."""
        ...

    def withdraw_rpc(self, references: list[Any]) -> None:
        """Those were never passed on."""
        ...

    def adopt_rpc(self, reference: list[Any]) -> Any:
        """The stub of what somebody has exported; this context holds it."""
        ...

    def begin(self, coroutine: Coroutine[Any, Any, Any], what: str) -> Any:
        """Begin a coroutine as a task of this context: a future, which can be cancelled."""
        ...

    def failed_in(self, what: str, error: BaseException) -> None:
        """Log an error of worker code."""
        ...

    def future(self) -> Any:
        """Something to await, with `set_result`, `set_exception` and `done`."""
        ...


current_context: ContextVar[IoContext] = ContextVar("roost_io_context")


def require_context(what: str) -> IoContext:
    """The current context. Raises JsException if worker code runs at module level, where no request is being served."""
    context = current_context.get(None)
    if context is None:
        raise JsException(
            f"{what} cannot be used at module level: do it inside a handler (fetch, webSocketMessage, …).", "Error"
        )
    return context
