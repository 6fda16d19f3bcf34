"""The host: a loaded worker, its actors, and the links to the gateways that hold their sockets, put together.

It runs worker code and holds no client socket: it may be replaced or killed, and the clients stay. Everything happens on
one loop; nothing here waits for a disk or a network.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from typing import TYPE_CHECKING, Any

from roost.api.entrypoint import LazyEnv
from roost.api.namespace import DurableObjectNamespace
from roost.errors import Superseded, UnavailableError, WorkerError
from roost.events import ObjectRef, Released
from roost.host.calls.answering import MethodCalls
from roost.host.calls.caches import Caches
from roost.host.calls.crons import Crons
from roost.host.calls.outbound import Outbound
from roost.host.calls.requests import Requests
from roost.host.calls.stubs import StubCaller
from roost.host.disk import Disk
from roost.host.dispatch import Dispatch
from roost.host.limits import HostCounters
from roost.host.links import Links
from roost.host.objects.alarms import Alarms
from roost.host.objects.input_gate import Phase
from roost.host.objects.leftovers import fold_leftovers
from roost.host.objects.pre_shutdown import call_pre_shutdown
from roost.host.objects.registry import Actors
from roost.host.objects.sleeping import Sleeping
from roost.host.objects.waking import Waking
from roost.host.worker.mark import Mark
from roost.host.worker.rpc_table import RpcTable
from roost.host.worker.running import Runner
from roost.host.worker.surroundings import HostPhase, Surroundings
from roost.ids import id_from_random, namespace_key
from roost.link.port import NO_CONTEXT
from roost.storage.restoring import Restored, restoring_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from roost.host.bindings import Binding
    from roost.host.gateway_link import GatewayLink
    from roost.host.objects.actor import Actor
    from roost.host.spec import HostSpec
    from roost.host.worker.loader import Worker
    from roost.link.port import Link

_log = logging.getLogger("roost.host")

_RESTORE_WAITS_S = 30.0  # for the handlers that an object runs
_LIFESPAN_S = 2.0  # for the shutdown of an ASGI app


class Host:
    """One host on the running loop. `add_gateway` its links; `close` ends it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, worker: Worker, spec: HostSpec, bindings: Sequence[Binding] = ()
    ) -> None:
        self.loop = loop
        self.worker = worker
        self.spec = spec
        self.counters = HostCounters()
        self.disk = Disk(
            loop, spec.data, spec.clock,
            slot=spec.slot, slots=spec.slots, max_open=spec.max_open_files, log_bounds=spec.log_bounds,
        )  # fmt: skip
        self.links = Links(loop, spec, self.counters)
        self.runner = Runner(loop)
        around = self.surroundings = Surroundings(
            loop, worker, spec, self.links, self.runner, Mark(spec.mark), self.disk, self.counters
        )
        self.actors = Actors()
        self.sleeping = Sleeping(around, self.actors, spec.idle_s)
        self.waking = Waking(around, self.actors, self.sleeping, spec.quarantined)
        self.alarms = Alarms(around, spec.clock)
        self.calls = MethodCalls(around)
        self.stubs = StubCaller(around, self.calls)
        self.rpc = RpcTable(loop, self.counters, spec.limits, spec.slot, spec.slots, spec.random_bytes)
        self.outbound = Outbound(around, spec.ca_file)
        self.crons = Crons(around, spec.crons if spec.slot == 0 else (), spec.clock)
        self.requests = Requests(around, self.crons)
        self.caches = Caches(around, *spec.cache_bounds)
        self.dispatch = Dispatch(around, spec, self.actors, self.sleeping, self.waking, self.requests, self.calls)
        around.objects, around.outside, around.entrypoint = self.waking, self.outbound, self.requests
        around.caches, around.rpc, self.rpc.caller = self.caches, self.rpc, self.stubs
        self.links.events, self.links.begin = self.dispatch, self._begin
        self.waking.check_alarms = self.alarms.check
        self._bindings = bindings
        self._held: list[Actor] = []
        self._leftovers: asyncio.Task[None] | None = None
        self._fill_env()
        for kind in worker.classes.values():
            for warning in kind.warnings:
                _log.warning("worker: %s", warning)
        if spec.one_host and spec.slot == 0:
            _log.info(
                "asgi: the app may keep WebSockets in memory, so all of its requests go to host 0; objects live on all"
                ' hosts (docs/guides/asgi.md; [asgi] hosts = "all" spreads the requests, too)'
            )

    def _fill_env(self) -> None:
        """What worker code finds in `env`: variables, objects' namespaces, and other bindings."""
        spec = self.spec
        env: dict[str, Any] = dict(spec.variables)
        for binding, class_name in spec.classes.items():
            key = namespace_key(spec.worker_name, spec.first_names.get(class_name, class_name))
            env[binding] = DurableObjectNamespace(class_name, key, self.stubs, spec.random_bytes)
        for kind in self._bindings:
            env.update(kind.open(self.surroundings))
        self.worker.env.fill(env)
        LazyEnv.target = self.worker.env

    def add_gateway(self, link: Link) -> GatewayLink:
        """Serve a gateway from now on."""
        return self.links.add(link, self.surroundings.mark.path)

    def _begin(self) -> None:
        self.alarms.start()
        self.crons.start()
        folding = fold_leftovers(self.surroundings, self.actors)
        self._leftovers = asyncio.Task(folding, loop=self.loop, context=contextvars.Context())

    # what the node asks

    def quarantine(self, objects: frozenset[tuple[str, str]]) -> None:
        """These have brought their hosts down: they are not woken."""
        self.waking.quarantined = objects

    def know(self, elsewhere: Iterable[tuple[str, str]], not_again: frozenset[tuple[int, int]]) -> None:
        """Objects that an earlier host still has, and events that it hung in."""
        self.surroundings.elsewhere |= set(elsewhere)
        self.dispatch.not_again |= not_again

    def end_soon(self) -> None:
        """The node ends: gateways that go are no news."""
        self._go(HostPhase.CLOSING)

    async def probe(self, class_name: str, timeout_s: float) -> None:
        """Build a new object of a class. Raises WorkerError if that fails, its cause what the constructor raised."""
        key = namespace_key("probe", class_name)
        actor = self.waking.awaken(
            ObjectRef(class_name, id_from_random(key, self.spec.random_bytes(16))), "a probe of new code"
        )
        deadline = self.loop.time() + timeout_s
        while actor.failure is None and (actor.blocked or not actor.built) and self.loop.time() < deadline:
            await asyncio.sleep(0.005)
        if actor.failure is not None:
            error = actor.failure
            raise WorkerError(f"{class_name} cannot be built: {type(error).__name__}: {error}") from error

    async def replace_storage(self, ref: ObjectRef, alarm_ms: int | None) -> None:
        """Put the file that `roost storage restore` has made in the object's place. Its sockets stay."""
        if (ref.class_name, ref.id) in self.surroundings.elsewhere:
            raise UnavailableError("an old host still finishes a request of the object; try again later.")
        while (actor := self.actors.get(ref)) is not None:
            unblock = actor.block()  # what comes from now on is the restored one's
            deadline = self.loop.time() + _RESTORE_WAITS_S
            try:
                while actor.phase is not Phase.GONE and (actor.is_handling or actor.is_writing):
                    if self.loop.time() > deadline:
                        raise UnavailableError(f"{actor.label} is handling events and was not replaced; try again later.")
                    await asyncio.sleep(0.002)
            except BaseException:
                unblock()
                raise
            if actor.phase is not Phase.GONE:  # else it was reset meanwhile, and another one may be there
                actor.reset(Superseded(f"the storage of {actor.label} was restored"))
                break  # who opens the file from here on waits for the new one
        await self.disk.replace(Restored(ref, restoring_path(self.disk.data, ref), alarm_ms))

    # its end

    def _go(self, phase: HostPhase) -> None:
        self.surroundings.go(phase)
        self.links.ending = True
        if phase >= HostPhase.ABANDONING:
            self.links.abandon()

    def _end_timers(self) -> None:
        self._go(HostPhase.CLOSING)
        self.alarms.end()
        self.crons.end()

    def leave(self) -> None:
        """Take nothing new: what the gateways get from now on is for the successor. `close` follows."""
        if self.links.leave():
            self.alarms.end()
            self.crons.end()

    def _handling(self) -> bool:
        """Whether an object's handler of an event runs, or what one has written or said is on its way."""
        self.links.flush()
        return bool(
            self.alarms.running
            or self.calls.running
            or self.links.are_pending
            or any(actor.is_writing for actor in self.actors)
        )

    def _busy(self) -> bool:
        return bool(self.requests.open or self.surroundings.tasks) or self._handling()

    def _tell_objects(self, actors: Iterable[Actor], why: str) -> None:
        """`preShutdown`, in a turn of its own: it is driven in place, which a task must not be."""
        for actor in actors:
            self.loop.call_soon(call_pre_shutdown, actor, why, context=NO_CONTEXT)

    async def release(self, timeout_s: float, why: str) -> list[ObjectRef]:
        """Let the objects go, for at most `timeout_s` each as soon as none of its own handlers runs, and say so to the
        gateways: a successor serves them from now on. Returns those that are still held, as a request or a `waitUntil` of
        theirs goes on: `held` follows them. What is no object's goes on (`finish`)."""
        deadline = self.loop.time() + timeout_s
        self._end_timers()
        while self.loop.time() < deadline and self._handling():
            await asyncio.sleep(0.002)
        self._tell_objects([actor for actor in self.actors if not actor.is_serving], why)
        await asyncio.sleep(0)
        while self.loop.time() < deadline and (self._handling() or any(a.blocked for a in self.actors if not a.is_serving)):
            await asyncio.sleep(0.002)
        self._go(HostPhase.ABANDONING)  # what is cut now is not done, and the successor's
        held = [actor for actor in self.actors if actor.is_serving and self.loop.time() < deadline]
        for actor in self.actors:
            if actor not in held:
                self._let_go(actor)
        self._go(HostPhase.RELEASED)
        await self.disk.closed()
        for gateway in self.links:
            gateway.link.send(Released())
        self.links.flush()
        self._held = held
        return [actor.ref for actor in held]

    def _let_go(self, actor: Actor) -> None:
        actor.shut()
        actor.end_rpc()
        actor.end_storage()
        self.actors.forget(actor)

    async def held(self, timeout_s: float) -> AsyncIterator[ObjectRef]:
        """The objects that `release` has held back, as each is let go: once nothing of it goes on, or the time is over."""
        deadline = self.loop.time() + timeout_s
        while self._held:
            for actor in list(self._held):
                if not (actor.is_serving or actor.is_writing) or self.loop.time() >= deadline:
                    self._held.remove(actor)
                    self._let_go(actor)
                    await self.disk.closed()
                    yield actor.ref
            await asyncio.sleep(0.005)

    async def finish(self, timeout_s: float) -> None:
        """Let what is no object's go on: requests, streams, `waitUntil`; for at most `timeout_s`."""
        deadline = self.loop.time() + timeout_s
        while self.loop.time() < deadline and (self.requests.open or self.surroundings.tasks):
            await asyncio.sleep(0.01)

    async def close(self, timeout_s: float = 5.0, why: str = "inactive") -> None:
        """Let running handlers finish, for at most `timeout_s`, tell the objects (`preShutdown`), then end."""
        deadline = self.loop.time() + timeout_s
        self._end_timers()
        while self.loop.time() < deadline and self._busy():
            await asyncio.sleep(0.01)
        if timeout_s:
            self._tell_objects(self.actors, why)
            await asyncio.sleep(0)
            while self.loop.time() < deadline and (self._busy() or any(actor.blocked for actor in self.actors)):
                await asyncio.sleep(0.01)
        self._go(HostPhase.ABANDONING)
        self.sleeping.end()
        for actor in self.actors:
            actor.shut()
            actor.end_storage()
        self.runner.close()
        if self._leftovers is not None:
            self._leftovers.cancel()
        for task in list(self.surroundings.tasks):
            task.cancel()
        await asyncio.sleep(0)
        await self.outbound.close()
        if (asgi := sys.modules.get("roost.compat.asgi")) is not None:
            await asgi.end_lifespans(min(timeout_s, _LIFESPAN_S))
        self.links.close()
        self.rpc.close()
        for kind in self._bindings:
            kind.close()
        self.caches.close()
        self.disk.end()
