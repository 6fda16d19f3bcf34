"""What brings hosts down: a message in which one hung or died is not tried again, an object that did so twice is not woken.

Its sockets stay. `roost objects release` wakes it again, once it is mended.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from roost.errors import ConfigError
from roost.host.worker import mark
from roost.node.orders import Quarantine

if TYPE_CHECKING:
    from pathlib import Path

    from roost.node.children import Children
    from roost.node.orders import Key

_log = logging.getLogger("roost.node")

_HANGS_ALLOWED: Final = 2
_MAX_EVENTS: Final = 1_000
_MAX_HUNG: Final = 10_000  # objects whose hangs are remembered


class Suspects:
    """One node's."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.not_again: deque[tuple[int, int]] = deque(maxlen=_MAX_EVENTS)  # events (epoch, number) that a host hung in
        self._hung: dict[Key, int] = {}  # how often an object brought its host down
        self.quarantined: dict[Key, dict[str, str]] = {}

    def stuck(self, stuck: dict[str, Any]) -> None:
        """A host ends because of this (a `host.watchdog.Stuck`): its successor does not try that event again; an object's
        second time is its last."""
        if stuck["event"]:
            self.not_again.append((stuck["epoch"], stuck["event"]))
        if not stuck["id"]:
            return
        key = stuck["class_name"], stuck["id"]
        self._hung[key] = self._hung.pop(key, 0) + 1
        while len(self._hung) > _MAX_HUNG:
            del self._hung[next(iter(self._hung))]
        if self._hung[key] >= _HANGS_ALLOWED:
            self.quarantined[key] = {"object": stuck["what"], "stack": stuck["stack"]}
            _log.error(
                "node: %s has brought its host down %d times and is in quarantine: its sockets stay, it is not woken."
                " Mend it, then: roost objects release %s", stuck["what"], self._hung[key], stuck["id"],
            )  # fmt: skip
            self._tell()

    def died_in_handler(self, name: str, path: Path) -> None:
        """It ended by itself and could tell nobody: `os._exit`, a crash in C, a loop that held the interpreter's lock."""
        doing = mark.read(path)
        if doing is not None:
            _log.error("node: %s ended in webSocketMessage of %s; that message is not tried again", name, doing["what"])
            self.stuck(doing)

    def _tell(self) -> None:
        self._children.tell_hosts(Quarantine(list(self.quarantined)))

    def release(self, wanted: str | None) -> int:
        """Wake an object again, by its id or its label; without one, all of them. How many. Raises ConfigError."""
        found = [key for key, about in self.quarantined.items() if wanted is None or wanted in (key[1], about["object"])]
        if wanted is not None and not found:
            known = ", ".join(about["object"] for about in self.quarantined.values()) or "none"
            raise ConfigError(f"{wanted} is not in quarantine (in it are: {known}).")
        for key in found:
            del self.quarantined[key]
            self._hung.pop(key, None)
        self._tell()
        return len(found)

    def report(self) -> list[dict[str, str]]:
        """Those in quarantine."""
        return [
            {"class": class_name, "id": object_id, **about} for (class_name, object_id), about in self.quarantined.items()
        ]
