"""The server's side of the WebSocket handshake, and the key's answer, which clients check. Pure. Source: RFC 6455 §4."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final

from roost.errors import RemoteProtocolError
from roost.protocol.http import has_token

if TYPE_CHECKING:
    from roost.protocol.http import RequestHead

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()


def wants_websocket(head: RequestHead) -> bool:
    """Whether the request asks for WebSocket at all; `check_handshake` says if it asks well."""
    return has_token(head.fields.get("upgrade"), "websocket")


def check_handshake(head: RequestHead) -> str:
    """The request's key. Raises RemoteProtocolError (400 or 426) with what is missing and how to mend it.

    Source: RFC 6455 §4.2.1. Connection is required: a 101 that a proxy did not ask for is how requests are smuggled.
    """
    if head.method != "GET" or head.version != "1.1":
        raise RemoteProtocolError(400, "WebSocket handshake failed: it must be a GET request of HTTP/1.1.")
    fields = head.fields
    if not has_token(fields.get("connection"), "upgrade"):
        raise RemoteProtocolError(
            400, 'WebSocket handshake failed: missing header "Connection: Upgrade" (a proxy in front must pass it on).'
        )
    if fields.get("sec-websocket-version") != "13":
        raise RemoteProtocolError(426, 'WebSocket handshake failed: send "Sec-WebSocket-Version: 13".')
    key = fields.get("sec-websocket-key", "")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise RemoteProtocolError(
            400, "WebSocket handshake failed: missing or invalid Sec-WebSocket-Key (16 random bytes in base64)."
        )
    return key
