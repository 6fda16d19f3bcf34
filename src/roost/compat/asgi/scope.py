"""What an ASGI app is told of a request (its scope), and the shapes of what is said on both sides.

Source: ASGI 3.0, HTTP and WebSocket connection scopes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from roost.api.http import Request

Scope = dict[str, Any]
Message = dict[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def make_scope(kind: str, request: Request, env: Any, state: dict[str, Any]) -> Scope:
    url = urlsplit(request.url)
    secure = url.scheme in ("https", "wss")
    raw_path = url.path or "/"
    scheme = {"http": ("http", "https"), "websocket": ("ws", "wss")}[kind][secure]
    client = request.headers.get("cf-connecting-ip")
    scope: Scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii", "replace"),
        "query_string": url.query.encode("ascii", "replace"),
        "root_path": "",
        "headers": [(n.lower().encode("latin-1"), v.encode("latin-1", "replace")) for n, v in request.headers.pairs],
        "client": (client, 0) if client else None,
        "server": (url.hostname or "localhost", url.port or (443 if secure else 80)),
        "state": dict(state),
        "extensions": {},
        "env": env,
    }
    if kind == "http":
        scope["method"] = str(request.method)
    else:
        offered = str(request.headers.get("sec-websocket-protocol") or "")
        scope["subprotocols"] = [each.strip() for each in offered.split(",") if each.strip()]
        scope["extensions"] = {"websocket.http.response": {}}
    return scope


def text_headers(headers: Any) -> list[tuple[str, str]]:
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers or ()]


def is_upgrade(request: Request) -> bool:
    return str(request.headers.get("upgrade") or "").lower() == "websocket"
