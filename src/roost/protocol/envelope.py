"""Events as bytes and back: the versioned, language-neutral form that crosses a link. `docs/reference/envelope.md`.

    envelope := length:u32 kind:u8 flags:u8 zero:u16 actor:u32 event:u64 socket:u64 payload     (little-endian)

`length` counts everything after itself. Messages, sends and done, which are nearly all of the traffic, use the fixed
fields and a raw payload; every other kind carries its struct as a MessagePack array in the field order of `events.py`.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from roost import events
from roost.errors import RemoteProtocolError
from roost.events import Done, Event, Send, SocketMessage

HEADER: Final = struct.Struct("<IBBHIQQ")
HEADER_BYTES: Final = HEADER.size
TEXT: Final = 1  # flag: the payload is UTF-8 text
MANY: Final = 2  # flag of a send: `socket` counts the targets that precede the payload
LARGE_BYTES: Final = 32 * 1024  # from here on, a payload is not copied to stand behind its head

_MESSAGE: Final = 1
_SEND: Final = 2
_DONE: Final = 3

_STRUCTS: Final[dict[int, type[msgspec.Struct]]] = {
    10: events.Hello,
    11: events.Request,
    12: events.Response,
    13: events.BodyData,
    14: events.BodyCredit,
    15: events.Abort,
    16: events.SocketClose,
    17: events.SocketError,
    18: events.Roster,
    19: events.RosterRequest,
    20: events.CloseSocket,
    21: events.Attach,
    22: events.SetAutoResponse,
    23: events.DropSockets,
    24: events.Dial,
    25: events.Dialled,
    26: events.AutoAnswered,
    27: events.Asleep,
    28: events.Call,
    29: events.Result,
    30: events.Welcome,
    31: events.Leaving,
    32: events.GroupEnd,
    33: events.KeepSocket,
    34: events.SocketOpened,
    35: events.WakingMessage,
    36: events.Confirm,
    37: events.Confirmed,
    38: events.Released,
    39: events.DialKept,
}
_KINDS: Final = {struct_type: kind for kind, struct_type in _STRUCTS.items()}
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(struct_type) for kind, struct_type in _STRUCTS.items()}


def _plain_bytes(value: object) -> bytes:
    """Worker code hands over subclasses of bytes, such as proxied buffers."""
    if isinstance(value, bytes):
        return bytes(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_plain_bytes)
_pack = HEADER.pack
_unpack = HEADER.unpack_from


def encode(event: Event, done: int = 0) -> bytes:
    """One envelope. With a `Send` to one, `done` is the event of a `Done` behind it."""
    envelope = _encode(event, done)
    return b"".join(envelope) if isinstance(envelope, list) else envelope


def encode_batch(events: list[Event]) -> bytes | list[bytes]:
    """The envelopes of what one turn has to say, in several pieces if there is a large payload: it is not copied. The
    answer to a lone message is one: what is sent, and up to where all is done."""
    if len(events) == 2:
        send, done = events
        if type(done) is Done and type(send) is Send and len(send.sockets) == 1 and done.event and not done.stragglers:
            return _encode(send, done.event)
    if len(events) == 1:
        return _encode(events[0])
    envelopes = [_encode(event) for event in events]
    try:
        return b"".join(envelopes)  # type: ignore[arg-type]
    except TypeError:
        return _pieces(envelopes)


def _pieces(envelopes: list[bytes | list[bytes]]) -> list[bytes]:
    """What stands between large payloads joined."""
    found: list[bytes] = []
    small: list[bytes] = []
    for envelope in envelopes:
        if isinstance(envelope, list):
            head, payload = envelope
            found += (b"".join([*small, head]), payload)
            small = []
        else:
            small.append(envelope)
    if small:
        found.append(b"".join(small))
    return found


def _encode(event: Event, done: int = 0) -> bytes | list[bytes]:
    """One envelope, or its head and a payload of at least `LARGE_BYTES`."""
    kind = type(event)
    if kind is SocketMessage:
        data = event.data  # type: ignore[union-attr]
        if type(data) is str:
            payload, flags = data.encode(), TEXT
        else:
            payload, flags = data, 0  # type: ignore[assignment]
        size = len(payload)
        head = _pack(size + 24, _MESSAGE, flags, 0, event.actor, event.event, event.socket)  # type: ignore[union-attr]
        return head + payload if size < LARGE_BYTES else [head, payload]
    if kind is Send:
        sockets = event.sockets  # type: ignore[union-attr]
        payload = event.payload  # type: ignore[union-attr]
        flags = TEXT if event.text else 0  # type: ignore[union-attr]
        size = len(payload)
        if len(sockets) == 1:
            head = _pack(size + 24, _SEND, flags, 0, 0, done, sockets[0])
        else:
            count = len(sockets)
            head = _pack(size + 24 + 8 * count, _SEND, flags | MANY, 0, 0, 0, count) + struct.pack(f"<{count}Q", *sockets)
        return head + payload if size < LARGE_BYTES else [head, payload]
    if kind is Done:
        stragglers = event.stragglers  # type: ignore[union-attr]
        if not stragglers:
            return _pack(24, _DONE, 0, 0, 0, event.event, 0)  # type: ignore[union-attr]
        payload = struct.pack(f"<{len(stragglers)}Q", *stragglers)
        return _pack(len(payload) + 24, _DONE, 0, 0, 0, event.event, 0) + payload  # type: ignore[union-attr]
    payload = _ENCODER.encode(event)
    return _pack(len(payload) + 24, _KINDS[kind], 0, 0, 0, 0, 0) + payload


class Splitter:
    """A byte stream back to events. Raises RemoteProtocolError if it is not one that this version understands.

    A large envelope has a buffer of its own, which whoever reads may fill directly: `room` and `filled`.
    """

    __slots__ = ("_at", "_large", "_max", "_parts", "_parts_bytes", "_wanted")

    def __init__(self, max_envelope_bytes: int) -> None:
        self._max = max_envelope_bytes
        self._parts: list[bytes] = []  # of one unfinished small envelope
        self._parts_bytes = 0
        self._wanted = 0
        self._large: bytearray | None = None  # an unfinished large one, of which `_at` bytes are there
        self._at = 0

    @property
    def rest(self) -> bytes:
        """The beginning of an envelope whose end has not come."""
        return b"".join(self._parts) if self._large is None else bytes(self._large[: self._at])

    def room(self) -> memoryview | None:
        """Where the next bytes of a large envelope belong; None if none has begun. Tell `filled` how many are there."""
        return None if self._large is None else memoryview(self._large)[self._at :]

    def filled(self, size: int) -> list[Event]:
        """The event that `size` more bytes in `room` complete, if they do."""
        large = self._large
        assert large is not None
        self._at += size
        if self._at < len(large):
            return []
        self._large = None
        with memoryview(large) as whole:
            return _large_events(whole)

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order."""
        found: list[Event] = []
        if self._large is not None:
            data = self._fill(data, found)
            if not data:
                return found
        if self._parts:
            self._parts.append(data)
            self._parts_bytes += len(data)
            if self._parts_bytes < self._wanted:
                return found
            data = b"".join(self._parts)
            self._parts = []
        add = found.append
        position = 0
        available = len(data)
        while available - position >= HEADER_BYTES:
            length, kind, flags, _, actor, event, socket = _unpack(data, position)
            end = position + 4 + length
            body = position + HEADER_BYTES
            if not body <= end <= available:
                if length > self._max:
                    raise RemoteProtocolError(1009, f"An envelope of {length} bytes exceeds the link's {self._max}.")
                if end < body:
                    raise RemoteProtocolError(1002, f"An envelope of {length} bytes is shorter than its own head.")
                break
            if kind == _MESSAGE:
                payload = data[body:end]
                add(SocketMessage(event, actor, socket, payload.decode() if flags else payload))
            elif kind == _SEND:
                if flags & MANY:
                    add(_send_to_many(socket, data, body, end, flags))
                else:
                    add(Send([socket], data[body:end], bool(flags & TEXT)))
                    if event:
                        add(Done(event, ()))
            elif kind == _DONE:
                add(Done(event, struct.unpack_from(f"<{(end - body) // 8}Q", data, body) if end - body >= 8 else ()))
            else:
                add(_decode_struct(kind, data[body:end]))
            position = end
        if position < available:
            self._keep(data[position:] if position else data)
        return found

    def _fill(self, data: bytes, found: list[Event]) -> bytes:
        """Put the start of `data` where it belongs; what is left of it."""
        with self.room() as room:  # type: ignore[union-attr]
            size = min(len(room), len(data))
            room[:size] = data[:size]
        found += self.filled(size)
        return data[size:]

    def _keep(self, rest: bytes) -> None:
        """The start of an envelope, whose length, if it is there, has been checked."""
        self._wanted = 4 + _unpack(rest, 0)[0] if len(rest) >= HEADER_BYTES else HEADER_BYTES
        if self._wanted >= LARGE_BYTES:
            self._large = bytearray(self._wanted)
            self._at = len(rest)
            self._large[: self._at] = rest
        else:
            self._parts = [rest]
            self._parts_bytes = len(rest)


