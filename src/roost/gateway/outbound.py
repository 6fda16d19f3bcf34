"""Dialling: WebSockets that a worker opens. The dial is a coroutine; an open socket is a row of the reactor like any.

Owns the descriptor until it hands it to a `ClientConnection`. Certificates are always checked.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from roost.errors import RemoteProtocolError
from roost.events import Dial, Dialled, Headers
from roost.gateway.connection import ClientConnection
from roost.gateway.tls import TlsClientConnection, TlsPipe
from roost.protocol.deflate import EXTENSION, OFFER, check_agreed
from roost.protocol.http import ResponseParser, accept_key, encode_request, get_header, has_token

if TYPE_CHECKING:
    from roost.gateway.gateway import Gateway
    from roost.gateway.host_slot import HostSlot

_log = logging.getLogger("roost.gateway")

_REPLACED = "The gateway is being replaced or ends; try again."
_DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_OURS = frozenset({
    "host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions",
    "content-length",
})  # fmt: skip


class Outbound:
    """The dials of one gateway, each a task, bounded by `max_dials`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: ssl.SSLContext | None = None

    def dial(self, slot: HostSlot, dial: Dial) -> None:
        """Open a WebSocket for the host of `slot`; `Dialled` tells it how that ended."""
        if self._gateway.quiescing:
            self._gateway.router.dialled(slot, Dialled(dial.dial, 0, 0, [], _REPLACED))
            return
        if len(self._tasks) >= self._gateway.limits.max_dials:
            error = f"{len(self._tasks)} connections are being opened already (limits.max_dials)."
            self._gateway.router.dialled(slot, Dialled(dial.dial, 0, 0, [], error))
            return
        self._gateway.counters.dials += 1
        task = self._gateway.loop.create_task(self._run(slot, dial))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, slot: HostSlot, dial: Dial) -> None:
        try:
            async with asyncio.timeout(self._gateway.limits.dial_timeout_s):
                await self._open(slot, dial)
        except TimeoutError:
            text = f"The upstream did not answer within {self._gateway.limits.dial_timeout_s:g} s."
            self._gateway.router.dialled(slot, Dialled(dial.dial, 0, 0, [], text))
        except asyncio.CancelledError:
            self._gateway.router.dialled(slot, Dialled(dial.dial, 0, 0, [], _REPLACED))
            raise
        except (OSError, ValueError, RemoteProtocolError) as error:  # ssl.SSLError is an OSError
            self._gateway.router.dialled(slot, Dialled(dial.dial, 0, 0, [], str(error) or type(error).__name__))

    async def _open(self, slot: HostSlot, dial: Dial) -> None:
        loop = self._gateway.loop
        link = slot.link
        url = urlsplit(dial.url)
        if url.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"{dial.url} is not a WebSocket URL")
        host = url.hostname or ""
        port = url.port or _DEFAULT_PORTS[url.scheme]
        sock = await _connect(loop, host, port)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = await self._handshake(sock, host) if url.scheme in ("wss", "https") else None
            key = base64.b64encode(self._gateway.random_bytes(16)).decode()
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
                data = await loop.sock_recv(sock, 65536)
                plain = tls.decrypt(data) if tls and data else data
                if plain == b"":
                    raise RemoteProtocolError(502, "The upstream closed the connection during the handshake.")
                if plain:
                    parser.feed(plain)
            head = parser.head
            if head.status != 101:
                sock.close()
                self._gateway.router.dialled(slot, Dialled(dial.dial, 0, head.status, head.headers, ""))
                return
            _check_response(head.headers, key, dial.protocols)
            bits = check_agreed(get_header(head.headers, "sec-websocket-extensions"), offered=offers)
        except BaseException:
            sock.close()
            raise
        if slot.link is not link:
            sock.close()
            return  # the host that asked is gone, and with it who would own the socket
        fd = sock.detach()
        kind = ClientConnection if tls is None else TlsClientConnection
        connection = kind(self._gateway, fd, self._gateway.new_number(fd), slot.plain)
        if isinstance(connection, TlsClientConnection):
            assert tls is not None
            connection.tls = tls
        connection.deflate = bits
        connection.protocol = get_header(head.headers, "sec-websocket-protocol") or ""
        self._gateway.adopt(connection)
        self._gateway.router.dialled(slot, Dialled(dial.dial, connection.number, 101, head.headers, ""))
        if parser.leftover:
            self._gateway.later.append((connection, parser.leftover))
        self._gateway.end_turn()

    def _offer(self, dial: Dial, headers: Headers) -> bool:
        """Offer compression, unless the worker's own header leaves it out; whether it is offered."""
        asked = get_header(dial.headers, "sec-websocket-extensions")
        offers = self._gateway.limits.compression and (asked is None or EXTENSION in asked.lower())
        if offers:
            headers.append(("Sec-WebSocket-Extensions", OFFER))
        return offers

    async def _handshake(self, sock: socket.socket, host: str) -> TlsPipe:
        loop = self._gateway.loop
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._gateway.ca_file)
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

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


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
    if not has_token(headers, "upgrade", "websocket") or not has_token(headers, "connection", "upgrade"):
        raise RemoteProtocolError(502, "The upstream's 101 does not say that it upgrades to WebSocket.")
    if get_header(headers, "sec-websocket-accept") != accept_key(key):
        raise RemoteProtocolError(502, "The upstream's Sec-WebSocket-Accept is wrong.")
    chosen = get_header(headers, "sec-websocket-protocol")
    if chosen is not None and chosen not in protocols:
        raise RemoteProtocolError(502, f"The upstream chose the protocol {chosen!r}, which was not offered.")
