"""Every close code and reason that Roost itself gives a client, an upstream or an object, in one table.

A program's own codes (`ws.close(4000, "bye")`) pass through as they are. `docs/reference/close-codes.md` is made from this
file (`make docs`). Sources: RFC 6455 §7.4.1; the IANA registry "WebSocket Close Code Number".
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class CloseCode(IntEnum):
    """RFC 6455 §7.4.1 and the IANA registry, those that Roost itself uses."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


class Close(NamedTuple):
    """How a socket ends: `connection.close(*closes.PINGS)`."""

    code: CloseCode
    reason: str


# Told to the program; no Close frame is on the wire.
LOST: Final = Close(CloseCode.ABNORMAL, "WebSocket disconnected without sending Close frame.")
STOPPED_RECONNECTING: Final = Close(CloseCode.ABNORMAL, "WebSocket closed while it was reconnecting.")
UPSTREAM_ENDED: Final = Close(CloseCode.ABNORMAL, "The upstream ended.")
DIAL_FAILED: Final = Close(CloseCode.ABNORMAL, "Failed to establish websocket connection")

# Cut without a Close frame: the client sees 1006.
SHUT_DOWN: Final = Close(CloseCode.ABNORMAL, "The server has shut down.")
OBJECT_RESET: Final = Close(CloseCode.ABNORMAL, "The object was reset.")

# Sent.
SHUTTING_DOWN: Final = Close(CloseCode.GOING_AWAY, "The server is shutting down.")
CLASS_DELETED: Final = Close(CloseCode.GOING_AWAY, "The class of this object was deleted.")
OBJECT_SLEEPS: Final = Close(CloseCode.GOING_AWAY, "The object sleeps.")
CLIENT_LEFT: Final = Close(CloseCode.GOING_AWAY, "The client left.")
PINGS: Final = Close(CloseCode.POLICY, "Too many pings.")
UPSTREAM_GONE: Final = Close(CloseCode.INTERNAL_ERROR, "The upstream is gone.")
RELAY_FAILED: Final = Close(CloseCode.INTERNAL_ERROR, "The other side of the relay failed.")
RELAY_GONE: Final = Close(CloseCode.INTERNAL_ERROR, "The other side of the relay is gone.")
BAD_CLOSE: Final = Close(CloseCode.INTERNAL_ERROR, "The worker closed with a code or reason that cannot be sent.")
WORKER_RESTARTED: Final = Close(CloseCode.SERVICE_RESTART, "The worker restarted.")
UPGRADED: Final = Close(CloseCode.SERVICE_RESTART, "The server was upgraded.")
SLOW_READER: Final = Close(CloseCode.TRY_AGAIN_LATER, "Too much unread output; the client reads too slowly.")
NOT_ACCEPTED: Final = Close(CloseCode.TRY_AGAIN_LATER, "Nobody accepted the socket.")
OBJECT_BUSY: Final = Close(CloseCode.TRY_AGAIN_LATER, "Too many messages wait for this object; try again later.")
APP_BUSY: Final = Close(CloseCode.TRY_AGAIN_LATER, "Too many messages wait for the app.")

# The client broke the protocol, or a limit of a message. `{…}` is filled in.
RESERVED_BIT: Final = Close(CloseCode.PROTOCOL_ERROR, "A reserved bit is set that no extension explains here.")
RESERVED_OPCODE: Final = Close(CloseCode.PROTOCOL_ERROR, "Opcode {opcode} is reserved.")
UNMASKED: Final = Close(CloseCode.PROTOCOL_ERROR, "A client's frame must be masked.")
MASKED: Final = Close(CloseCode.PROTOCOL_ERROR, "A server's frame must not be masked.")
CONTROL_FRAME: Final = Close(CloseCode.PROTOCOL_ERROR, "A control frame must be whole and at most 125 bytes long.")
NO_MESSAGE: Final = Close(CloseCode.PROTOCOL_ERROR, "A continuation frame continues nothing.")
MESSAGE_INSIDE: Final = Close(CloseCode.PROTOCOL_ERROR, "A new message began inside another.")
LENGTH_FORM: Final = Close(CloseCode.PROTOCOL_ERROR, "The length is not in its shortest form.")
CLOSE_CODE: Final = Close(CloseCode.PROTOCOL_ERROR, "The close code is not one that may be sent.")
CLOSE_REASON: Final = Close(CloseCode.INVALID_DATA, "The close reason is not UTF-8.")
NOT_TEXT: Final = Close(CloseCode.INVALID_DATA, "A text message is not UTF-8.")
NOT_DEFLATED: Final = Close(CloseCode.INVALID_DATA, "{error}")
TOO_LARGE: Final = Close(CloseCode.TOO_BIG, "Message is too large: {size} > {limit}")
TOO_LARGE_INFLATED: Final = Close(CloseCode.TOO_BIG, "Message is too large: more than {limit} when inflated.")

