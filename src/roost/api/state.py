"""`ctx`: what an object or a stateless worker may do besides answering. Source: reference 4.2 (all members).

Values only: each call goes to the host through `ObjectHost` or the current `IoContext`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from roost.api.aliases import with_snake_case
from roost.api.headers import Headers
from roost.api.promises import eager
from roost.api.socket_checks import check_protocols, check_url
from roost.api.socket_end import Accept
from roost.api.websocket import WebSocket, WebSocketRequestResponsePair, encode_attachment
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.events import Redial
from roost.js_values import JsDate, JsList
from roost.values import to_unicode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from roost.api.namespace import DurableObjectId
    from roost.api.runtime import IoContext
    from roost.api.storage import DurableObjectStorage

MAX_TAGS: Final = 10
MAX_TAG_BYTES: Final = 256
MAX_AUTO_RESPONSE_BYTES: Final = 2_048
MIN_RECONNECT_MS: Final = 50
MAX_EVENT_TIMEOUT_MS: Final = 604_800_000


class ObjectHost(Protocol):
    """What an object's state asks of the actor around it."""

    def accept_hibernatable(self, socket: WebSocket, tags: tuple[str, ...]) -> None: ...

    async def dial_kept(
        self,
        url: str,
        protocols: list[str],
        headers: list[tuple[str, str]],
        tags: tuple[str, ...],
        attachment: bytes | None,
        redial: Redial,
    ) -> WebSocket: ...

    def keep_outbound(self, socket: WebSocket, tags: tuple[str, ...], redial: Redial | None) -> None: ...

    def hibernatable(self) -> Iterable[WebSocket]:
        """All of the object's hibernatable sockets, oldest first."""
        ...

    def set_auto_response(self, pair: WebSocketRequestResponsePair | None) -> None: ...

    def block_while(self, callback: Callable[[], Any]) -> Awaitable[Any]: ...

    def abort(self, reason: str | None, *, retry_alarm: bool) -> NoReturn: ...

    def get_auto_response(self) -> WebSocketRequestResponsePair | None: ...

    def make_storage(self) -> DurableObjectStorage:
        """The object's storage, asked for once and only if it is used."""
        ...


_NOT_HERE: Final = {
    "container": "containers",
    "facets": "facets",
    "exports": "loopback bindings (use `services` in the configuration)",
    "version": "version metadata",
    "primaryStub": "read replication",
    "configureReadReplication": "read replication",
    "restore": "snapshots (use `roost storage dump` and `restore`)",
    "onNextSessionRestore": "snapshots (use `roost storage dump` and `restore`)",
}


def _missing(name: str) -> AttributeError:
    if name in _NOT_HERE:
        return AttributeError(f"ctx.{name} is not supported by Roost: it has no {_NOT_HERE[name]}.")
    return AttributeError(f"ctx has no {name!r}; see docs/reference/compatibility.md.")


class ExecutionContext:
    """`ctx` of a stateless worker."""

    def __init__(self, context: IoContext) -> None:
        self._context = context
        self.props: dict[str, Any] = {}

    def waitUntil(self, awaitable: Awaitable[Any]) -> None:
        """Go on with `awaitable` after the response; its failure is logged."""
        self._context.wait_until(awaitable)

    wait_until = waitUntil

    def passThroughOnException(self) -> None:
        """Accepted for compatibility; there is no origin to pass through to."""

    pass_through_on_exception = passThroughOnException

    def __getattr__(self, name: str) -> Any:
        raise _missing(name)


