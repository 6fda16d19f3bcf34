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
    kind = type(event)
    if kind is SocketMessage:
        data = event.data  # type: ignore[union-attr]
        if type(data) is str:
            payload, flags = data.encode(), TEXT
        else:
            payload, flags = data, 0  # type: ignore[assignment]
        return _pack(len(payload) + 24, _MESSAGE, flags, 0, event.actor, event.event, event.socket) + payload  # type: ignore[union-attr]
    if kind is Send:
        sockets = event.sockets  # type: ignore[union-attr]
        payload = event.payload  # type: ignore[union-attr]
        flags = TEXT if event.text else 0  # type: ignore[union-attr]
        if len(sockets) == 1:
            return _pack(len(payload) + 24, _SEND, flags, 0, 0, done, sockets[0]) + payload
        count = len(sockets)
        targets = struct.pack(f"<{count}Q", *sockets)
        return _pack(len(payload) + 24 + 8 * count, _SEND, flags | MANY, 0, 0, 0, count) + targets + payload
    if kind is Done:
        stragglers = event.stragglers  # type: ignore[union-attr]
        if not stragglers:
            return _pack(24, _DONE, 0, 0, 0, event.event, 0)  # type: ignore[union-attr]
        payload = struct.pack(f"<{len(stragglers)}Q", *stragglers)
        return _pack(len(payload) + 24, _DONE, 0, 0, 0, event.event, 0) + payload  # type: ignore[union-attr]
    payload = _ENCODER.encode(event)
    return _pack(len(payload) + 24, _KINDS[kind], 0, 0, 0, 0, 0) + payload


def encode_batch(events: list[Event]) -> bytes:
    """The envelopes of what one turn has to say. The answer to a lone message is one: what is sent, and up to where all is
    done."""
    if len(events) == 2:
        send, done = events
        if type(done) is Done and type(send) is Send and len(send.sockets) == 1 and done.event and not done.stragglers:
            return encode(send, done.event)
    return encode(events[0]) if len(events) == 1 else b"".join([encode(event) for event in events])


class Splitter:
    """A byte stream back to events. Raises RemoteProtocolError if it is not one that this version understands."""

    __slots__ = ("_max", "_parts", "_parts_bytes", "_wanted")

    def __init__(self, max_envelope_bytes: int) -> None:
        self._max = max_envelope_bytes
        self._parts: list[bytes] = []  # of one unfinished envelope; joined once, so a large one costs one copy
        self._parts_bytes = 0
        self._wanted = 0

    @property
    def rest(self) -> bytes:
        """The beginning of an envelope whose end has not come."""
        return b"".join(self._parts)

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order."""
        if self._parts:
            self._parts.append(data)
            self._parts_bytes += len(data)
            if self._parts_bytes < self._wanted:
                return []
            data = b"".join(self._parts)
            self._parts = []
        found: list[Event] = []
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
                    if 8 * socket > end - body:
                        raise RemoteProtocolError(1002, f"An envelope of {length} bytes cannot have {socket} targets.")
                    sockets = list(struct.unpack_from(f"<{socket}Q", data, body))
                    add(Send(sockets, data[body + 8 * socket : end], bool(flags & TEXT)))
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
            rest = data[position:] if position else data
            self._parts = [rest]
            self._parts_bytes = len(rest)
            self._wanted = 4 + _unpack(rest, 0)[0] if len(rest) >= HEADER_BYTES else HEADER_BYTES
        return found


def _decode_struct(kind: int, payload: bytes) -> Event:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise RemoteProtocolError(1002, f"Envelope kind {kind} is unknown to version {events.ENVELOPE_VERSION}.")
    try:
        return decoder.decode(payload)  # type: ignore[return-value]
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(1002, f"A damaged envelope of kind {kind}: {error}") from error
