"""What becomes of an event that cannot be encoded: its request or socket ends with one error. Nothing is just dropped.

Text with half a surrogate pair and subclasses of plain types come from worker code; they travel with U+FFFD and as what
they are a kind of. Of anything else the other end gets a proper end, or this end the answer that will never come.
"""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from roost import events
from roost.closes import UNSENDABLE
from roost.errors import RemoteProtocolError
from roost.protocol.envelope import encode

if TYPE_CHECKING:
    from roost.events import Event

_log = logging.getLogger("roost.link")


def encode_each(batch: list[Event]) -> tuple[bytes, list[Event]]:
    """The envelopes of a batch in which something cannot be encoded as it is, and what its sender gets as an answer.

    Raises RemoteProtocolError for an event without which the two ends would not agree any more.
    """
    data, answers = [], []
    for event in batch:
        try:
            data.append(_encoded(event))
        except Exception as error:
            instead, answer = _instead_of(event)
            if not instead and answer is None:
                raise RemoteProtocolError(1011, f"A {type(event).__name__} cannot be encoded: {error}") from error
            _log.exception("link: a %s cannot be encoded; its request or socket is ended", type(event).__name__)
            data += map(encode, instead)
            if answer is not None:
                answers.append(answer)
    return b"".join(data), answers


def _encoded(event: Event) -> bytes:
    try:
        return encode(event)
    except Exception:  # noqa: BLE001 - whatever it is
        return encode(_plain(event))


def _plain(value: Any) -> Any:
    """The same with plain text and bytes. What is neither stays, and fails again."""
    if isinstance(value, msgspec.Struct):
        return type(value)(**{name: _plain(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, list | tuple):
        return type(value)([_plain(each) for each in value])
    if isinstance(value, str):
        text = value.value if isinstance(value, enum.Enum) else value
        return str.__str__(text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return value


_WHY = "The runtime could not pass it on; please report it."


def _instead_of(event: Event) -> tuple[list[Event], Event | None]:
    """What is sent in its place, and what the sender gets as if the other end had said it."""
    match event:
        case events.Response(request=request):
            headers = [("Content-Type", "text/plain;charset=UTF-8")]
            return [events.Response(request, 500, "", headers, b"Internal Server Error", False)], None
        case events.BodyData(request=request):
            return [events.Abort(request, _WHY)], events.Abort(request, _WHY)
        case events.Abort(request=request):
            return [events.Abort(request, _WHY)], None
        case events.Result(request=request):
            return [events.Result(request, b"", events.Fault("Error", f"The result of the call: {_WHY}"))], None
        case events.Request(request=request):
            return [], events.Abort(request, f"The request: {_WHY}")
        case events.Call(request=request):
            return [], events.Result(request, b"", events.Fault("Error", f"The call: {_WHY}"))
        case events.Dial(dial=dial):
            return [], events.Dialled(dial, 0, 0, [], _WHY)
        case events.Send(sockets=sockets):
            return [events.CloseSocket(socket, *UNSENDABLE) for socket in sockets], None
        case events.CloseSocket(socket=socket) | events.Attach(socket=socket) | events.KeepSocket(socket=socket):
            return [events.CloseSocket(socket, *UNSENDABLE)], None
    return [], None
