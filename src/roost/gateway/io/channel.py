"""A descriptor with output that is joined per turn, and bounded when the kernel takes no more.

`Channel` is what HTTP and WebSocket connections share. A `Backlog` exists only while the client does not read.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Final

from roost.gateway.io.reactor import READ, WRITE

if TYPE_CHECKING:
    from roost.gateway.io.turn import Turn

_write = os.write

READ_BYTES: Final = 68 * 1024  # a message of 64 KiB and its head
READ_LARGE_BYTES: Final = 256 * 1024  # of a large frame at once: other clients wait no longer than that takes
_JOIN_AT_MOST: Final = 512  # writes joined in one turn before they are written early
_JOIN_BYTES: Final = 64 * 1024  # nothing is gained by joining to a write as large as this


class Backlog:
    """Output that the kernel did not take. At most one pong waits in it: a newer one replaces it (RFC 6455 §5.5.3).

    Its first chunk may be partly sent; each other is one frame.
    """

    __slots__ = ("chunks", "pong", "size")

    def __init__(self, *chunks: bytes | memoryview) -> None:
        self.chunks: deque[bytes | memoryview] = deque(chunks)
        self.size = sum(map(len, chunks))
        self.pong: bytes | None = None

    def add(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)

    def head(self) -> bytes | memoryview:
        """What to write next: whole chunks, as many as make a good write."""
        size = count = 0
        for chunk in self.chunks:
            size += len(chunk)
            count += 1
            if size >= _JOIN_BYTES:
                break
        return self.chunks[0] if count == 1 else b"".join(islice(self.chunks, count))

    def taken(self, size: int) -> None:
        """The kernel took so many bytes."""
        self.size -= size
        chunks = self.chunks
        while size:
            first = chunks[0]
            if size < len(first):
                chunks[0] = memoryview(first)[size:]  # a large one is not copied each time the kernel takes some of it
                return
            size -= len(first)
            chunks.popleft()

    def drop_oldest(self, at_most: int) -> int:
        """Drop frames that have not begun to leave, oldest first, until no more than so many bytes wait; how many. The
        newest stays."""
        if not self.chunks:
            return 0
        first = self.chunks.popleft()
        dropped = 0
        while len(self.chunks) > 1 and self.size > at_most:
            self.size -= len(self.chunks.popleft())
            dropped += 1
        self.chunks.appendleft(first)
        return dropped


def pieces(out: bytes | list[bytes]) -> list[bytes]:
    """What a turn has queued, which is mostly one piece."""
    return [out] if type(out) is bytes else out  # type: ignore[return-value]


class Channel:
    """A descriptor with joined, bounded output. Owns the descriptor from construction to `close_fd`."""

    __slots__ = ("fd", "number", "out", "turn")

    is_websocket: ClassVar[bool] = False

    def __init__(self, turn: Turn, fd: int, number: int) -> None:
        self.turn = turn
        self.fd = fd  # -1 once closed
        self.number = number
        self.out: bytes | list[bytes] | Backlog | None = None  # one piece, as nearly always; several; or too many

    # output

    def write(self, data: bytes) -> None:
        """Queue bytes; they leave at the end of the turn, in order."""
        out = self.out
        if out is None:
            self.out = data
            self.turn.dirty.append(self)
        elif type(out) is bytes:
            self.out = [out, data]
            if len(data) > _JOIN_BYTES:
                self.flush()
        elif type(out) is list:
            out.append(data)
            if len(out) >= _JOIN_AT_MOST or len(data) > _JOIN_BYTES:
                self.flush()
        elif out.size > self.turn.limits.max_outbound_bytes:  # type: ignore[union-attr]
            self.overflowed(data)
        else:
            out.add(data)  # type: ignore[union-attr]

    def flush(self) -> None:
        """Write what is queued in one call; the rest becomes the backlog."""
        out = self.out
        if self.fd < 0 or out is None or type(out) is Backlog:
            return
        try:
            if type(out) is bytes:
                sent, size = _write(self.fd, out), len(out)
            else:
                size = sum(map(len, out))  # type: ignore[arg-type]
                sent = os.writev(self.fd, out) if size > _JOIN_BYTES else _write(self.fd, b"".join(out))  # type: ignore[arg-type]
        except BlockingIOError:
            sent, size = 0, 1
        except OSError:
            self.out = None
            self.lost()
            return
        if sent == size:
            self.out = None
            self.drained()
        else:
            self.stalled(sent)

    def stalled(self, sent: int) -> None:
        """The kernel has taken so many bytes of what was queued, and no more for now."""
        self.out = backlog = Backlog(*pieces(self.out))  # type: ignore[arg-type]
        backlog.taken(sent)
        self.turn.reactor.watch(self.fd, self.wanted() | WRITE)

    def writable(self) -> None:
        """The kernel takes more: write the backlog."""
        out = self.out
        if type(out) is not Backlog:
            return
        while out.chunks:
            data = out.head()
            try:
                sent = self.send_bytes(data)
            except OSError:
                self.lost()
                return
            out.taken(sent)
            if sent < len(data):
                return
        self.backlog_left(out)

    def backlog_left(self, out: Backlog) -> None:
        """All chunks of the backlog have left: a pong that waits goes now, else there is nothing to write any more."""
        self.out = out.pong
        self.turn.reactor.watch(self.fd, self.wanted())
        if self.out is not None:
            self.flush()
        else:
            self.drained()

    def send_bytes(self, data: bytes | memoryview) -> int:
        """How many bytes the kernel took; raises OSError if the connection is broken."""
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0

    def read_bytes(self) -> bytes | None:
        """What has arrived, b"" at the end of the stream, None if nothing has."""
        try:
            return os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close_fd(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.turn.reactor.unregister(fd)
            os.close(fd)
            self.out = None
            self.turn.closed(self, fd)

    # what each kind does

    def send_frame(self, frame: bytes) -> bool:
        """Send a WebSocket message; False on what is not (or no longer) an open WebSocket."""
        return False

    def ready(self, mask: int) -> None:
        """See reactor.Pollable."""
        raise NotImplementedError

    def wanted(self) -> int:
        """What to watch for besides writing."""
        return READ

    def rewatch(self) -> None:
        """Watch the descriptor for what is wanted now."""
        if self.fd >= 0:
            self.turn.reactor.watch(self.fd, self.wanted() | (WRITE if type(self.out) is Backlog else 0))

    def drained(self) -> None:
        """All output has left."""

    def overflowed(self, data: bytes) -> None:
        """`data` found the backlog over its limit."""
        raise NotImplementedError

    def lost(self) -> None:
        """The descriptor is broken."""
        raise NotImplementedError

    def expire(self, now: float) -> float | None:
        """A deadline has come, or will: the next time to look, None if there is none."""
        raise NotImplementedError

    def broken(self, error: Exception) -> None:
        """`ready` raised: see reactor.Pollable."""
        self.lost()


def shut_down_writing(fd: int) -> None:
    """Half-close: our end of the stream, so that the client reads what was sent before the descriptor is closed."""
    sock = socket.socket(fileno=fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # already reset by the client: the read that follows will say so
    finally:
        sock.detach()
