"""What stays of a gateway that has been replaced: TLS sessions, which no other process can go on with.

A pump moves bytes between a client's TLS and a plain socket whose other end the successor has. Bounded: while one side
does not take what it is given, the other is not read.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

from roost.gateway.io.channel import shut_down_writing

if TYPE_CHECKING:
    import asyncio
    import socket

    from roost.gateway.io.tls import TlsPipe

_READ_BYTES: Final = 64 * 1024
_LINGER_S: Final = 5.0  # for the client's end, after the successor's


class TlsPump:
    """One client's. Owns its descriptor and our end of the plain pair once it is started."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, tls: TlsPipe, plain: socket.socket) -> None:
        self._loop = loop
        self.fd = fd
        self._tls = tls
        self._plain = plain
        self._to_client = tls.unsent
        self._to_successor = b""
        self._client_ended = self._successor_ended = self._half_closed = False
        self.open = True

    def start(self) -> None:
        """Pump until both ends are over."""
        self._plain.setblocking(False)
        self._turn()

    def forget(self) -> None:
        """It was not needed: the session stays where it was."""
        self.open = False
        self._plain.close()

    def _watch(self) -> None:
        loop, plain = self._loop, self._plain.fileno()
        from_client = not self._to_successor and not self._client_ended
        from_successor = not self._to_client and not self._successor_ended
        for wanted, add, remove, fd, callback in (
            (from_client, loop.add_reader, loop.remove_reader, self.fd, self._read_client),
            (bool(self._to_client), loop.add_writer, loop.remove_writer, self.fd, self._turn),
            (from_successor, loop.add_reader, loop.remove_reader, plain, self._read_successor),
            (bool(self._to_successor), loop.add_writer, loop.remove_writer, plain, self._turn),
        ):
            if wanted:
                add(fd, callback)
            else:
                remove(fd)

    def _read_client(self) -> None:
        try:
            data = os.read(self.fd, _READ_BYTES)
            plain = self._tls.decrypt(data) if data else b""
        except BlockingIOError:
            return
        except OSError:  # ssl.SSLError is one
            plain = b""
        self._to_client += self._tls.outgoing()
        if plain == b"":
            self._client_ended = True
        elif not self._successor_ended:  # else: read and dropped, so that what the client was told is not lost to a reset
            self._to_successor += plain or b""
        self._turn()

    def _read_successor(self) -> None:
        try:
            data = self._plain.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self._to_client += self._tls.encrypt(data) if data else self._tls.close()
        except ssl.SSLError:
            self.close()
            return
        self._successor_ended = not data
        self._turn()

    def _turn(self) -> None:
        try:
            if self._to_client:
                self._to_client = self._to_client[_written(self.fd, self._to_client) :]
            if self._to_successor:
                self._to_successor = self._to_successor[_written(self._plain.fileno(), self._to_successor) :]
        except OSError:
            self.close()
            return
        if self._client_ended and not self._to_successor:
            self.close()
            return
        if self._successor_ended and not self._half_closed:
            self._half_closed = True
            self._to_successor = b""
            self._loop.call_later(_LINGER_S, self.close)
        if self._half_closed and not self._to_client:
            shut_down_writing(self.fd)
        self._watch()

    def close(self) -> None:
        """End both."""
        if not self.open:
            return
        self.open = False
        for fd in (self.fd, self._plain.fileno()):
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        os.close(self.fd)
        self._plain.close()


def _written(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
