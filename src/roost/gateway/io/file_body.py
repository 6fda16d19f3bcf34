"""The body of an answer that is a file: sent in windows, as the client takes it, and never held in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from roost.gateway.io.channel import Channel

WINDOW_BYTES: Final = 128 * 1024  # at once: other clients wait no longer than that takes


class FileBody:
    """A part of an open file, which it owns."""

    __slots__ = ("_fd", "_left", "_offset")

    def __init__(self, path: str, offset: int, size: int) -> None:
        """Raises OSError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = offset
        self._left = size

    @property
    def is_sent(self) -> bool:
        return not self._left

    def send(self, channel: Channel, *, plain: bool) -> bool:
        """Send the next window to a channel that owes nothing else; whether the kernel (or the channel's buffer) took any.
        Raises OSError if the connection is broken, or the file has become shorter."""
        size = min(self._left, WINDOW_BYTES)
        if plain:
            try:
                sent = os.sendfile(channel.fd, self._fd, self._offset, size)
            except BlockingIOError:
                return False
        else:  # it has to be encrypted
            data = os.pread(self._fd, size, self._offset)
            sent = len(data)
            if data:
                channel.write(data)
        if not sent:
            raise OSError("the file has become shorter than its answer said")
        self._offset += sent
        self._left -= sent
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