def _send_to_many(count: int, data: bytes | memoryview, body: int, end: int, flags: int) -> Send:
    if 8 * count > end - body:
        raise RemoteProtocolError(1002, f"An envelope of {end - body} bytes cannot have {count} targets.")
    sockets = list(struct.unpack_from(f"<{count}Q", data, body))
    return Send(sockets, bytes(data[body + 8 * count : end]), bool(flags & TEXT))


def _large_events(envelope: memoryview) -> list[Event]:
    """What one whole envelope says, with one copy of its payload."""
    _, kind, flags, _, actor, event, socket = _unpack(envelope)
    size = len(envelope)
    payload = envelope[HEADER_BYTES:]
    if kind == _MESSAGE:
        return [SocketMessage(event, actor, socket, str(payload, "utf-8") if flags else bytes(payload))]
    if kind == _SEND and flags & MANY:
        return [_send_to_many(socket, envelope, HEADER_BYTES, size, flags)]
    if kind == _SEND:
        sent = Send([socket], bytes(payload), bool(flags & TEXT))
        return [sent, Done(event, ())] if event else [sent]
    if kind == _DONE:
        return [Done(event, struct.unpack_from(f"<{len(payload) // 8}Q", payload))]
    return [_decode_struct(kind, payload)]


def _decode_struct(kind: int, payload: bytes | memoryview) -> Event:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise RemoteProtocolError(1002, f"Envelope kind {kind} is unknown to version {events.ENVELOPE_VERSION}.")
    try:
        return decoder.decode(payload)  # type: ignore[return-value]
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(1002, f"A damaged envelope of kind {kind}: {error}") from error
