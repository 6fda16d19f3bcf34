"""TLS over descriptors that the reactor watches: OpenSSL works on bytes in memory, `Sealed` moves them.

What a connection queues stays plain text until the kernel has room for it, so that a backlog is bounded and may be dropped
in whole frames; `TlsPipe.unsent` is the one piece of ciphertext that may be under way, and goes before everything else.

Source: RFC 8446 §6.1 (close_notify); RFC 6455 §10.6.
"""

from __future__ import annotations

import logging
import os
import ssl
from typing import TYPE_CHECKING, Final

from roost.errors import ConfigError
from roost.gateway.io.channel import Backlog, Channel, pieces
from roost.gateway.io.connection import Connection
from roost.gateway.io.http_connection import HttpConnection
from roost.gateway.io.reactor import WRITE
from roost.gateway.io.upstream_connection import UpstreamConnection

if TYPE_CHECKING:
    from roost.gateway.io.owner import Owner
    from roost.gateway.io.turn import Turn

_log = logging.getLogger("roost.gateway")

_SEAL_BYTES: Final = 256 * 1024  # sealed at once: what the kernel does not take of it is kept twice
_LOOK_AGAIN_S: Final = 5.0  # at most so often, and only when somebody connects, the certificate's files are looked at


class TlsPipe:
    """TLS over bytes that somebody else moves: ciphertext in, plaintext out, and back."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "complete", "unsent")

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self.complete = False  # the handshake
        self.unsent = b""

    def handshake(self, data: bytes) -> bytes:
        """Feed handshake bytes; what to send. `complete` tells whether that was all. Raises ssl.SSLError if it fails."""
        if data:
            self._incoming.write(data)
        try:
            self._tls.do_handshake()
            self.complete = True
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def outgoing(self) -> bytes:
        """What TLS itself has to send: an alert, a key update."""
        return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> bytes | None:
        """Plaintext; None if there is none yet, b"" at the end of the stream. Raises ssl.SSLError."""
        self._incoming.write(data)
        plain = b""
        try:
            while piece := self._tls.read(256 * 1024):
                plain += piece
        except ssl.SSLWantReadError:
            return plain or None
        except ssl.SSLZeroReturnError:
            return plain
        return plain

    def close(self) -> bytes:
        """What tells the other side that nothing more comes."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it waits for the other side's; ours is written
        return self._outgoing.read()


class ServerTls:
    """The certificate that clients see. Its files are read again when they change, for those who connect after that."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = (cert, key)
        self._seen = self._stamp()
        self._looked_at = 0.0
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError, too; both are named for the reader
            text = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            files = " and ".join(self._files)
            raise ConfigError(f"TLS: {files} cannot be used: {text}.", key="network.tls_cert") from error
        return context

    def _stamp(self) -> tuple[object, ...]:
        found: list[object] = []
        for path in self._files:
            try:
                status = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(found)

    def pipe(self, now: float) -> TlsPipe:
        """TLS for a new client, with the certificate of today."""
        if now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self.context = self._load()
                    _log.info("gateway: the certificate %s was read again", self._files[0])
                except ConfigError as error:
                    _log.error("gateway: %s The one before goes on.", error)
        return TlsPipe(self.context)


class Sealed(Channel):
    """A channel whose bytes are TLS's. Before the kind of channel in the list of bases."""

    __slots__ = ()

    tls: TlsPipe

    def read_bytes(self) -> bytes | None:
        data = super().read_bytes()
        if not data:
            return data
        tls = self.tls
        try:
            if not tls.complete:
                tls.unsent += tls.handshake(data)
                data = b""
            plain = tls.decrypt(data) if tls.complete else None
        except ssl.SSLError as error:
            _log.debug("gateway: TLS with descriptor %d ended: %s", self.fd, error)
            self.turn.counters.closed_tls += 1
            self._last_words(tls.outgoing())
            return b""
        tls.unsent += tls.outgoing()
        if tls.unsent and self.out is None:
            self.write(b"")
        return plain

    def flush(self) -> None:
        out = self.out
        if out is None or type(out) is Backlog or self.fd < 0:
            return
        self.out = Backlog(*pieces(out))  # type: ignore[arg-type]
        if not self._pump(self.out):
            if self.fd >= 0:
                self.turn.reactor.watch(self.fd, self.wanted() | WRITE)
            return
        self.out = None
        self.drained()

    def writable(self) -> None:
        out = self.out
        if type(out) is not Backlog or not self._pump(out):
            return
        self.backlog_left(out)

    def _pump(self, out: Backlog) -> bool:
        """Encrypt and write until the kernel takes no more; whether everything has left."""
        tls = self.tls
        while True:
            if not tls.unsent:
                if not tls.complete or not out.size:
                    return not out.size
                data = out.head()[:_SEAL_BYTES]
                out.taken(len(data))
                try:
                    tls.unsent = tls.encrypt(data)
                except ssl.SSLError:
                    self.lost()
                    return False
            try:
                sent = self.send_bytes(tls.unsent)
            except OSError:
                self.lost()
                return False
            tls.unsent = tls.unsent[sent:]
            if tls.unsent:
                return False

    def _last_words(self, data: bytes) -> None:
        if data and not self.tls.unsent:
            try:
                os.write(self.fd, data)
            except OSError:
                pass  # nobody listens

    def close_fd(self) -> None:
        if self.fd >= 0 and self.tls.complete:
            self._last_words(self.tls.close())
        super().close_fd()


class TlsHttpConnection(Sealed, HttpConnection):
    """A client that speaks HTTP over TLS."""

    __slots__ = ("tls",)

    def __init__(self, turn: Turn, fd: int, number: int, peer: str, tls: TlsPipe) -> None:
        super().__init__(turn, fd, number, peer)
        self.tls = tls
        self.scheme = "https"

    def websocket(self, number: int, owner: Owner) -> Connection:
        connection = TlsConnection(self.turn, self.fd, number, owner)
        connection.tls = self.tls
        return self.as_websocket(connection)


class TlsConnection(Sealed, Connection):
    """A client's WebSocket over TLS."""

    __slots__ = ("tls",)


class TlsUpstreamConnection(Sealed, UpstreamConnection):
    """A WebSocket that Roost dialled with `wss:`."""

    __slots__ = ("tls",)
