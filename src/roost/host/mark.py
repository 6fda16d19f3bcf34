"""What a host is just doing, where the node can read it after the host's death: a page of memory in a file.

For ends that nobody can tell of: `os._exit` in a handler, a crash in C, code that holds the interpreter's lock. One page,
written without a system call: epoch and event (0: none) of the message whose handler runs, then its object as JSON; at the
end, how many requests of each gateway's link have been begun, which that gateway reads.
"""

from __future__ import annotations

import json
import mmap
import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from roost.events import BEGUN_END, BEGUN_OFFSET

if TYPE_CHECKING:
    from pathlib import Path

_PAGE: Final = 4096
_LINKS: Final = (BEGUN_END - BEGUN_OFFSET) // 8
_encode: Final = msgspec.json.Encoder().encode
_HEAD: Final = struct.Struct("<QQI")


class Mark:
    """One host's. Without a path (tests, `--inline`) nobody reads it."""

    __slots__ = ("_memory", "_object", "path", "words")

    def __init__(self, path: Path | None = None) -> None:
        self._object: object = None
        self.path = "" if path is None else str(path)
        if path is None:
            self._memory: Any = bytearray(_PAGE)
        else:
            with open(path, "w+b") as file:
                file.truncate(_PAGE)
                self._memory = mmap.mmap(file.fileno(), _PAGE)
        self.words = memoryview(self._memory).cast("Q")  # epoch, event

    def about(self, actor: Any) -> None:
        """It is this object's event."""
        if self._object is not actor:
            self._object = actor
            text = _encode([actor.ref.class_name, actor.ref.id, actor.label[:500]])[: BEGUN_OFFSET - _HEAD.size]
            struct.pack_into(f"<I{len(text)}s", self._memory, 16, len(text), text)

    def begun(self, link: int) -> None:
        """A request of that link is begun: it must not be given to another host."""
        if link < _LINKS:
            self.words[BEGUN_OFFSET // 8 + link] += 1


def read(path: Path) -> dict[str, Any] | None:
    """What a host that has ended was doing, in the form of a `watchdog.Stuck`; None if no handler ran."""
    try:
        page = path.read_bytes()
        epoch, event, size = _HEAD.unpack_from(page)
        if not event:
            return None
        class_name, object_id, label = json.loads(page[_HEAD.size : _HEAD.size + size])
    except (OSError, ValueError, struct.error):
        return None
    return {"what": label, "stack": "", "class_name": class_name, "id": object_id, "epoch": epoch, "event": event}
