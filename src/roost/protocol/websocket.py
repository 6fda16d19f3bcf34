"""The WebSocket frame codec, both roles: bytes in, messages out. Pure; knows no socket, clock or task.

An idle connection needs none of this: `decode_messages` handles the common case (whole frames) without any state, and a
`Decoder` exists only while a frame or a fragmented message is unfinished. The invariant: every split of the same bytes
gives the same events, and no memory is taken for a frame before its announced size was checked.

Source: RFC 6455 §5 (framing), §7 (closing), §8.1 (UTF-8); RFC 7692 §6 (a compressed message's first reserved bit).

Long because the fast way of whole frames and the decoder for the rest must be compared line by line.
"""

from __future__ import annotations

import codecs
from enum import IntEnum
from typing import Final, Literal

import msgspec

from roost import closes
from roost.closes import Close, CloseCode
from roost.protocol.compression import deflate, inflate
from roost.protocol.masking import unmask


class Opcode(IntEnum):
    """RFC 6455 §5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Ping(msgspec.Struct, frozen=True):
    """A ping; answer it with a pong of the same payload (RFC 6455 §5.5.2)."""

    payload: bytes


class Pong(msgspec.Struct, frozen=True):
    """A pong, asked for or not (RFC 6455 §5.5.3)."""

    payload: bytes


class CloseFrame(msgspec.Struct, frozen=True):
    """The peer's Close frame. `code` is 1005 if it was empty."""

    code: int
    reason: str


class Failure(msgspec.Struct, frozen=True):
    """The peer broke the protocol or a limit: close with this code. The decoder is finished."""

    code: int
    reason: str


FrameEvent = str | bytes | Ping | Pong | CloseFrame | Failure
"""A whole text message is `str`, a whole binary message `bytes`."""

_COMPRESSED: Final = 0x40
"""RSV1, on the first frame of a message (RFC 7692 §6)."""

LARGE_FRAME_BYTES: Final = 64 * 1024
"""An unfinished frame of such a payload has a buffer of its own, which whoever reads may fill directly."""

_FIRST_BYTES: Final = 4096  # are taken for a frame of which only the head has come
_GROWTH: Final = 4  # times what has come: so much is taken for a frame that is announced

FRAME_OVERHEAD_BYTES: Final = 14
"""What each further fragment counts against the message limit: the largest frame header. It bounds fragment floods."""


def is_valid_close_code(code: int) -> bool:
    """Whether a code may appear in a Close frame on the wire (RFC 6455 §7.4)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


# --- encoding ----------------------------------------------------------------------------------------------------

_SMALL_TEXT: Final = [bytes((0x81, size)) for size in range(126)]
_SMALL_BINARY: Final = [bytes((0x82, size)) for size in range(126)]


def message_head(size: int, text: bool) -> bytes:
    """What stands before a payload of that size in a server's frame."""
    return _header(0x81 if text else 0x82, size, 0)


def encode_message(payload: bytes, text: bool) -> bytes:
    """A whole message as one unmasked frame (a server's)."""
    size = len(payload)
    if size < 126:
        return (_SMALL_TEXT if text else _SMALL_BINARY)[size] + payload
    return _header(0x81 if text else 0x82, size, 0) + payload


def deflate_frame(frame: bytes, bits: int, level: int) -> bytes:
    """A whole message's unmasked frame compressed; the same one if its payload does not get smaller."""
    short = frame[1]
    start = 2 if short < 126 else 4 if short == 126 else 10
    payload = deflate(memoryview(frame)[start:], bits, level)
    return frame if payload is None else _header(frame[0] | _COMPRESSED, len(payload), 0) + payload


def encode_control(opcode: Opcode, payload: bytes) -> bytes:
    """An unmasked control frame; the payload must be at most 125 bytes."""
    return bytes((0x80 | opcode, len(payload))) + payload


def close_payload(code: int, reason: str) -> bytes:
    """The body of a Close frame; 1005 gives an empty one. The reason is cut at 123 bytes on a character's boundary."""
    if code == CloseCode.NO_STATUS:
        return b""
    raw = reason.encode("utf-8", "replace")
    if len(raw) > 123:
        raw = raw[:123].decode("utf-8", "ignore").encode()
    return code.to_bytes(2, "big") + raw


