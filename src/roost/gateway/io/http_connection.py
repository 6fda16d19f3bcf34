"""A connection while it speaks HTTP/1.1: requests in, one at a time; responses out. After a 101 it is a `Connection`.

Pipelined requests wait in `_queue`, which one read bounds, because reading stops while it holds any. Bodies stream both
ways under the link's window (`BODY_WINDOW_BYTES`). Requests that cannot be trusted are refused and the connection is
closed: nothing after them is read as HTTP again (RFC 9112 §11.2).
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from roost.errors import RemoteProtocolError
from roost.events import BODY_WINDOW_BYTES, Abort, BodyCredit, BodyData, Headers, Request, Response
from roost.gateway.io.connection import Backlog, Channel, Connection, shut_down_writing
from roost.gateway.io.file_body import FileBody
from roost.gateway.io.reactor import READ, WRITE
from roost.protocol.deflate import agree
from roost.protocol.http import (
    Data,
    EndOfMessage,
    HttpEvent,
    RequestHead,
    RequestParser,
    accept_key,
    check_handshake,
    encode_head,
    get_header,
    has_token,
    is_host,
    simple_response,
    wants_websocket,
)

if TYPE_CHECKING:
    from roost.gateway.gateway import Gateway
    from roost.gateway.routing.sockets import Owner

_NOT_FROM_WORKERS: Final = frozenset({"connection", "upgrade", "sec-websocket-accept", "keep-alive", "transfer-encoding"})
_NOT_IN_101: Final = _NOT_FROM_WORKERS | {"content-length", "sec-websocket-extensions"}
_SILENT_STREAM_S: Final = 1.0
_ABSOLUTE: Final = re.compile(r"(?:https?|wss?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_LONGEST_NUMBER: Final = 18  # digits
_EARLY_BYTES: Final = 64 * 1024  # what a client may send before its 101
_LINGER_BYTES: Final = 4 * 1024 * 1024  # read and dropped after an early answer, so that it is not lost to a reset
_BODY_IDLE_S: Final = 60.0  # a body that makes no progress for so long ends its request


class HttpConnection(Channel):
    """One client's HTTP side. `peer` is its address as text."""

    __slots__ = (
        "_body_bytes",
        "_chunked",
        "_close_after",
        "_deflate",
        "_early",
        "_ended",
        "_file",
        "_head",
        "_head_since",
        "_key",
        "_last_active",
        "_left",
        "_lingering",
        "_parser",
        "_queue",
        "_reading_body",
        "_request",
        "_responding",
        "_uncredited",
        "_unsent",
        "peer",
        "scheme",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, fd: int, number: int, peer: str) -> None:
        super().__init__(gateway, fd, number)
        self.peer = peer
        self.scheme = "http"
        self._parser = RequestParser(gateway.limits.head)
        self._queue: deque[HttpEvent] = deque()
        self._head: RequestHead | None = None  # of the request under way
        self._key = ""  # of its WebSocket handshake
        self._request = 0  # its number on the link; 0: the gateway answers by itself
        self._reading_body = False
        self._body_bytes = 0
        self._uncredited = 0  # body bytes given to the host that it has not consumed
        self._responding = False  # a response head has been written
        self._chunked = False
        self._close_after = False
        self._lingering = False  # answered and half-closed; what still comes is dropped
        self._left = -1  # body bytes that the response's Content-Length still promises; -1: not promised
        self._deflate = 0  # the window that its client was promised; see Connection
        self._early = b""  # after an upgrade's head, before its 101
        self._unsent = 0  # response body bytes not yet credited to the host
        self._file: FileBody | None = None  # what is being sent of a static file
        self._ended = False  # the client says nothing more; what it has asked for is answered
        self._head_since = self._last_active = gateway.loop.time()

    # in

    def ready(self, mask: int) -> None:
        if mask & WRITE:
            self._last_active = self.gateway.loop.time()
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
        self._last_active = self.gateway.loop.time()
        self.gateway.rewatch(self)
        self.gateway.look_again(self, self._half_closed_s)

    @property
    def _half_closed_s(self) -> float:
        """How long a client that says nothing more waits for another piece: one that has gone away from a stream looks the
        same, and the stream's source should end."""
        limits = self.gateway.limits
        if self.out is not None or self._file is not None:  # it has not taken what it is owed
            return limits.idle_timeout_s
        return min(_SILENT_STREAM_S, limits.close_timeout_s) if self._responding else limits.close_timeout_s

    def _received(self, data: bytes) -> None:
        if self._close_after and self._head is None:
            self._body_bytes += len(data)
            if self._body_bytes > _LINGER_BYTES:
                self.close_fd()
            return  # refused or finished: what follows is not a request
        if self._key:
            self._early += data
            if len(self._early) > _EARLY_BYTES:
                self._abort("Too much was sent before the WebSocket was open.")
            return
        now = self.gateway.loop.time()
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
            elif self._head is None and not self._close_after and type(self.out) is not Backlog:
                head = queue.popleft()
                assert type(head) is RequestHead
                self._begin(head)
            else:
                break
        if self.fd >= 0:
            self._hold_or_read()

    def _hold_or_read(self) -> None:
        hold = bool(self._queue) or self._uncredited >= BODY_WINDOW_BYTES
        held = self.number in self.gateway.router.held_back
        if hold != held:
            (self.gateway.router.held_back.add if hold else self.gateway.router.held_back.discard)(self.number)
            self.gateway.rewatch(self)

    def wanted(self) -> int:
        owed = WRITE if self._file is not None else 0
        if self._ended:
            return owed
        if self.number in self.gateway.router.held_back or (self.gateway.quiescing and self.between_requests):
            return owed
        return READ | owed

    def _begin(self, head: RequestHead) -> None:
        self._head = head
        self._head_since = 0.0
        self._close_after = not head.keep_alive
        self._responding = self._chunked = False
        self._left = -1
        self._key = ""
        self._request = self._body_bytes = self._uncredited = self._unsent = 0
        body = b""
        while self._queue and type(self._queue[0]) is Data:
            piece = self._queue.popleft()
            body += piece.data  # type: ignore[union-attr]
        complete = bool(self._queue) and type(self._queue[0]) is EndOfMessage
        if complete:
            self._queue.popleft()
        self._reading_body = not complete
        self._body_bytes = len(body)
        self.gateway.counters.requests += 1
        upgrade = wants_websocket(head)
        peer, scheme = self.gateway.access.client(self.peer, self.scheme, head.fields)
        try:
            if upgrade:
                self._key = check_handshake(head)
                self._check_origin(head)
            self._check_body(head, upgrade=upgrade)
            head, url = self._with_path(head, scheme)
        except RemoteProtocolError as error:
            if upgrade:
                self.gateway.counters.refused_handshakes += 1
            self._refuse(error.code, error.reason, [("Sec-WebSocket-Version", "13")] if error.code == 426 else None)
            return
        if head.upgrade and not upgrade:
            self._close_after = True  # another protocol was offered; what follows the head is not ours to read
            if "content-length" in head.fields or "transfer-encoding" in head.fields:
                self._refuse(400, "A request with a body cannot offer another protocol here.")
                return
        if not upgrade and self._serve_asset(head):
            return
        if self._reading_body and has_token(head.fields.get("expect"), "100-continue"):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._uncredited = len(body) if self._reading_body else 0
        self._request = self.gateway.router.exchanges.new_request(self)
        self.gateway.router.exchanges.request(
            Request(
                self._request,
                head.method,
                url,
                _only_websocket(head.headers) if upgrade and "," in head.fields["upgrade"] else head.headers,
                body,
                self._reading_body,
                upgrade,
                self.number if upgrade else 0,
                peer,
            )
        )

    def _serve_asset(self, head: RequestHead) -> bool:
        assets = self.gateway.assets
        if assets is None or not assets.before_worker(head.target):
            return False
        found = assets.look_up(head.method, head.target, head.fields)
        if found is None:
            return False
        answer = list(found.headers)
        if found.status != 304:
            answer.append(("Content-Length", str(found.size or len(found.body))))
        if self._close_after or self._reading_body:
            answer.append(("Connection", "close"))
        try:
            data = encode_head(found.status, "", answer)
        except ValueError as error:
            self.gateway.log_worker_fault(head.target, f"the answer of a file cannot be sent: {error}")
            self._refuse(500, "Internal Server Error")
            return True
        if not found.path or head.method == "HEAD":
            self.answer(data + (b"" if head.method == "HEAD" else found.body), found.status)
            return True
        try:
            self._file = FileBody(found.path, found.offset, found.size)
        except OSError as error:
            self.gateway.log_worker_fault(head.target, f"{found.path} cannot be read: {error}")
            self._refuse(500, "Internal Server Error")
            return True
        self._responding = True
        self.gateway.log_request(head.method, head.target, found.status)
        self.write(data)  # the file follows once that has left (`drained`)
        return True

    def _send_file(self) -> None:
        """The next window of a file's body, which leaves when the kernel takes it."""
        file = self._file
        if file is None or self.out is not None or self.fd < 0:
            return
        try:
            took = file.send(self, plain=type(self) is HttpConnection)
        except OSError:
            self.lost()
            return
        if took:
            self._last_active = self.gateway.loop.time()
        if self.fd < 0 or self._file is not file:
            return  # the channel was flushed, and everything has happened
        if file.is_sent and self.out is None:
            self._file_sent()
        else:
            self.gateway.rewatch(self)

    def _file_sent(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self.gateway.rewatch(self)
            self._write_body(b"", b"", last=True)

    def _check_body(self, head: RequestHead, *, upgrade: bool) -> None:
        coding = head.fields.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":  # RFC 9112 §6.1
            raise RemoteProtocolError(501, f"The transfer coding {coding[:60]!r} is not known here.")
        length = head.fields.get("content-length")
        if length is not None and (not length.isdigit() or len(length) > _LONGEST_NUMBER):
            raise RemoteProtocolError(400, "The Content-Length is not a number of bytes.")
        if upgrade and (coding is not None or (length is not None and int(length))):
            raise RemoteProtocolError(400, "WebSocket handshake failed: it must not have a body.")
        if length is not None and int(length) > self.gateway.limits.max_body_bytes:
            self.gateway.counters.refused_body += 1
            raise RemoteProtocolError(413, f"The body exceeds {self.gateway.limits.max_body_bytes} bytes.")

    def _check_origin(self, head: RequestHead) -> None:
        if not self.gateway.access.origin_allowed(head.fields):
            self.gateway.counters.refused_origin += 1
            raise RemoteProtocolError(
                403, f"The origin {head.fields.get('origin')!r} may not connect (network.allowed_origins)."
            )

    def _with_path(self, head: RequestHead, scheme: str) -> tuple[RequestHead, str]:
        """The request with a path as its target, and its URL. The authority of an absolute target replaces Host; its scheme
        counts for nothing: that is the connection's (RFC 9112 §3.2.2)."""
        host = head.fields.get("host") or "localhost"
        absolute = _ABSOLUTE.match(head.target)
        if absolute is not None:
            host = absolute[1]
            headers = [(name, host if name.lower() == "host" else value) for name, value in head.headers]
            path = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"
            fields = {**head.fields, "host": host}
            head = msgspec.structs.replace(head, target=path, headers=headers, fields=fields)
            self._head = head
        elif not head.target.startswith("/") and head.target != "*":
            raise RemoteProtocolError(400, "The request target must be a path or an absolute URL.")
        if not is_host(host):
            raise RemoteProtocolError(400, "The Host header (or the target's) is not a host and port.")
        return head, f"{scheme}://{host}{head.target if head.target != '*' else '/*'}"

    def _body(self, event: HttpEvent) -> None:
        if type(event) is Data:
            self._body_bytes += len(event.data)
            if self._body_bytes > self.gateway.limits.max_body_bytes:
                self.gateway.counters.refused_body += 1
                self._abort(f"The body exceeds {self.gateway.limits.max_body_bytes} bytes.", status=413)
                return
            self._uncredited += len(event.data)
            if self._request:
                self.gateway.router.exchanges.to_host(self._request, BodyData(self._request, event.data, last=False))
        elif type(event) is EndOfMessage:
            self._reading_body = False
            if self._request:
                self.gateway.router.exchanges.to_host(self._request, BodyData(self._request, b"", last=True))
            self._finish_if_done()

    # out

    def on_response(self, response: Response) -> None:
        """The worker's answer. With 101, `router` has bound the socket already and calls `upgraded` instead."""
        head = self._head
        if head is None:
            return
        fields: Headers = [(name, value) for name, value in response.headers if name.lower() not in _NOT_FROM_WORKERS]
        bodiless = head.method == "HEAD" or response.status in (204, 304) or response.status < 200
        last = not response.more_body
        if bodiless and response.more_body:  # a stream that nobody may see
            self.gateway.router.exchanges.to_host(self._request, Abort(self._request, "The response has no body."))
            last = True
        self._frame_body(head, response, fields, bodiless=bodiless)
        if self._reading_body or self.gateway.draining:
            self._close_after = True  # answered before the whole body was read: the rest is not waited for
        if self._close_after:
            fields.append(("Connection", "close"))
        fields.append(("Date", self.gateway.http_date()))
        try:
            data = encode_head(response.status, response.reason, fields)
        except ValueError as error:
            self.gateway.log_worker_fault(head.target, str(error))
            self.gateway.router.exchanges.to_host(self._request, Abort(self._request, "The response cannot be sent."))
            self.refuse(500, "Internal Server Error")
            return
        self._responding = True
        self.gateway.log_request(head.method, head.target, response.status)
        self._write_body(data, b"" if bodiless else response.body, last=last)

    def _frame_body(self, head: RequestHead, response: Response, fields: Headers, *, bodiless: bool) -> None:
        """Say where the body ends (RFC 9112 §6.3): a length, chunks, or for HTTP/1.0 the end of the connection."""
        length = get_header(fields, "content-length")
        if response.more_body and not bodiless and length is not None and length.isdigit():
            self._left = int(length)
            return
        if head.method == "HEAD" and length is not None:
            return
        fields[:] = [field for field in fields if field[0].lower() != "content-length"]
        if response.status in (204, 304) or response.status < 200:
            return
        if not response.more_body:
            fields.append(("Content-Length", str(len(response.body))))
        elif head.version == "1.1":
            fields.append(("Transfer-Encoding", "chunked"))
            self._chunked = not bodiless
        else:
            self._close_after = True

    def on_body(self, event: BodyData) -> None:
        """The next piece of the response."""
        if self._head is not None and self._responding:
            self._unsent += len(event.data)
            if self._ended:
                self._last_active = self.gateway.loop.time()
            if self._left >= 0:
                self._left -= len(event.data)
                if self._left < 0 or (event.last and self._left):
                    self.gateway.log_worker_fault(self._head.target, "the body is not as long as its Content-Length says")
                    self._abort("The response's body and Content-Length differ.")
                    return
            self._write_body(b"", event.data, last=event.last)

    def _write_body(self, prefix: bytes, data: bytes, *, last: bool) -> None:
        if self._chunked:
            if data:
                prefix += b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                prefix += b"0\r\n\r\n"
        else:
            prefix += data
        if prefix:
            self.write(prefix)
        if last:
            self._request_over()
            self._uncredited = 0
            self._lingering = self._reading_body
            if not self._close_after and not self._reading_body:
                self._head = None
                self._advance_later()
            else:
                self._head = None
                self._queue.clear()
                self._reading_body = False
                self._close_after = True
                if self.out is None:
                    self.drained()

    def _finish_if_done(self) -> None:
        if self._head is None and not self._close_after:
            self._advance_later()

    def _advance_later(self) -> None:
        self._head_since = 0.0
        self._last_active = self.gateway.loop.time()
        if self._queue:
            if type(self.out) is not Backlog:  # else `drained` goes on
                self.gateway.again.append(self)
        elif self._ended:
            if self.out is None:
                self.close_fd()
        else:
            self._hold_or_read()
            if self.gateway.quiescing:
                self.gateway.rewatch(self)

    def again(self) -> None:
        """A pipelined request waited for its predecessor's response."""
        if self.fd >= 0:
            self._advance()

    def on_credit(self, event: BodyCredit) -> None:
        """The host has consumed so much of the request's body."""
        self._uncredited -= event.size
        if self.fd >= 0:
            self._hold_or_read()

    def on_abort(self, event: Abort) -> None:
        """The host gave up: 502 if nothing was sent yet, else the only honest end is a cut."""
        if self._head is None:
            return
        self._request_over()
        if self._responding:
            self.flush()  # what the client was told so far, it may have
            self.close_fd()
        else:
            self._refuse(502, event.reason)

    def upgraded(self, response: Response) -> bytes:
        """The head of a 101, after which this connection is a WebSocket's. Returns what the client already sent."""
        fields: Headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_key(self._key)),
        ]
        assert self._head is not None
        fields += [(name, value) for name, value in response.headers if name.lower() not in _NOT_IN_101]
        offered = self._head.fields.get("sec-websocket-extensions")
        if offered is not None and self.gateway.limits.compression:
            self._deflate, agreed = agree(offered, get_header(response.headers, "sec-websocket-extensions"))
            if self._deflate:
                fields.append(("Sec-WebSocket-Extensions", agreed))
        self.write(encode_head(101, "Switching Protocols", fields))  # raises before anything has changed
        self.gateway.log_request(self._head.method, self._head.target, 101)
        self._request_over()
        self._parser.close()
        return self._parser.leftover + self._early

    def websocket(self, number: int, owner: Owner) -> Connection:
        """The WebSocket that this connection becomes; the caller puts it in its place."""
        return self.as_websocket(Connection(self.gateway, self.fd, number, owner))

    def as_websocket(self, connection: Connection) -> Connection:
        """What was agreed on in the handshake."""
        connection.deflate = self._deflate
        return connection

    @property
    def is_half_closed(self) -> bool:
        """The client says nothing more."""
        return self._ended

    @property
    def between_requests(self) -> bool:
        """Nothing has begun and nothing is owed."""
        return self._parser.between and not (self.busy or self._queue or self._close_after)

    def cut(self, reason: str) -> None:
        """End now, whatever is under way: a request that was not answered gets 502."""
        if self._request:
            self.gateway.router.exchanges.to_host(self._request, Abort(self._request, reason))
            if not self._responding:
                self.refuse(502, reason)
        self.flush()
        self.lost()

    @property
    def busy(self) -> bool:
        """A request is under way, or its response has not wholly left."""
        return self._head is not None or self.out is not None or self._file is not None

    def answer(self, data: bytes, status: int) -> None:
        """The gateway's own whole response (a static file) to the request under way."""
        assert self._head is not None
        self.gateway.log_request(self._head.method, self._head.target, status)
        self._close_after = self._close_after or self._reading_body
        self._chunked = False
        self._write_body(data, b"", last=True)

    # ends

    def refuse(self, status: int, reason: str, headers: Headers | None = None) -> None:
        """The gateway's own answer to the request under way, in place of a host's."""
        self._request_over()
        self._refuse(status, reason, headers)

    def _refuse(self, status: int, reason: str, headers: Headers | None = None) -> None:
        if self._head is not None:
            self.gateway.log_request(self._head.method, self._head.target, status)
        if status in (400, 426, 431, 413, 505):
            self.gateway.counters.closed_head_limit += status == 431
        body_free = self._head is not None and self._head.method == "HEAD"
        answer = simple_response(status, reason + "\n", headers, close=True)
        if body_free:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._head = None
        self._key = ""
        self._queue.clear()
        self._reading_body = False
        self._close_after = self._lingering = True
        self._body_bytes = 0
        self._last_active = self.gateway.loop.time()
        self.write(answer)

    def _abort(self, reason: str, status: int = 400) -> None:
        if self._request:
            self.gateway.router.exchanges.to_host(self._request, Abort(self._request, reason))
        self._request_over()
        if self._responding:
            self.close_fd()
        else:
            self._refuse(status, reason)

    def _request_over(self) -> None:
        if self._request:
            self.gateway.router.exchanges.request_over(self._request)
            self._request = 0

    def drained(self) -> None:
        if self._unsent and self._request:
            self.gateway.router.exchanges.to_host(self._request, BodyCredit(self._request, self._unsent))
            self._unsent = 0
        if self._file is not None:
            if self._file.is_sent:
                self._file_sent()
            else:
                self.gateway.rewatch(self)  # the next window in a turn of its own: others are to come in between
            return
        if self._head is None and self._queue and not self._close_after:  # the next one waited for this
            self.gateway.again.append(self)
            return
        if self._ended and self._head is None and not self._queue:
            self.close_fd()
            return
        if self._head is not None or not self._close_after:
            return
        if self._lingering:
            shut_down_writing(self.fd)  # and read on, until their end or the deadline
            self._hold_or_read()
        else:
            self.close_fd()

    def overflowed(self, data: bytes) -> None:
        assert type(self.out) is Backlog
        self.out.add(data)  # bounded by the body window, not here

    def lost(self) -> None:
        if self._request:
            self.gateway.router.exchanges.to_host(self._request, Abort(self._request, "The client disconnected."))
            self._request_over()
        self.close_fd()

    def close_fd(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.fd >= 0:
            self._parser.close()
        super().close_fd()

    def expire(self, now: float) -> float | None:
        """Close what takes too long; the next time to look, or None if this was the end."""
        limits = self.gateway.limits
        if self._ended:  # nobody may be there any more
            due = self._last_active + self._half_closed_s
        elif type(self.out) is Backlog or self._file is not None:  # a reader that has stalled, whatever it is owed
            due = self._last_active + limits.idle_timeout_s
        elif self._head is None and self._close_after:
            due = self._last_active + limits.close_timeout_s
        elif self._head is None and self._head_since:
            due = self._head_since + limits.head_timeout_s
        elif self._head is None:
            due = self._last_active + limits.idle_timeout_s
        elif self._reading_body and self._uncredited < BODY_WINDOW_BYTES:
            due = self._last_active + _BODY_IDLE_S
        else:
            return now + limits.head_timeout_s
        if due > now:
            return due
        if self._head is None and self._head_since:
            self.gateway.counters.closed_head_timeout += 1
        self.lost()
        return None


def _only_websocket(headers: Headers) -> Headers:
    """The protocol that was taken of several offered, so that a worker may compare the field as it is used to."""
    return [(name, "websocket" if name.lower() == "upgrade" else value) for name, value in headers]
