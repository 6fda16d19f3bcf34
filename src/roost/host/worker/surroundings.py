"""All that running worker code, an object or a request, may ask of the host around it, in one place.

The parts of a host get this and not the host: what stands below them, and three ports for what stands above (`Objects`,
`Outside`, the table of exports), which `host.py` fills in.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from roost.api.runtime import current_context
from roost.host.worker.promise import awaiting
from roost.ids import slot_of

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine

    from roost.api.http import Request, Response
    from roost.api.runtime import CachePort
    from roost.api.socket_end import SocketEnd
    from roost.clock import Clock
    from roost.events import Headers, KeepSocket, ObjectRef, SocketEvent, SocketMessage
    from roost.host.disk import Disk
    from roost.host.gateway_link import GatewayLink
    from roost.host.limits import HostCounters, HostLimits
    from roost.host.links import Links
    from roost.host.spec import HostSpec
    from roost.host.worker.loader import Worker
    from roost.host.worker.mark import Mark
    from roost.host.worker.rpc_table import RpcTable
    from roost.host.worker.running import Runner


class HostPhase(IntEnum):
    """SERVING → CLOSING → ABANDONING → RELEASED. Ordered: a host in a later phase is also in those before."""

    SERVING = 0
    CLOSING = 1  # it finishes what it has
    ABANDONING = 2  # handlers are being cancelled: what they end with is not done
    RELEASED = 3  # its objects are a successor's


FOLLOWS: Final[dict[HostPhase, frozenset[HostPhase]]] = {
    HostPhase.SERVING: frozenset({HostPhase.CLOSING}),
    HostPhase.CLOSING: frozenset({HostPhase.CLOSING, HostPhase.ABANDONING}),
    HostPhase.ABANDONING: frozenset({HostPhase.ABANDONING, HostPhase.RELEASED}),
    HostPhase.RELEASED: frozenset({HostPhase.RELEASED}),
}


class Objects(Protocol):
    """The objects of this host."""

    def get(self, ref: ObjectRef) -> Any:
        """The object's actor, if it is in memory."""
        ...

    def forget(self, actor: Any) -> None:
        """It sleeps or was reset: the next event makes another."""
        ...

    def awaken(self, ref: ObjectRef, why: str) -> Any:
        """The object's actor, which may still be waking. Raises ConfigError for a class that is not bound."""
        ...

    def socket_event(self, gateway: GatewayLink, event: SocketEvent) -> None:
        """An event of a socket that may not be known here (yet)."""
        ...

    def shed(self, gateway: GatewayLink, event: SocketMessage, reason: str) -> None:
        """There is no room for an event: its client is told to come back later."""
        ...


class Outside(Protocol):
    """What worker code asks of other servers."""

    def dial(self, context: Any, socket: SocketEnd, url: str, protocols: list[str]) -> None: ...

    async def dial_kept(
        self, url: str, protocols: list[str], headers: Headers, keep: KeepSocket, kept: Callable[[GatewayLink, int], None]
    ) -> None: ...

    async def fetch(self, context: Any, request: Request) -> Response: ...


class Entrypoint(Protocol):
    """The worker's default entrypoint."""

    async def fetch(self, request: Request, context: Any) -> Response: ...


class Surroundings:
    """One host's."""

    objects: Objects
    outside: Outside
    entrypoint: Entrypoint
    caches: CachePort
    rpc: RpcTable

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: Worker,
        spec: HostSpec,
        links: Links,
        runner: Runner,
        mark: Mark,
        disk: Disk,
        counters: HostCounters,
    ) -> None:
        self.loop = loop
        self.worker = worker
        self.links = links
        self.runner = runner
        self.mark = mark
        self.disk = disk
        self.counters = counters
        self.limits: HostLimits = spec.limits
        self.clock: Clock = spec.clock
        self.slot = spec.slot
        self.slots = spec.slots
        self.io_pin_s = spec.io_pin_s  # 0: what may never end keeps an object awake until it does
        self.dev = spec.dev
        self.random_bytes = spec.random_bytes
        self.now = loop.time()  # of the current turn
        self.handled = 0  # events so far: the watchdog sees by it that the loop comes on
        self.phase = HostPhase.SERVING
        self.tasks: set[asyncio.Task[Any]] = set()
        self.elsewhere = set(spec.elsewhere)  # objects (class, id) that an earlier host still has
        self.warned: set[tuple[str, str]] = set()  # what (about whom) was said already

    def go(self, phase: HostPhase) -> None:
        """The host's next phase; it stays in one that is later already."""
        if phase > self.phase:
            if phase not in FOLLOWS[self.phase]:
                raise AssertionError(f"a host cannot go from {self.phase.name} to {phase.name}")
            self.phase = phase

    def now_s(self) -> float:
        """Seconds since the Unix epoch; may jump."""
        return self.clock.wall_ms() / 1000

    def owns(self, ref: ObjectRef) -> bool:
        """Whether an object is this host's: by its id, unless a successor has them all."""
        return slot_of(ref.id, self.slots) == self.slot and self.phase is not HostPhase.RELEASED

    def warn_once(self, what: str, whom: str) -> bool:
        """Whether it is the first time."""
        if (what, whom) in self.warned:
            return False
        self.warned.add((what, whom))
        return True

    # tasks

    def in_task(self) -> bool:
        """Whether a task is running: then nothing may be driven in place."""
        return asyncio.current_task(self.loop) is not None

    def spawn(self, coroutine: Coroutine[Any, Any, Any], variables: contextvars.Context) -> asyncio.Task[Any]:
        """A task that the host owns until it ends; who asks for it pins what it must."""
        self.counters.tasks += 1
        task = asyncio.Task(coroutine, loop=self.loop, context=variables)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """The loop's task factory: a task that worker code starts pins its object until it ends."""
        if not hasattr(type(coroutine), "send"):  # what the platform's calls return is awaitable, as promises are there
            coroutine = awaiting(coroutine)
        task = asyncio.Task(coroutine, loop=loop, **options)
        context: Any = current_context.get(None)
        if context is not None and context.owns_tasks:
            context.started(task, f"task {getattr(coroutine, '__qualname__', 'unnamed')}")
        return task
