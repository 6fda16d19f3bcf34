"""Values as bytes: the documented, versioned encoding of attachments (and of storage and RPC, which share it).

It reproduces structured clone for Python: None, bool, int of any size, float, str, bytes, datetime, list, tuple (as
list), dict, set, shared and cyclic references. Everything else is refused with the path to the culprit. It never runs
code: no pickle, no class names.

Two layouts, told apart by the first byte. Version 2 carries what most values are, trees of None, bool, int of 64 bits,
float, str, bytes, list and dict without anything shared: a MessagePack array with the value as its only item (so its first
byte is 0x91), an order of magnitude faster to read. Version 1 carries everything. Its integers are big-endian, `varint` is
LEB128 of an unsigned integer:

    value  := 0x01 item | 0x91 messagepack
    item   := 'n' | 't' | 'f'                                    None, True, False
            | 'i' varint                                        0 or a positive int
            | 'j' varint                                        -1 - n, a negative int
            | 'd' float64                                       float
            | 's' varint utf8 | 'b' varint bytes                 str (lone surrogates allowed), bytes
            | 'z' float64 | 'Z' float64                          datetime: UTC seconds, naive | aware
            | '[' varint item* | '<' varint item* | '{' varint (item item)*      list, set, dict
            | 'r' varint                                        the n-th container already begun (cycles, sharing)

Source: HTML structured clone (§2.7) as used by `serializeAttachment` and `ctx.storage`; reference 2.2 and 5.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from roost.errors import JsException

if TYPE_CHECKING:
    from collections.abc import Sequence
from roost.js_values import ArrayBuffer, JsDict, JsList, JsMap

VERSION = 2  # the newest


MAX_DEPTH = 200


_FLOAT = struct.Struct(">d")


_COUNT = struct.Struct(">I")
_FIRST = itemgetter(0)


class DataCloneError(JsException):
    """A value cannot be cloned. The message gives the path to it, such as `value["players"][2]`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "DataCloneError")


