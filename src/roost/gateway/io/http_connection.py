"""A connection while it speaks HTTP/1.1: requests in, one at a time; responses out. After a 101 it is a `Connection`.

What may follow what is decided in `protocol.http_server`; here bytes are moved. Pipelined requests wait in `_queue`, which
one read bounds, because reading stops while it holds any. Bodies stream both ways under the link's window
(`BODY_WINDOW_BYTES`). Requests that cannot be trusted are refused and the connection is closed: nothing after them is read
as HTTP again (RFC 9112 §11.2). `http_answers` has the answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from roost.errors import RemoteProtocolError
from roost.events import BODY_WINDOW_BYTES, BodyCredit, BodyData, Headers, Request, Response
from roost.gateway.io.channel import Backlog
from roost.gateway.io.connection import Connection
from roost.gateway.io.http_answers import HttpAnswers
from roost.gateway.io.reactor import READ, WRITE
from roost.protocol.deflate import agree
from roost.protocol.handshake import accept_key, check_handshake, wants_websocket
from roost.protocol.http import (
    Data,
    EndOfMessage,
    HttpEvent,
    RequestHead,
    encode_head,
    get_header,
    has_token,
)
from roost.protocol.http_server import (
    NOT_IN_101,
    UNFRAMED,
    Phase,
    Times,
    Waiting,
    check_body,
    due,
    half_closed_s,
    only_websocket,
    with_path,
)

if TYPE_CHECKING:
    from roost.gateway.io.owner import Owner

_EARLY_BYTES: Final = 64 * 1024  # what a client may send before its 101
_LINGER_BYTES: Final = 4 * 1024 * 1024  # read and dropped after an early answer, so that it is not lost to a reset


class HttpState(msgspec.Struct, array_like=True):
    """A client between two requests, for another process."""

    fd: int
    peer: str
    scheme: str


class HttpConnection(HttpAnswers):
    """One client's HTTP side."""

    __slots__ = ()

    # in

    def ready(self, mask: int) -> None:
        if mask & WRITE:
            self._last_active = self.turn.loop.time()
            self.writable()
            if self._file is not None:
                self._send_file()
            if self.fd < 0 or mask == WRITE:
                return
        data = self.read_bytes()
        if data == b"":
            self._end_of_input()
        elif data is not None:
            self._received(data)

    def _end_of_input(self) -> None:
        """The client's half of the stream is over (RFC 9112 §9.6). What it has asked for is answered, within the time that
        a closing handshake may take: nobody can tell a client that waits from one that has gone."""
        if self._ended or self._reading_body or not (self._head is not None or self._queue or type(self.out) is Backlog):
            self.lost()
            return
        self._ended = True
        self._last_active = self.turn.loop.time()
        self.rewatch()
        owed = self.out is not None or self._file is not None
        self.turn.look_again(self.number, half_closed_s(self._phase, self._times, owed=owed))

    def _received(self, data: bytes) -> None:
        if self._phase is Phase.CLOSING:  # refused or finished: what follows is not a request
            self._body_bytes += len(data)
            if self._body_bytes > _LINGER_BYTES:
                self.close_fd()
            return
        if self._phase is Phase.UPGRADING:
            self._early += data
            if len(self._early) > _EARLY_BYTES:
                self._abort("Too much was sent before the WebSocket was open.")
            return
        now = self.turn.loop.time()
        if self._head is None and not self._queue and self._head_since == 0.0:
            self._head_since = now
        self._last_active = now
        fault: RemoteProtocolError | None = None
        try:
            self._parser.feed(data)
        except RemoteProtocolError as error:
            fault = error
        self._queue.extend(self._parser.events)
        self._parser.events.clear()
        self._advance()
        if fault is not None and self.fd >= 0:
            if self._head is None:
                self._refuse(fault.code, fault.reason)
            else:  # its predecessor is still being answered, or its own body is broken
                self._abort(fault.reason)

    def _advance(self) -> None:
        """Take from the queue what can be taken now."""
        queue = self._queue
        while queue and self.fd >= 0:
            if self._reading_body:
                self._body(queue.popleft())
            elif self._phase is Phase.IDLE and type(self.out) is not Backlog:
                head = queue.popleft()
                assert type(head) is RequestHead
                self._begin(head)
            else:
                break
        if self.fd >= 0:
            self._hold_or_read()

    def _hold_or_read(self) -> None:
        hold = bool(self._queue) or self._uncredited >= BODY_WINDOW_BYTES
        held_back = self.turn.held_back
        if hold != (self.number in held_back):
            (held_back.add if hold else held_back.discard)(self.number)
            self.rewatch()

    def wanted(self) -> int:
        owed = WRITE if self._file is not None else 0
        if self._ended:
            return owed
        if self.number in self.turn.held_back or (self.turn.quiescing and self.between_requests):
            return owed
        return READ | owed

    def _begin(self, head: RequestHead) -> None:
        self._phase = Phase.REQUEST
        self._head = head
        self._head_since = 0.0
        self._close_after = not head.keep_alive
        self._framing = UNFRAMED
        self._left = -1
        self._request = self._uncredited = self._unsent = 0
        body = self._take_body()
        turn = self.turn
        turn.counters.requests += 1
        upgrade = wants_websocket(head)
        peer, scheme = turn.access.client(self.peer, self.scheme, head.fields)
        try:
            if upgrade:
                self._key = check_handshake(head)
                self._check_origin(head)
            self._check_body(head, upgrade=upgrade)
            self._head, url = with_path(head, scheme)
        except RemoteProtocolError as error:
            if upgrade:
                turn.counters.refused_handshakes += 1
            self._refuse(error.code, error.reason, [("Sec-WebSocket-Version", "13")] if error.code == 426 else None)
            return
        head = self._head
        if head.upgrade and not upgrade:
            self._close_after = True  # another protocol was offered; what follows the head is not ours to read
            if "content-length" in head.fields or "transfer-encoding" in head.fields:
                self._refuse(400, "A request with a body cannot offer another protocol here.")
                return
        if upgrade:
            self._phase = Phase.UPGRADING
        elif self._serve_asset(head):
            return
        if self._reading_body and has_token(head.fields.get("expect"), "100-continue"):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._uncredited = len(body) if self._reading_body else 0
        self._request = turn.requests.new_request(self)
        turn.requests.request(
            Request(
                self._request,
                head.method,
                url,
                only_websocket(head.headers) if upgrade and "," in head.fields["upgrade"] else head.headers,
                body,
                self._reading_body,
                upgrade,
                self.number if upgrade else 0,
                peer,
            )
        )

    def _take_body(self) -> bytes:
        """What has come of the body of a request that begins."""
        body = b""
        while self._queue and type(self._queue[0]) is Data:
            piece = self._queue.popleft()
            body += piece.data  # type: ignore[union-attr]
        complete = bool(self._queue) and type(self._queue[0]) is EndOfMessage
        if complete:
            self._queue.popleft()
        self._reading_body = not complete
        self._body_bytes = len(body)
        return body

    def _check_body(self, head: RequestHead, *, upgrade: bool) -> None:
        try:
            check_body(head, self.turn.limits.max_body_bytes, upgrade=upgrade)
        except RemoteProtocolError as error:
            self.turn.counters.refused_body += error.code == 413
            raise

    def _check_origin(self, head: RequestHead) -> None:
        if not self.turn.access.origin_allowed(head.fields):
            self.turn.counters.refused_origin += 1
            raise RemoteProtocolError(
                403, f"The origin {head.fields.get('origin')!r} may not connect (network.allowed_origins)."
            )

    def _body(self, event: HttpEvent) -> None:
        if type(event) is Data:
            self._body_bytes += len(event.data)
            if self._body_bytes > self.turn.limits.max_body_bytes:
                self.turn.counters.refused_body += 1
                self._abort(f"The body exceeds {self.turn.limits.max_body_bytes} bytes.", status=413)
                return
            self._uncredited += len(event.data)
            if self._request:
                self.turn.requests.to_host(self._request, BodyData(self._request, event.data, last=False))
        elif type(event) is EndOfMessage:
            self._reading_body = False
            if self._request:
                self.turn.requests.to_host(self._request, BodyData(self._request, b"", last=True))
            if self._phase is Phase.IDLE:
                self._advance_later()

    def on_credit(self, event: BodyCredit) -> None:
        """The host has consumed so much of the request's body."""
        self._uncredited -= event.size
        if self.fd >= 0:
            self._hold_or_read()

    @property
    def _is_plain(self) -> bool:
        return type(self) is HttpConnection

    # becoming a WebSocket

    def upgraded(self, response: Response) -> bytes:
        """The head of a 101, after which this connection is a WebSocket's. Returns what the client already sent."""
        fields: Headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_key(self._key)),
        ]
        assert self._head is not None
        fields += [(name, value) for name, value in response.headers if name.lower() not in NOT_IN_101]
        offered = self._head.fields.get("sec-websocket-extensions")
        if offered is not None and self.turn.limits.compression:
            self._deflate, agreed = agree(offered, get_header(response.headers, "sec-websocket-extensions"))
            if self._deflate:
                fields.append(("Sec-WebSocket-Extensions", agreed))
        self.write(encode_head(101, "Switching Protocols", fields))  # raises before anything has changed
        self.turn.log_request(self._head.method, self._head.target, 101)
        self._request_over()
        self._parser.close()
        return self._parser.leftover + self._early

    def websocket(self, number: int, owner: Owner) -> Connection:
        """The WebSocket that this connection becomes; the caller puts it in its place."""
        return self.as_websocket(Connection(self.turn, self.fd, number, owner))

    def as_websocket(self, connection: Connection) -> Connection:
        """What was agreed on in the handshake."""
        connection.deflate = self._deflate
        connection.out = self.out
        return connection

    def is_replaced(self) -> None:
        """Its descriptor is a WebSocket's."""
        self.fd = -1
        self._phase = Phase.GONE
        self._head = None

    @property
    def is_half_closed(self) -> bool:
        """The client says nothing more."""
        return self._ended

    @property
    def between_requests(self) -> bool:
        """Nothing has begun and nothing is owed."""
        return self._parser.between and not (self.busy or self._queue or self._close_after)

    def described(self) -> HttpState:
        """All that a successor must know of it, between two requests."""
        return HttpState(self.fd, self.peer, self.scheme)

    # time

    @property
    def _times(self) -> Times:
        limits = self.turn.limits
        return Times(limits.head_timeout_s, limits.idle_timeout_s, limits.close_timeout_s)

    def expire(self, now: float) -> float | None:
        """Close what takes too long; the next time to look, or None if this was the end."""
        owed = self._file is not None or (self.out is not None if self._ended else type(self.out) is Backlog)
        reads_body = self._reading_body and self._uncredited < BODY_WINDOW_BYTES
        waiting = Waiting(self._phase, self._last_active, self._head_since, self._ended, owed, reads_body)
        due_at = due(waiting, self._times)
        if due_at is None:
            return now + self.turn.limits.head_timeout_s
        if due_at > now:
            return due_at
        if self._phase is Phase.IDLE and self._head_since:
            self.turn.counters.closed_head_timeout += 1
        self.lost()
        return None
