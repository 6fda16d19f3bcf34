"""A gateway's state and its descriptors over a blocking unix socket, and each descriptor in its place."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from roost.gateway.handover.state import Handover

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH: Final = 200  # the kernel takes 253 in one message
_LENGTH_BYTES: Final = 8


def send(sock: socket.socket, state: Handover, descriptors: Sequence[int]) -> None:
    """The state and its descriptors, over a blocking unix socket."""
    data = msgspec.msgpack.encode(state)
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    for start in range(0, len(descriptors), _BATCH):
        socket.send_fds(sock, [b"d"], descriptors[start : start + _BATCH])
        if sock.recv(1) != b"k":
            raise ConnectionError("the successor did not take the descriptors")


def receive(sock: socket.socket) -> tuple[Handover, dict[int, int]]:
    """What `send` sent: the state, and each descriptor's number here by its number there. Raises OSError, ValueError."""
    size = int.from_bytes(_exactly(sock, _LENGTH_BYTES), "big")
    state = msgspec.msgpack.decode(_exactly(sock, size), type=Handover)
    placed: dict[int, int] = {}
    for start in range(0, len(state.descriptors), _BATCH):
        wanted = state.descriptors[start : start + _BATCH]
        _, received, _, _ = socket.recv_fds(sock, 1, len(wanted))
        if len(received) != len(wanted):
            raise ConnectionError(f"{len(received)} of {len(wanted)} descriptors arrived")
        placed.update(zip(wanted, _place(received, wanted), strict=True))
        sock.sendall(b"k")
    return state, placed


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("the other gateway ended in the middle")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _place(received: list[int], wanted: list[int]) -> list[int]:
    """Give each descriptor its number of before, if that is free: a socket's number tells its descriptor's. Ascending
    batches, so that what a later one wants is not in the way of an earlier."""
    aside = []
    for fd in received:
        try:
            aside.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1))
        except OSError:  # too near the limit: it keeps the number it has
            aside.append(fd)
        else:
            os.close(fd)
    found = []
    for fd, number in zip(aside, wanted, strict=True):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
            found.append(number)
        else:
            found.append(fd)
    return found