def _header(first: int, size: int, mask_bit: int) -> bytes:
    if size < 126:
        return bytes((first, mask_bit | size))
    if size < 65536:
        return bytes((first, mask_bit | 126)) + size.to_bytes(2, "big")
    return bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")


def mask_frame(frame: bytes, mask: bytes) -> bytes:
    """An unmasked frame as a client must send it (RFC 6455 §5.3); `mask` is 4 random bytes."""
    short = frame[1]
    start = 2 if short < 126 else 4 if short == 126 else 10
    return frame[:1] + bytes((0x80 | short,)) + frame[2:start] + mask + unmask(frame[start:], mask)


# --- decoding ----------------------------------------------------------------------------------------------------


def decode_short_text(data: bytes, max_message_bytes: int) -> str | None:
    """`data` as one whole masked text of less than 126 bytes, as nearly every read of a chatty client is; else None."""
    size = len(data) - 6
    if not (0 <= size < 126 and data[0] == 0x81 and data[1] == size + 128 and size <= max_message_bytes):
        return None
    try:
        return unmask(data[6:], data[2:6]).decode()
    except UnicodeDecodeError:
        return None


def decode_messages(data: bytes, max_message_bytes: int) -> tuple[list[str | bytes], int]:
    """The whole, unfragmented, masked data messages at the start of `data`, and where they end.

    The hot path of a server: stops (without error) at the first byte that is anything else, from which a `Decoder`
    takes over.
    """
    available = len(data)
    messages: list[str | bytes] = []
    position = 0
    while available - position >= 6:
        first = data[position]
        if first != 0x81 and first != 0x82:
            break
        size = data[position + 1] - 128
        if 0 <= size < 126:
            body = position + 6
        elif size == 126 and available - position >= 8:
            size = data[position + 2] << 8 | data[position + 3]
            if size < 126:
                break
            body = position + 8
        elif size == 127 and available - position >= 14:
            size = int.from_bytes(data[position + 2 : position + 10], "big")
            if size < 65536:
                break
            body = position + 14
        else:
            break
        end = body + size
        if end > available or size > max_message_bytes:
            break
        payload = unmask(data[body:end] if size < 4096 else memoryview(data)[body:end], data[body - 4 : body])
        if first == 0x81:
            try:
                messages.append(payload.decode())
            except UnicodeDecodeError:
                break
        else:
            messages.append(payload)
        position = end
    return messages, position


class DecoderState(msgspec.Struct, frozen=True, array_like=True):
    """An unfinished frame or message, for another process to go on with."""

    buffer: bytes
    message: bytes
    opcode: int
    fragments: int
    text: bytes | None  # the unfinished character at the end of what has come
    finished: bool
    compressed: bool = False


class _LargeFrame:
    """A frame whose payload is arriving. Its buffer is as large as the payload, or some times what has come of it."""

    __slots__ = ("data", "first", "head", "mask", "size", "there")

    def __init__(self, head: bytes, mask: bytes, size: int, come: memoryview) -> None:
        self.first = head[0]
        self.head = head
        self.mask = mask
        self.size = size
        self.there = len(come)
        self.data = bytearray(min(size, max(_FIRST_BYTES, _GROWTH * self.there)))
        self.data[: self.there] = come

    def grow(self) -> None:
        more = min(self.size, _GROWTH * self.there) - len(self.data)
        self.data.extend(bytes(more))

    def payload(self) -> bytes:
        with memoryview(self.data) as whole:
            return unmask(whole, self.mask) if self.mask else bytes(whole)


