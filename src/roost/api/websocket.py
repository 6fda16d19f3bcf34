"""`WebSocket`, as worker code holds it: the last stop of a message before it goes back to the gateway.

A socket's other side is either the other end of its pair in this process, or the network behind a `SocketPort`. It does no
I/O: it turns calls into port calls and events into listener calls. The invariant: what is sent before the other side is
there is kept in order, and nothing is sent after `close()`.

Source: reference 2.1-2.3 (which cites workerd's `web-socket.{h,c++}`); the WebSockets standard for names and codes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from roost.api.aliases import with_snake_case
from roost.api.buffers import ArrayBuffer, Blob, to_bytes
from roost.api.runtime import Compat, IoContext, SocketPort, current_context, require_context
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.values import decode_js, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from roost.events import RosterEntry

MAX_ATTACHMENT_BYTES: Final = 16_384
MAX_SEND_BYTES: Final = 32 * 1024 * 1024
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Accept:
    """Who gets this end's events. Plain numbers, as each message compares with one: an enum's members are slow to reach."""

    NONE: Final = 0  # nobody yet: they are kept
    STANDARD: Final = 1  # listeners
    HIBERNATABLE: Final = 2  # the object's webSocket* handlers


class Event:
    """What listeners get: `type`, and by type `data`, `code`, `reason`, `wasClean`, `message`, `error`."""

    __slots__ = ("code", "data", "error", "message", "reason", "target", "type", "wasClean")

    def __init__(self, kind: str, target: WebSocket | None) -> None:
        self.type = kind
        self.target = target
        self.data: Any = None
        self.code = 0
        self.reason = ""
        self.wasClean = False
        self.message = ""
        self.error: Any = None

    @property
    def was_clean(self) -> bool:
        return self.wasClean

    def __repr__(self) -> str:
        return f"<{self.type} event>"


class Item:
    """Something for one end of a socket: a message, a close or an error, on its way or waiting."""

    __slots__ = ("clean", "code", "data", "kind", "reason")

    def __init__(self, kind: str, data: str | bytes = "", code: int = 0, reason: str = "", clean: bool = True) -> None:
        self.kind = kind
        self.data = data
        self.code = code
        self.reason = reason
        self.clean = clean


@with_snake_case
class WebSocket:
    """One end of a WebSocket. Made by `WebSocketPair.new()`, `WebSocket.new(url)` or an upgraded fetch."""

    CONNECTING = READY_STATE_CONNECTING = 0
    OPEN = READY_STATE_OPEN = 1
    CLOSING = READY_STATE_CLOSING = 2
    CLOSED = READY_STATE_CLOSED = 3

    __slots__ = (
        "__dict__", "__weakref__", "_accept", "_attachment", "_auto_at_ms", "_binary_type", "_close_in", "_close_out",
        "_connecting", "_context", "_dialled_url", "_failed", "_half_open", "_listeners", "_number", "_outbound", "_peer",
        "_pending", "_port", "_ready", "_tags", "_used", "extensions", "protocol", "url",
    )  # fmt: skip

    def __init__(self) -> None:
        self._accept: int = Accept.NONE
        self._ready = False  # send() may go straight to the port: accepted, open, on the network
        self._port: SocketPort | None = None
        self._number = 0
        self._peer: WebSocket | None = None
        self._outbound = False  # dialled by the worker
        self._pending: list[Item] | tuple[()] = ()
        self._context: IoContext | None = None
        self._listeners: dict[str, list[tuple[Callable[..., Any], bool]]] | None = None
        self._close_in = self._close_out = self._failed = self._half_open = self._used = self._connecting = False
        self._tags: tuple[str, ...] = ()
        self._attachment: bytes | None = None
        self._auto_at_ms = 0
        self._binary_type: str | None = None
        self.url: str | None = None
        self._dialled_url = ""  # of an upgraded fetch
        self.protocol: str | None = ""
        self.extensions: str | None = ""

    @classmethod
    def new(cls, url: str, protocols: str | list[str] | None = None) -> Self:
        """`new WebSocket(url, protocols)`: dial. Raises SyntaxError (as JsException) for a bad URL or protocol."""
        context = require_context("new WebSocket(url)")
        offered = check_protocols(protocols)
        socket = cls()
        socket.url = check_url(str(url))
        socket._accept = Accept.STANDARD
        socket._connecting = True
        socket._context = context
        context.dial(socket, socket.url, offered)
        return socket

    # state

    @property
    def readyState(self) -> int:
        if self._failed or (self._close_in and self._close_out):
            return self.CLOSED
        if self._close_in or self._close_out:
            return self.CLOSING
        return self.CONNECTING if self._connecting else self.OPEN

    @property
    def binaryType(self) -> str:
        return self._compat().binary_type if self._binary_type is None else self._binary_type

    @binaryType.setter
    def binaryType(self, value: str) -> None:
        if value in ("blob", "arraybuffer"):
            self._binary_type = value

    def _compat(self) -> Compat:
        context = self._context or current_context.get(None)
        return _NEWEST if context is None else context.compat

    def accept(self, options: Any = None, *, allowHalfOpen: bool | None = None) -> None:
        """Deliver this end's events to its listeners from now on, first those that waited. With `allowHalfOpen` the
        program answers the peer's Close; without, the runtime does (compatibility dates before 2026-04-07: the program)."""
        if self._connecting or self.url is not None:
            if self._connecting:
                raise JsTypeError("Can't accept() a WebSocket made by its constructor: it accepts itself.")
            return
        if self._used:
            raise JsTypeError("Can't accept() WebSocket that was already used in a response.")
        if self._accept == Accept.HIBERNATABLE:
            raise JsTypeError("Can't accept() WebSocket after enabling hibernation.")
        if self._accept == Accept.STANDARD:
            return
        context = current_context.get(None)
        if context is None:
            raise JsTypeError(
                "Cannot accept a WebSocket in this context: call server.accept() inside the fetch handler, "
                "before returning the 101 response."
            )
        if isinstance(options, dict):
            allowHalfOpen = options.get("allowHalfOpen", allowHalfOpen)
        self._half_open = not context.compat.auto_reply_to_close if allowHalfOpen is None else bool(allowHalfOpen)
        self.accept_with(context, Accept.STANDARD)

    def accept_with(self, context: IoContext, how: int) -> None:
        """Bind this end's events to a context. For the host; user code calls `accept` or `ctx.acceptWebSocket`."""
        self._accept = how
        self._context = context
        self._update_ready()
        if how == Accept.STANDARD and self._port is not None:
            context.socket_opened(self)
        if self._pending:
            context.deliver_pending(self)

    def _update_ready(self) -> None:
        self._ready = self._port is not None and self._accept != Accept.NONE and not self._close_out and not self._failed

    # out

    def send(self, message: Any) -> None:
        """Send text (str) or binary (bytes-like, Blob). Returns at once; order is kept; bytes are copied now."""
        if type(message) is str:
            try:
                payload = message.encode()
            except UnicodeEncodeError:
                payload = _SURROGATE.sub("\ufffd", message).encode()
            text = True
        else:
            payload, text = self._binary_payload(message)
        if len(payload) > MAX_SEND_BYTES:
            raise JsRangeError(
                f"A message of {len(payload)} bytes is too large to send; at most {MAX_SEND_BYTES} are allowed."
            )
        if self._ready:
            self._port.send_message(self._number, payload, text)  # type: ignore[union-attr]
            return
        if self._close_out and not self._failed:
            raise JsTypeError(
                "Can't call WebSocket send() after close(). The WebSocket is not connected: check ws.readyState before "
                "sending, and forget the socket in your close handler."
            )
        if self._failed:
            return
        if self._accept == Accept.NONE or self._connecting:
            raise JsTypeError(
                "You must call one of accept() or state.acceptWebSocket() on this WebSocket before sending messages."
            )
        if self._peer is not None:
            self._peer.receive(Item("message", payload.decode() if text else payload))

    def _binary_payload(self, message: Any) -> tuple[bytes, bool]:
        if isinstance(message, str):
            return str(message).encode("utf-8", "replace"), True
        payload = to_bytes(message)
        if payload is None:
            raise JsTypeError(
                f"Serialization error: WebSocket send() takes str or bytes, not {type(message).__name__}; "
                "use json.dumps(value) for objects."
            )
        return payload, False

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin or complete the closing handshake, after everything sent before. A second call is ignored."""
        wire_code, wire_reason = check_close(code, reason, self._compat())
        if self._close_out or self._failed:
            return
        if self._connecting:
            self._connecting = False
            self._fail("WebSocket was closed before the connection was established.")
            return
        if self._accept == Accept.NONE:
            raise JsTypeError(
                "You must call one of accept() or state.acceptWebSocket() on this WebSocket before sending messages."
            )
        self.close_out(wire_code, wire_reason)

    def close_out(self, code: int, reason: str) -> None:
        """Send our Close; for the host's automatic reply, too. 1005 is a Close without a code."""
        self._close_out = True
        self._ready = False
        if self._port is not None:
            self._port.close_socket(self._number, code, reason)
        elif self._peer is not None:
            self._peer.receive(Item("close", code=code, reason=reason))

    # in

    def receive(self, item: Item) -> None:
        """Something came from the other end of a pair: keep it, pass it to the network, or hand it over."""
        if self._used:
            return
        if self._accept == Accept.NONE or self._pending:
            self.keep(item)
        elif self._context is not None:
            self._context.deliver(self, item)

    def keep(self, item: Item) -> None:
        """Somebody will want it: it waits behind what waits already."""
        if self._pending:
            self._pending.append(item)
        else:
            self._pending = [item]  # most sockets never need one

    def dispatch(self, item: Item) -> None:
        """Give an item to the listeners (of an accepted, not hibernating socket). Each runs in the socket's context."""
        if item.kind == "message":
            event = Event("message", self)
            event.data = self._as_binary(item.data) if isinstance(item.data, bytes) else item.data
        elif item.kind == "close":
            self._close_in = True
            if not item.clean:
                self._failed = True
                self._ready = False
            elif not self._half_open and not self._close_out:
                self.close_out(item.code, item.reason)
            event = Event("close", self)
            event.code, event.reason, event.wasClean = item.code, item.reason, item.clean
        elif item.kind == "open":
            event = Event("open", self)
        else:
            self._failed = True
            self._ready = False
            event = Event("error", self)
            event.message = f"Uncaught Error: {item.reason}"
            event.error = JsException(item.reason)
        self._fire(event)

    def _as_binary(self, data: bytes) -> ArrayBuffer | Blob:
        return Blob([data]) if self.binaryType == "blob" else ArrayBuffer(data)

    def _fail(self, reason: str) -> None:
        assert self._context is not None
        self._context.deliver(self, Item("error", reason=reason))
        self._context.deliver(
            self, Item("close", code=1006, reason="Failed to establish websocket connection", clean=False)
        )

    def _fire(self, event: Event) -> None:
        listeners = (self._listeners or {}).get(event.type)
        if not listeners or self._context is None:
            return
        for function, once in list(listeners):
            if once:
                self.removeEventListener(event.type, function)
            self._context.run_callback(function, event, what=f"WebSocket {event.type} listener")

    # the network's side, for the host

    def connect(self, port: SocketPort, number: int) -> None:
        """This end's other side is now the gateway's socket `number`."""
        self._port = port
        self._number = number
        self._peer = None
        self._connecting = False
        self._update_ready()

    @classmethod
    def restored(cls, entry: RosterEntry, context: IoContext, port: SocketPort) -> Self:
        """A hibernatable socket as its gateway has kept it. A wake makes one of each."""
        socket = cls()
        socket._accept = Accept.HIBERNATABLE
        socket._context = context
        socket._port = port
        socket._number = entry.socket
        socket._tags = entry.tags
        socket._attachment = entry.attachment
        socket._auto_at_ms = entry.auto_at_ms
        socket._close_out = entry.close_sent
        socket._ready = not entry.close_sent
        socket.url = entry.url or None
        socket.protocol = entry.protocol
        return socket

    def dial_failed(self, reason: str) -> None:
        """The dial of `WebSocket.new(url)` came to nothing: an error event, then close 1006."""
        if self._connecting:
            self._connecting = False
            self._fail(reason)

    # attachments and listeners

    def serializeAttachment(self, value: Any) -> None:
        """Keep a copy of `value` with the socket, also while the object sleeps: at most 16,384 bytes encoded."""
        self._attachment = raw = encode_attachment(value)
        if self._accept == Accept.HIBERNATABLE and self._port is not None:
            self._port.attach(self._number, raw)

    def deserializeAttachment(self) -> Any:
        """A fresh copy of the attachment, None if there is none."""
        return None if self._attachment is None else decode_js(self._attachment)

    def addEventListener(self, kind: str, listener: Any, options: Any = None, *, once: bool = False) -> None:
        """Call `listener(event)` for "open", "message", "close" or "error". Sync or async functions."""
        if not callable(listener):
            raise JsTypeError(f"addEventListener({kind!r}) needs a function, not {type(listener).__name__}.")
        only_once = once or (isinstance(options, dict) and bool(options.get("once")))
        if self._listeners is None:
            self._listeners = {}
        self._listeners.setdefault(kind, []).append((listener, only_once))
        if self._accept == Accept.HIBERNATABLE and self._context is not None:
            note = getattr(self._context, "listener_on_hibernatable", None)
            if note is not None:
                note(self)

    def removeEventListener(self, kind: str, listener: Any, options: Any = None) -> None:
        if self._listeners is not None and kind in self._listeners:
            self._listeners[kind] = [entry for entry in self._listeners[kind] if entry[0] != listener]

    @property
    def has_listeners(self) -> bool:
        """Whether any listener is attached."""
        return any((self._listeners or {}).values())

    def _set_on(self, kind: str, listener: Any) -> None:
        key = f"on{kind}"
        before = (self._listeners or {}).get(key)
        if before:
            self.removeEventListener(kind, before[0][0])
        if listener is not None:
            self.addEventListener(kind, listener)
            assert self._listeners is not None
            self._listeners[key] = [(listener, False)]

    def _get_on(self, kind: str) -> Any:
        entries = (self._listeners or {}).get(f"on{kind}")
        return entries[0][0] if entries else None

    onopen = property(lambda self: self._get_on("open"), lambda self, f: self._set_on("open", f))
    onmessage = property(lambda self: self._get_on("message"), lambda self, f: self._set_on("message", f))
    onclose = property(lambda self: self._get_on("close"), lambda self, f: self._set_on("close", f))
    onerror = property(lambda self: self._get_on("error"), lambda self, f: self._set_on("error", f))

    @property
    def js_object(self) -> Self:
        return self

    def __repr__(self) -> str:
        state = ("connecting", "open", "closing", "closed")[self.readyState]
        return f"<WebSocket {self._number or self.url or 'pair end'} {state}>"


