"""What worker code may give a WebSocket: close codes and reasons, subprotocols, URLs. Plain checks.

Source: reference 2.2 and 3; the WebSockets standard.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from roost.api.runtime import Compat
from roost.closes import may_be_sent
from roost.errors import JsException

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
SURROGATE: Final = re.compile("[\ud800-\udfff]")
NEWEST: Final = Compat()


def check_close(code: int | None, reason: str | None, compat: Compat = NEWEST) -> tuple[int, str]:
    """The code and reason to send; 1005 stands for none. Validation comes before any state check.

    A reason of more than 123 bytes, which no Close frame can carry, is a SyntaxError, or cut before 2026-03-03.
    """
    if code is None:
        if reason:
            raise JsException("If you specify a WebSocket close reason, you must also specify a code.",
                              "InvalidAccessError")  # fmt: skip
        return 1005, ""
    allowed = isinstance(code, int) and may_be_sent(code)
    if not allowed or (compat.strict_close_codes and 1000 < code < 3000):
        raise JsException(f"Invalid WebSocket close code: {code}.", "InvalidAccessError")
    text = SURROGATE.sub("\ufffd", reason or "")
    if (size := len(text.encode())) > 123 and compat.close_reason_limit:
        raise JsException(f"WebSocket close reason is {size} bytes of UTF-8; at most 123 are allowed.", "SyntaxError")
    return code, text


def check_protocols(protocols: str | list[str] | None) -> list[str]:
    """The subprotocols to offer. Raises SyntaxError (as JsException) for a bad token or a repeated one."""
    offered = [protocols] if isinstance(protocols, str) else list(protocols or [])
    for protocol in offered:
        if not _TOKEN.match(protocol):
            raise JsException(f"The protocol {protocol!r} is not a valid token.", "SyntaxError")
    if len({protocol.lower() for protocol in offered}) != len(offered):
        raise JsException("A protocol is offered twice.", "SyntaxError")
    return offered


def check_url(url: str) -> str:
    """A dialable ws or wss URL without user information. Raises SyntaxError (as JsException)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise JsException(f"The URL {url!r} is invalid: {error}.", "SyntaxError") from error
    if parts.scheme not in ("ws", "wss"):
        raise JsException(f"The URL {url!r} is invalid: a WebSocket URL begins with ws:// or wss://.", "SyntaxError")
    if not parts.hostname:
        raise JsException(f"The URL {url!r} is invalid: it names no host.", "SyntaxError")
    if "#" in url:
        raise JsException(f"The URL {url!r} is invalid: it must not have a fragment.", "SyntaxError")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts._replace(netloc=host if port is None else f"{host}:{port}").geturl()
