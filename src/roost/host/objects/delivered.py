"""Which socket events an object has finished and what it sent then, committed with what they wrote: none counts twice.

A gateway redelivers an event if the host died before it had sent `Done`. If the event's writes were on the disk by then,
running it again would double them. So the numbers of finished events, and the envelopes that waited for the very same
commit, are part of it until the gateway has confirmed that it has received the `Done`s (which rides along with what it
sends next). A successor sends the envelopes instead of running the handler. Events that wrote in several commits (with
awaits in between) may repeat the earlier ones; groups of more than the bounds below are not kept. Plain state, no I/O.

The groups of commits are sent again in their order and before anything new, so that clients see no swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from roost.host.gateway_link import StoredGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[[int], "Receipt | None"]

MAX_COMMIT_GROUP_BYTES: Final = 64 * 1024
MAX_GROUP_BYTES: Final = 256 * 1024  # in one commit, which repeats what earlier ones said while the disk is slow


class Receipt(Protocol):
    """What tells whether a gateway has received something: `gateway_link.Receipt`."""

    @property
    def has_come(self) -> bool: ...


class Commit(msgspec.Struct, array_like=True):
    """One commit: the events that ended in it, and what the object sent to each gateway, as envelopes."""

    events: list[tuple[int, int]]  # (epoch of the gateway process, its number of the event)
    groups: list[StoredGroup]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Commit]).decode


class Delivered:
    """One object's."""

    __slots__ = ("_earlier", "_ended", "_held", "_known", "_released", "groups_too_large")

    def __init__(self) -> None:
        self.groups_too_large = 0
        self._earlier: list[Commit] | None = None  # what an earlier life has left; None until it is looked up
        self._known: dict[tuple[int, int], Receipt | None] = {}  # of those that were redelivered: their `Done`s are sent
        self._ended: dict[tuple[int, int], None] = {}  # since the last commit, and their `Done`s wait for the disk
        self._held: dict[int, Commit] = {}  # committed, and not yet on the disk, by the batch of writes
        self._released: list[tuple[Commit, list[Receipt]]] = []  # its `Done`s are on their way

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
        has_received: Callable[[int, int, int], bool] = lambda epoch, life, group: False,
    ) -> list[StoredGroup]:
        """What the database says, before this life has written. Returns what is to be sent again, in order: of the commits
        some of whose events are redelivered, what the gateways have not received. Raises ValueError if it is damaged."""
        self._earlier = []
        for commit in [] if stored is None else _decode(stored):
            commit.events = [(epoch, event) for epoch, event in commit.events if is_redelivered(epoch, event)]
            commit.groups = [group for group in commit.groups if not has_received(*group[:3])]
            if commit.events:
                self._earlier.append(commit)
        return [entry for commit in self._earlier for entry in commit.groups]

    @property
    def earlier(self) -> list[tuple[int, int]]:
        """The events that are redelivered though they were finished."""
        return [entry for commit in self._earlier or () for entry in commit.events]

    def was_finished(self, epoch: int, event: int) -> bool:
        """Whether an event's writes are stored already, and what it sent is sent: then it must not be run."""
        entry = (epoch, event)
        if entry in self._known or not any(entry in commit.events for commit in self._earlier or ()):
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
        commit = self._held.pop(batch, None)
        if commit is not None:
            receipts = [ask(epoch) for epoch in dict.fromkeys(epoch for epoch, _ in commit.events)]
            self._released.append((commit, [receipt for receipt in receipts if receipt is not None]))

    def to_store(self, batch: int, groups: list[StoredGroup], ask: Ask) -> bytes:
        """What belongs into the commit that is about to be made, whose batch of writes is `batch`.

        A record goes when every gateway concerned has confirmed that it has received the `Done`s. One that is not there
        any more redelivers nothing.
        """
        if _size(groups) > MAX_COMMIT_GROUP_BYTES:
            self.groups_too_large += 1
            groups = []
        self._held[batch] = Commit(list(self._ended), groups)
        self._ended = {}
        if self._known:
            self._forget_known(ask)
        if self._released:
            self._released = [entry for entry in self._released if not all(receipt.has_come for receipt in entry[1])]
        kept = [*(self._earlier or ()), *(commit for commit, _ in self._released), *self._held.values()]
        if sum(_size(commit.groups) for commit in kept) > MAX_GROUP_BYTES:
            self.groups_too_large += 1
            kept = [Commit(commit.events, []) for commit in kept]
        return _encode(kept)

    def _forget_known(self, ask: Ask) -> None:
        """Of the redelivered events, those whose `Done` has been received; ask about the others."""
        received = set()
        for entry, receipt in self._known.items():
            if receipt is None:
                self._known[entry] = ask(entry[0])
            elif receipt.has_come:
                received.add(entry)
        if received:
            for commit in self._earlier or ():
                commit.events = [entry for entry in commit.events if entry not in received]
            self._earlier = [commit for commit in self._earlier or () if commit.events]
            self._known = {entry: receipt for entry, receipt in self._known.items() if entry not in received}


def _size(groups: list[StoredGroup]) -> int:
    return sum(len(group[3]) for group in groups)
