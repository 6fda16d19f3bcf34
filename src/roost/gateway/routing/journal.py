"""Which hibernatable sockets this gateway holds, on a file that outlives it: for its successor, if it is killed.

The sockets die with the process, but their objects must hear of their ends, also those that sleep: the successor reads the
journal and tells a close event (1006) for each. A record a line, appended once a turn; the page cache outlives a process,
so nothing is synced. When most of the file is history it is written anew.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Final

import msgspec

from roost.events import ObjectRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = logging.getLogger("roost.gateway")

_ANEW_FROM: Final = 20_000  # entries: then the file is written anew if most of them are history
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list).decode


class Lost(msgspec.Struct, frozen=True):
    """A socket that a dead gateway had."""

    number: int
    object: ObjectRef
    tags: tuple[str, ...]
    attachment: bytes | None
    protocol: str


class Journal:
    """One gateway's. Without a path (tests, `--inline`: nobody outlives it) nothing is written."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._fd = -1
        self.lines: list[bytes] = []  # of this turn
        self._entries = 0
        self._live = 0

    @property
    def is_written(self) -> bool:
        """Whether there is a file to write."""
        return self._fd >= 0

    def start(self, live: Iterable[Lost]) -> None:
        """Begin anew, with what the gateway holds now."""
        if self._path is None:
            return
        new = f"{self._path}.new"
        try:
            fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._give_up(error)
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self.lines.clear()
        self._entries = self._live = 0
        for each in live:
            self.bound(each.number, each.object, each.tags, each.protocol, each.attachment)
        try:
            self._write()
            os.replace(new, self._path)
        except OSError as error:
            self._give_up(error)

    def bound(self, number: int, ref: ObjectRef, tags: tuple[str, ...], protocol: str, attachment: bytes | None) -> None:
        """A socket is an object's from now on."""
        if self._fd >= 0:
            self._live += 1
            self._add(number, [number, ref.class_name, ref.id, ref.name, tags, protocol])
            if attachment is not None:
                self.attached(number, attachment)

    def _add(self, number: int, entry: list[object]) -> None:
        self._entries += 1
        try:
            self.lines.append(_encode(entry))
        except UnicodeEncodeError:  # a name with half a character cannot be written down
            _log.debug("gateway: socket %d is not in the journal", number)

    def attached(self, number: int, attachment: bytes | None) -> None:
        if self._fd >= 0:
            self._add(number, [number, attachment])

    def forgotten(self, number: int) -> None:
        if self._fd >= 0:
            self._entries += 1
            self._live -= 1
            self.lines.append(b"[%d]" % number)

    def flush(self, live: Callable[[], Iterable[Lost]]) -> None:
        """Write what the turn has added; all that is `live`, if the file is mostly history."""
        try:
            self._write()
        except OSError as error:
            self._give_up(error)
            return
        if self._entries > _ANEW_FROM and self._entries > 4 * self._live:
            self.start(live())

    def _write(self) -> None:
        self.lines.append(b"")
        data = b"\n".join(self.lines)
        self.lines.clear()
        if os.write(self._fd, data) < len(data):
            raise OSError(errno.ENOSPC, "a part only was written")

    def _give_up(self, error: OSError) -> None:
        """Without a journal only a gateway's death is different: its objects do not hear of their sockets' ends."""
        _log.error("gateway: the journal of sockets cannot be written and is given up: %s", error)
        self.lines.clear()
        if self._fd >= 0:
            os.close(self._fd)
        for path in (f"{self._path}.new", str(self._path)):  # what is there would be wrong
            try:
                os.unlink(path)
            except OSError:
                pass
        self._fd, self._path = -1, None

    def end(self) -> None:
        """Every socket has been told of: nobody needs it any more."""
        if self._fd >= 0 and self._path is not None:
            os.close(self._fd)
            self._fd = -1
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass

    def leave(self) -> None:
        """Another process goes on with the sockets and has a journal of its own."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str) -> list[Lost]:
    """What a gateway held when it died. A line that is cut or damaged ends it."""
    found: dict[int, Lost] = {}
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    for line in lines[:-1]:
        try:
            entry = _decode(line)
            number = int(entry[0])
            if len(entry) == 1:
                found.pop(number, None)
            elif len(entry) == 2:
                attachment = msgspec.convert(entry[1], bytes | None)
                if number in found:
                    found[number] = msgspec.structs.replace(found[number], attachment=attachment)
            else:
                _, class_name, id_, name, tags, protocol = entry
                found[number] = Lost(number, ObjectRef(class_name, id_, name), tuple(tags), None, protocol)
        except (msgspec.MsgspecError, ValueError, TypeError, IndexError) as error:
            _log.warning("gateway: the journal of sockets is damaged and read up to there: %s", error)
            break
    return list(found.values())
