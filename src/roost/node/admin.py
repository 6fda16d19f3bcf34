"""The admin side: what a node is doing, as JSON over HTTP, on an address of its own. Off unless `--admin IP:PORT` is given.

Every request needs the token of `admin-token` in the data folder, also those for what does not exist; the `Host` must be
the address that is listened on, so that a web page cannot reach it under a name of its own (DNS rebinding), and an
`Origin` must be that same host. Nothing changes on GET. One request a connection; heads, bodies, time and connections are
bounded.

    GET  /status            gateways, hosts, counters, awake objects with their pins, quarantine, breakers, process ids
    GET  /versions          what was deployed
    POST /objects/release   {"object": id or label, or nothing for all}: wake quarantined objects again

Source: behaviour 4.2, "dashboard without login" and "cross-site WebSocket hijacking"; RFC 6750 for the header.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

from roost.errors import ConfigError, RemoteProtocolError, RoostError
from roost.gateway.io.access import Access
from roost.gateway.limits import SAME_HOST
from roost.protocol.http import Data, EndOfMessage, HeadLimits, RequestHead, RequestParser, encode_head
from roost.storage.folding import sync_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

_log = logging.getLogger("roost.node")

TOKEN_FILE: Final = "admin-token"
_SHORTEST_TOKEN: Final = 20
_DEADLINE_S: Final = 10.0
_MAX_BODY_BYTES: Final = 64 * 1024
_MAX_CONNECTIONS: Final = 32
_ROUTES: Final = {("GET", "/status"): "status", ("GET", "/versions"): "versions", ("POST", "/objects/release"): "release"}


def parse_address(text: str) -> tuple[str, int]:
    """`IP:PORT`, an IPv6 address in brackets. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--admin {text!r}: write it as IP:PORT, such as 127.0.0.1:8788.", key="--admin")
    return host.strip("[]"), int(port)


def read_token(data: Path) -> str:
    """The folder's token, made at the first start; only its owner may read it. Raises ConfigError for one that could be
    guessed, such as an empty file."""
    path = data / TOKEN_FILE
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        new = path.with_name(f"{TOKEN_FILE}.new")
        fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
        sync_path(data)
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"{path} has a token of {len(token)} characters; it needs {_SHORTEST_TOKEN}. Remove the file, and a new one is"
            " made.",
            key="--admin",
        )
    return token


class Admin:
    """Serves from `start` to `close`. `answer(request)` is what the control socket answers with, too."""

    def __init__(self, token: str, answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._token = token.encode()
        self._answer = answer
        self._access = Access((SAME_HOST,))
        self._hosts: frozenset[str] = frozenset()
        self._open = 0
        self._server: asyncio.Server | None = None
        self.address = ("", 0)

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises ConfigError if the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_BODY_BYTES)
        except OSError as error:
            raise ConfigError(f"--admin: cannot listen on {host}:{port}: {error.strerror}.", key="--admin") from error
        self.address = host, port = self._server.sockets[0].getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        self._hosts = frozenset({f"{name}:{port}", f"localhost:{port}"})

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > _MAX_CONNECTIONS:
                writer.write(_json(503, {"error": "too many admin connections"}))
            else:
                async with asyncio.timeout(_DEADLINE_S):
                    writer.write(await self._respond(*await _read(reader)))
                    await writer.drain()
        except RemoteProtocolError as error:
            writer.write(_json(error.code, {"error": error.reason}))
        except (TimeoutError, OSError) as error:
            _log.debug("admin: a client was too slow or left: %s", error)
        finally:
            self._open -= 1
            writer.close()

    async def _respond(self, head: RequestHead, body: bytes) -> bytes:
        host = (head.fields.get("host", "")).lower()
        if host not in self._hosts or not self._access.origin_allowed(head.fields):
            return _json(403, {"error": "this address must be asked by its own name, and by no web page"})
        scheme, _, token = (head.fields.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode("latin-1"), self._token):
            refusal = {"error": f"send Authorization: Bearer with the token of {TOKEN_FILE} in the data folder"}
            return _json(401, refusal, [("WWW-Authenticate", "Bearer")])
        path = head.target.split("?", 1)[0]
        command = _ROUTES.get((head.method, path))
        if command is None:
            allowed = [method for method, known in _ROUTES if known == path]
            if allowed:
                return _json(405, {"error": f"{path} is for {', '.join(allowed)}"}, [("Allow", ", ".join(allowed))])
            return _json(404, {"error": f"there is no {path} (there are: {', '.join(known for _, known in _ROUTES)})"})
        try:
            request = json.loads(body) if body else {}
            wanted = request.get("object")
            return _json(200, await self._answer({"command": command, "object": None if wanted is None else str(wanted)}))
        except (ValueError, AttributeError):
            return _json(400, {"error": "the body must be a JSON object"})
        except RoostError as error:
            return _json(409, {"error": str(error)})


async def _read(reader: asyncio.StreamReader) -> tuple[RequestHead, bytes]:
    """One request. Raises RemoteProtocolError, or ConnectionError if the client leaves."""
    parser = RequestParser(HeadLimits())
    head: RequestHead | None = None
    body = b""
    while True:
        data = await reader.read(16 * 1024)
        if not data:
            raise ConnectionError("the client left")
        parser.feed(data)
        for event in parser.events:
            if isinstance(event, RequestHead):
                head = event
            elif isinstance(event, Data):
                body += event.data
            elif isinstance(event, EndOfMessage) and head is not None:
                return head, body
        parser.events.clear()
        if len(body) > _MAX_BODY_BYTES:
            raise RemoteProtocolError(413, f"The body exceeds {_MAX_BODY_BYTES} bytes.")


def _json(status: int, value: Any, headers: list[tuple[str, str]] | None = None) -> bytes:
    body = json.dumps(value, indent=2).encode() + b"\n"
    fields = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
    ]
    return encode_head(status, "", fields + (headers or [])) + body
