"""One client's WebSocket: bytes arrive here and leave here. First and last stop of a message's way.

An idle one holds a descriptor, its owner, tags and attachment; a `Decoder` exists only while a frame or message is
unfinished, a `Backlog` only while the client does not read. It must not know what an object is: who gets its events does
(`turn.SocketEvents`).

Invariant: exactly one of `closed` and `failed` is called for each connection.

Long because the states of one connection are read together.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from roost.closes import LOST, PINGS, SLOW_READER, CloseCode
from roost.events import Dial, Redial
from roost.gateway.io.channel import READ_BYTES, READ_LARGE_BYTES, Backlog, Channel, pieces, shut_down_writing
from roost.gateway.io.owner import Relay
from roost.gateway.io.reactor import READ, WRITE
from roost.protocol.websocket import (
    CloseFrame,
    Decoder,
    DecoderState,
    Failure,
    FrameEvent,
    Opcode,
    Ping,
    close_payload,
    decode_messages,
    decode_short_text,
    encode_control,
    message_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from roost.events import Send
    from roost.gateway.io.owner import Owner
    from roost.gateway.io.turn import Turn

_log = logging.getLogger("roost.gateway")
_read, _write = os.read, os.write

_LINGER_BYTES: Final = 1024 * 1024  # read and dropped after a failure, so that the Close frame is not lost to a reset


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
AFTER_OWN_CLOSE: Final[dict[int, int]] = {
    State.OPEN: State.CLOSING,
    State.PEER_CLOSED: State.FLUSHING,
    State.ENDED: State.FLUSHING,
}
DEAF: Final = frozenset({State.ENDED, State.PEER_CLOSED, State.FLUSHING, State.LINGERING, State.GONE})  # input is dropped
AFTER_PEER_CLOSE: Final[dict[int, int]] = {State.OPEN: State.PEER_CLOSED, State.CLOSING: State.FLUSHING}


class SocketState(msgspec.Struct, array_like=True):
    """A WebSocket, for another process. `fd`: its descriptor here, -1 if it is closed and only its end is not finished
    with."""

    fd: int
    number: int
    dialled: bool
    actor: int  # 0: not an object's
    slot: int  # a plain socket's host; -1: nobody's
    relay: int  # the number of the socket that it is joined to
    state: int
    tags: tuple[str, ...]
    attachment: bytes | None
    auto_at_ms: int
    protocol: str
    backlog: list[bytes]
    pong: bytes | None
    decoder: DecoderState | None
    closing_in_s: float | None
    held_back: bool
    deflate: int = 0
    upstream: UpstreamState | None = None


class UpstreamState(msgspec.Struct, array_like=True):
    """How a dialled socket is dialled again. `waiting`: it is being."""

    dial: Dial
    redial: Redial | None
    attempts: int
    waiting: bool


class Connection(Channel):
    """A WebSocket at the server's side. `owner` says whose it is."""

    is_websocket: ClassVar[bool] = True

    __slots__ = ("attachment", "auto_at_ms", "decoder", "deflate", "owner", "protocol", "state", "tags")

    def __init__(self, turn: Turn, fd: int, number: int, owner: Owner) -> None:
        super().__init__(turn, fd, number)
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
            if self.decoder is not None and (room := self.decoder.room()) is not None:
                self._read_large(self.decoder, room)
                return
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

    def _read_large(self, decoder: Decoder, room: memoryview) -> None:
        """A large frame is under way: read what has come of it to where it belongs."""
        try:
            with room, room[:READ_LARGE_BYTES] as place:
                size = os.readv(self.fd, [place])
        except BlockingIOError:
            return
        except OSError:
            self._ended()
            return
        if not size:
            self._half_closed()
            return
        self._events(decoder.filled(size))
        if decoder.idle:
            self.decoder = None
            self.turn.large_message()

    def received(self, data: bytes) -> None:
        """Bytes from the client: whole messages on the short way, everything else through a decoder."""
        if self.state and self.state in DEAF:
            self._discard(len(data))
            return
        decoder = self.decoder
        if decoder is None:
            turn = self.turn
            text = decode_short_text(data, turn.limits.max_message_bytes)
            if text is not None:
                turn.socket_events.message(self, text)
                return
            messages, end = decode_messages(data, turn.limits.max_message_bytes)
            for message in messages:
                turn.socket_events.message(self, message)
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
            if len(data) > READ_BYTES // 2:
                self.turn.large_message()

    def new_decoder(self) -> Decoder:
        return Decoder(self.turn.limits.max_message_bytes, masked=True, deflate=self.deflate != 0)

    def _events(self, events: list[FrameEvent]) -> None:
        for event in events:
            if self.state in DEAF:
                return
            kind = type(event)
            if kind is str or kind is bytes:
                self.turn.socket_events.message(self, event)  # type: ignore[arg-type]
            elif kind is Ping:
                self._ping(event.payload)  # type: ignore[union-attr]
            elif kind is CloseFrame:
                self._peer_closed(event.code, event.reason)  # type: ignore[union-attr]
            elif kind is Failure:
                self.fail(event.code, event.reason)  # type: ignore[union-attr]

    def _ping(self, payload: bytes) -> None:
        if not self.turn.allow_ping(self.number):
            self.turn.counters.closed_ping_flood += 1
            self.fail(*PINGS)
            return
        pong = self.encode(encode_control(Opcode.PONG, payload))
        if type(self.out) is Backlog:
            if self.out.pong is not None:
                self.turn.counters.pongs_merged += 1
            self.out.pong = pong
        elif self.state != State.CLOSING:
            self.write(pong)

    def _peer_closed(self, code: int, reason: str) -> None:
        self.decoder = None
        before = self.state
        self.state = AFTER_PEER_CLOSE[before]
        self.turn.socket_events.closed(self, code, reason, clean=True)
        if self.state == State.FLUSHING:
            if self.out is None:
                self._gone()
            elif type(self.out) is Backlog:
                self.rewatch()
        else:
            self.turn.close_deadline(self)

    def _half_closed(self) -> None:
        """Their half of the stream is over, and they may still read: what they sent before is answered, a Close frame too.
        Then, or when the time for a closing handshake is over, the descriptor is closed."""
        if self.state not in (State.OPEN, State.PEER_CLOSED) or self.owner.slot is None:
            self._ended()
            return
        told = self.state == State.PEER_CLOSED
        self.state = State.ENDED
        self.decoder = None
        self.rewatch()
        self.turn.close_deadline(self)
        if not told:
            self.turn.socket_events.closed(self, *LOST, clean=False)

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
        self.turn.socket_events.closed(self, *LOST, clean=False)

    def _discard(self, size: int) -> None:
        if self.turn.discarded(self.number, size) > _LINGER_BYTES:
            self._gone()

    # out

    def encode(self, frame: bytes) -> bytes:
        """A server's frame as this connection must send it."""
        return frame

    def send_frame(self, frame: bytes) -> bool:
        """Queue a message's frame, made by `encode_message`; False if our side is already closed."""
        if self.state > State.PEER_CLOSED:
            return False
        self.write(self.turn.deflated(frame, self.deflate) if self.deflate else frame)
        return True

    def send_large(self, head: bytes, payload: bytes) -> bool:
        """Send a message's frame now, without joining its parts; False if it has to be sent as others are."""
        if self.out is not None or self.state > State.PEER_CLOSED or self.deflate or type(self) is not Connection:
            return False
        try:
            sent = os.writev(self.fd, [head, payload])
        except OSError:
            return False  # `flush` finds the same, and knows what to do
        if sent < len(head) + len(payload):  # a head that has not left is no chunk of its own: chunks are frames
            self.out = [head, payload] if sent >= len(head) else head + payload
            self.stalled(sent)
        return True

    def close(self, code: int, reason: str) -> None:
        """Start or answer the closing handshake, after everything queued. 1006 cuts without a frame. Idempotent."""
        if code == CloseCode.ABNORMAL:
            before, self.state = self.state, State.GONE
            if before in (State.OPEN, State.CLOSING):
                self.turn.socket_events.closed(self, CloseCode.ABNORMAL, reason, clean=False)
            self._gone()
            return
        following = AFTER_OWN_CLOSE.get(self.state)
        if following is None:
            return
        self._write_close(code, reason)
        self.state = following
        if following == State.CLOSING:
            self.turn.close_deadline(self)
        elif type(self.out) is Backlog:
            self.rewatch()
            self.turn.close_deadline(self)

    def fail(self, code: int, reason: str) -> None:
        """The client is at fault: tell it and the program, drop what it sends from now on, then cut."""
        if self.state >= State.FLUSHING:
            return
        told = self.state in (State.PEER_CLOSED, State.ENDED)
        if self.state != State.CLOSING:
            self._write_close(code, reason)
        self.state = State.LINGERING
        self.decoder = None
        self.turn.close_deadline(self)
        if not told:
            self.turn.socket_events.failed(self, code, reason)

    def _write_close(self, code: int, reason: str) -> None:
        frame = self.encode(encode_control(Opcode.CLOSE, close_payload(code, reason)))
        if type(self.out) is Backlog:
            self.out.add(frame)
        else:
            self.write(frame)

    def overflowed(self, data: bytes) -> None:
        """The client does not read: 1013, after what it has already been promised; or it misses the oldest."""
        limits = self.turn.limits
        if limits.drop_oldest and type(self.out) is Backlog:
            self.out.add(data)
            self.turn.counters.dropped_oldest += self.out.drop_oldest(limits.max_outbound_bytes)
        elif self.state < State.FLUSHING:
            self.turn.counters.closed_slow_reader += 1
            self.fail(*SLOW_READER)

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
        return 0 if self.number in self.turn.held_back else READ

    def lost(self) -> None:
        self._ended()

    def _gone(self) -> None:
        self.state = State.GONE
        self.close_fd()

    def expire(self, now: float) -> None:
        """The closing handshake took too long, if it is this one's turn."""
        if self.fd < 0 or self.turn.closing_due.get(self.number, now + 1) > now + 0.01:
            return
        if self.state == State.PEER_CLOSED:  # the program never answered: answer for it, as the peer was promised one
            self.close(CloseCode.NO_STATUS, "")
            self.flush()
            self.turn.close_deadline(self)
        elif self.state in (State.CLOSING, State.LINGERING, State.FLUSHING, State.ENDED):
            if self.state == State.CLOSING:
                self._abnormal()
            self._gone()

    # for another process

    def described(self) -> SocketState:
        """All that a successor must know of it."""
        out, owner = self.out, self.owner
        due = self.turn.closing_due.get(self.number)
        return SocketState(
            self.fd,
            self.number,
            False,
            owner.actor,
            -1 if owner.slot is None else owner.slot.index,
            owner.other.number if isinstance(owner, Relay) else 0,
            int(self.state),
            self.tags,
            self.attachment,
            self.auto_at_ms,
            self.protocol,
            [bytes(each) for each in _waiting(out) if each],
            out.pong if isinstance(out, Backlog) else None,
            None if self.decoder is None else self.decoder.state(),
            None if due is None else max(0.0, due - self.turn.loop.time()),
            self.number in self.turn.held_back,
            self.deflate,
        )

    def restore(self, told: SocketState) -> None:
        """Go on where another process was. Its descriptor is open here, and the caller watches it."""
        self.state = told.state
        self.tags = told.tags
        self.attachment = told.attachment
        self.auto_at_ms = told.auto_at_ms
        self.protocol = told.protocol
        self.deflate = told.deflate
        if told.decoder is not None:
            self.decoder = self.new_decoder()
            self.decoder.restore(told.decoder)
        if self.fd >= 0 and (told.backlog or told.pong):
            self.out = backlog = Backlog(*(told.backlog or [told.pong or b""]))
            backlog.pong = told.pong if told.backlog else None


def _waiting(out: bytes | list[bytes] | Backlog | None) -> Iterable[bytes | memoryview]:
    return out.chunks if isinstance(out, Backlog) else () if out is None else pieces(out)


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
                if sent:
                    channel.stalled(sent)
                    continue
            channel.flush()
        except Exception as error:  # noqa: BLE001 - one connection's bug must not mute the others
            _log.exception("gateway: internal error while writing; the connection is closed")
            channel.broken(error)


def sent_large(turn: Turn, event: Send) -> bool:
    """Whether a large message to one client has left, or is on its way; else it goes as others do."""
    if len(event.sockets) > 1:
        return False  # one copy for all
    connection = turn.find(event.sockets[0])
    if not isinstance(connection, Connection):
        return False
    sent = connection.send_large(message_head(len(event.payload), event.text), event.payload)
    turn.counters.sends += sent
    turn.large_message()
    return sent


def find_socket(turn: Turn, number: int) -> Connection | None:
    """The WebSocket of a number, also one whose descriptor is closed but whose end is not finished with."""
    channel = turn.find(number)
    return channel if isinstance(channel, Connection) else None
