"""`WebSocket`, as worker code holds it: the last stop of a message before it goes back to the gateway.

A socket's other side is either the other end of its pair in this process, or the network behind a `SocketPort`. It does no
I/O: it turns calls into port calls and events into listener calls. The invariant: what is sent before the other side is
there is kept in order, and nothing is sent after `close()`.

Source: reference 2.1-2.3 (which cites workerd's `web-socket.{h,c++}`); the WebSockets standard for names and codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from roost.api.aliases import with_snake_case
from roost.api.buffers import ArrayBuffer, Blob, to_bytes
from roost.api.runtime import Compat, current_context, require_context
from roost.api.socket_checks import NEWEST, SURROGATE, check_close, check_protocols, check_url
from roost.api.socket_end import Accept, Item, SocketEnd
from roost.closes import DIAL_FAILED
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.values import decode_js, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ATTACHMENT_BYTES: Final = 16_384
MAX_SEND_BYTES: Final = 32 * 1024 * 1024


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


@with_snake_case
class WebSocket(SocketEnd):
    """One end of a WebSocket. Made by `WebSocketPair.new()`, `WebSocket.new(url)` or an upgraded fetch."""

    CONNECTING = READY_STATE_CONNECTING = 0
    OPEN = READY_STATE_OPEN = 1
    CLOSING = READY_STATE_CLOSING = 2
    CLOSED = READY_STATE_CLOSED = 3

    __slots__ = ("__dict__", "__weakref__")

    @classmethod
    def new(cls, url: str, protocols: str | list[str] | None = None) -> Self:
        """`new WebSocket(url, protocols)`: dial. Raises SyntaxError (as JsException) for a bad URL or protocol."""
        context = require_context("new WebSocket(url)")
        offered = check_protocols(protocols)
        socket = cls()
        socket.url = check_url(str(url))
        socket.accepted_as = Accept.STANDARD
        socket.is_connecting = True
        socket.io_context = context
        context.dial(socket, socket.url, offered)
        return socket

    # state

    @property
    def readyState(self) -> int:
        if self.has_failed or (self.close_received and self.close_sent):
            return self.CLOSED
        if self.close_received or self.close_sent:
            return self.CLOSING
        return self.CONNECTING if self.is_connecting else self.OPEN

    @property
    def binaryType(self) -> str:
        return self._compat().binary_type if self._binary_type is None else self._binary_type

    @binaryType.setter
    def binaryType(self, value: str) -> None:
        if value in ("blob", "arraybuffer"):
            self._binary_type = value

    def _compat(self) -> Compat:
        context = self.io_context or current_context.get(None)
        return NEWEST if context is None else context.compat

    def accept(self, options: Any = None, *, allowHalfOpen: bool | None = None) -> None:
        """Deliver this end's events to its listeners from now on, first those that waited. With `allowHalfOpen` the
        program answers the peer's Close; without, the runtime does (compatibility dates before 2026-04-07: the program)."""
        if self.is_connecting or self.url is not None:
            if self.is_connecting:
                raise JsTypeError("Can't accept() a WebSocket made by its constructor: it accepts itself.")
            return
        if self.is_used:
            raise JsTypeError("Can't accept() WebSocket that was already used in a response.")
        if self.accepted_as == Accept.HIBERNATABLE:
            raise JsTypeError("Can't accept() WebSocket after enabling hibernation.")
        if self.accepted_as == Accept.STANDARD:
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

    # out

    def send(self, message: Any) -> None:
        """Send text (str) or binary (bytes-like, Blob). Returns at once; order is kept; bytes are copied now."""
        if type(message) is str:
            try:
                payload = message.encode()
            except UnicodeEncodeError:
                payload = SURROGATE.sub("\ufffd", message).encode()
            text = True
        else:
            payload, text = self._binary_payload(message)
        if len(payload) > MAX_SEND_BYTES:
            raise JsRangeError(
                f"A message of {len(payload)} bytes is too large to send; at most {MAX_SEND_BYTES} are allowed."
            )
        if self.may_send:
            self.socket_port.send_message(self.socket_number, payload, text)  # type: ignore[union-attr]
            return
        if self.close_sent and not self.has_failed:
            raise JsTypeError(
                "Can't call WebSocket send() after close(). The WebSocket is not connected: check ws.readyState before "
                "sending, and forget the socket in your close handler."
            )
        if self.has_failed:
            return
        if self.accepted_as == Accept.NONE or self.is_connecting:
            raise JsTypeError(
                "You must call one of accept() or state.acceptWebSocket() on this WebSocket before sending messages."
            )
        if self.other_end is not None:
            self.other_end.receive_item(Item("message", payload.decode() if text else payload))

    def _binary_payload(self, message: Any) -> tuple[bytes, bool]:
        if type(message) is ArrayBuffer:
            return message, False  # bytes, which nobody can change: what came is sent on without a copy
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
        if self.close_sent or self.has_failed:
            return
        if self.is_connecting:
            self.is_connecting = False
            self._fail("WebSocket was closed before the connection was established.")
            return
        if self.accepted_as == Accept.NONE:
            raise JsTypeError(
                "You must call one of accept() or state.acceptWebSocket() on this WebSocket before sending messages."
            )
        self.close_out(wire_code, wire_reason)

    # in

    def dispatch_item(self, item: Item) -> None:
        """Give an item to the listeners (of an accepted, not hibernating socket). Each runs in the socket's context."""
        if item.kind == "message":
            event = Event("message", self)
            event.data = self._as_binary(item.data) if isinstance(item.data, bytes) else item.data
        elif item.kind == "close":
            self.close_received = True
            if not item.clean:
                self.end_abnormally()
            elif not self._half_open and not self.close_sent:
                self.close_out(item.code, item.reason)
            event = Event("close", self)
            event.code, event.reason, event.wasClean = item.code, item.reason, item.clean
        elif item.kind == "open":
            event = Event("open", self)
        else:
            self.end_abnormally()
            event = Event("error", self)
            event.message = f"Uncaught Error: {item.reason}"
            event.error = JsException(item.reason)
        self._fire(event)

    def _as_binary(self, data: bytes) -> ArrayBuffer | Blob:
        return Blob([data]) if self.binaryType == "blob" else ArrayBuffer(data)

    def _fail(self, reason: str) -> None:
        assert self.io_context is not None
        self.io_context.deliver(self, Item("error", reason=reason))
        self.io_context.deliver(self, Item("close", code=int(DIAL_FAILED.code), reason=DIAL_FAILED.reason, clean=False))

    def _fire(self, event: Event) -> None:
        listeners = (self._listeners or {}).get(event.type)
        if not listeners or self.io_context is None:
            return
        for function, once in list(listeners):
            if once:
                self.removeEventListener(event.type, function)
            self.io_context.run_callback(function, event, what=f"WebSocket {event.type} listener")

    def dial_failed(self, reason: str) -> None:
        """The dial of `WebSocket.new(url)` came to nothing: an error event, then close 1006."""
        if self.is_connecting:
            self.is_connecting = False
            self._fail(reason)

    # attachments and listeners

    def serializeAttachment(self, value: Any) -> None:
        """Keep a copy of `value` with the socket, also while the object sleeps: at most 16,384 bytes encoded."""
        self.raw_attachment = raw = encode_attachment(value)
        if self.accepted_as == Accept.HIBERNATABLE and self.socket_port is not None:
            self.socket_port.attach(self.socket_number, raw)

    def deserializeAttachment(self) -> Any:
        """A fresh copy of the attachment, None if there is none."""
        return None if self.raw_attachment is None else decode_js(self.raw_attachment)

    def addEventListener(self, kind: str, listener: Any, options: Any = None, *, once: bool = False) -> None:
        """Call `listener(event)` for "open", "message", "close" or "error". Sync or async functions."""
        if not callable(listener):
            raise JsTypeError(f"addEventListener({kind!r}) needs a function, not {type(listener).__name__}.")
        only_once = once or (isinstance(options, dict) and bool(options.get("once")))
        if self._listeners is None:
            self._listeners = {}
        self._listeners.setdefault(kind, []).append((listener, only_once))
        if self.accepted_as == Accept.HIBERNATABLE and self.io_context is not None:
            note = getattr(self.io_context, "listener_on_hibernatable", None)
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
        return f"<WebSocket {self.socket_number or self.url or 'pair end'} {state}>"


class WebSocketPair:
    """Two joined ends: return one in the 101 response, keep the other. Indexable, iterable, `object_values()`."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        client, server = WebSocket(), WebSocket()
        client.other_end, server.other_end = server, client
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


def encode_attachment(value: Any) -> bytes:
    """Raises DataCloneError, or Error (as JsException) if it is too large."""
    raw = encode(value)
    if len(raw) > MAX_ATTACHMENT_BYTES:
        raise JsException(
            f"A WebSocket 'attachment' cannot be larger than {MAX_ATTACHMENT_BYTES} bytes. "
            f"'attachment' was {len(raw)} bytes; keep large state in the object's storage."
        )
    return raw
