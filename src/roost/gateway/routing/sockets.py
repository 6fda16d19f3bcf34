"""The table of sockets by owner: the truth about hibernatable sockets, of which an object in memory is a cache.

It must not know how bytes travel. The invariant: a socket is in its object's record from its binding until the host has
finished the event that tells of its end, so that a handler of that event still finds it.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from roost.events import AutoResponse, ObjectRef, Roster, RosterEntry
from roost.gateway.io.connection import ClientConnection, State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from roost.gateway.io.connection import Connection
    from roost.gateway.routing.host_slot import HostSlot


_NONE: Final[dict[str, ActorRecord]] = {}
_SOCKETS_A_PIECE: Final = 1024  # with the longest attachments and tags: 20 MiB, half of what an envelope may have


@lru_cache(1024)
def shared_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The same tags as one object: sockets often have the same, which then cost a pointer each."""
    return tuple(map(sys.intern, tags))


class Owner:
    """Whose a socket is. `slot` is the host that gets its events; `actor` is its number there, 0 for a plain socket."""

    __slots__ = ("actor", "auto", "awake", "slot")

    def __init__(self, slot: HostSlot | None, actor: int) -> None:
        self.slot = slot
        self.actor = actor
        self.auto: AutoResponse | None = None
        self.awake = True  # as far as we know: the host says `Asleep`


class Relay(Owner):
    """A socket whose messages go straight to another socket of this gateway: an upstream passed through to a client."""

    __slots__ = ("other",)

    def __init__(self, other: Connection) -> None:
        super().__init__(None, 0)
        self.other = other


class ActorRecord(Owner):
    """One object's sockets at this gateway, oldest first, and its auto-response."""

    __slots__ = ("_sockets", "object")

    def __init__(self, slot: HostSlot, actor: int, ref: ObjectRef) -> None:
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
    """All objects that have sockets here."""

    def __init__(self) -> None:
        self._by_actor: dict[int, ActorRecord] = {}
        self._by_object: dict[str, dict[str, ActorRecord]] = {}  # by class, then by id
        self.last_actor = 0

    def __len__(self) -> int:
        return len(self._by_actor)

    def __iter__(self) -> Iterator[ActorRecord]:
        return iter(self._by_actor.values())

    def restore(self, record: ActorRecord, *, awake: bool, auto: AutoResponse | None) -> None:
        """A record of another gateway's table."""
        record.awake, record.auto = awake, auto
        self._by_actor[record.actor] = record
        self._by_object.setdefault(record.object.class_name, {})[record.object.id] = record

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

    def bind(self, connection: Connection, ref: ObjectRef, slot: HostSlot) -> ActorRecord:
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
        return record

    def forget(self, record: ActorRecord, number: int) -> None:
        """The socket is over and its host knows. An object without sockets needs no record."""
        if record.remove(number) and not record.sockets:
            self._by_actor.pop(record.actor, None)
            self._by_object.get(record.object.class_name, {}).pop(record.object.id, None)

    def rosters(self, actor: int, ref: ObjectRef | None) -> list[Roster]:
        """The roster of an object, empty if it has no sockets here."""
        record = self._by_actor.get(actor) if ref is None else self.get(ref)
        return [Roster(actor, ref, [], None)] if record is None else record.rosters()


def _entry(connection: Connection) -> RosterEntry:
    state, url = connection.state, ""
    closing = state == State.CLOSING or state == State.FLUSHING
    if isinstance(connection, ClientConnection):
        url = "" if connection.dial is None else connection.dial.url
        closing = closing and connection.waiting is None
    auto_at_ms = connection.auto_at_ms if state < State.FLUSHING else 0
    return RosterEntry(
        connection.number, connection.tags, connection.attachment, auto_at_ms, url, connection.protocol, closing
    )
