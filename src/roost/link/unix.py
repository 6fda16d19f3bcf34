"""A link over a unix stream socket: envelopes, one write a loop turn, one read for hundreds of them.

This is one of the two places where asyncio callbacks are allowed (the other is `gateway/io/reactor.py`): a stream reader's
task switch per batch would double the cost of a short batch.
"""

from __future__ import annotations

import contextvars
import logging
import socket
import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from roost.errors import RemoteProtocolError
from roost.link.port import NO_CONTEXT, Batch
from roost.link.unsendable import encode_each
from roost.protocol.envelope import Splitter, encode_batch

if TYPE_CHECKING:
    import asyncio

    from roost.link.port import Receiver

_log = logging.getLogger("roost.link")

READ_BYTES = 68 * 1024  # a message of 64 KiB and its head; larger buffers cost a short round trip more
READ_MORE_BYTES = 256 * 1024  # after a read that filled its buffer
HIGH_WATER_BYTES = 4 * 1024 * 1024
SEND_BUFFER_BYTES = 1024 * 1024  # of the kernel: a large message is one switch to the other process, not five
_PIECES: Final = 64  # written at once, at most
MAX_ENVELOPE_BYTES = 40 * 1024 * 1024  # a 32 MiB message, with room for many targets


class UnixLink(Batch):
    """One end over a connected stream socket, which it owns.

    `hold_reading`: stop reading while congested. A host does (it takes no new events while it cannot speak), a gateway
    must not (else both ends could wait for each other for ever) and holds back its clients instead.
    """

    FULL_BYTES = 1024 * 1024  # a handler that sends more than this at once is written while it runs

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        hold_reading: bool,
        unread: bytes = b"",
        backlog: bytes = b"",
    ) -> None:
        super().__init__()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # the kernel gives what it may
        self.congested = False
        self._sock = sock
        self._loop = loop
        self._hold_reading = hold_reading
        self._receiver: Receiver | None = None
        self._splitter = Splitter(MAX_ENVELOPE_BYTES)
        self._backlog: deque[bytes | memoryview] = deque([backlog] if backlog else ())
        self._backlog_bytes = len(backlog)
        if unread:
            self._splitter.feed(unread)
        self._scheduled = False
        self._read_bytes = READ_BYTES
        self._received = 0
        self._open = True

    @property
    def unsent(self) -> bool:
        return bool(self._backlog)

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.resume()

    # another process may go on with a link: `unread` and `backlog` are what it needs besides the descriptor

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def unread(self) -> bytes:
        """What has arrived of an envelope that is not complete."""
        return self._splitter.rest

    @property
    def backlog(self) -> bytes:
        """What was flushed and could not be written yet."""
        return b"".join(self._backlog)

    def pause(self) -> None:
        """Write what can be written, then neither read nor write until `resume`."""
        self.flush()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())

    def resume(self) -> None:
        if self._backlog:
            contextvars.Context().run(self._loop.add_writer, self._sock.fileno(), self._writable)
        contextvars.Context().run(self._loop.add_reader, self._sock.fileno(), self._readable)

    def _begun(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn, context=NO_CONTEXT)

    def _full(self) -> None:
        self.flush()

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        if not self.events:
            return
        events = self.take()
        try:
            data = encode_batch(events)
        except Exception:  # noqa: BLE001 - one that cannot travel must not take the others with it
            try:
                data, answers = encode_each(events)
            except RemoteProtocolError as error:
                self._lost(str(error))
                return
            if answers and self._receiver is not None:
                self._loop.call_soon(self._receiver.on_events, answers, context=NO_CONTEXT)
        if not self._open:
            return
        size = sum(map(len, data)) if isinstance(data, list) else len(data)
        sent = 0
        if not self._backlog:
            try:
                sent = self._sock.sendmsg(data[:_PIECES]) if isinstance(data, list) else self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost(f"write failed: {error}")
                return
            if sent == size:
                return
            contextvars.Context().run(self._loop.add_writer, self._sock.fileno(), self._writable)
        self._backlog += data if isinstance(data, list) else [data]
        self._backlog_bytes += size
        self._taken(sent)
        if not self.congested and self._backlog_bytes > HIGH_WATER_BYTES:
            self.congested = True
            if self._hold_reading:
                self._loop.remove_reader(self._sock.fileno())

    def _writable(self) -> None:
        try:
            sent = self._sock.sendmsg(list(islice(self._backlog, _PIECES)))
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"write failed: {error}")
            return
        self._taken(sent)
        if not self._backlog:
            self._loop.remove_writer(self._sock.fileno())
        if self.congested and self._backlog_bytes <= HIGH_WATER_BYTES // 4:
            self.congested = False
            if self._hold_reading:
                contextvars.Context().run(self._loop.add_reader, self._sock.fileno(), self._readable)
            if self._receiver is not None:
                self._receiver.on_drained()

    def _taken(self, size: int) -> None:
        """The kernel took so many bytes of the backlog."""
        backlog = self._backlog
        self._backlog_bytes -= size
        while backlog and size >= len(backlog[0]):
            size -= len(backlog.popleft())
        if size:
            backlog[0] = memoryview(backlog[0])[size:]

    def _readable(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        splitter = self._splitter
        room = splitter.room()
        try:
            if room is None:
                data = self._sock.recv(self._read_bytes)
                size = len(data)
                self._read_bytes = READ_BYTES if size < self._read_bytes else READ_MORE_BYTES
            else:  # a large envelope is under way: straight to where it belongs
                with room:
                    size = self._sock.recv_into(room)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(f"read failed: {error}")
            return
        if not size:
            self._lost("the other end closed the link")
            return
        self._received += size
        # Held for the whole batch: its replies leave in one write, by the flush below.
        self._scheduled = True
        try:
            events = splitter.feed(data) if room is None else splitter.filled(size)
            if events:
                receiver.on_events(events)
        except (RemoteProtocolError, UnicodeDecodeError, struct.error) as error:
            self._lost(f"the other end broke the envelope format: {error}")
        finally:
            self._scheduled = False
            self.flush()

    def read_rest(self) -> None:
        before = -1
        while self._open and self._received != before:
            before = self._received
            self._readable()

    def _lost(self, reason: str) -> None:
        if not self._open:
            return
        self.close()
        if self._receiver is not None:
            self._receiver.on_closed(reason)

    def close(self) -> None:
        if not self._open:
            return
        events = self.take()
        if events or self._backlog:
            try:  # a last word, such as the final `Done`, if the kernel takes it at once
                self._sock.send(b"".join([*self._backlog, encode_each(events)[0]]))
            except (OSError, RemoteProtocolError) as error:
                _log.debug("link: the last batch was not sent: %s", error)
        self._open = False
        self._backlog.clear()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