class _Refused(Exception):
    """Found what cannot be encoded; the containers around it add their part of the path while it passes them."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []
        self.inside = False  # whether it is an item of the container that it passes, or that container itself


def encode(value: Any) -> bytes:
    """The bytes of `value`. Raises DataCloneError naming the path of what cannot be encoded."""
    kind = type(value)
    if kind in _SCALARS or (kind in _CONTAINERS and _is_plain(value, set(), 0)):
        try:
            return _pack([value])
        except (OverflowError, UnicodeEncodeError):
            pass  # a larger int, a lone surrogate
    out = bytearray((1,))
    try:
        _encode(value, out, {}, 0)
    except _Refused as refused:
        path = "value" + "".join(reversed(refused.path[-20:]))
        raise DataCloneError(f"{path} {refused.why}") from None
    return bytes(out)


_SCALARS = frozenset({str, int, float, bool, bytes, type(None), ArrayBuffer})


_CONTAINERS = frozenset({dict, list, JsDict, JsMap, JsList})


def _plain_bytes(value: Any) -> bytes:
    if type(value) is ArrayBuffer:
        return bytes(value)
    raise TypeError(f"{type(value).__name__} is not plain")


_pack = msgspec.msgpack.Encoder(enc_hook=_plain_bytes).encode


def _no_extension(code: int, data: memoryview) -> Any:
    raise ValueError(f"unknown extension {code}")


_unpack = msgspec.msgpack.Decoder(ext_hook=_no_extension).decode


def _is_plain(value: Any, seen: set[int], depth: int) -> bool:
    """Whether a list or dict is a tree of plain values: nothing in it twice, nothing that MessagePack would change."""
    if id(value) in seen or depth == MAX_DEPTH:
        return False
    seen.add(id(value))
    if type(value) is not list and type(value) is not JsList:
        for key in value:
            if type(key) not in _SCALARS or type(key) is ArrayBuffer:
                return False
        items: Any = dict.values(value)
    else:
        items = value
    for item in items:
        kind = type(item)
        if kind not in _SCALARS and not (kind in _CONTAINERS and _is_plain(item, seen, depth + 1)):
            return False
    return True


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which UTF-8 cannot carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_unicode(text: str) -> str:
    """The text with `?` for lone surrogates."""
    return text if is_unicode(text) else text.encode("utf-8", "replace").decode()


def _varint(number: int, out: bytearray) -> None:
    if number >> 512:  # digit by digit would take quadratic time
        digits = f"{number:b}"
        digits = digits.zfill(-(-len(digits) // 7) * 7)
        groups = [int(digits[start : start + 7], 2) for start in range(len(digits) - 7, -1, -7)]
        out += bytes([group | 128 for group in groups[:-1]])
        out.append(groups[-1])
        return
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def _begin(value: Any, tag: int, seen: dict[int, int], out: bytearray) -> None:
    seen[id(value)] = len(seen)
    out.append(tag)
    _varint(len(value), out)


def _encode(value: Any, out: bytearray, seen: dict[int, int], depth: int) -> None:
    if value is None:
        out += b"n"
    elif value is True:
        out += b"t"
    elif value is False:
        out += b"f"
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        out += b"s"
        _varint(len(raw), out)
        out += raw
    elif isinstance(value, int):
        out += b"j" if value < 0 else b"i"
        _varint(-1 - value if value < 0 else int(value), out)
    elif isinstance(value, float):
        out += b"d"
        out += _FLOAT.pack(value)
    elif isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        out += b"b"
        _varint(len(raw), out)
        out += raw
    elif isinstance(value, datetime):
        out += b"z" if value.tzinfo is None else b"Z"
        stamp = (value.replace(tzinfo=UTC) if value.tzinfo is None else value).timestamp()
        try:
            datetime.fromtimestamp(stamp, UTC)
        except (ValueError, OverflowError, OSError):
            raise _Refused(f"is a time that is too near to the end of the calendar: {value!r}") from None
        out += _FLOAT.pack(stamp)
    else:
        _encode_container(value, out, seen, depth)


def _encode_container(value: Any, out: bytearray, seen: dict[int, int], depth: int) -> None:
    if (earlier := seen.get(id(value))) is not None:
        out += b"r"
        _varint(earlier, out)
        return
    if depth == MAX_DEPTH:
        raise _Refused(f"is nested more than {MAX_DEPTH} deep and cannot be cloned.")
    step: Any = None
    try:
        if isinstance(value, list | tuple):
            _begin(value, 0x5B, seen, out)
            for index, item in enumerate(value):
                step = index
                _encode(item, out, seen, depth + 1)
        elif isinstance(value, dict):
            _begin(value, 0x7B, seen, out)
            for key, item in value.items():
                step = key
                _encode_member(key, out, seen, depth, "key")
                _encode(item, out, seen, depth + 1)
        elif isinstance(value, set | frozenset):
            _begin(value, 0x3C, seen, out)
            for item in value:
                _encode_member(item, out, seen, depth, "element")
        else:
            raise _Refused(
                f"is of type {type(value).__name__}, which cannot be cloned; "
                "use None, bool, int, float, str, bytes, datetime, list, dict or set."
            )
    except _Refused as refused:
        if refused.inside:
            refused.path.append(f"[{step!r}]")
        refused.inside = True
        raise


def _encode_member(value: Any, out: bytearray, seen: dict[int, int], depth: int, what: str) -> None:
    # A tuple would come back as a list, which neither a dict key nor a set element can be.
    # Nor could a hashable list, dict or set of the program's own.
    if isinstance(value, tuple | frozenset | list | dict | set):
        raise _Refused(f"has a {type(value).__name__} as {what}, which would not be one after cloning: {value!r:.80}")
    _encode(value, out, seen, depth + 1)


class _Reader:
    """One pass over encoded bytes. `containers` is what `r` points into."""

    __slots__ = ("containers", "data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 1
        self.containers: list[Any] = []

    def varint(self) -> int:
        number = shift = 0
        while True:
            if shift > 512:
                return self._long_varint(number, shift)
            byte = self.data[self.position]
            self.position += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    def _long_varint(self, number: int, shift: int) -> int:
        start = self.position
        while self.data[self.position] > 127:
            self.position += 1
        self.position += 1
        digits = "".join(f"{byte & 127:07b}" for byte in reversed(self.data[start : self.position]))
        return number | int(digits, 2) << shift

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise IndexError
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def item(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        tag = self.take(1)
        if (plain := _PLAIN.get(tag, self)) is not self:
            return plain
        if tag == b"s":
            return self.take(self.varint()).decode("utf-8", "surrogatepass")
        if tag == b"i":
            return self.varint()
        if tag == b"j":
            return -1 - self.varint()
        if tag == b"d":
            return _FLOAT.unpack(self.take(8))[0]
        if tag == b"b":
            return self.take(self.varint())
        if tag in (b"z", b"Z"):
            stamp = datetime.fromtimestamp(_FLOAT.unpack(self.take(8))[0], UTC)
            return stamp if tag == b"Z" else stamp.replace(tzinfo=None)
        if tag == b"r":
            return self.containers[self.varint()]
        return self._container(tag, depth)

    def _container(self, tag: bytes, depth: int) -> Any:
        if tag not in (b"[", b"{", b"<"):
            raise ValueError(f"unknown tag {tag!r}")
        size = self.varint()
        if tag == b"[":
            sequence: list[Any] = []
            self.containers.append(sequence)
            for _ in range(size):  # one by one: an item may refer to the list it is in
                sequence.append(self.item(depth + 1))  # noqa: PERF401
            return sequence
        if tag == b"{":
            mapping = JsDict()  # here, and not in `as_js`: it may be part of a cycle
            self.containers.append(mapping)
            for _ in range(size):
                key = self.item(depth + 1)
                mapping[key] = self.item(depth + 1)
            return mapping
        members: set[Any] = set()
        self.containers.append(members)
        for _ in range(size):
            members.add(self.item(depth + 1))
        return members


_PLAIN: dict[bytes, Any] = {b"n": None, b"t": True, b"f": False}


def as_js(value: Any) -> Any:
    """A value of plain dicts and lists, without cycles, whose objects may then be read by attribute."""
    if type(value) is dict:
        found = JsDict(value)
        for key, item in value.items():
            if type(item) in _SEEN_DIFFERENTLY:
                found[key] = as_js(item)
        return found
    if type(value) is list:
        for index, item in enumerate(value):
            if type(item) in _SEEN_DIFFERENTLY:
                value[index] = as_js(item)
        return value
    return ArrayBuffer(value) if type(value) is bytes else value


_SEEN_DIFFERENTLY = frozenset({dict, list, bytes})


def decode_js(data: bytes) -> Any:
    """`decode` for worker code: objects may be read by attribute."""
    value = decode(data)
    if data[:1] == b"\x91":
        return as_js(value)
    return ArrayBuffer(value) if type(value) is bytes else value  # of version 1 the rest is so already, and may have cycles


def decode(data: bytes) -> Any:
    """The value of bytes made by `encode`, of this version or an older one. Raises ValueError for anything else."""
    if data[:1] == b"\x91":
        try:
            return _unpack(data)[0]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
            raise ValueError(f"damaged encoded value: {error}") from error
    if data[:1] != b"\x01":
        raise ValueError(f"not an encoded value, or of a newer version than {VERSION}")
    reader = _Reader(data)
    try:
        value = reader.item()
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, OverflowError, OSError) as error:
        raise ValueError(f"damaged encoded value at byte {reader.position}: {error}") from error
    if reader.position != len(data):
        raise ValueError(f"damaged encoded value: {len(data) - reader.position} bytes too many")
    return value


def decode_all_js(encoded: Sequence[bytes]) -> list[Any]:
    """As `decode_js`, the values of many, in one go where they are of version 2. Raises ValueError."""
    if len(encoded) > 1:
        try:
            if bytes(map(_FIRST, encoded)).count(0x91) == len(encoded):
                values = _unpack(b"\xdd%b%b" % (_COUNT.pack(len(encoded)), b"".join(encoded)))
                return [as_js(value) for (value,) in values]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError, IndexError):
            pass  # one of them is damaged: one by one, so that it is known which
    return [decode_js(data) for data in encoded]
