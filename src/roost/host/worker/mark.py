"""What a host is just doing, where the node can read it after the host's death: a page of memory in a file.

For ends that nobody can tell of: `os._exit` in a handler, a crash in C, code that holds the interpreter's lock. One page,
written without a system call: epoch and event (0: none) of the message whose handler runs, then its object (class, id and
label, with NULs between); at the end, how many requests of each gateway's link have been begun, which that gateway reads.
"""

from __future__ import annotations

import logging
import mmap
import signal
import struct
from typing import TYPE_CHECKING, Any, Final

from roost.events import BEGUN_END, BEGUN_OFFSET

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("roost.host")

STACK_SIGNAL: Final = signal.SIGUSR2
"""By which the node asks a host that does not answer for its stack (`host/watchdog.py`)."""

_PAGE: Final = 4096
_LINKS: Final = (BEGUN_END - BEGUN_OFFSET) // 8
_HEAD: Final = struct.Struct("<QQI")
_TEXT_BYTES: Final = BEGUN_OFFSET - _HEAD.size


class Mark:
    """One host's. Without a path (tests, `--inline`) nobody reads it."""

    __slots__ = ("_memory", "gateway", "object", "path", "words")

    def __init__(self, path: Path | None = None) -> None:
        self.object: object = None  # that it is about
        self.gateway: object = None  # that the event came by
        self.path = ""
        self._memory: Any = None
        self.words: Any = [0] * (_PAGE // 8)  # epoch, event
        if path is None:
            return
        try:
            with open(path, "w+b") as file:
                file.write(bytes(_PAGE))  # not a hole: on a full disk the first write to one would end the process
                file.flush()
                self._memory = mmap.mmap(file.fileno(), _PAGE)
        except OSError as error:
            _log.warning("host: %s cannot be made (%s): if this host dies, nobody knows what it was doing", path, error)
            return
        self.path = str(path)
        self.words = memoryview(self._memory).cast("Q")

    def about(self, actor: Any, gateway: Any) -> None:
        """What comes is this object's event, by that gateway's link."""
        self.object = actor
        self.gateway = gateway
        self.words[0] = gateway.epoch
        if self._memory is None:
            return
        ref = actor.ref
        text = f"{ref.class_name}\0{ref.id}\0{actor.label[:500]}".encode("utf-8", "replace")[:_TEXT_BYTES]
        self._memory[16 : _HEAD.size + len(text)] = len(text).to_bytes(4, "little") + text

    def begun(self, index: int) -> None:
        """A request of that gateway (its index) is begun: it must not be given to another host."""
        if index < _LINKS:
            self.words[BEGUN_OFFSET // 8 + index] += 1


def read(path: Path) -> dict[str, Any] | None:
    """What a host that has ended was doing, in the form of a `watchdog.Stuck`; None if no handler ran."""
    try:
        page = path.read_bytes()
        epoch, event, size = _HEAD.unpack_from(page)
        if not event:
            return None
        class_name, object_id, label = page[_HEAD.size : _HEAD.size + size].decode("utf-8", "replace").split("\0", 2)
    except (OSError, ValueError, struct.error):
        return None
    return {"what": label, "stack": "", "class_name": class_name, "id": object_id, "epoch": epoch, "event": event}
