"""The server's side of an HTTP/1.1 exchange, as decisions: what a request may be, how its answer is framed, which phase
follows which, and until when the client may take. Pure; knows no socket, no loop and no host.

Source: RFC 9112 §3.2.2 (absolute target), §6 (where a body ends), §9.3 and §9.6 (persistence, closing), §11.2 (smuggling);
RFC 6455 §4.2 (handshake).
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from roost.errors import RemoteProtocolError
from roost.protocol.http import get_header, is_host

if TYPE_CHECKING:
    from roost.events import Headers
    from roost.protocol.http import RequestHead

NOT_FROM_WORKERS: Final = frozenset({"connection", "upgrade", "sec-websocket-accept", "keep-alive", "transfer-encoding"})
NOT_IN_101: Final = NOT_FROM_WORKERS | {"content-length", "sec-websocket-extensions"}
BODY_IDLE_S: Final = 60.0  # a body that makes no progress for so long ends its request
SILENT_STREAM_S: Final = 1.0
_LONGEST_NUMBER: Final = 18  # digits
_ABSOLUTE: Final = re.compile(r"(?:https?|wss?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class Phase(IntEnum):
    """Where a connection is with the request that it is about. Numbers, as the hash of another member is a call."""

    IDLE = 0  # between requests
    REQUEST = 1  # asked, and not answered
    UPGRADING = 2  # asked to become a WebSocket
    RESPONDING = 3  # the answer's head has left
    CLOSING = 4  # answered for the last time; what still comes is dropped
    GONE = 5  # the descriptor is closed, or a WebSocket's


FOLLOWS: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.IDLE: frozenset({Phase.REQUEST, Phase.CLOSING, Phase.GONE}),
    Phase.REQUEST: frozenset({Phase.UPGRADING, Phase.RESPONDING, Phase.IDLE, Phase.CLOSING, Phase.GONE}),
    Phase.UPGRADING: frozenset({Phase.RESPONDING, Phase.CLOSING, Phase.GONE}),
    Phase.RESPONDING: frozenset({Phase.IDLE, Phase.CLOSING, Phase.GONE}),
    Phase.CLOSING: frozenset({Phase.CLOSING, Phase.GONE}),
    Phase.GONE: frozenset({Phase.GONE}),
}
"""The legal moves. REQUEST → IDLE is an answer that leaves whole. Tests hold each move of a connection against it."""

UNDER_WAY: Final = frozenset({Phase.REQUEST, Phase.UPGRADING, Phase.RESPONDING})


# requests


def check_body(head: RequestHead, max_body_bytes: int, *, upgrade: bool) -> None:
    """Whether a body may be what the head says. Raises RemoteProtocolError: 400, 413 or 501."""
    coding = head.fields.get("transfer-encoding")
    if coding is not None and coding.lower() != "chunked":  # RFC 9112 §6.1
        raise RemoteProtocolError(501, f"The transfer coding {coding[:60]!r} is not known here.")
    length = head.fields.get("content-length")
    if length is not None and (not length.isdigit() or len(length) > _LONGEST_NUMBER):
        raise RemoteProtocolError(400, "The Content-Length is not a number of bytes.")
    if upgrade and (coding is not None or (length is not None and int(length))):
        raise RemoteProtocolError(400, "WebSocket handshake failed: it must not have a body.")
    if length is not None and int(length) > max_body_bytes:
        raise RemoteProtocolError(413, f"The body exceeds {max_body_bytes} bytes.")


def with_path(head: RequestHead, scheme: str) -> tuple[RequestHead, str]:
    """The request with a path as its target, and its URL. The authority of an absolute target replaces Host; its scheme
    counts for nothing: that is the connection's (RFC 9112 §3.2.2). Raises RemoteProtocolError (400)."""
    host = head.fields.get("host") or "localhost"
    absolute = _ABSOLUTE.match(head.target)
    if absolute is not None:
        host = absolute[1]
        headers = [(name, host if name.lower() == "host" else value) for name, value in head.headers]
        path = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"
        fields = {**head.fields, "host": host}
        head = msgspec.structs.replace(head, target=path, headers=headers, fields=fields)
    elif not head.target.startswith("/") and head.target != "*":
        raise RemoteProtocolError(400, "The request target must be a path or an absolute URL.")
    if not is_host(host):
        raise RemoteProtocolError(400, "The Host header (or the target's) is not a host and port.")
    return head, f"{scheme}://{host}{head.target if head.target != '*' else '/*'}"


