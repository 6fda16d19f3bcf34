"""The actors in memory, and the decision which of them may sleep. Plain state; the host calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.host.objects.actor import Actor, Phase
from roost.host.objects.farewell import say_farewell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from roost.events import ObjectRef


class Actors:
    """By class and id. An actor is here from the start of its waking until it sleeps."""

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

    def put_to_sleep(self, now: float, idle_s: float) -> int:
        """Forget every actor that nothing pins and that was idle for so long; how many."""
        sleepy = [
            actor
            for actor in list(self._actors.values())
            if actor.may_sleep(now, idle_s) and not say_farewell(actor, "inactive")
        ]
        sleepy = [actor for actor in sleepy if actor.may_sleep(now, idle_s)]  # still, after what a farewell has written
        for actor in sleepy:
            self.forget(actor)
            actor.sleep()
        return len(sleepy)

    def put_oldest_to_sleep(self, now: float, count: int) -> int:
        """Forget up to that many actors which nothing pins, those first that were idle longest; how many.

        Second chance: one that was active since it was last looked at goes to the end of the queue instead. A call looks at
        few, unless few may sleep.
        """
        actors = self._actors
        slept = 0
        for _ in range(2 * len(actors)):
            if slept == count:
                break
            key, actor = next(iter(actors.items()))
            del actors[key]
            if actor.last_active > actor.looked_at or not actor.may_sleep(now, 0.0):
                actor.looked_at = actor.last_active
                actors[key] = actor
            else:
                actor.sleep()
                slept += 1
        return slept

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