# The runtime's own fault.
UNSENDABLE: Final = Close(CloseCode.INTERNAL_ERROR, "")
ENDPOINT_FAILED: Final = Close(CloseCode.INTERNAL_ERROR, "")

WHEN: Final[dict[str, str]] = {
    "RESERVED_BIT": "RFC 6455 §5.2",
    "RESERVED_OPCODE": "RFC 6455 §5.2",
    "UNMASKED": "RFC 6455 §5.1",
    "MASKED": "to an upstream: RFC 6455 §5.1",
    "CONTROL_FRAME": "RFC 6455 §5.5",
    "NO_MESSAGE": "RFC 6455 §5.4",
    "MESSAGE_INSIDE": "RFC 6455 §5.4",
    "LENGTH_FORM": "RFC 6455 §5.2",
    "CLOSE_CODE": "RFC 6455 §7.4",
    "CLOSE_REASON": "RFC 6455 §5.5.1",
    "NOT_TEXT": "RFC 6455 §8.1",
    "NOT_DEFLATED": "a compressed message cannot be inflated (RFC 7692 §7.2.2); the reason says why",
    "TOO_LARGE": "more than `limits.max_message_bytes`",
    "TOO_LARGE_INFLATED": "more than `limits.max_message_bytes`, once it is inflated",
    "UNSENDABLE": "what the worker sent cannot be passed on; the log says why",
    "ENDPOINT_FAILED": "`on_receive` of an ASGI endpoint raised",
    "LOST": "the stream of the other side ended, or its connection broke, without a Close frame",
    "STOPPED_RECONNECTING": "the object closed a kept upstream while it was away",
    "UPSTREAM_ENDED": "a kept upstream could not be dialled again in as many attempts as it has; the reason says why the"
    " last one failed",
    "DIAL_FAILED": "`new WebSocket(url)` came to nothing; the error event before it says why",
    "SHUT_DOWN": "a client has not answered the goodbye of a node that ends, in `timeouts.drain_s`",
    "OBJECT_RESET": "the object called `ctx.abort()`",
    "SHUTTING_DOWN": "the node ends (SIGTERM, SIGINT)",
    "CLASS_DELETED": "a deploy deleted the object's class",
    "OBJECT_SLEEPS": "an upstream or plain socket of an object's own, whose pin has expired when the object sleeps",
    "CLIENT_LEFT": "to an upstream: the client that it was to be passed to is gone",
    "PINGS": "more than `limits.max_pings_per_s`",
    "UPSTREAM_GONE": "the upstream that is to be passed to the client has ended before",
    "RELAY_FAILED": "the other side of a passed-on upstream broke the protocol or a limit",
    "RELAY_GONE": "the same, found while a gateway is replaced",
    "BAD_CLOSE": "a host sent a code or reason that no Close frame can carry (RFC 6455 §7.4, §5.5)",
    "WORKER_RESTARTED": "the host of a plain socket, one that does not hibernate, has ended",
    "UPGRADED": "a TLS client of a gateway that was replaced, when that one's process ends",
    "SLOW_READER": "more than `limits.max_outbound_bytes` wait for the client, which does not read",
    "NOT_ACCEPTED": "1,000 messages came for a socket that the program has not accepted",
    "OBJECT_BUSY": "`limits.max_queued_events` of the object",
    "APP_BUSY": "1,024 messages that an ASGI app has not asked for",
}


def may_be_sent(code: int) -> bool:
    """Whether a program may close with that code. Wider than what a peer may send (`protocol.websocket`): the platform lets
    codes through that nobody has registered."""
    return 1000 <= code <= 4999 and code not in (1004, 1005, 1006, 1015)


def table() -> dict[str, Close]:
    """All of them, by name."""
    return {name: value for name, value in globals().items() if isinstance(value, Close)}
