"""Which socket events an object has finished and what it said then, committed with what they wrote: none counts twice.

A gateway gives an event again if the host died before it had said `Done`. If the event's writes were on the disk by then,
running it again would double them. So the numbers of finished events, and the envelopes that waited for the very same
commit, are part of it until the gateway has confirmed that it has heard the `Done`s (which rides along with what it says
next). A successor sends the envelopes instead of running the handler. Events that wrote in several commits (with awaits in
between) may repeat the earlier ones; what is said in more than the bounds below is not kept. Plain state, no I/O.

What commits have said is said again in their order and before anything new, so that clients see no swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from roost.host.gateway_link import StoredGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[[int], "Receipt | None"]

MAX_TURN_SAID_BYTES: Final = 64 * 1024
MAX_SAID_BYTES: Final = 256 * 1024  # in one commit, which repeats what earlier ones said while the disk is slow


class Receipt(Protocol):
    """What says whether a gateway has heard something: `gateway_link.Receipt`."""

    @property
    def has_come(self) -> bool: ...


class Turn(msgspec.Struct, array_like=True):
    """One commit: the events that ended in it, and what the object said to each gateway, as envelopes."""

    events: list[tuple[int, int]]  # (epoch of the gateway process, its number of the event)
    said: list[StoredGroup]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Turn]).decode


class Delivered:
    """One object's."""

    __slots__ = ("_earlier", "_ended", "_held", "_known", "_released", "too_much_said")

    def __init__(self) -> None:
        self.too_much_said = 0
        self._earlier: list[Turn] | None = None  # what an earlier life has left; None until it is looked up
        self._known: dict[tuple[int, int], Receipt | None] = {}  # of those that were given again: their `Done`s are said
        self._ended: dict[tuple[int, int], None] = {}  # since the last commit, and their `Done`s wait for the disk
        self._held: dict[int, Turn] = {}  # committed, and not yet on the disk, by the batch of writes
        self._released: list[tuple[Turn, list[Receipt]]] = []  # its `Done`s are on their way

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
        is_redelivered: Callable[[int, int], bool],
        has_heard: Callable[[int, int, int], bool] = lambda epoch, life, group: False,
    ) -> list[StoredGroup]:
        """What the database says, before this life has written. Returns what is to be said again, in order: of the commits
        some of whose events come again, what the gateways have not heard. Raises ValueError if it is damaged."""
        self._earlier = []
        for turn in [] if stored is None else _decode(stored):
            turn.events = [(epoch, event) for epoch, event in turn.events if is_redelivered(epoch, event)]
            turn.said = [group for group in turn.said if not has_heard(*group[:3])]
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

    def release(self, batch: int, ask: Ask) -> None:
        """A batch of writes is on the disk: what waited for it leaves in this turn. `ask` each gateway concerned."""
        turn = self._held.pop(batch, None)
        if turn is not None:
            receipts = [ask(epoch) for epoch in dict.fromkeys(epoch for epoch, _ in turn.events)]
            self._released.append((turn, [receipt for receipt in receipts if receipt is not None]))

    def to_store(self, batch: int, said: list[StoredGroup], ask: Ask) -> bytes:
        """What belongs into the commit that is about to be made, whose batch of writes is `batch`.

        A record goes when every gateway concerned has confirmed that it has heard the `Done`s. One that is not there any
        more gives nothing again.
        """
        if _size(said) > MAX_TURN_SAID_BYTES:
            self.too_much_said += 1
            said = []
        self._held[batch] = Turn(list(self._ended), said)
        self._ended = {}
        if self._known:
            self._forget_known(ask)
        if self._released:
            self._released = [entry for entry in self._released if not all(receipt.has_come for receipt in entry[1])]
        kept = [*(self._earlier or ()), *(turn for turn, _ in self._released), *self._held.values()]
        if sum(_size(turn.said) for turn in kept) > MAX_SAID_BYTES:
            self.too_much_said += 1
            kept = [Turn(turn.events, []) for turn in kept]
        return _encode(kept)

    def _forget_known(self, ask: Ask) -> None:
        """Of the events that were given again, those whose `Done` has been heard; ask about the others."""
        heard = set()
        for entry, receipt in self._known.items():
            if receipt is None:
                self._known[entry] = ask(entry[0])
            elif receipt.has_come:
                heard.add(entry)
        if heard:
            for turn in self._earlier or ():
                turn.events = [entry for entry in turn.events if entry not in heard]
            self._earlier = [turn for turn in self._earlier or () if turn.events]
            self._known = {entry: receipt for entry, receipt in self._known.items() if entry not in heard}


def _size(said: list[StoredGroup]) -> int:
    return sum(len(group[3]) for group in said)
