"""Dialling: WebSockets that a worker opens. The dial is a coroutine; an open socket is a row of the reactor like any.

Owns the descriptor until it hands it to a `ClientConnection`. Certificates are always checked.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from roost.errors import RemoteProtocolError
from roost.events import Dial, DialKept, Dialled, Headers
from roost.gateway.io.connection import ClientConnection, Connection, State
from roost.gateway.io.tls import TlsClientConnection, TlsPipe
from roost.gateway.routing.sockets import ActorRecord
from roost.protocol.deflate import EXTENSION, OFFER, check_agreed
from roost.protocol.http import ResponseParser, accept_key, encode_request, get_header, has_token
from roost.protocol.websocket import CloseCode
from roost.trust import client_context

if TYPE_CHECKING:
    import ssl

    from roost.events import Redial
    from roost.gateway.gateway import Gateway
    from roost.gateway.routing.host_slot import HostSlot
    from roost.gateway.routing.sockets import Owner
    from roost.link.port import Link

_log = logging.getLogger("roost.gateway")

_REPLACED = "The gateway is being replaced or ends; try again."
_REDIALS_AT_ONCE = 100
_REFUSAL_S = 2.0
_WAS_STABLE_S = 10.0  # an upstream that was open for so long begins its back-off anew
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


class Outbound:
    """The dials of one gateway, each a task, bounded by `max_dials`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: ssl.SSLContext | None = None
        self.to_dial_again: list[ClientConnection] = []  # another gateway was about to
        self._redials = asyncio.Semaphore(_REDIALS_AT_ONCE)

    def dial(self, slot: HostSlot, dial: Dial) -> None:
        """Open a WebSocket for the host of `slot`; `Dialled` tells it how that ended, also if it is leaving by then."""
        link = slot.current
        if self._gateway.quiescing:
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, 0, [], _REPLACED))
            return
        if len(self._tasks) >= self._gateway.limits.max_dials:
            error = f"{len(self._tasks)} connections are being opened already (limits.max_dials)."
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, 0, [], error))
            return
        self._gateway.counters.dials += 1
        task = self._gateway.loop.create_task(self._run(slot, dial, link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, slot: HostSlot, dial: Dial, link: Link | None) -> None:
        try:
            async with asyncio.timeout(self._gateway.limits.dial_timeout_s):
                await self._open(slot, dial, link)
        except TimeoutError:
            text = f"The upstream did not answer within {self._gateway.limits.dial_timeout_s:g} s."
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, 0, [], text))
        except asyncio.CancelledError:
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, 0, [], _REPLACED))
            raise
        except (OSError, ValueError, RemoteProtocolError) as error:  # ssl.SSLError is an OSError
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, 0, [], str(error) or type(error).__name__))

    async def _open(self, slot: HostSlot, dial: Dial, link: Link | None) -> None:
        upstream = await self._connect(dial)
        if upstream.status != 101:
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, upstream.status, upstream.headers, "", upstream.body))
            return
        if slot.link is not link:
            upstream.sock.close()  # the host that asked is gone or leaving, and with it who would own the socket
            self._gateway.router.dialled(link, Dialled(dial.dial, 0, 0, [], _REPLACED))
            return
        fd = upstream.sock.detach()
        connection = self._connection(upstream, fd, self._gateway.new_number(fd), slot.plain, dial)
        self._gateway.adopt(connection)
        self._gateway.router.dialled(link, Dialled(dial.dial, connection.number, 101, upstream.headers, ""))
        self._begin(connection, upstream)

    def _connection(self, upstream: Upstream, fd: int, number: int, owner: Owner, dial: Dial) -> ClientConnection:
        kind = ClientConnection if upstream.tls is None else TlsClientConnection
        connection = kind(self._gateway, fd, number, owner)
        if isinstance(connection, TlsClientConnection):
            assert upstream.tls is not None
            connection.tls = upstream.tls
        connection.deflate = upstream.deflate
        connection.protocol = get_header(upstream.headers, "sec-websocket-protocol") or ""
        connection.dial = dial
        return connection

    def _begin(self, connection: ClientConnection, upstream: Upstream) -> None:
        if upstream.leftover:
            self._gateway.later.append((connection, upstream.leftover))
        self._gateway.end_turn()

    # upstreams that objects keep

    def dial_kept(self, slot: HostSlot, event: DialKept) -> None:
        """A socket that is an object's before it is open: like one that has ended and is dialled again."""
        gateway, link = self._gateway, slot.current
        if gateway.quiescing or gateway.draining or slot.link is not link:
            gateway.router.dialled(link, Dialled(event.dial.dial, 0, 0, [], _REPLACED))
            return
        gateway.counters.dials += 1
        connection = ClientConnection(gateway, -1, gateway.new_virtual_number(), slot.plain)
        connection.state = State.GONE
        connection.dial = event.dial
        gateway.router.aliases[connection.number] = connection
        gateway.router.keep(connection, slot, event.keep)
        gateway.router.dialled(link, Dialled(event.dial.dial, connection.number, 0, [], ""))
        self._dial_again(connection, at_once=True)

    def again(self, connection: ClientConnection, why: str) -> bool:
        """A kept upstream has ended, and not by our will: dial it again, if its object wants that."""
        gateway = self._gateway
        if connection.redial is None or connection.dial is None or connection.waiting is not None or gateway.draining:
            return False
        if gateway.loop.time() - connection.opened_at > _WAS_STABLE_S:
            connection.attempts = 0
        gateway.router.aliases[connection.number] = connection
        gateway.counters.upstreams_lost += 1
        _log.warning("gateway: %s is away, and is dialled again: %s", _named(connection), why)
        self._dial_again(connection)
        if connection.state == State.PEER_CLOSED:
            Connection.close(connection, CloseCode.NO_STATUS, "")
        return True

    def _dial_again(self, connection: ClientConnection, *, at_once: bool = False) -> None:
        assert connection.redial is not None
        assert connection.dial is not None
        redialling = self._redial(connection, connection.redial, connection.dial, at_once)
        connection.waiting = self._gateway.loop.create_task(redialling)

    async def _redial(self, before: ClientConnection, redial: Redial, dial: Dial, at_once: bool) -> None:
        """`at_once`: the first time, without a pause before it."""
        reason = "The upstream ended."
        began = self._gateway.loop.time()
        while not redial.attempts or before.attempts < redial.attempts:
            if at_once and before.attempts == 1:
                _log.warning("gateway: %s cannot be opened, and is dialled again: %s", _named(before), reason)
            pause = min(redial.max_s, redial.first_s * 2 ** min(max(0, before.attempts - at_once), 30))
            before.attempts += 1
            jitter = int.from_bytes(self._gateway.random_bytes(2), "big") / 65536
            if not at_once or before.attempts > 1:
                await asyncio.sleep(pause * (1 - jitter / 2))
            try:
                async with self._redials, asyncio.timeout(self._gateway.limits.dial_timeout_s):
                    upstream = await self._connect(dial)
                if upstream.status != 101:
                    reason = f"The upstream answered {upstream.status}."
                    continue
                self._reopen(before, upstream, redial, dial)
                took_s = self._gateway.loop.time() - began
                if before.attempts > 1 or not at_once:
                    _log.info("gateway: %s is back after %.1f s, by dial %d", _named(before), took_s, before.attempts)
                return
            except TimeoutError:
                reason = f"The upstream did not answer within {self._gateway.limits.dial_timeout_s:g} s."
            except (OSError, ValueError, RemoteProtocolError) as error:
                reason = str(error) or type(error).__name__
            except Exception as error:  # noqa: BLE001 - a bug of ours must not leave the object waiting for ever
                _log.exception("gateway: internal error while dialling %s again; please report it", dial.url)
                reason = f"internal error: {error}"
        _log.warning("gateway: %s is given up after %d dials: %s", _named(before), before.attempts, reason)
        before.redial = before.waiting = None
        self._gateway.router.closed(before, CloseCode.ABNORMAL, reason, clean=False)
        self._gateway.end_turn()

    def _reopen(self, before: ClientConnection, upstream: Upstream, redial: Redial, dial: Dial) -> None:
        if before.fd >= 0:
            before.cut()  # it lingers still, and its descriptor would be found by their number
        fd = upstream.sock.detach()
        try:
            connection = self._connection(upstream, fd, before.number, before.owner, dial)
            connection.tags, connection.attachment, connection.auto_at_ms = (
                before.tags,
                before.attachment,
                before.auto_at_ms,
            )
            connection.redial, connection.attempts = redial, before.attempts
            self._gateway.router.opened_again(connection)
        except BaseException:
            os.close(fd)
            raise
        before.waiting = None
        self._begin(connection, upstream)

    def pause(self) -> None:
        """Dial nothing again for now: the gateway is being handed over."""
        for connection in self._gateway.router.aliases.values():
            if isinstance(connection, ClientConnection) and connection.waiting is not None:
                connection.waiting.cancel()

    def go_on(self) -> None:
        """Dial again what another gateway was about to."""
        for connection in self.to_dial_again:
            self._dial_again(connection)
        self.to_dial_again.clear()

    def resume(self) -> None:
        """Go on with what `pause` has stopped."""
        for connection in list(self._gateway.router.aliases.values()):
            if isinstance(connection, ClientConnection) and connection.waiting is not None:
                self._dial_again(connection)

    def goodbye(self) -> None:
        """The node ends: what is away is not dialled again, and its objects hear so."""
        for connection in list(self._gateway.router.aliases.values()):
            if isinstance(connection, ClientConnection) and connection.waiting is not None:
                connection.close(CloseCode.GOING_AWAY, "The server is shutting down.")

    # dialling

    async def _connect(self, dial: Dial) -> Upstream:
        """The upstream's answer, with an open socket if it is 101. Raises OSError, ValueError, RemoteProtocolError."""
        loop = self._gateway.loop
        url = urlsplit(dial.url)
        if url.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"{dial.url} is not a WebSocket URL")
        host = url.hostname or ""
        port = url.port or _DEFAULT_PORTS[url.scheme]
        sock = await _connect(loop, host, port)
        try:
            self._gateway.watch_over(sock)
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
        offers = self._gateway.limits.compression and (asked is None or EXTENSION in asked.lower())
        if offers:
            headers.append(("Sec-WebSocket-Extensions", OFFER))
        return offers

    async def _handshake(self, sock: socket.socket, host: str) -> TlsPipe:
        loop = self._gateway.loop
        if self._context is None:
            self._context = client_context(self._gateway.ca_file)
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
        self.pause()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _named(connection: ClientConnection) -> str:
    """For the log: where it leads, without what may be secret, and whose it is."""
    assert connection.dial is not None
    url = urlsplit(connection.dial.url)
    where = f"{url.scheme}://{url.hostname or ''}{f':{url.port}' if url.port else ''}{url.path}"
    owner = connection.owner
    return f"the upstream {where} of {owner.object.label}" if isinstance(owner, ActorRecord) else f"the upstream {where}"


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
