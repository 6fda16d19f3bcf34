"""Dialling: WebSockets that a worker opens. The dial is a coroutine; an open socket is a row of the reactor like any.

Owns the descriptor until it hands it to an `UpstreamConnection`. Certificates are always checked. Source: RFC 6455 §4.1.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from roost.errors import RemoteProtocolError
from roost.events import Dial, Dialled, Headers
from roost.gateway.io.admission import watch_over
from roost.gateway.io.tls import TlsPipe, TlsUpstreamConnection
from roost.gateway.io.upstream_connection import UpstreamConnection
from roost.protocol.deflate import EXTENSION, OFFER, check_agreed
from roost.protocol.handshake import accept_key
from roost.protocol.http import ResponseParser, encode_request, get_header, has_token
from roost.trust import client_context

if TYPE_CHECKING:
    import ssl

    from roost.gateway.io.owner import Owner
    from roost.gateway.io.turn import Turn
    from roost.gateway.routing.host_slot import HostSlot
    from roost.link.port import Link

REPLACED: Final = "The gateway is being replaced or ends; try again."
_REFUSAL_S: Final = 2.0
_DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_OURS = frozenset({
    "host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions",
    "content-length", "transfer-encoding", "accept-encoding",
})  # fmt: skip


class Upstream(NamedTuple):
    """A server's answer to a dial; `sock` is open if it is 101."""

    sock: socket.socket
    tls: TlsPipe | None
    status: int
    headers: Headers
    deflate: int
    leftover: bytes
    body: bytes = b""  # of a refusal


class Dialler:
    """The dials of one gateway, each a task, bounded by `max_dials`."""

    def __init__(self, turn: Turn, ca_file: str | None) -> None:
        self._turn = turn
        self._ca_file = ca_file
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: ssl.SSLContext | None = None

    def dial(self, slot: HostSlot, dial: Dial) -> None:
        """Open a WebSocket for the host of `slot`; `Dialled` tells it how that ended, also if it is leaving by then."""
        link = slot.current
        if self._turn.quiescing:
            tell(link, Dialled(dial.dial, 0, 0, [], REPLACED))
            return
        if len(self._tasks) >= self._turn.limits.max_dials:
            error = f"{len(self._tasks)} connections are being opened already (limits.max_dials)."
            tell(link, Dialled(dial.dial, 0, 0, [], error))
            return
        self._turn.counters.dials += 1
        task = self._turn.loop.create_task(self._run(slot, dial, link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, slot: HostSlot, dial: Dial, link: Link | None) -> None:
        try:
            async with asyncio.timeout(self._turn.limits.dial_timeout_s):
                await self._open(slot, dial, link)
        except TimeoutError:
            text = f"The upstream did not answer within {self._turn.limits.dial_timeout_s:g} s."
            tell(link, Dialled(dial.dial, 0, 0, [], text))
        except asyncio.CancelledError:
            tell(link, Dialled(dial.dial, 0, 0, [], REPLACED))
            raise
        except (OSError, ValueError, RemoteProtocolError) as error:  # ssl.SSLError is an OSError
            tell(link, Dialled(dial.dial, 0, 0, [], str(error) or type(error).__name__))

    async def _open(self, slot: HostSlot, dial: Dial, link: Link | None) -> None:
        upstream = await self.connect(dial)
        if upstream.status != 101:
            tell(link, Dialled(dial.dial, 0, upstream.status, upstream.headers, "", upstream.body))
            return
        if slot.link is not link:
            upstream.sock.close()  # the host that asked is gone or leaving, and with it who would own the socket
            tell(link, Dialled(dial.dial, 0, 0, [], REPLACED))
            return
        fd = upstream.sock.detach()
        connection = self.connection(upstream, fd, self._turn.new_number(fd), slot.plain, dial)
        self._turn.adopt(connection)
        tell(link, Dialled(dial.dial, connection.number, 101, upstream.headers, ""))
        self.begin(connection, upstream)

    def connection(self, upstream: Upstream, fd: int, number: int, owner: Owner, dial: Dial) -> UpstreamConnection:
        """What a server's 101 has opened."""
        kind = UpstreamConnection if upstream.tls is None else TlsUpstreamConnection
        connection = kind(self._turn, fd, number, owner)
        if isinstance(connection, TlsUpstreamConnection):
            assert upstream.tls is not None
            connection.tls = upstream.tls
        connection.deflate = upstream.deflate
        connection.protocol = get_header(upstream.headers, "sec-websocket-protocol") or ""
        connection.dial = dial
        return connection

    def begin(self, connection: UpstreamConnection, upstream: Upstream) -> None:
        """Read what the server has sent right behind its 101."""
        if upstream.leftover:
            self._turn.early.append((connection, upstream.leftover))
        self._turn.end()

    async def close(self) -> None:
        """Give up what is being dialled."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # dialling

    async def connect(self, dial: Dial) -> Upstream:
        """The upstream's answer, with an open socket if it is 101. Raises OSError, ValueError, RemoteProtocolError."""
        loop = self._turn.loop
        url = urlsplit(dial.url)
        if url.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"{dial.url} is not a WebSocket URL")
        host = url.hostname or ""
        port = url.port or _DEFAULT_PORTS[url.scheme]
        sock = await _connect(loop, host, port)
        try:
            watch_over(sock, self._turn.limits)
            tls = await self._handshake(sock, host) if url.scheme in ("wss", "https") else None
            key = base64.b64encode(self._turn.random_bytes(16)).decode()
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            default = port == _DEFAULT_PORTS[url.scheme]
            name = f"[{host}]" if ":" in host else host
            headers: Headers = [
                ("Host", name if default else f"{name}:{port}"),
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Key", key),
                ("Sec-WebSocket-Version", "13"),
            ]
            headers += [(field, value) for field, value in dial.headers if field.lower() not in _OURS]
            offers = self._offer(dial, headers)
            if dial.protocols:
                headers.append(("Sec-WebSocket-Protocol", ", ".join(dial.protocols)))
            request = encode_request("GET", path, headers)
            await loop.sock_sendall(sock, tls.encrypt(request) if tls else request)
            parser = ResponseParser()
            while parser.head is None:
                plain = await _receive(loop, sock, tls)
                if plain == b"":
                    raise RemoteProtocolError(502, "The upstream closed the connection during the handshake.")
                if plain:
                    parser.feed(plain)
            head = parser.head
            if head.status != 101:
                await _read_refusal(loop, sock, tls, parser)
                sock.close()
                return Upstream(sock, tls, head.status, head.headers, 0, b"", bytes(parser.body))
            _check_response(head.headers, key, dial.protocols)
            bits = check_agreed(get_header(head.headers, "sec-websocket-extensions"), offered=offers)
            return Upstream(sock, tls, 101, head.headers, bits, parser.leftover)
        except BaseException:
            sock.close()
            raise

    def _offer(self, dial: Dial, headers: Headers) -> bool:
        """Offer compression, unless the worker's own header leaves it out; whether it is offered."""
        asked = get_header(dial.headers, "sec-websocket-extensions")
        offers = self._turn.limits.compression and (asked is None or EXTENSION in asked.lower())
        if offers:
            headers.append(("Sec-WebSocket-Extensions", OFFER))
        return offers

    async def _handshake(self, sock: socket.socket, host: str) -> TlsPipe:
        loop = self._turn.loop
        if self._context is None:
            self._context = client_context(self._ca_file)
        pipe = TlsPipe(self._context, host)
        out = pipe.handshake(b"")
        while True:
            if out:
                await loop.sock_sendall(sock, out)
            if pipe.complete:
                return pipe
            data = await loop.sock_recv(sock, 65536)
            if not data:
                raise RemoteProtocolError(502, "The upstream closed the connection during the TLS handshake.")
            out = pipe.handshake(data)


