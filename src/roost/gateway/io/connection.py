"""One client's descriptor: bytes arrive here and leave here. First and last stop of a message's way.

`Channel` is what HTTP and WebSocket connections share: a descriptor, a number, and output that is joined per turn and
bounded when the kernel takes no more. `Connection` is a WebSocket. An idle one holds a descriptor, its owner, tags and
attachment; a `Decoder` exists only while a frame or message is unfinished, a `Backlog` only while the client does not
read. It must not know what an object is: `router` does.

Invariant: exactly one of `router.closed` and `router.failed` is called for each connection.

This file is longer than most because the way of a byte in and out is one idea, and each call here costs every message.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from roost.gateway.io.reactor import READ, WRITE
from roost.protocol.websocket import (
    CloseCode,
    CloseFrame,
    Decoder,
    Failure,
    FrameEvent,
    Opcode,
    Ping,
    close_payload,
    decode_messages,
    decode_short_text,
    encode_control,
    mask_frame,
)

if TYPE_CHECKING:
    import asyncio

    from roost.events import Dial, Redial
    from roost.gateway.gateway import Gateway
    from roost.gateway.routing.sockets import Owner

_log = logging.getLogger("roost.gateway")
_read, _write = os.read, os.write

READ_BYTES: Final = 64 * 1024
_JOIN_AT_MOST: Final = 512  # writes joined in one turn before they are written early
_JOIN_BYTES: Final = 64 * 1024  # nothing is gained by joining to a write as large as this
_LINGER_BYTES: Final = 1024 * 1024  # read and dropped after a failure, so that the Close frame is not lost to a reset


class Backlog:
    """Output that the kernel did not take. At most one pong waits in it: a newer one replaces it (RFC 6455 §5.5.3).

    Its first chunk may be partly sent; each other is one frame.
    """

    __slots__ = ("chunks", "pong", "size")

    def __init__(self, *chunks: bytes) -> None:
        self.chunks: deque[bytes] = deque(chunks)
        self.size = sum(map(len, chunks))
        self.pong: bytes | None = None

    def add(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)

    def head(self) -> bytes:
        """What to write next: whole chunks, as many as make a good write."""
        size = count = 0
        for chunk in self.chunks:
            size += len(chunk)
            count += 1
            if size >= _JOIN_BYTES:
                break
        return self.chunks[0] if count == 1 else b"".join(islice(self.chunks, count))

    def taken(self, size: int) -> None:
        """The kernel took so many bytes."""
        self.size -= size
        chunks = self.chunks
        while size:
            first = chunks[0]
            if size < len(first):
                chunks[0] = first[size:]
                return
            size -= len(first)
            chunks.popleft()

    def drop_oldest(self, at_most: int) -> int:
        """Drop frames that have not begun to leave, oldest first, until no more than so many bytes wait; how many. The
        newest stays."""
        if not self.chunks:
            return 0
        first = self.chunks.popleft()
        dropped = 0
        while len(self.chunks) > 1 and self.size > at_most:
            self.size -= len(self.chunks.popleft())
            dropped += 1
        self.chunks.appendleft(first)
        return dropped


def pieces(out: bytes | list[bytes]) -> list[bytes]:
    """What a turn has queued, which is mostly one piece."""
    return [out] if type(out) is bytes else out  # type: ignore[return-value]


class Channel:
    """A descriptor with joined, bounded output. Owns the descriptor from construction to `close_fd`."""

    __slots__ = ("fd", "gateway", "number", "out")

    def __init__(self, gateway: Gateway, fd: int, number: int) -> None:
        self.gateway = gateway
        self.fd = fd  # -1 once closed
        self.number = number
        self.out: bytes | list[bytes] | Backlog | None = None  # one piece, as nearly always; several; or too many

    # output

    def write(self, data: bytes) -> None:
        """Queue bytes; they leave at the end of the turn, in order."""
        out = self.out
        if out is None:
            self.out = data
            self.gateway.dirty.append(self)
        elif type(out) is bytes:
            self.out = [out, data]
            if len(data) > _JOIN_BYTES:
                self.flush()
        elif type(out) is list:
            out.append(data)
            if len(out) >= _JOIN_AT_MOST or len(data) > _JOIN_BYTES:
                self.flush()
        elif out.size > self.gateway.limits.max_outbound_bytes:  # type: ignore[union-attr]
            self.overflowed(data)
        else:
            out.add(data)  # type: ignore[union-attr]

    def flush(self) -> None:
        """Write what is queued in one call; the rest becomes the backlog."""
        out = self.out
        if type(out) is bytes:
            data = out
        elif type(out) is list:
            data = b"".join(out)
        else:
            return
        if self.fd < 0:
            return
        try:
            sent = _write(self.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.out = None
            self.lost()
            return
        if sent == len(data):
            self.out = None
            self.drained()
        else:
            self.out = backlog = Backlog(*pieces(out))
            backlog.taken(sent)
            self.gateway.reactor.watch(self.fd, self.wanted() | WRITE)

    def writable(self) -> None:
        """The kernel takes more: write the backlog."""
        out = self.out
        if type(out) is not Backlog:
            return
        while out.chunks:
            data = out.head()
            try:
                sent = self.send_bytes(data)
            except OSError:
                self.lost()
                return
            out.taken(sent)
            if sent < len(data):
                return
        self.out = out.pong
        self.gateway.reactor.watch(self.fd, self.wanted())
        if self.out is not None:
            self.flush()
        else:
            self.drained()

    def send_bytes(self, data: bytes) -> int:
        """How many bytes the kernel took; raises OSError if the connection is broken."""
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0

    def read_bytes(self) -> bytes | None:
        """What has arrived, b"" at the end of the stream, None if nothing has."""
        try:
            return os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close_fd(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.gateway.reactor.unregister(fd)
            os.close(fd)
            self.out = None
            self.gateway.connection_closed(self, fd)

    # what each kind does

    def send_frame(self, frame: bytes) -> bool:
        """Send a WebSocket message; False on what is not (or no longer) an open WebSocket."""
        return False

    def ready(self, mask: int) -> None:
        """See reactor.Pollable."""
        raise NotImplementedError

    def wanted(self) -> int:
        """What to watch for besides writing."""
        return READ

    def drained(self) -> None:
        """All output has left."""

    def overflowed(self, data: bytes) -> None:
        """`data` found the backlog over its limit."""
        raise NotImplementedError

    def lost(self) -> None:
        """The descriptor is broken."""
        raise NotImplementedError

    def broken(self, error: Exception) -> None:
        """`ready` raised: see reactor.Pollable."""
        self.lost()


def shut_down_writing(fd: int) -> None:
    """Half-close: our end of the stream, so that the client reads what was sent before the descriptor is closed."""
    sock = socket.socket(fileno=fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # already reset by the client: the read that follows will say so
    finally:
        sock.detach()


class State:
    """Where a WebSocket is in its closing handshake (RFC 6455 §7). Ordered: from FLUSHING on, input is not parsed; up to
    PEER_CLOSED, messages may leave.

    Plain numbers, not an enum: comparing with a member took 0.1 µs, and each message is compared with three.
    """

    ENDED: Final = -1  # their half of the stream is over; what the program still says to them leaves
    OPEN: Final = 0
    PEER_CLOSED: Final = 1  # their Close came; ours is owed
    CLOSING: Final = 2  # ours went; theirs is awaited, for `close_timeout_s`
    FLUSHING: Final = 3  # both are done; closed as soon as the output has left
    LINGERING: Final = 4  # failed: input is dropped until their end or the deadline, so that they can read our Close
    GONE: Final = 5


_CLOSING: Final = State.CLOSING
_FLUSHING: Final = State.FLUSHING
_AFTER_OWN_CLOSE: Final[dict[int, int]] = {
    State.OPEN: State.CLOSING,
    State.PEER_CLOSED: State.FLUSHING,
    State.ENDED: State.FLUSHING,
}
_DEAF: Final = frozenset({State.ENDED, State.PEER_CLOSED, State.FLUSHING, State.LINGERING, State.GONE})  # input is dropped
_AFTER_PEER_CLOSE: Final[dict[int, int]] = {State.OPEN: State.PEER_CLOSED, State.CLOSING: State.FLUSHING}


class Connection(Channel):
    """A WebSocket at the server's side. `owner` says whose it is; `router` reads it."""

    __slots__ = ("attachment", "auto_at_ms", "decoder", "deflate", "owner", "protocol", "state", "tags")

    def __init__(self, gateway: Gateway, fd: int, number: int, owner: Owner) -> None:
        super().__init__(gateway, fd, number)
        self.owner = owner
        self.deflate = 0  # the bits of the window of what we compress; 0: nothing is compressed either way
        self.decoder: Decoder | None = None
        self.state: int = State.OPEN
        self.tags: tuple[str, ...] = ()
        self.attachment: bytes | None = None
        self.auto_at_ms = 0
        self.protocol = ""

    # in

    def ready(self, mask: int) -> None:
        if mask & WRITE:
            self.writable()
            if self.fd < 0 or mask == WRITE:
                return
        if type(self) is Connection:  # `read_bytes` in place of a call: this line runs once a message
            try:
                data: bytes | None = _read(self.fd, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._ended()
                return
            if not data:
                self._half_closed()
                return
        else:
            data = self.read_bytes()
        if data:
            self.received(data)
        elif data is not None:
            self._ended()

    def received(self, data: bytes) -> None:
        """Bytes from the client: whole messages on the short way, everything else through a decoder."""
        if self.state and self.state in _DEAF:
            self._discard(len(data))
            return
        decoder = self.decoder
        if decoder is None:
            gateway = self.gateway
            text = decode_short_text(data, gateway.limits.max_message_bytes)
            if text is not None:
                gateway.router.message(self, text)
                return
            messages, end = decode_messages(data, gateway.limits.max_message_bytes)
            for message in messages:
                gateway.router.message(self, message)
                if self.state >= _FLUSHING:
                    return  # an answer to it found that the client does not read
            if end == len(data):
                return
            if end:
                data = data[end:]
            decoder = self.decoder = self.new_decoder()
        self._events(decoder.feed(data))
        if decoder.idle:
            self.decoder = None

    def new_decoder(self) -> Decoder:
        return Decoder(self.gateway.limits.max_message_bytes, masked=True, deflate=self.deflate != 0)

    def _events(self, events: list[FrameEvent]) -> None:
        for event in events:
            if self.state in _DEAF:
                return
            kind = type(event)
            if kind is str or kind is bytes:
                self.gateway.router.message(self, event)  # type: ignore[arg-type]
            elif kind is Ping:
                self._ping(event.payload)  # type: ignore[union-attr]
            elif kind is CloseFrame:
                self._peer_closed(event.code, event.reason)  # type: ignore[union-attr]
            elif kind is Failure:
                self.fail(event.code, event.reason)  # type: ignore[union-attr]

    def _ping(self, payload: bytes) -> None:
        if not self.gateway.allow_ping(self.number):
            self.gateway.counters.closed_ping_flood += 1
            self.fail(CloseCode.POLICY, "Too many pings.")
            return
        pong = self.encode(encode_control(Opcode.PONG, payload))
        if type(self.out) is Backlog:
            if self.out.pong is not None:
                self.gateway.counters.pongs_merged += 1
            self.out.pong = pong
        elif self.state != State.CLOSING:
            self.write(pong)

    def _peer_closed(self, code: int, reason: str) -> None:
        self.decoder = None
        before = self.state
        self.state = _AFTER_PEER_CLOSE[before]
        self.gateway.router.closed(self, code, reason, clean=True)
        if self.state == State.FLUSHING:
            if self.out is None:
                self._gone()
            elif type(self.out) is Backlog:
                self.gateway.rewatch(self)
        else:
            self.gateway.close_deadline(self.number)

    def _half_closed(self) -> None:
        """Their half of the stream is over, and they may still read: what they sent before is answered, a Close frame too.
        Then, or when the time for a closing handshake is over, the descriptor is closed."""
        if self.state not in (State.OPEN, State.PEER_CLOSED) or self.owner.slot is None:
            self._ended()
            return
        told = self.state == State.PEER_CLOSED
        self.state = State.ENDED
        self.decoder = None
        self.gateway.rewatch(self)
        self.gateway.close_deadline(self.number)
        if not told:
            reason = "WebSocket disconnected without sending Close frame."
            self.gateway.router.closed(self, CloseCode.ABNORMAL, reason, clean=False)

    def end_finished(self) -> None:
        """The program is done with their end: nothing more will be said to them."""
        if self.state == State.ENDED:
            self.state = State.FLUSHING
            if self.out is None:
                self._gone()

    def _ended(self) -> None:
        """End of stream: without a Close frame before it, that is a 1006 (RFC 6455 §7.1.5)."""
        if self.state in (State.OPEN, State.CLOSING):
            self._abnormal()
        self._gone()

    def _abnormal(self) -> None:
        self.state = State.GONE
        reason = "WebSocket disconnected without sending Close frame."
        self.gateway.router.closed(self, CloseCode.ABNORMAL, reason, clean=False)

    def _discard(self, size: int) -> None:
        if self.gateway.discarded(self.number, size) > _LINGER_BYTES:
            self._gone()

    # out

    def encode(self, frame: bytes) -> bytes:
        """A server's frame as this connection must send it."""
        return frame

    def send_frame(self, frame: bytes) -> bool:
        """Queue a message's frame, made by `encode_message`; False if our side is already closed."""
        if self.state > State.PEER_CLOSED:
            return False
        self.write(self.gateway.deflated(frame, self.deflate) if self.deflate else frame)
        return True

    def close(self, code: int, reason: str) -> None:
        """Start or answer the closing handshake, after everything queued. 1006 cuts without a frame. Idempotent."""
        if code == CloseCode.ABNORMAL:
            before, self.state = self.state, State.GONE
            if before in (State.OPEN, State.CLOSING):
                self.gateway.router.closed(self, CloseCode.ABNORMAL, reason, clean=False)
            self._gone()
            return
        following = _AFTER_OWN_CLOSE.get(self.state)
        if following is None:
            return
        self._write_close(code, reason)
        self.state = following
        if following == State.CLOSING:
            self.gateway.close_deadline(self.number)
        elif type(self.out) is Backlog:
            self.gateway.rewatch(self)
            self.gateway.close_deadline(self.number)

    def fail(self, code: int, reason: str) -> None:
        """The client is at fault: tell it and the program, drop what it sends from now on, then cut."""
        if self.state >= State.FLUSHING:
            return
        told = self.state in (State.PEER_CLOSED, State.ENDED)
        if self.state != State.CLOSING:
            self._write_close(code, reason)
        self.state = State.LINGERING
        self.decoder = None
        self.gateway.close_deadline(self.number)
        if not told:
            self.gateway.router.failed(self, code, reason)

    def _write_close(self, code: int, reason: str) -> None:
        frame = self.encode(encode_control(Opcode.CLOSE, close_payload(code, reason)))
        if type(self.out) is Backlog:
            self.out.add(frame)
        else:
            self.write(frame)

    def overflowed(self, data: bytes) -> None:
        """The client does not read: 1013, after what it has already been promised; or it misses the oldest."""
        limits = self.gateway.limits
        if limits.drop_oldest and type(self.out) is Backlog:
            self.out.add(data)
            self.gateway.counters.dropped_oldest += self.out.drop_oldest(limits.max_outbound_bytes)
        elif self.state < State.FLUSHING:
            self.gateway.counters.closed_slow_reader += 1
            self.fail(CloseCode.TRY_AGAIN_LATER, "Too much unread output; the client reads too slowly.")

    def drained(self) -> None:
        if self.state < State.FLUSHING:
            return
        if self.state == State.FLUSHING:
            self._gone()
        elif self.state == State.LINGERING:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        shut_down_writing(self.fd)

    def wanted(self) -> int:
        if self.state < 0 or self.state == _FLUSHING:  # their end must not cost them what is on its way
            return 0
        return 0 if self.number in self.gateway.router.held_back else READ

    def lost(self) -> None:
        self._ended()

    def _gone(self) -> None:
        self.state = State.GONE
        self.close_fd()

    def expire(self) -> None:
        """The closing handshake took too long."""
        if self.state == State.PEER_CLOSED:  # the program never answered: answer for it, as the peer was promised one
            self.close(CloseCode.NO_STATUS, "")
            self.flush()
            self.gateway.close_deadline(self.number)
        elif self.state in (State.CLOSING, State.LINGERING, State.FLUSHING, State.ENDED):
            if self.state == State.CLOSING:
                self._abnormal()
            self._gone()


def flush_all(channels: list[Channel]) -> None:
    """Write what each of these has queued: once a turn."""
    for channel in channels:
        try:
            out = channel.out
            if type(out) is bytes and type(channel) is Connection and channel.state <= _CLOSING:
                try:  # `flush` in place of two calls: this runs once a message and target
                    sent = _write(channel.fd, out)
                except OSError:
                    sent = 0  # `flush` finds the same, and knows what to do
                if sent == len(out):
                    channel.out = None
                    continue
                channel.out = out[sent:]
            channel.flush()
        except Exception as error:  # noqa: BLE001 - one connection's bug must not mute the others
            _log.exception("gateway: internal error while writing; the connection is closed")
            channel.broken(error)


class ClientConnection(Connection):
    """A WebSocket that Roost dialled: frames out are masked, frames in are not (RFC 6455 §5.1). One that an object keeps
    may be dialled again when it ends (`outbound`); until then it is closed, and found by its number."""

    __slots__ = ("attempts", "dial", "opened_at", "redial", "waiting")

    def __init__(self, gateway: Gateway, fd: int, number: int, owner: Owner) -> None:
        super().__init__(gateway, fd, number, owner)
        self.dial: Dial | None = None
        self.redial: Redial | None = None
        self.attempts = 0  # since it was last open for a while
        self.opened_at = gateway.loop.time()
        self.waiting: asyncio.Task[None] | None = None  # for the next attempt

    def close(self, code: int, reason: str) -> None:
        self.redial = None  # it is our will
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            super().close(code, reason)
            return
        waiting.cancel()
        self.gateway.router.closed(self, CloseCode.ABNORMAL, "WebSocket closed while it was reconnecting.", clean=False)

    def cut(self) -> None:
        """Close the descriptor now; its end has been told."""
        self._gone()

    def new_decoder(self) -> Decoder:
        return Decoder(self.gateway.limits.max_message_bytes, masked=False, deflate=self.deflate != 0)

    def encode(self, frame: bytes) -> bytes:
        return mask_frame(frame, self.gateway.random_bytes(4))

    def send_frame(self, frame: bytes) -> bool:
        if self.state > State.PEER_CLOSED:
            return False
        self.write(self.encode(self.gateway.deflated(frame, self.deflate) if self.deflate else frame))
        return True

    def received(self, data: bytes) -> None:
        if self.state in _DEAF:
            self._discard(len(data))
            return
        if self.decoder is None:
            self.decoder = self.new_decoder()
        decoder = self.decoder
        self._events(decoder.feed(data))
        if decoder.idle:
            self.decoder = None
