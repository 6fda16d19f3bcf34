"""permessage-deflate: what is agreed on in the handshake. Pure. What it does to a message's bytes is in `compression.py`.

Neither side ever keeps its window between messages (`no_context_takeover` both ways), so an idle socket costs nothing, a
message to many is compressed once for all of them, and a gateway can hand its sockets to another process.

Source: RFC 7692 §5 (negotiation), §7 (permessage-deflate).
"""

from __future__ import annotations

import re
from typing import Final

from roost.errors import RemoteProtocolError

EXTENSION: Final = "permessage-deflate"
OFFER: Final = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
_PIECE: Final = re.compile(r'\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)\s*(?:=\s*(?:"([^"\\]*)"|([^\s;,"]+)))?\s*([;,]|\Z)')
_BITS: Final = re.compile(r"8|9|1[0-5]")
_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")


def parse_extensions(value: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The extensions of a `Sec-WebSocket-Extensions` value, each with its parameters. Raises ValueError."""
    found: list[tuple[str, list[tuple[str, str | None]]]] = []
    position = 0
    begins = True
    while position < len(value):
        piece = _PIECE.match(value, position)
        if piece is None:
            raise ValueError(f"Sec-WebSocket-Extensions cannot be parsed: {value[position : position + 40]!r}")
        name = piece[1]  # as it is: other servers and RFC 7692's own examples know these names in lower case only
        argument = piece[3] if piece[2] is None else piece[2]
        if begins:
            found.append((name, []))
        else:
            found[-1][1].append((name, argument))
        begins = piece[4] == ","
        position = piece.end()
    return found


def agree(offered: str, allowed: str | None = None) -> tuple[int, str]:
    """A server's answer to a client's offers: the window's bits for what we send, and the header's value; `(0, "")` for no
    compression. `allowed` is the header that the worker set on its response: empty forbids it.

    An offer with a parameter that is unknown, doubled or of a bad value is passed over, as RFC 7692 §5.1 has it; a header
    that cannot be parsed is no offer.
    """
    try:
        if allowed is not None and all(name != EXTENSION for name, _ in parse_extensions(allowed)):
            return 0, ""
        offers = parse_extensions(offered)
    except ValueError:
        return 0, ""
    for name, parameters in offers:
        if name == EXTENSION and (bits := _bits_for(parameters)):
            limited = any(key == "server_max_window_bits" for key, _ in parameters)
            return bits, f"{OFFER}; server_max_window_bits={bits}" if limited else OFFER
    return 0, ""


def _bits_for(parameters: list[tuple[str, str | None]]) -> int:
    """The window that an offer leaves us, 0 if it is not acceptable."""
    bits = 15
    seen: set[str] = set()
    for key, value in parameters:
        valid = key not in seen
        seen.add(key)
        if key in _FLAGS:
            valid = valid and value is None
        elif key == "server_max_window_bits":
            valid = valid and value is not None and _BITS.fullmatch(value) is not None
            bits = int(value or 0) if valid else 0
        elif key == "client_max_window_bits":
            valid = valid and (value is None or _BITS.fullmatch(value) is not None)
        else:
            valid = False
        if not valid:
            return 0
    return bits


def check_agreed(value: str | None, *, offered: bool) -> int:
    """A client's check of a server's answer: the window's bits for what we send, 0 for no compression.

    Raises RemoteProtocolError if the server chose what was not offered (RFC 6455 §4.1, RFC 7692 §7.1).
    """
    if value is None or not value.strip():
        return 0
    try:
        chosen = parse_extensions(value)
    except ValueError as error:
        raise RemoteProtocolError(502, f"The upstream's {error}.") from error
    if not offered or len(chosen) != 1 or chosen[0][0] != EXTENSION:
        raise RemoteProtocolError(502, f"The upstream chose extensions that were not offered: {value[:80]!r}.")
    keys = dict(chosen[0][1])
    bits = keys.pop("server_max_window_bits", "15")
    valid = bits is not None and _BITS.fullmatch(bits) is not None and len(chosen[0][1]) == len(dict(chosen[0][1]))
    if not valid or "server_no_context_takeover" not in keys or set(keys) - set(_FLAGS) or any(keys.values()):
        raise RemoteProtocolError(502, f"The upstream agreed to other compression than was offered: {value[:80]!r}.")
    return 15