@with_snake_case
class DurableObjectState:
    """`ctx` of a Durable Object."""

    def __init__(self, object_id: DurableObjectId, context: IoContext, host: ObjectHost) -> None:
        self.id = object_id
        self._context = context
        self._host = host
        self._event_timeout_ms: int | None = None

    @cached_property
    def storage(self) -> DurableObjectStorage:
        """The object's own database."""
        return self._host.make_storage()

    @cached_property
    def props(self) -> dict[str, Any]:
        return {}

    def waitUntil(self, awaitable: Awaitable[Any]) -> None:
        """Keep the object awake until `awaitable` ends; its failure is logged."""
        self._context.wait_until(awaitable)

    def blockConcurrencyWhile(self, callback: Callable[[], Any]) -> Awaitable[Any]:
        """Run `callback()` while no other event of the object starts; also as a decorator. The object is reset if it
        raises or takes more than 30 s."""
        return self._host.block_while(callback)

    def abort(self, reason: str | None = None, options: Any = None, *, retryAlarm: bool = True) -> NoReturn:
        """End the object at once: uncommitted writes are undone and its sockets cut. Cannot be caught as Exception.

        An alarm whose handler runs is tried again, unless `retryAlarm` is false.
        """
        if options is not None:
            retryAlarm = dict(options).get("retryAlarm", retryAlarm)
        self._host.abort(reason, retry_alarm=retryAlarm)

    def acceptWebSocket(self, socket: WebSocket, tags: Any = None, options: Any = None, *, reconnect: Any = None) -> None:
        """Make a pair's end hibernatable: its events come to the object's webSocket* handlers, also after a sleep.

        At most 10 distinct tags of at most 256 bytes of UTF-8. Call it before the other end is returned.

        Roost's own: an upstream's socket, `(await fetch(url, headers={"Upgrade": "websocket"})).web_socket`, can be
        accepted, too; the gateway keeps it while the object sleeps. With `reconnect` (True, or `{"first_ms": 500, "max_ms":
        60000, "attempts": 0}`) it is dialled again when it ends, with back-off and jitter, and `webSocketOpen(ws, info)` is
        called when it is open again; what is sent in between is lost. The close event comes when `attempts` in a row have
        failed (0: never), or after a `close()` of the object's own.
        """
        if not isinstance(socket, WebSocket):
            raise JsTypeError(f"acceptWebSocket() needs a WebSocket, not {type(socket).__name__}.")
        if isinstance(options, dict):
            reconnect = options.get("reconnect", reconnect)
        if socket.url is not None:
            raise JsException(
                "A WebSocket made by its constructor accepts itself and cannot hibernate; take the socket of"
                ' (await fetch(url, headers={"Upgrade": "websocket"})).web_socket.'
            )
        if socket.is_unaccepted_upstream and not socket.is_used:
            self._host.keep_outbound(socket, check_tags(tags), check_reconnect(reconnect))
            return
        if reconnect:
            raise JsException("reconnect is for upstreams: only what this object has dialled can be dialled again.")
        if socket.accepted_as == Accept.STANDARD:
            raise JsException("Tried to acceptWebSocket() a socket that was already accepted with accept().")
        if socket.accepted_as == Accept.HIBERNATABLE:
            raise JsException("Tried to acceptWebSocket() a socket that is hibernatable already.")
        if socket.is_used or socket.other_end is None or socket.socket_port is not None:
            raise JsException(
                "The WebSocket's pair was already used: call acceptWebSocket(server) before returning the client end."
            )
        if socket.other_end.accepted_as != Accept.NONE:
            raise JsException("The other end of this WebSocket's pair was already accepted.")
        self._host.accept_hibernatable(socket, check_tags(tags))

    @eager
    async def dial(
        self,
        url: str,
        tags: Any = None,
        *,
        reconnect: Any = True,
        protocols: Any = None,
        headers: Any = None,
        attachment: Any = None,
    ) -> WebSocket:
        """Roost's own: an upstream that is the object's at once, and is dialled until it is open, also the first time:
        `webSocketOpen(ws, info)` tells, after a sleep, too. What is sent before is lost. `reconnect`, tags and attachment:
        see `acceptWebSocket`. Raises Error (as JsException) if no gateway is there, SyntaxError for a bad URL."""
        redial = check_reconnect(reconnect)
        if redial is None:
            raise JsTypeError("dial() dials until it is open; for one attempt take the socket of a fetch().")
        raw = None if attachment is None else encode_attachment(attachment)
        fields = [(name, value) for name, value in Headers(headers).pairs if name.lower() != "sec-websocket-protocol"]
        offered = check_protocols(protocols)
        where = check_url(re.sub("^http", "ws", str(url)))
        return await self._host.dial_kept(where, offered, fields, check_tags(tags), raw, redial)

    def getWebSockets(self, tag: str | None = None) -> list[WebSocket]:
        """The object's hibernatable sockets: all of them newest first, those with `tag` oldest first."""
        if tag is None:
            return JsList(list(self._host.hibernatable())[::-1])
        return JsList([socket for socket in self._host.hibernatable() if tag in socket.socket_tags])

    def getTags(self, socket: WebSocket) -> list[str]:
        if socket.accepted_as != Accept.HIBERNATABLE:
            raise JsException("getTags() works only on a socket that acceptWebSocket() has accepted.")
        return list(socket.socket_tags)

    def setWebSocketAutoResponse(self, pair: WebSocketRequestResponsePair | None = None) -> None:
        """Have the gateway answer a text by itself, without waking the object; no argument turns it off."""
        if pair is not None:
            for name, text in (("request", pair.request), ("response", pair.response)):
                if (size := len(text.encode("utf-8", "replace"))) > MAX_AUTO_RESPONSE_BYTES:
                    raise JsRangeError(
                        f"An auto-response's {name} is {size} bytes; at most {MAX_AUTO_RESPONSE_BYTES} are allowed."
                    )
        self._host.set_auto_response(pair)

    def getWebSocketAutoResponse(self) -> WebSocketRequestResponsePair | None:
        return self._host.get_auto_response()

    def getWebSocketAutoResponseTimestamp(self, socket: WebSocket) -> datetime | None:
        """When this socket was last auto-answered, as the object knew it when it woke; None if never."""
        if socket.auto_answered_ms == 0:
            return None
        return JsDate.fromtimestamp(socket.auto_answered_ms / 1000, UTC)

    def __getattr__(self, name: str) -> Any:
        raise _missing(name)

    def setHibernatableWebSocketEventTimeout(self, timeout_ms: int | None = None) -> None:
        if timeout_ms is not None and timeout_ms > MAX_EVENT_TIMEOUT_MS:
            raise JsException(f"The event timeout must not exceed {MAX_EVENT_TIMEOUT_MS} ms (7 days).")
        self._event_timeout_ms = timeout_ms or None

    def getHibernatableWebSocketEventTimeout(self) -> int | None:
        return self._event_timeout_ms