class WebSocketPair:
    """Two joined ends: return one in the 101 response, keep the other. Indexable, iterable, `object_values()`."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        client, server = WebSocket(), WebSocket()
        client._peer, server._peer = server, client
        self._ends = (client, server)

    @classmethod
    def new(cls) -> Self:
        return cls()

    def object_values(self) -> tuple[WebSocket, WebSocket]:
        return self._ends

    def object_keys(self) -> tuple[str, str]:
        return ("0", "1")

    def object_entries(self) -> tuple[tuple[str, WebSocket], ...]:
        return (("0", self._ends[0]), ("1", self._ends[1]))

    def __iter__(self) -> Iterator[WebSocket]:
        return iter(self._ends)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int | str) -> WebSocket:
        return self._ends[int(index)]


class WebSocketRequestResponsePair:
    """An auto-response: a text that the gateway answers with another without waking the object."""

    __slots__ = ("request", "response")

    def __init__(self, request: str, response: str) -> None:
        self.request = request
        self.response = response

    @classmethod
    def new(cls, request: str, response: str) -> Self:
        return cls(request, response)


# --- argument checks (reference 2.2, 3) ---------------------------------------------------------------------------


_NEWEST: Final = Compat()


def check_close(code: int | None, reason: str | None, compat: Compat = _NEWEST) -> tuple[int, str]:
    """The code and reason to send; 1005 stands for none. Validation comes before any state check.

    A reason of more than 123 bytes, which no Close frame can carry, is a SyntaxError, or cut before 2026-03-03.
    """
    if code is None:
        if reason:
            raise JsException("If you specify a WebSocket close reason, you must also specify a code.",
                              "InvalidAccessError")  # fmt: skip
        return 1005, ""
    allowed = isinstance(code, int) and 1000 <= code <= 4999 and code not in (1004, 1005, 1006, 1015)
    if not allowed or (compat.strict_close_codes and 1000 < code < 3000):
        raise JsException(f"Invalid WebSocket close code: {code}.", "InvalidAccessError")
    text = _SURROGATE.sub("\ufffd", reason or "")
    if (size := len(text.encode())) > 123 and compat.close_reason_limit:
        raise JsException(f"WebSocket close reason is {size} bytes of UTF-8; at most 123 are allowed.", "SyntaxError")
    return code, text


def check_protocols(protocols: str | list[str] | None) -> list[str]:
    """The subprotocols to offer. Raises SyntaxError (as JsException) for a bad token or a repeated one."""
    offered = [protocols] if isinstance(protocols, str) else list(protocols or [])
    for protocol in offered:
        if not _TOKEN.match(protocol):
            raise JsException(f"The protocol {protocol!r} is not a valid token.", "SyntaxError")
    if len({protocol.lower() for protocol in offered}) != len(offered):
        raise JsException("A protocol is offered twice.", "SyntaxError")
    return offered


def encode_attachment(value: Any) -> bytes:
    """Raises DataCloneError, or Error (as JsException) if it is too large."""
    raw = encode(value)
    if len(raw) > MAX_ATTACHMENT_BYTES:
        raise JsException(
            f"A WebSocket 'attachment' cannot be larger than {MAX_ATTACHMENT_BYTES} bytes. "
            f"'attachment' was {len(raw)} bytes; keep large state in the object's storage."
        )
    return raw


def check_url(url: str) -> str:
    """A dialable ws or wss URL without user information. Raises SyntaxError (as JsException)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise JsException(f"The URL {url!r} is invalid: {error}.", "SyntaxError") from error
    if parts.scheme not in ("ws", "wss"):
        raise JsException(f"The URL {url!r} is invalid: a WebSocket URL begins with ws:// or wss://.", "SyntaxError")
    if not parts.hostname:
        raise JsException(f"The URL {url!r} is invalid: it names no host.", "SyntaxError")
    if "#" in url:
        raise JsException(f"The URL {url!r} is invalid: it must not have a fragment.", "SyntaxError")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts._replace(netloc=host if port is None else f"{host}:{port}").geturl()
