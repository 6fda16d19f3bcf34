"""When objects sleep, and which first. All of the policy is here; `Actor.sleep` only carries it out.

An object may sleep when nothing pins it, nothing of it is on its way to the disk, and it has been idle for long enough. It
hears so before (`preShutdown`), and sleeps if it still may after what it did then.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Protocol

from roost import memory
from roost.events import DropSockets
from roost.host.objects.input_gate import Phase
from roost.host.objects.pre_shutdown import call_pre_shutdown
from roost.link.port import NO_CONTEXT

if TYPE_CHECKING:
    from roost.events import ObjectRef
    from roost.host.objects.actor import Actor
    from roost.host.objects.registry import Actors
    from roost.host.worker.surroundings import Surroundings


class Facts(Protocol):
    """What the decision is about: an `Actor`."""

    phase: Phase
    pins: dict[int, str]
    last_active: float

    def pins_expired(self, now: float) -> bool: ...

    @property
    def is_writing(self) -> bool:
        """To the disk, or something waits for it."""
        ...

    @property
    def has_unbound(self) -> bool:
        """A socket was accepted whose 101 has not left."""
        ...


def may_sleep(facts: Facts, now: float, idle_s: float) -> bool:
    """Whether nothing keeps the object awake and its last event is `idle_s` ago. Pins that have expired do not count."""
    return (
        facts.phase is Phase.AWAKE
        and (not facts.pins or facts.pins_expired(now))
        and not facts.is_writing
        and now - facts.last_active >= idle_s
        and not facts.has_unbound
    )


class Sleeping:
    """One host's: the sweep, room for others, and `roost objects evict`."""

    def __init__(self, surroundings: Surroundings, actors: Actors, idle_s: float) -> None:
        self._surroundings = surroundings
        self._actors = actors
        self._idle_s = idle_s
        self.timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """There is an object that will want to sleep some time."""
        if self.timer is None:
            self.timer = self._surroundings.loop.call_later(max(self._idle_s / 4, 0.01), self._sweep)

    def _sweep(self) -> None:
        self.timer = None
        slept = self.put_to_sleep(self._surroundings.loop.time(), self._idle_s)
        self._surroundings.counters.sleeps += slept
        if len(self._actors):
            self.arm()
        elif slept:
            self._give_back_memory()

    def _give_back_memory(self) -> None:
        """All objects sleep: let the tables shrink, and give what they held back to the system."""
        for gateway in self._surroundings.links.here:
            gateway.link.flush()
            gateway.shrink()
        gc.collect()
        memory.trim()

    def end(self) -> None:
        """No more sweeps."""
        if self.timer is not None:
            self.timer.cancel()

    def put_to_sleep(self, now: float, idle_s: float) -> int:
        """Forget every actor that nothing pins and that was idle for so long; how many."""
        sleepy = [actor for actor in self._actors if self._is_ready(actor, now, idle_s)]
        sleepy = [actor for actor in sleepy if may_sleep(actor, now, idle_s)]  # another's preShutdown may call it
        for actor in sleepy:
            self._actors.forget(actor)
            actor.sleep()
        return len(sleepy)

    def _is_ready(self, actor: Actor, now: float, idle_s: float) -> bool:
        """Whether it may sleep, and has heard so. Must not be called from within a task."""
        return (
            may_sleep(actor, now, idle_s)
            and not call_pre_shutdown(actor, "inactive")
            and may_sleep(actor, now, idle_s)  # still, after what it has written
        )

    def make_room(self) -> int:
        """Forget some actors that nothing pins, those first that were idle longest; how many. They do not hear so: there is
        no time.

        Second chance: one that was active since it was last looked at goes to the end of the queue instead. A call looks at
        few, unless few may sleep.
        """
        surroundings, actors = self._surroundings, self._actors
        now, wanted = surroundings.loop.time(), max(1, surroundings.limits.max_live_objects // 100)
        slept = 0
        for _ in range(2 * len(actors)):
            if slept == wanted:
                break
            actor = actors.take_first()
            if actor.last_active > actor.looked_at or not may_sleep(actor, now, 0.0):
                actor.looked_at = actor.last_active
                actors.add(actor)
            else:
                actor.sleep()
                slept += 1
        surroundings.counters.sleeps += slept
        surroundings.counters.sleeps_early += slept
        return slept

    async def evict(self, wanted: str | None, *, cut: bool, timeout_s: float) -> int:
        """Put objects to sleep now (by label or id; without one, all): each once nothing pins it. How many. `cut` ends
        their sockets, too, without a Close frame and without an event."""
        loop = self._surroundings.loop
        deadline = loop.time() + timeout_s
        left = {actor.ref for actor in self._actors if wanted in (None, actor.label, actor.ref.id)}
        evicted = 0
        while left and loop.time() < deadline:
            tried: asyncio.Future[int] = loop.create_future()
            # In a turn of its own, like the sweep: preShutdown is driven in place, which a task must not be.
            loop.call_soon(self._evict_some, left, cut, tried, context=NO_CONTEXT)
            evicted += await tried
            if left:
                await asyncio.sleep(0.005)
        self._surroundings.counters.sleeps += evicted
        return evicted

    def _evict_some(self, left: set[ObjectRef], cut: bool, tried: asyncio.Future[int]) -> None:
        evicted = 0
        for ref in list(left):
            actor = self._actors.get(ref)
            if actor is None:
                left.discard(ref)
            elif self._is_ready(actor, self._surroundings.loop.time(), 0.0):
                self._actors.forget(actor)
                actor.sleep()
                evicted += 1
                for gateway in self._surroundings.links.here if cut else ():
                    gateway.link.send(DropSockets(ref))
                    gateway.link.flush()
        tried.set_result(evicted)
