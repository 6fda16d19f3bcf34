"""Who may come in: how many clients in all and from one address, and the options of their sockets.

It makes an `HttpConnection` of each that may, and answers 503 to those who may not.
"""

from __future__ import annotations

import logging
import resource
import socket
from typing import TYPE_CHECKING, Final, Protocol

from roost.gateway.io.http_connection import HttpConnection
from roost.gateway.io.tls import TlsHttpConnection
from roost.protocol.http import simple_response

if TYPE_CHECKING:
    from roost.gateway.io.tls import ServerTls
    from roost.gateway.io.turn import Turn
    from roost.gateway.limits import GatewayLimits

_log = logging.getLogger("roost.gateway")

RESERVED_FILES: Final = 64  # descriptors kept for links, dials, files
_FILES_BESIDES: Final = 32  # that the process needs besides its connections
_PROBES: Final = 4  # of TCP keep-alive, until a client that answers none is gone


def watch_over(sock: socket.socket, limits: GatewayLimits, *, local: bool = False) -> None:
    """Send at once, and have the kernel notice a peer that has vanished.

    One on this machine (`local`), such as a proxy, cannot vanish unnoticed. It is not probed: Linux drops probes of
    more than about a thousand loopback sockets that are due at the same tick, and would end the sockets for it.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, not local)
    if not local and hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, limits.tcp_keepalive_s))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, limits.tcp_timeout_s // _PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the same for one who vanishes while he is owed something
        timeout_ms = 0 if local else 1000 * (limits.tcp_keepalive_s + limits.tcp_timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


class Admission:
    """One gateway's. `turn.Door` for those that leave."""

    def __init__(self, turn: Turn, tls: ServerTls | None) -> None:
        self._turn = turn
        self._tls = tls
        self._file_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._per_address: dict[str, int] = {}
        self.addresses: dict[int, str] = {}  # by descriptor, only while there is a bound per address
        self._paused: list[Paused] = []
        self._refusals_logged_at = 0.0

    @property
    def open_files(self) -> int:
        """Connections, plus what the process needs besides them."""
        return self._turn.counters.connections + _FILES_BESIDES

    @property
    def is_full(self) -> bool:
        """Whether the process may open hardly any more files: what is left is for links, dials and files."""
        return self.open_files >= self._file_limit - RESERVED_FILES

    def accepted(self, sock: socket.socket, peer: str) -> None:
        """A new client: refuse it, or make it an `HttpConnection`."""
        turn = self._turn
        counters, limits = turn.counters, turn.limits
        counters.accepted += 1
        if limits.max_connections and counters.connections >= limits.max_connections:
            counters.refused_connections += 1
            self._refuse(sock, "WebSocket connection limit exceeded: raise limits.max_connections or try again later.")
            return
        if self.is_full:
            counters.refused_connections += 1
            self._refuse(sock, "No more connections: this process may open no more files. Raise `ulimit -n` or --gateways.")
            return
        if limits.max_connections_per_address and not turn.access.is_proxy(peer):
            if self._per_address.get(peer, 0) >= limits.max_connections_per_address:
                counters.refused_address += 1
                self._refuse(sock, "Too many connections from this address (limits.max_connections_per_address).")
                return
            self.count_address(sock.fileno(), peer)
        sock.setblocking(False)
        fd = sock.detach()
        if self._tls is None:
            http = HttpConnection(turn, fd, turn.new_number(fd), peer)
        else:
            http = TlsHttpConnection(turn, fd, turn.new_number(fd), peer, self._tls.pipe(turn.loop.time()))
        turn.adopt(http)
        turn.look_again(http.number)

    def count_address(self, fd: int, peer: str) -> None:
        """A descriptor belongs to a client of that address, for the bound per address."""
        self._per_address[peer] = self._per_address.get(peer, 0) + 1
        self.addresses[fd] = peer

    def _refuse(self, sock: socket.socket, text: str) -> None:
        now = self._turn.loop.time()
        if now - self._refusals_logged_at >= 1.0:
            self._refusals_logged_at = now
            _log.warning("gateway: %s (%d refused so far)", text, self._turn.counters.refused_connections)
        sock.setblocking(False)
        try:
            sock.recv(65536)  # what is unread at close would turn the answer into a reset
        except OSError:
            pass
        try:
            sock.send(simple_response(503, text + "\n", [("Retry-After", "5")], close=True))
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        sock.close()

    def pauses(self, listener: Paused) -> None:
        """It can open no more files: it hears of the next that is closed."""
        if listener not in self._paused:
            self._paused.append(listener)

    def left(self, fd: int) -> None:
        """A client's descriptor is closed."""
        if fd in self.addresses:
            self._forget_address(self.addresses.pop(fd))
        if self._paused:
            paused, self._paused = self._paused, []
            for listener in paused:
                self._turn.loop.call_soon(listener.resume)

    def _forget_address(self, peer: str) -> None:
        left = self._per_address.get(peer, 0) - 1
        if left > 0:
            self._per_address[peer] = left
        else:
            self._per_address.pop(peer, None)


class Paused(Protocol):
    """A listener that waits for room."""

    def resume(self) -> None: ...
