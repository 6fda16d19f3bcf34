"""The table of sockets by owner: the truth about hibernatable sockets, of which an object in memory is a cache.

It must not know how bytes travel. The invariant: a socket is in its object's record from its binding until the host has
finished the event that tells of its end, so that a handler of that event still finds it.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from roost.events import AutoResponse, ObjectRef, Roster, RosterEntry
from roost.gateway.counters import Counters
from roost.gateway.io.connection import State
from roost.gateway.io.owner import Owner
from roost.gateway.io.upstream_connection import UpstreamConnection
from roost.gateway.routing.journal import Journal, Lost

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from roost.gateway.io.connection import Connection
    from roost.gateway.io.owner import Slot


_NONE: Final[dict[str, ActorRecord]] = {}
_SOCKETS_A_PIECE: Final = 1024  # with the longest attachments and tags: 20 MiB, half of what an envelope may have


@lru_cache(1024)
def shared_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The same tags as one object: sockets often have the same, which then cost a pointer each."""
    return tuple(map(sys.intern, tags))


class RecordState(msgspec.Struct, array_like=True):
    """An object that has sockets here, for another process; the sockets in their order."""

    actor: int
    slot: int
    object: ObjectRef
    awake: bool
    auto: AutoResponse | None
    sockets: list[int]


class ActorRecord(Owner):
    """One object's sockets at this gateway, oldest first, and its auto-response."""

    __slots__ = ("_sockets", "object")

    def __init__(self, slot: Slot, actor: int, ref: ObjectRef) -> None:
        super().__init__(slot, actor)
        self.object = ref
        self._sockets: Connection | dict[int, Connection] | None = None  # a dict from the second on: it takes 248 bytes

    def __contains__(self, number: int) -> bool:
        held = self._sockets
        return number in held if isinstance(held, dict) else held is not None and held.number == number

    @property
    def sockets(self) -> Collection[Connection]:
        held = self._sockets
        return held.values() if isinstance(held, dict) else () if held is None else (held,)

    def add(self, connection: Connection) -> None:
        """As the youngest, or in place of one with its number."""
        held = self._sockets
        if isinstance(held, dict):
            held[connection.number] = connection
        elif held is None or held.number == connection.number:
            self._sockets = connection
        else:
            self._sockets = {held.number: held, connection.number: connection}

    def remove(self, number: int) -> bool:
        """Whether it was there."""
        held = self._sockets
        if isinstance(held, dict):
            return held.pop(number, None) is not None
        if held is None or held.number != number:
            return False
        self._sockets = None
        return True

    def rosters(self) -> list[Roster]:
        """What the object must know of its sockets here when it wakes, as it does now. Nearly always that is one piece."""
        self.awake = True
        entries = list(map(_entry, self.sockets))
        if len(entries) <= _SOCKETS_A_PIECE:
            return [Roster(self.actor, self.object, entries, self.auto)]
        starts = range(0, len(entries), _SOCKETS_A_PIECE)
        return [
            Roster(self.actor, self.object, entries[at : at + _SOCKETS_A_PIECE], self.auto, piece, at != starts[-1])
            for piece, at in enumerate(starts)
        ]


