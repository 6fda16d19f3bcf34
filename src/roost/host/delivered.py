"""Which socket events an object has finished and what it said then, committed with what they wrote: none counts twice.

A gateway gives an event again if the host died before it had said `Done`. If the event's writes were on the disk by then,
running it again would double them. So the numbers of finished events, and the envelopes that waited for the very same
commit, are part of it for as long as the gateway may not have heard of them (usually a few milliseconds). A successor sends
the envelopes instead of running the handler. Events that wrote in several commits (with awaits in between) may repeat the
earlier ones; what is said in more than the bounds below is not kept. Plain state, no I/O.

What commits have said is said again in their order and before anything new, so that clients see no swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TURN_SAID_BYTES: Final = 64 * 1024
MAX_SAID_BYTES: Final = 256 * 1024  # in one commit, which repeats what earlier ones said while the disk is slow


Words = tuple[int, int, int, bytes]
"""What was said to a gateway: its process' epoch, the life and number of the group (events.Said), the envelopes."""


class Turn(msgspec.Struct, array_like=True):
    """One commit: the events that ended in it, and what the object said to each gateway, as envelopes."""

    events: list[tuple[int, int]]  # (epoch of the gateway process, its number of the event)
    said: list[Words]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Turn]).decode


class Delivered:
    """One object's."""

    __slots__ = ("_earlier", "_ended", "_held", "_known", "_known_before", "_released", "_released_before", "too_much_said")

    def __init__(self) -> None:
        self.too_much_said = 0
        self._earlier: list[Turn] | None = None  # what an earlier life has left; None until it is looked up
        self._known: dict[tuple[int, int], None] = {}  # of those: their `Done`s are on their way
        self._known_before: dict[tuple[int, int], None] = {}
        self._ended: dict[tuple[int, int], None] = {}  # since the last commit, and their `Done`s wait for the disk
        self._held: dict[int, Turn] = {}  # committed, and not yet on the disk, by the batch of writes
        self._released: list[Turn] = []  # its `Done`s are on their way
        self._released_before: list[Turn] = []

    @property
    def is_loaded(self) -> bool:
        return self._earlier is not None

    @property
    def has_new(self) -> bool:
        """Whether an event has ended that is in no commit yet."""
        return bool(self._ended)

    def load(
        self,
        stored: bytes | None,
        comes_again: Callable[[int, int], bool],
        has_heard: Callable[[int, int, int], bool] = lambda epoch, life, group: False,
    ) -> list[Words]:
        """What the database says, before this life has written. Returns what is to be said again, in order: of the commits
        some of whose events come again, what the gateways have not heard. Raises ValueError if it is damaged."""
        self._earlier = []
        for turn in [] if stored is None else _decode(stored):
            turn.events = [(epoch, event) for epoch, event in turn.events if comes_again(epoch, event)]
            turn.said = [words for words in turn.said if not has_heard(*words[:3])]
            if turn.events:
                self._earlier.append(turn)
        return [entry for turn in self._earlier for entry in turn.said]

    @property
    def earlier(self) -> list[tuple[int, int]]:
        """The events that come again though they were finished."""
        return [entry for turn in self._earlier or () for entry in turn.events]

    def was_finished(self, epoch: int, event: int) -> bool:
        """Whether an event's writes are stored already, and what it said is said: then it must not be run."""
        entry = (epoch, event)
        if entry in self._known or not any(entry in turn.events for turn in self._earlier or ()):
            return False
        self._known[entry] = None
        return True

    def finished(self, epoch: int, event: int) -> None:
        """The event has ended, but not all that the object has written is on the disk."""
        self._ended[epoch, event] = None

    def done(self, epoch: int, event: int) -> None:
        """Its `Done` leaves: if it is in no commit yet, it wrote nothing and needs no record."""
        self._ended.pop((epoch, event), None)

    def release(self, batch: int) -> None:
        """A batch of writes is on the disk: what waited for it is on its way."""
        turn = self._held.pop(batch, None)
        if turn is not None:
            self._released.append(turn)

    def to_store(self, batch: int, said: list[Words], *, keep_released: bool) -> bytes:
        """What belongs into the commit that is about to be made, whose batch of writes is `batch`.

        A `Done` leaves within the turn after its release, so after two commits it is gone, unless its link is clogged
        (`keep_released`).
        """
        if _size(said) > MAX_TURN_SAID_BYTES:
            self.too_much_said += 1
            said = []
        self._held[batch] = Turn(list(self._ended), said)
        self._ended = {}
        if self._earlier and not keep_released:
            for turn in self._earlier:
                turn.events = [entry for entry in turn.events if entry not in self._known_before]
            self._earlier = [turn for turn in self._earlier if turn.events]
            self._known_before, self._known = self._known, {}
        kept = [*(self._earlier or ()), *(self._released_before if keep_released else ()), *self._released]
        kept += self._held.values()
        if not keep_released:
            self._released_before, self._released = self._released, []
        if sum(_size(turn.said) for turn in kept) > MAX_SAID_BYTES:
            self.too_much_said += 1
            kept = [Turn(turn.events, []) for turn in kept]
        return _encode(kept)


def _size(said: list[Words]) -> int:
    return sum(len(words[3]) for words in said)