class Decoder:
    """Frames to messages for one direction of one connection, whatever the pieces they arrive in.

    `masked` is what the peer must do: true at a server (RFC 6455 §5.1); `deflate` says whether it may compress. After a
    `Failure` or a `CloseFrame` nothing more is decoded: RFC 6455 §5.5.1 ends the peer's data there.
    """

    __slots__ = (
        "_buffer", "_compressed", "_deflate", "_fragments", "_large", "_masked", "_max", "_message", "_opcode", "_text",
        "finished",
    )  # fmt: skip

    def __init__(self, max_message_bytes: int, *, masked: bool, deflate: bool = False) -> None:
        self._max = max_message_bytes
        self._masked = masked
        self._deflate = deflate
        self._compressed = False  # the fragmented message under way is
        self._buffer = bytearray()
        self._large: _LargeFrame | None = None
        self._message = bytearray()
        self._opcode: int = 0  # of the fragmented message under way; 0: none
        self._fragments = 0
        self._text: codecs.IncrementalDecoder | None = None
        self.finished = False

    @property
    def idle(self) -> bool:
        """Nothing is unfinished: the decoder may be forgotten until the next bytes."""
        return not self._buffer and not self._opcode and self._large is None and not self.finished

    @property
    def buffered_bytes(self) -> int:
        """Memory held for unfinished frames and messages."""
        large = 0 if self._large is None else len(self._large.data)
        return 0 if self.finished else len(self._buffer) + len(self._message) + large

    def state(self) -> DecoderState:
        """All that it remembers."""
        text = None if self._text is None else self._text.getstate()[0]
        large = self._large
        buffer = bytes(self._buffer) if large is None else large.head + large.data[: large.there]
        return DecoderState(
            buffer, bytes(self._message), self._opcode, self._fragments, text, self.finished, self._compressed
        )

    def restore(self, state: DecoderState) -> None:
        """Go on where another one was."""
        self._buffer[:] = state.buffer
        self._message[:] = state.message
        self._opcode, self._fragments, self.finished = state.opcode, state.fragments, state.finished
        self._compressed = state.compressed
        if state.text is not None:
            self._text = codecs.getincrementaldecoder("utf-8")()
            self._text.setstate((state.text, 0))

    def feed(self, data: bytes | bytearray | memoryview) -> list[FrameEvent]:
        """The events that `data` completes."""
        events: list[FrameEvent] = []
        if self.finished:
            return events
        if self._large is not None:
            data = self._fill(data, events)
            if not data or self.finished:
                return events
        if self._buffer:
            self._buffer += data
            data = self._buffer
        position = 0
        while (step := self._frame(data, position, events)) >= 0:
            position = step
        if self.finished or self._large is not None:
            self._buffer.clear()
        elif data is self._buffer:
            del self._buffer[:position]
        else:
            self._buffer += data[position:]
        return events

    def room(self) -> memoryview | None:
        """Where the next bytes of a large frame belong; None if none is under way. Tell `filled` how many are there."""
        large = self._large
        return None if large is None else memoryview(large.data)[large.there :]

    def filled(self, size: int) -> list[FrameEvent]:
        """The events that `size` more bytes in `room` complete."""
        events: list[FrameEvent] = []
        large = self._large
        assert large is not None
        large.there += size
        if large.there == large.size:
            self._large = None
            self._data(large.first & 0x0F, large.payload(), large.first, events)
        elif large.there == len(large.data):
            large.grow()
        return events

    def _fill(self, data: bytes | bytearray | memoryview, events: list[FrameEvent]) -> memoryview:
        """Put the start of `data` where it belongs; what is left of it."""
        left = memoryview(data)
        while len(left) and self._large is not None:
            with self.room() as room:  # type: ignore[union-attr]
                size = min(len(room), len(left))
                room[:size] = left[:size]
            events += self.filled(size)
            left = left[size:]
        return left

    def _fail(self, events: list[FrameEvent], why: Close, **facts: object) -> Literal[-1]:
        events.append(Failure(int(why.code), why.reason.format(**facts)))
        self._finish()
        return -1

    def _finish(self) -> None:
        self.finished = True
        self._large = None
        self._message.clear()

    def _frame(self, buffer: bytes | bytearray | memoryview, position: int, events: list[FrameEvent]) -> int:
        """Handle the frame at `position`; the position after it, or -1 if it is not complete or not valid."""
        available = len(buffer) - position
        if available < 1 or self.finished:
            return -1
        first = buffer[position]
        opcode = first & 0x0F
        if first & 0x70 and (first & 0x70 != _COMPRESSED or not self._deflate or opcode not in (1, 2)):
            return self._fail(events, closes.RESERVED_BIT)
        if opcode not in (0, 1, 2, 8, 9, 10):
            return self._fail(events, closes.RESERVED_OPCODE, opcode=opcode)
        if available < 2:
            return -1
        second = buffer[position + 1]
        if (second >= 128) is not self._masked:
            return self._fail(events, closes.UNMASKED if self._masked else closes.MASKED)
        size = second & 127
        if opcode >= 8 and (not first & 0x80 or size > 125):
            return self._fail(events, closes.CONTROL_FRAME)
        if opcode < 8 and (opcode == 0) is (self._opcode == 0):
            return self._fail(events, closes.NO_MESSAGE if opcode == 0 else closes.MESSAGE_INSIDE)
        body = position + 2
        if size == 126:
            if available < 4:
                return -1
            size = int.from_bytes(buffer[body : body + 2], "big")
            body += 2
            if size < 126:
                return self._fail(events, closes.LENGTH_FORM)
        elif size == 127:
            if available < 10:
                return -1
            size = int.from_bytes(buffer[body : body + 8], "big")
            body += 8
            if size < 65536:
                return self._fail(events, closes.LENGTH_FORM)
        if opcode < 8 and (total := self._total_with(size)) > self._max:
            return self._fail(events, closes.TOO_LARGE, size=total, limit=self._max)
        mask = b""
        if self._masked:
            mask = bytes(buffer[body : body + 4])
            body += 4
        end = body + size
        if end > len(buffer):
            if size < LARGE_FRAME_BYTES or body > len(buffer):  # the mask may not be there yet
                return -1
            with memoryview(buffer) as whole, whole[body:] as come:
                self._large = _LargeFrame(bytes(buffer[position:body]), mask, size, come)
            return -1
        with memoryview(buffer) as whole, whole[body:end] as part:
            payload = unmask(part, mask) if mask else bytes(part)
        if opcode >= 8:
            self._control(opcode, payload, events)
        else:
            self._data(opcode, payload, first, events)
        return end

    def _total_with(self, size: int) -> int:
        """What the message under way would count with one more frame of `size` bytes."""
        return len(self._message) + self._fragments * FRAME_OVERHEAD_BYTES + size

    def _control(self, opcode: int, payload: bytes, events: list[FrameEvent]) -> None:
        if opcode == Opcode.PING:
            events.append(Ping(payload))
        elif opcode == Opcode.PONG:
            events.append(Pong(payload))
        elif not payload:
            events.append(CloseFrame(CloseCode.NO_STATUS, ""))
            self._finish()
        else:
            self._close(payload, events)

    def _close(self, payload: bytes, events: list[FrameEvent]) -> None:
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not is_valid_close_code(code):
            self._fail(events, closes.CLOSE_CODE)
            return
        try:
            events.append(CloseFrame(code, payload[2:].decode()))
            self._finish()
        except UnicodeDecodeError:
            self._fail(events, closes.CLOSE_REASON)

    def _data(self, opcode: int, payload: bytes, first: int, events: list[FrameEvent]) -> None:
        final = first >= 0x80
        if opcode and final:
            self._whole(opcode, payload, bool(first & _COMPRESSED), events)
            return
        if opcode:
            self._opcode = opcode
            self._compressed = bool(first & _COMPRESSED)
            if opcode == Opcode.TEXT and not self._compressed:
                self._text = codecs.getincrementaldecoder("utf-8")()
        if self._text is not None:
            try:  # each fragment at once, so that bad text fails before the message is complete
                self._text.decode(payload, final)
            except UnicodeDecodeError:
                self._fail(events, closes.NOT_TEXT)
                return
        self._message += payload
        self._fragments += 1
        if final:
            whole, opcode = bytes(self._message), self._opcode
            self._message.clear()
            self._opcode = self._fragments = 0
            self._text = None
            self._whole(opcode, whole, self._compressed, events)

    def _whole(self, opcode: int, payload: bytes, compressed: bool, events: list[FrameEvent]) -> None:
        if compressed:
            try:
                inflated = inflate(payload, self._max)
            except ValueError as error:
                self._fail(events, closes.NOT_DEFLATED, error=error)
                return
            if inflated is None:
                self._fail(events, closes.TOO_LARGE_INFLATED, limit=self._max)
                return
            payload = inflated
        try:
            events.append(payload.decode() if opcode == Opcode.TEXT else payload)
        except UnicodeDecodeError:
            self._fail(events, closes.NOT_TEXT)
