"""The answers of an HTTP/1.1 connection: a host's, a file's or the gateway's own, and how the connection ends.

`http_connection` has the requests. Bodies leave under the link's window: what the client has taken is credited to its host.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from roost.events import Abort, BodyCredit, BodyData, Headers, Response
from roost.gateway.io.channel import Backlog, Channel, shut_down_writing
from roost.gateway.io.file_body import FileBody
from roost.protocol.http import HttpEvent, RequestHead, RequestParser, encode_head, simple_response
from roost.protocol.http_server import (
    NOT_FROM_WORKERS,
    UNFRAMED,
    Phase,
    chunk,
    frame_body,
    has_no_body,
)

if TYPE_CHECKING:
    from roost.gateway.io.turn import Turn


class HttpAnswers(Channel):
    """The answering half of an `HttpConnection`, with the state of both. `peer` is the client's address as text."""

    __slots__ = (
        "_body_bytes", "_close_after", "_deflate", "_early", "_ended", "_file", "_framing", "_head", "_head_since", "_key",
        "_last_active", "_left", "_lingering", "_parser", "_phase", "_queue", "_reading_body", "_request", "_uncredited",
        "_unsent", "peer", "scheme",
    )  # fmt: skip

    def __init__(self, turn: Turn, fd: int, number: int, peer: str) -> None:
        super().__init__(turn, fd, number)
        self.peer = peer
        self.scheme = "http"
        self._parser = RequestParser(turn.limits.head)
        self._queue: deque[HttpEvent] = deque()
        self._phase = Phase.IDLE
        self._head: RequestHead | None = None  # of the request under way
        self._key = ""  # of its WebSocket handshake
        self._request = 0  # its number on the link; 0: the gateway answers by itself
        self._reading_body = False
        self._body_bytes = 0
        self._uncredited = 0  # body bytes given to the host that it has not consumed
        self._framing = UNFRAMED
        self._left = -1  # body bytes that the response's Content-Length still promises; -1: not promised
        self._close_after = False  # this answer is the last
        self._lingering = False  # half-close after it, and drop what still comes
        self._deflate = 0  # the window that its client was promised; see Connection
        self._early = b""  # after an upgrade's head, before its 101
        self._unsent = 0  # response body bytes not yet credited to the host
        self._file: FileBody | None = None  # what is being sent of a static file
        self._ended = False  # the client says nothing more; what it has asked for is answered
        self._head_since = self._last_active = turn.loop.time()

    def _advance(self) -> None:
        """Take from the queue what can be taken now."""
        raise NotImplementedError

    def _hold_or_read(self) -> None:
        """Read on, or not, as there is room for what comes."""
        raise NotImplementedError

    @property
    def _is_plain(self) -> bool:
        """Whether what is written is what leaves: a file's bytes then need not pass through this process."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """A request is under way, or its response has not wholly left."""
        return self._head is not None or self.out is not None or self._file is not None

    # static files

    def _serve_asset(self, head: RequestHead) -> bool:
        assets = self.turn.assets
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
            self.turn.log_worker_fault(head.target, f"the answer of a file cannot be sent: {error}")
            self._refuse(500, "Internal Server Error")
            return True
        if not found.path or head.method == "HEAD":
            self.answer(data + (b"" if head.method == "HEAD" else found.body), found.status)
            return True
        try:
            self._file = FileBody(found.path, found.offset, found.size)
        except OSError as error:
            self.turn.log_worker_fault(head.target, f"{found.path} cannot be read: {error}")
            self._refuse(500, "Internal Server Error")
            return True
        self._phase = Phase.RESPONDING
        self.turn.log_request(head.method, head.target, found.status)
        self.write(data)  # the file follows once that has left (`drained`)
        return True

    def _send_file(self) -> None:
        """The next window of a file's body, which leaves when the kernel takes it."""
        file = self._file
        if file is None or self.out is not None or self.fd < 0:
            return
        try:
            took = file.send(self, plain=self._is_plain)
        except OSError:
            self.lost()
            return
        if took:
            self._last_active = self.turn.loop.time()
        if self.fd < 0 or self._file is not file:
            return  # the channel was flushed, and everything has happened
        if file.is_sent and self.out is None:
            self._file_sent()
        else:
            self.rewatch()

    def _file_sent(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self.rewatch()
            self._write_body(b"", b"", last=True)

    # out

    def on_response(self, response: Response) -> None:
        """The worker's answer. With 101, `upgrades` has bound the socket already and calls `upgraded` instead."""
        head = self._head
        if head is None:
            return
        fields: Headers = [field for field in response.headers if field[0].lower() not in NOT_FROM_WORKERS]
        bodiless = has_no_body(head.method, response.status)
        last = not response.more_body
        if bodiless and response.more_body:  # a stream that nobody may see
            self.turn.requests.to_host(self._request, Abort(self._request, "The response has no body."))
            last = True
        size = None if response.more_body else len(response.body)
        self._framing = frame_body(head, response.status, size, fields, bodiless=bodiless)
        self._left = self._framing.left
        sent_early = self._phase is Phase.UPGRADING and (self._early or self._parser.leftover)
        if self._reading_body or self.turn.draining or self._framing.close_after or sent_early:
            self._close_after = True  # answered before all that the client sent was read: the rest is not waited for
        if self._close_after:
            fields.append(("Connection", "close"))
        fields.append(("Date", self.turn.http_date()))
        try:
            data = encode_head(response.status, response.reason, fields)
        except ValueError as error:
            self.turn.log_worker_fault(head.target, str(error))
            self.turn.requests.to_host(self._request, Abort(self._request, "The response cannot be sent."))
            self.refuse(500, "Internal Server Error")
            return
        self._phase = Phase.RESPONDING
        self.turn.log_request(head.method, head.target, response.status)
        self._write_body(data, b"" if bodiless else response.body, last=last)

    def on_body(self, event: BodyData) -> None:
        """The next piece of the response."""
        if self._head is not None and self._phase is Phase.RESPONDING:
            self._unsent += len(event.data)
            if self._ended:
                self._last_active = self.turn.loop.time()
            if self._left >= 0:
                self._left -= len(event.data)
                if self._left < 0 or (event.last and self._left):
                    self.turn.log_worker_fault(self._head.target, "the body is not as long as its Content-Length says")
                    self._abort("The response's body and Content-Length differ.")
                    return
            self._write_body(b"", event.data, last=event.last)

    def _write_body(self, prefix: bytes, data: bytes, *, last: bool) -> None:
        piece = prefix + (chunk(data, last=last) if self._framing.chunked else data)
        if piece:
            self.write(piece)
        if not last or self.fd < 0:
            return
        self._request_over()
        self._uncredited = 0
        self._lingering = self._reading_body
        if not self._close_after and not self._reading_body:
            self._phase = Phase.IDLE
            self._head = None
            self._advance_later()
        else:
            self._phase = Phase.CLOSING
            self._head = None
            self._queue.clear()
            self._reading_body = False
            self._close_after = True
            if self.out is None:
                self.drained()

    def _advance_later(self) -> None:
        self._head_since = 0.0
        self._last_active = self.turn.loop.time()
        if self._queue:
            if type(self.out) is not Backlog:  # else `drained` goes on
                self.turn.pipelined.append(self)
        elif self._ended:
            if self.out is None:
                self.close_fd()
        else:
            self._hold_or_read()
            if self.turn.quiescing:
                self.rewatch()

    def begin_pipelined(self) -> None:
        """A pipelined request waited for its predecessor's response."""
        if self.fd >= 0:
            self._advance()

    def on_abort(self, event: Abort) -> None:
        """The host gave up: 502 if nothing was sent yet, else the only honest end is a cut."""
        if self._head is None:
            return
        self._request_over()
        if self._phase is Phase.RESPONDING:
            self.flush()  # what the client was told so far, it may have
            self.close_fd()
        else:
            self._refuse(502, event.reason)

    def answer(self, data: bytes, status: int) -> None:
        """The gateway's own whole response (a static file) to the request under way."""
        assert self._head is not None
        self.turn.log_request(self._head.method, self._head.target, status)
        self._close_after = self._close_after or self._reading_body
        self._framing = UNFRAMED
        self._write_body(data, b"", last=True)

    # ends

    def cut(self, reason: str) -> None:
        """End now, whatever is under way: a request that was not answered gets 502."""
        if self._request:
            self.turn.requests.to_host(self._request, Abort(self._request, reason))
            if self._phase is not Phase.RESPONDING:
                self.refuse(502, reason)
        self.flush()
        self.lost()

    def refuse(self, status: int, reason: str, headers: Headers | None = None) -> None:
        """The gateway's own answer to the request under way, in place of a host's."""
        self._request_over()
        self._refuse(status, reason, headers)

    def _refuse(self, status: int, reason: str, headers: Headers | None = None) -> None:
        head = self._head
        if head is not None:
            self.turn.log_request(head.method, head.target, status)
        self.turn.counters.closed_head_limit += status == 431
        answer = simple_response(status, reason + "\n", headers, close=True)
        if head is not None and head.method == "HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._phase = Phase.CLOSING
        self._head = None
        self._queue.clear()
        self._reading_body = False
        self._close_after = self._lingering = True
        self._body_bytes = 0
        self._last_active = self.turn.loop.time()
        self.write(answer)

    def _abort(self, reason: str, status: int = 400) -> None:
        if self._request:
            self.turn.requests.to_host(self._request, Abort(self._request, reason))
        self._request_over()
        if self._phase is Phase.RESPONDING:
            self.close_fd()
        else:
            self._refuse(status, reason)

    def _request_over(self) -> None:
        if self._request:
            self.turn.requests.request_over(self._request)
            self._request = 0

    def drained(self) -> None:
        if self._unsent and self._request:
            self.turn.requests.to_host(self._request, BodyCredit(self._request, self._unsent))
            self._unsent = 0
        if self._file is not None:
            if self._file.is_sent:
                self._file_sent()
            else:
                self.rewatch()  # the next window in a turn of its own: others are to come in between
            return
        if self._phase is Phase.IDLE and self._queue:  # the next one waited for this
            self.turn.pipelined.append(self)
            return
        if self._ended and self._head is None and not self._queue:
            self.close_fd()
            return
        if self._phase is not Phase.CLOSING:
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
            self.turn.requests.to_host(self._request, Abort(self._request, "The client disconnected."))
            self._request_over()
        self.close_fd()

    def close_fd(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.fd >= 0:
            self._parser.close()
            self._phase = Phase.GONE
            self._head = None
        super().close_fd()