def only_websocket(headers: Headers) -> Headers:
    """The protocol that was taken of several offered, so that a worker may compare the field as it is used to."""
    return [(name, "websocket" if name.lower() == "upgrade" else value) for name, value in headers]


# answers


class Framing(NamedTuple):
    """How an answer's body ends: by a promised length (`left` bytes; -1: none), in chunks, or with the connection."""

    left: int = -1
    chunked: bool = False
    close_after: bool = False


UNFRAMED: Final = Framing()


def frame_body(head: RequestHead, status: int, size: int | None, fields: Headers, *, bodiless: bool) -> Framing:
    """Say in `fields`, which this changes, where the body of an answer ends (RFC 9112 §6.3): by a length, in chunks, or for
    HTTP/1.0 with the connection. `size`: of a body that is there; None: it follows in pieces."""
    method, version = head.method, head.version
    length = get_header(fields, "content-length")
    if size is not None and length is None and not bodiless:  # as nearly always
        fields.append(("Content-Length", str(size)))
        return UNFRAMED
    if size is None and not bodiless and length is not None and length.isdigit():
        return Framing(left=int(length))
    if method == "HEAD" and length is not None:
        return UNFRAMED
    fields[:] = [field for field in fields if field[0].lower() != "content-length"]
    if status in (204, 304) or status < 200:
        return UNFRAMED
    if size is not None:
        fields.append(("Content-Length", str(size)))
        return UNFRAMED
    if version == "1.1":
        fields.append(("Transfer-Encoding", "chunked"))
        return Framing(chunked=not bodiless)
    return Framing(close_after=True)


def has_no_body(method: str, status: int) -> bool:
    """Whether nothing may follow the head (RFC 9110 §6.4.1)."""
    return method == "HEAD" or status in (204, 304) or status < 200


def chunk(data: bytes, *, last: bool) -> bytes:
    """A piece of a body in the chunked coding (RFC 9112 §7.1), and its end."""
    coded = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return coded + b"0\r\n\r\n" if last else coded


# deadlines


class Waiting(NamedTuple):
    """What a connection waits for. Times are seconds of the loop's clock."""

    phase: Phase
    last_active: float
    head_since: float  # when the head that is being read began; 0: it has not
    ended: bool  # the client says nothing more
    owed: bool  # the client has not taken all that it was given
    reads_body: bool  # and has room for more of it


class Times(NamedTuple):
    """How long a client may take, in seconds."""

    head_s: float
    idle_s: float
    close_s: float


def half_closed_s(phase: Phase, times: Times, *, owed: bool) -> float:
    """How long a client that says nothing more waits for another piece: one that has gone away from a stream looks the
    same, and the stream's source should end."""
    if owed:
        return times.idle_s
    return min(SILENT_STREAM_S, times.close_s) if phase is Phase.RESPONDING else times.close_s


def due(waiting: Waiting, times: Times) -> float | None:
    """When the connection is to be closed if nothing happens; None if it waits for us."""
    active = waiting.last_active
    if waiting.ended:  # nobody may be there any more
        return active + half_closed_s(waiting.phase, times, owed=waiting.owed)
    if waiting.owed:  # a reader that has stalled, whatever it is owed
        return active + times.idle_s
    if waiting.phase is Phase.CLOSING:
        return active + times.close_s
    if waiting.phase is Phase.IDLE:
        return waiting.head_since + times.head_s if waiting.head_since else active + times.idle_s
    return active + BODY_IDLE_S if waiting.reads_body else None