class SocketTable:
    """All objects that have sockets here. The one owner of "a socket becomes hibernatable, and stops to be": it keeps the
    table, the journal and the counter together."""

    def __init__(self, counters: Counters | None = None, journal: Journal | None = None) -> None:
        self.journal = journal or Journal()
        self._counters = counters or Counters()
        self._by_actor: dict[int, ActorRecord] = {}
        self._by_object: dict[str, dict[str, ActorRecord]] = {}  # by class, then by id
        self.last_actor = 0

    def __len__(self) -> int:
        return len(self._by_actor)

    def __iter__(self) -> Iterator[ActorRecord]:
        return iter(self._by_actor.values())

    def described(self) -> list[RecordState]:
        """The table, for another process. The sockets describe themselves."""
        return [
            RecordState(
                record.actor, record.slot.index if record.slot else -1, record.object, record.awake, record.auto,
                [connection.number for connection in record.sockets],
            )
            for record in self
        ]  # fmt: skip

    def restore(self, told: RecordState, slot: Slot) -> None:
        """A record of another gateway's table, still without its sockets (`restore_sockets`)."""
        record = ActorRecord(slot, told.actor, told.object)
        record.awake, record.auto = told.awake, told.auto
        self._by_actor[record.actor] = record
        self._by_object.setdefault(record.object.class_name, {})[record.object.id] = record

    def restore_sockets(self, told: RecordState, connections: dict[int, Connection]) -> None:
        """Its sockets, in their order, by number."""
        for number in told.sockets:
            if number in connections:
                self._by_actor[told.actor].add(connections[number])

    def get(self, ref: ObjectRef) -> ActorRecord | None:
        return self._by_object.get(ref.class_name, _NONE).get(ref.id)

    def rename(self, record: ActorRecord, class_name: str) -> None:
        """The object's class has another name now."""
        before = record.object
        del self._by_object[before.class_name][before.id]
        record.object = ObjectRef(class_name, before.id, before.name)
        self._by_object.setdefault(class_name, {})[before.id] = record

    def by_actor(self, actor: int) -> ActorRecord | None:
        return self._by_actor.get(actor)

    def bind(
        self,
        connection: Connection,
        ref: ObjectRef,
        slot: Slot,
        tags: tuple[str, ...] = (),
        attachment: bytes | None = None,
    ) -> ActorRecord:
        """Make `connection` a hibernatable socket of the object `ref`, which lives on `slot`."""
        record = self.get(ref)
        if record is None:
            self.last_actor += 1
            ref = ObjectRef(sys.intern(ref.class_name), ref.id, ref.name)  # each brought a copy of that name
            record = ActorRecord(slot, self.last_actor, ref)
            self._by_actor[record.actor] = record
            self._by_object.setdefault(ref.class_name, {})[ref.id] = record
        record.awake = True
        record.add(connection)
        connection.owner = record
        connection.tags = shared_tags(tags)
        connection.attachment = attachment
        self._counters.hibernatable += 1
        self.journal.bound(connection.number, record.object, connection.tags, connection.protocol, attachment)
        return record

    def unbind(self, record: ActorRecord, number: int) -> None:
        """The socket is over and its host knows, or it is the object's no more. An object without sockets needs no
        record."""
        if record.remove(number):
            self._counters.hibernatable -= 1
            self.journal.forgotten(number)
            if not record.sockets:
                self._by_actor.pop(record.actor, None)
                self._by_object.get(record.object.class_name, {}).pop(record.object.id, None)

    def attach(self, connection: Connection, attachment: bytes | None) -> None:
        """Keep what a program has to remember of a socket."""
        connection.attachment = attachment
        if isinstance(connection.owner, ActorRecord):
            self.journal.attached(connection.number, attachment)

    def live(self) -> Iterable[Lost]:
        """What the journal has to hold."""
        for record in self:
            for each in record.sockets:
                yield Lost(each.number, record.object, each.tags, each.attachment, each.protocol)

    def start_journal(self) -> None:
        """Begin it anew."""
        self.journal.start(self.live())

    def rosters(self, actor: int, ref: ObjectRef | None) -> list[Roster]:
        """The roster of an object, empty if it has no sockets here."""
        record = self._by_actor.get(actor) if ref is None else self.get(ref)
        return [Roster(actor, ref, [], None)] if record is None else record.rosters()


def _entry(connection: Connection) -> RosterEntry:
    state, url = connection.state, ""
    closing = state == State.CLOSING or state == State.FLUSHING
    if isinstance(connection, UpstreamConnection):
        url = "" if connection.dial is None else connection.dial.url
        closing = closing and connection.waiting is None
    auto_at_ms = connection.auto_at_ms if state < State.FLUSHING else 0
    return RosterEntry(
        connection.number, connection.tags, connection.attachment, auto_at_ms, url, connection.protocol, closing
    )
