"""Which socket events an object has finished and what it said then, committed with what they wrote: none counts twice.

A gateway gives an event again if the host died before it had said `Done`. If the event's writes were on the disk by then,
running it again would double them. So the numbers of finished events, and the envelopes that waited for the very same
commit, are part of it for as long as the gateway may not have heard of them (usually a few milliseconds). A successor sends
the envelopes instead of running the handler. Events that wrote in several commits (with awaits in between) may repeat the
earlier ones; what is said in more than the bounds below is not kept. Plain state, no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TURN_SAID_BYTES: Final = 64 * 1024
MAX_SAID_BYTES: Final = 256 * 1024  # in one commit, which repeats what earlier ones said while the disk is slow


class Turn(msgspec.Struct, array_like=True):
    """One commit: the events that ended in it, and what the object said to each gateway, as envelopes."""

    events: list[tuple[int, int]]  # (epoch of the gateway process, its number of the event)
    said: list[tuple[int, bytes]]  # (epoch, envelopes)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Turn]).decode


class Delivered:
    """One object's."""

    __slots__ = ("_earlier", "_ended", "_held", "_released", "_released_before", "too_much_said")

    def __init__(self) -> None:
        self.too_much_said = 0
        self._earlier: list[Turn] | None = None  # what an earlier life has left; None until it is looked up
        self._ended: list[tuple[int, int]] = []  # in the open transaction
        self._held: dict[int, Turn] = {}  # committed, and not yet on the disk, by the batch of writes
        self._released: list[Turn] = []  # its `Done`s are on their way
        self._released_before: list[Turn] = []

    @property
    def is_loaded(self) -> bool:
        return self._earlier is not None

    @property
    def has_new(self) -> bool:
        """Whether an event has ended in the open transaction."""
        return bool(self._ended)

    def load(self, stored: bytes | None, may_come_again: Callable[[int, int], bool]) -> None:
        """What the database says, before this life has written. Raises ValueError if it is damaged."""
        self._earlier = []
        for turn in [] if stored is None else _decode(stored):
            turn.events = [(epoch, event) for epoch, event in turn.events if may_come_again(epoch, event)]
            if turn.events:
                self._earlier.append(turn)

    def was_finished(self, epoch: int, event: int) -> list[tuple[int, bytes]] | None:
        """What is to be sent (once) if an event's writes are stored already; None if it is to be run."""
        for turn in self._earlier or ():
            if (epoch, event) in turn.events:
                turn.events.remove((epoch, event))
                said, turn.said = turn.said, []
                self._released.append(Turn([(epoch, event)], said))
                return said
        return None

    def all_given(self, epoch: int) -> None:
        """A gateway's events from now on are new: what an earlier life has finished of its events is known by now."""
        if self._earlier:
            for turn in self._earlier:
                turn.events = [entry for entry in turn.events if entry[0] != epoch]
            self._earlier = [turn for turn in self._earlier if turn.events]

    def finished(self, epoch: int, event: int) -> None:
        """The event ends in the open transaction."""
        self._ended.append((epoch, event))

    def forget_ended(self) -> None:
        """The transaction is over; those that have ended in it and wrote nothing need no record."""
        self._ended = []

    def release(self, batch: int) -> None:
        """A batch of writes is on the disk: what waited for it is on its way."""
        turn = self._held.pop(batch, None)
        if turn is not None:
            self._released.append(turn)

    def to_store(self, batch: int, said: list[tuple[int, bytes]], *, keep_released: bool) -> bytes:
        """What belongs into the commit that is about to be made, whose batch of writes is `batch`.

        A `Done` leaves within the turn after its release, so after two commits it is gone, unless its link is clogged
        (`keep_released`).
        """
        if _size(said) > MAX_TURN_SAID_BYTES:
            self.too_much_said += 1
            said = []
        self._held[batch] = Turn(self._ended, said)
        self._ended = []
        kept = [*self._released, *self._held.values()]
        if keep_released:
            kept = [*self._released_before, *kept]
        else:
            self._released_before, self._released = self._released, []
        kept += self._earlier or ()
        if sum(_size(turn.said) for turn in kept) > MAX_SAID_BYTES:
            self.too_much_said += 1
            kept = [Turn(turn.events, []) for turn in kept]
        return _encode(kept)


def _size(said: list[tuple[int, bytes]]) -> int:
    return sum(len(envelopes) for _, envelopes in said)
