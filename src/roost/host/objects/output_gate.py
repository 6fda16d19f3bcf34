"""The output gate: nothing leaves an object before the writes it made are on the disk. Plain state, no I/O, no time.

Each batch of writes has a number. What leaves is held, in order, until every batch that had begun before it is confirmed;
batches may be confirmed out of order. A failed one breaks the gate for good: what is held is dropped, and so is what comes.

Source: reference 4.5 (output gate), observed behaviour W25, W46-W53; workerd's `io-gate`.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.errors import RoostError


_log = logging.getLogger("roost.host")


class OutputGate:
    """`shut` is read for everything that leaves: it is true while anything waits, and for ever once broken."""

    __slots__ = ("_done", "_held", "_open_up_to", "broken", "last", "shut")

    def __init__(self) -> None:
        self.shut = False
        self.broken: RoostError | None = None
        self.last = 0  # the latest batch that holds output
        self._open_up_to = 0  # every batch up to this is confirmed
        self._done: dict[int, None] | None = None  # confirmed ahead of an earlier one
        self._held: deque[tuple[int, Callable[[RoostError | None], None]]] | None = None  # an empty one takes 0.8 KB

    def begin(self) -> int:
        """A batch of writes begins; its number for `confirm`."""
        self.last += 1
        self.shut = True
        return self.last

    def hold(self, release: Callable[[RoostError | None], None]) -> None:
        """Call `release(None)` when all writes so far are durable; `release(error)` if the gate breaks (or is broken)."""
        if self.broken is not None:
            release(self.broken)
        elif not self.shut:
            release(None)
        else:
            if self._held is None:
                self._held = deque()
            self._held.append((self.last, release))

    def confirm(self, batch: int) -> None:
        """A batch is durable. What waited only for it leaves, in order."""
        if self.broken is not None:
            return
        if batch == self._open_up_to + 1:
            self._open_up_to = batch
        elif self._done is None:
            self._done = {batch: None}
        else:
            self._done[batch] = None
        while self._done and self._open_up_to + 1 in self._done:
            self._open_up_to += 1
            del self._done[self._open_up_to]
        # Shut until the last held thing has left: what is sent meanwhile must stay behind it.
        while self._held and self._held[0][0] <= self._open_up_to:
            _release(self._held.popleft()[1], None)
        self.shut = self._open_up_to < self.last

    def break_off(self, error: RoostError) -> None:
        """A batch failed: everything held is dropped, and everything that comes."""
        if self.broken is not None:
            return
        self.broken = error
        self.shut = True
        held, self._held = self._held, None
        for _, release in held or ():
            _release(release, error)


def _release(release: Callable[[RoostError | None], None], error: RoostError | None) -> None:
    """One that fails must not keep the others from leaving."""
    try:
        release(error)
    except Exception:  # noqa: BLE001 - ours: worker code does not run here
        _log.exception("host: internal error behind the output gate; please report it")