def tell(link: Link | None, event: Dialled) -> None:
    """The asking host, if it is there, hears how its dial ended."""
    if link is not None:
        link.send(event)


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, tls: TlsPipe | None) -> bytes | None:
    """What has come, decrypted; empty at the end, None if it was no whole record."""
    data = await loop.sock_recv(sock, 65536)
    return tls.decrypt(data) if tls and data else data


async def _read_refusal(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, tls: TlsPipe | None, parser: ResponseParser
) -> None:
    """Why it was refused: what comes of the body within `_REFUSAL_S`, up to the parser's limit."""
    try:
        async with asyncio.timeout(_REFUSAL_S):
            while not parser.complete and (plain := await _receive(loop, sock, tls)) != b"":
                if plain:
                    parser.feed(plain)
    except (TimeoutError, OSError, RemoteProtocolError):
        pass  # the status is what counts


async def _connect(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket; raises OSError with the last address's failure."""
    failure: OSError = OSError(f"{host} does not resolve")
    for family, kind, proto, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, proto)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = OSError(f"cannot connect to {host}:{port}: {os.strerror(error.errno or 0)}")
        except BaseException:
            sock.close()
            raise
    raise failure


def _check_response(headers: Headers, key: str, protocols: list[str]) -> None:
    """RFC 6455 §4.1: the server must prove that it understood."""
    upgrades = has_token(get_header(headers, "upgrade"), "websocket")
    if not upgrades or not has_token(get_header(headers, "connection"), "upgrade"):
        raise RemoteProtocolError(502, "The upstream's 101 does not say that it upgrades to WebSocket.")
    if get_header(headers, "sec-websocket-accept") != accept_key(key):
        raise RemoteProtocolError(502, "The upstream's Sec-WebSocket-Accept is wrong.")
    chosen = get_header(headers, "sec-websocket-protocol")
    if chosen is not None and chosen not in protocols:
        raise RemoteProtocolError(502, f"The upstream chose the protocol {chosen!r}, which was not offered.")
