"""The actors in memory, by class and id. Plain state. An actor is here from the start of its waking until it sleeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.host.objects.input_gate import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from roost.events import ObjectRef
    from roost.host.objects.actor import Actor


class Actors:
    """Those of one host, oldest first, but for those that were looked at and stay (`next_to_sleep`)."""

    def __init__(self) -> None:
        self._actors: dict[tuple[str, str], Actor] = {}

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Actor]:
        return iter(list(self._actors.values()))

    def get(self, ref: ObjectRef) -> Actor | None:
        return self._actors.get((ref.class_name, ref.id))

    def add(self, actor: Actor) -> None:
        self._actors[(actor.ref.class_name, actor.ref.id)] = actor

    def forget(self, actor: Actor) -> None:
        if self.get(actor.ref) is actor:
            del self._actors[(actor.ref.class_name, actor.ref.id)]

    def take_first(self) -> Actor:
        """The one that was here for longest; it is not any more, unless `add` puts it at the end again."""
        return self._actors.pop(next(iter(self._actors)))

    def report(self) -> list[dict[str, object]]:
        """Why each is awake: its phase, its sockets, the name of everything that pins it."""
        return [
            {
                "object": actor.label,
                "class": actor.ref.class_name,
                "id": actor.ref.id,
                "phase": actor.phase.value,
                "sockets": len(actor.sockets),
                "pins": sorted(set(actor.pins.values())),
                "woke_for": actor.woke_for,
            }
            for actor in self._actors.values()
            if actor.phase is not Phase.GONE
        ]