def check_reconnect(value: Any) -> Redial | None:
    """How to dial again. Raises TypeError or RangeError (as JsException) for what is no policy."""
    if value is None or value is False:
        return None
    if value is True:
        return Redial()
    known = {"first_ms": 500, "max_ms": 60_000, "attempts": 0}
    if not isinstance(value, dict) or set(value) - set(known):
        raise JsTypeError(f"reconnect must be True or a dict with {', '.join(known)}; it is {value!r}.")
    chosen = {**known, **value}
    for name, number in chosen.items():
        least, most = (0, 1_000_000) if name == "attempts" else (MIN_RECONNECT_MS, 86_400_000)
        whole = type(number) is int or (type(number) is float and name != "attempts")
        if not whole or not least <= number <= most:
            raise JsRangeError(f"reconnect: {name} is {number!r}; it must be between {least} and {most}.")
    return Redial(chosen["first_ms"] / 1000, max(chosen["max_ms"], chosen["first_ms"]) / 1000, int(chosen["attempts"]))


def check_tags(tags: Any) -> tuple[str, ...]:
    """Distinct tags in their order. Raises Error (as JsException) for too many or too long ones."""
    if isinstance(tags, str | bytes):
        raise JsTypeError(f"acceptWebSocket() takes a list of tags: [{tags!r}], not {tags!r}.")
    distinct = tuple(dict.fromkeys(to_unicode(str(tag)) for tag in tags or ()))
    if len(distinct) > MAX_TAGS:
        raise JsException(f"A WebSocket can have at most {MAX_TAGS} tags; {len(distinct)} were given.")
    for tag in distinct:
        if len(tag.encode("utf-8", "replace")) > MAX_TAG_BYTES:
            raise JsException(f"A WebSocket's tag can have at most {MAX_TAG_BYTES} bytes of UTF-8: {tag[:40]!r}….")
    return distinct
