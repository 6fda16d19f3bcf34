"""The host: a loaded worker, its actors, and the links to the gateways that hold their sockets.

It runs worker code and holds no client socket: it may be replaced or killed, and the clients stay. Everything happens on
one loop; nothing here waits for a disk or a network.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from roost.api.entrypoint import LazyEnv
from roost.api.namespace import DurableObjectNamespace
from roost.api.rate_limits import RateLimit, Window
from roost.api.runtime import current_context
from roost.api.service import AssetsStub, ServiceStub
from roost.api.socket_end import Accept
from roost.clock import SystemClock
from roost.compat.pyodide.code import accepted_positionals
from roost.errors import ConfigError, Superseded, UnavailableError, WorkerError
from roost.events import (
    ENVELOPE_VERSION,
    Abort,
    Asleep,
    AutoAnswered,
    BodyCredit,
    BodyData,
    Call,
    Confirmed,
    Dialled,
    DropSockets,
    Hello,
    Leaving,
    ObjectRef,
    Released,
    Request,
    Response,
    Result,
    Roster,
    SocketClose,
    SocketError,
    SocketMessage,
    SocketOpened,
    WakingMessage,
    Welcome,
)
from roost.host import memory
from roost.host.bodies import BodyReader
from roost.host.calls.answering import Calls
from roost.host.calls.caches import Caches
from roost.host.calls.crons import Crons
from roost.host.calls.kv import KvStores
from roost.host.calls.outbound import Outbound
from roost.host.calls.requests import Requests
from roost.host.calls.services import EntrypointCaller
from roost.host.calls.stubs import StubCaller, raised
from roost.host.gateway_link import GatewayLink
from roost.host.limits import HostCounters, HostLimits
from roost.host.objects.actor import Actor, Phase
from roost.host.objects.alarms import Alarms
from roost.host.objects.disk import Disk
from roost.host.objects.farewell import say_farewell
from roost.host.objects.leftovers import fold_leftovers
from roost.host.objects.registry import Actors
from roost.host.objects.waking import GATEWAY_WAITS_S, ONE_MORE_POLL_S, Waking
from roost.host.worker.mark import Mark
from roost.host.worker.promise import awaiting
from roost.host.worker.rpc_table import RpcTable
from roost.host.worker.running import Runner
from roost.ids import id_from_random, namespace_key, slot_of
from roost.link.port import NO_CONTEXT
from roost.storage.dump import Restored, restoring_path
from roost.values import JsDict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
    from pathlib import Path

    from roost.clock import Clock
    from roost.events import Event
    from roost.host.objects.delivered import Words
    from roost.host.objects.disk import LogBounds
    from roost.host.worker.loader import Worker
    from roost.link.port import Link
    from roost.storage.assets import Assets

_log = logging.getLogger("roost.host")


_RESTORE_WAITS_S = 30.0  # for the handlers that an object runs
_LIFESPAN_S = 2.0  # for the shutdown of an ASGI app
_MAX_ENDED = 100_000
_MAX_UNSAID = 16  # gateways
_MAX_UNSAID_BYTES = 64 * 1024 * 1024

SocketEvent = SocketMessage | SocketClose | SocketError | SocketOpened
_SOCKET_EVENTS = frozenset({SocketMessage, WakingMessage, SocketClose, SocketError, SocketOpened})


class Host:
    """One host on the running loop. `add_gateway` its links; `close` ends it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: Worker,
        *,
        worker_name: str,
        first_names: Mapping[str, str] | None = None,
        variables: Mapping[str, Any],
        bindings: Mapping[str, str],
        slot: int = 0,
        slots: int = 1,
        idle_s: float = 10.0,
        io_pin_s: float = 900.0,
        data: Path | None = None,
        max_open_files: int = 1000,
        log_bounds: LogBounds | None = None,
        limits: HostLimits | None = None,
        services: Mapping[str, tuple[str, dict[str, Any]]] | None = None,
        crons: Sequence[str] = (),
        kv_namespaces: Mapping[str, str] | None = None,
        cache_bounds: tuple[int, int] = (256 * 1024 * 1024, 0),
        ratelimits: Mapping[str, tuple[str, int, int]] | None = None,
        version_metadata: tuple[str, str, str, str] | None = None,
        assets: tuple[str, Assets | None] | None = None,
        clock: Clock | None = None,
        not_again: frozenset[tuple[int, int]] = frozenset(),
        quarantined: frozenset[tuple[str, str]] = frozenset(),
        mark: Path | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        gateways: int = 1,
        gateways_outlive: bool = False,
        elsewhere: Iterable[tuple[str, str]] = (),
        ca_file: str | None = None,
        one_host: bool = False,
        dev: bool = False,
    ) -> None:
        self.loop = loop
        self.worker = worker
        self.slot = slot
        self.slots = slots
        self.now = loop.time()  # of the current turn
        self.links: list[GatewayLink] = []
        self.actors = Actors()
        self.limits = limits or HostLimits()
        self.ca_file = ca_file
        self.dev = dev
        self.one_host = one_host  # requests that name no object must all come to this one
        self.counters = HostCounters()
        self.runner = Runner(loop)
        self.closing = False
        self.leaving = False
        self.released = False  # its objects are a successor's
        self._held: list[Actor] = []
        self.elsewhere = set(elsewhere)  # objects (class, id) that an earlier host still has
        self.handled = 0  # events so far: the watchdog sees by it that the loop comes on
        self.not_again = not_again  # events (epoch, number) that an earlier host hung in
        self.mark = Mark(mark)
        self._random_bytes = random_bytes
        clock = clock or SystemClock()
        self.disk = Disk(loop, data, clock, slot=slot, slots=slots, max_open=max_open_files, log_bounds=log_bounds)
        self.alarms = Alarms(self, clock, random_bytes)
        self.crons = Crons(self, crons if slot == 0 else (), clock)
        self.calls = Calls(self)
        self.waking = Waking(self, quarantined)
        self.outbound = Outbound(self)
        self.requests = Requests(self)
        self.warned_listeners: set[str] = set()
        self.warned_deaf: set[str] = set()
        self._idle_s = idle_s
        self.io_pin_s = io_pin_s  # 0: what may never end keeps an object awake until it does
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leftovers: asyncio.Task[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self.abandoning = False  # handlers are being cancelled: what they end with is not done
        self._link_numbers = itertools.count()
        self._gateways = gateways
        self._gateways_outlive = gateways_outlive  # a gateway that dies has a successor that knows its sockets
        self._early: list[tuple[GatewayLink, list[Event]]] | None = [] if gateways > 1 else None  # until all are here
        self.life = int.from_bytes(random_bytes(6), "big")  # of this process, for what its objects say
        self._ended: set[int] = set()  # sockets of gateways that died, whose ends their objects know
        self._unsaid: dict[int, list[Words]] = {}  # for gateways that are not here yet, by epoch
        self._unsaid_bytes = 0
        self.rpc = RpcTable(self, random_bytes)
        caller = self.stubs = StubCaller(self)
        env: dict[str, Any] = dict(variables)
        for binding, class_name in bindings.items():
            key = namespace_key(worker_name, (first_names or {}).get(class_name, class_name))
            env[binding] = DurableObjectNamespace(class_name, key, caller, random_bytes)
        for binding, (entrypoint, props) in (services or {}).items():
            if entrypoint != "Default" and entrypoint not in worker.entrypoints:
                known = ", ".join(worker.entrypoints) or "none"
                raise ConfigError(
                    f"services: {binding}: the worker has no entrypoint class {entrypoint} (it has: {known})."
                )
            env[binding] = ServiceStub(EntrypointCaller(self, entrypoint, props))
        self.kv = KvStores(self, self.disk.data, kv_namespaces or {})
        env.update(self.kv.bindings)
        self.caches = Caches(self, self.disk.data, *cache_bounds)
        windows: dict[tuple[str, int], Window] = {}
        for binding, (namespace, limit, period_s) in (ratelimits or {}).items():
            window = Window(period_s, self.kv.now_s, self._rate_uncounted)
            env[binding] = RateLimit(limit, windows.setdefault((namespace, period_s), window))
        if version_metadata is not None:
            env[version_metadata[0]] = JsDict(zip(("id", "tag", "timestamp"), version_metadata[1:], strict=True))
        if assets is not None and assets[1] is not None:
            env[assets[0]] = AssetsStub(assets[1].find)
        if one_host and slot == 0:
            _log.info(
                "asgi: the app may keep WebSockets in memory, so all of its requests go to host 0; objects live on all"
                ' hosts (docs/guides/asgi.md; [asgi] hosts = "all" spreads the requests, too)'
            )
        for kind in worker.classes.values():
            for warning in kind.warnings:
                _log.warning("worker: %s", warning)
        worker.env.fill(env)
        LazyEnv.target = worker.env
        self.entrypoint_takes = _entrypoint_takes(worker.entrypoint)
        self._handlers: dict[type, Any] = {
            Request: self._request,
            Response: self._response,
            BodyData: self._body_data,
            BodyCredit: lambda link, event: self.requests.credit(link, event.request, event.size),
            Abort: self._abort,
            Dialled: self._dialled,
            Call: self._call,
            Result: self._result,
            AutoAnswered: self._auto_answered,
            Welcome: self._welcome,
            Leaving: self._left,
            Confirmed: lambda link, event: link.confirmed(event.number),
        }

    def add_gateway(self, link: Link) -> None:
        """Serve a gateway from now on."""
        gateway_link = GatewayLink(self, link, next(self._link_numbers))
        self.links.append(gateway_link)
        link.send(
            Hello(ENVELOPE_VERSION, self.slot, self.slots, self.mark.path, gateway_link.index, self.life, self.one_host)
        )
        link.start(gateway_link)
        if len(self.links) == 1:
            if self._early is None:
                self._begin()
            else:
                self.loop.call_later(GATEWAY_WAITS_S, self._take_early_soon)

    @property
    def awaits_gateways(self) -> bool:
        """Whether one has not said yet which events it gives again."""
        return self._gateways > 1 and sum(link.welcome for link in self.links) < self._gateways

    @property
    def some_come_again(self) -> bool:
        """Whether an event may come that was given to an earlier host."""
        for link in self.links:
            if link.again:
                return True
        return self.awaits_gateways

    def _begin(self) -> None:
        self.alarms.start()
        self.crons.start()
        self._leftovers = asyncio.Task(fold_leftovers(self), loop=self.loop, context=contextvars.Context())

    def _take_early_soon(self) -> None:
        """The time is over; but if this process was stopped, what has arrived meanwhile is read first."""
        self.loop.call_later(ONE_MORE_POLL_S, self._take_early)

    def _take_early(self) -> None:
        """All gateways are here, or have had their time: what came before begins now."""
        early, self._early = self._early, None
        if early is not None and not self.closing:
            self._begin()
            for link, events in early:
                if link in self.links:
                    self.on_events(link, events)
                    link.link.flush()

    def gateway_lost(self, link: GatewayLink, reason: str) -> None:
        """A gateway is gone, and with it all of its sockets."""
        if not self.closing:
            _log.warning("host: gateway %d is gone: %s", link.index, reason)
        if link in self.links:
            self.links.remove(link)
        text = "WebSocket disconnected without sending Close frame."
        for number, socket in list(link.sockets.items()):
            context = socket.io_context
            if isinstance(context, Actor) and socket.accepted_as == Accept.HIBERNATABLE and self._gateways_outlive:
                context.disconnected(socket)  # its end is told by that gateway's successor
            elif context is not None:
                context.closed(socket, SocketClose(0, 0, number, 1006, text, False), link)
        for answered in link.responses.values():
            if not answered.done():
                answered.set_exception(WorkerError("The gateway that carried this call is gone."))
        for number, dialled in list(link.dials.items()):
            dialled(link, Dialled(number, 0, 0, [], "the gateway that dialled is gone"))
        link.dials.clear()
        for reader in [*link.bodies.values(), *link.readers.values()]:
            reader.abort("The gateway is gone.")
        self._ended.update(link.ended)
        if len(self._ended) > _MAX_ENDED:
            self._ended = set(link.ended)
        self.requests.gateway_lost(link)
        self.waking.gateway_lost(link)

    def unique_numbers(self) -> int:
        """An even start for numbers that no earlier host of this slot has used."""
        return int.from_bytes(self._random_bytes(4), "big") << 24

    # events

    def on_events(self, link: GatewayLink, events: Sequence[Event]) -> None:
        """A batch from a gateway."""
        if self._early is not None:  # an object that wakes must know its sockets at every gateway
            if events and type(events[0]) is Welcome:
                self._welcome(link, events[0])
                events = events[1:]
            self._early.append((link, list(events)))
            if sum(bool(other.welcome) for other in self.links) >= self._gateways:
                self._take_early()
            return
        self.now = self.loop.time()
        link.slow = False
        sockets = link.sockets
        before = link.last_event
        others = 0  # that are no socket events
        some_are_not_ours = self.leaving or self.not_again
        for event in events:
            try:
                self.handled += 1
                if some_are_not_ours and self._passed_over(link, event):
                    continue
                if type(event) is SocketMessage:
                    link.last_event = event.event
                    socket = sockets.get(event.socket)
                    if socket is not None:
                        socket.io_context.message(socket, event, link)
                    else:
                        self.waking.unknown(link, event)
                elif type(event) is WakingMessage:
                    link.last_event = event.event
                    self.waking.message(link, event)
                elif type(event) is SocketClose or type(event) is SocketError:
                    link.last_event = event.event
                    if event.socket in self._ended:  # its gateway died before it heard that this is done
                        self._ended.discard(event.socket)
                    else:
                        self.socket_event(link, event)
                elif type(event) is SocketOpened:
                    link.last_event = event.event
                    self.socket_event(link, event)
                elif type(event) is Roster:
                    others += 1
                    self.waking.roster(link, event)
                else:
                    others += 1
                    self._handlers[type(event)](link, event)
            except Exception:  # noqa: BLE001
                # Ours, not the user's (that is caught where it runs): the rest of the batch must not be lost with it.
                _log.exception("host: internal error in %s; please report it", type(event).__name__)
        if link.offered and not link.offered[-1].more:
            link.offered = []
        if link.last_event != before:
            self.counters.events += len(events) - others
            link.say_done()
        if self._sweep is None and len(self.actors):
            self.arm_sweep()

    def _passed_over(self, link: GatewayLink, event: Any) -> bool:
        """Whether an event is not for this host."""
        if type(event) not in _SOCKET_EVENTS:
            return False
        if self.leaving:  # not done: the gateway gives it to the successor (but for a plain socket, which has none)
            if type(event) is not WakingMessage and not event.actor:
                self.socket_event(link, event)
            return True
        if (link.epoch, event.event) in self.not_again:
            link.last_event = event.event
            self.counters.events_given_up += 1
            return True
        return False

    def socket_event(self, link: GatewayLink, event: SocketEvent) -> None:
        """An event of a socket that may not be known here (yet)."""
        socket = link.sockets.get(event.socket)
        if socket is None or socket.io_context is None:
            self.waking.unknown(link, event)
        elif type(event) is SocketMessage:
            self.handled += 1  # many may have waited for one gate
            socket.io_context.message(socket, event, link)
        elif type(event) is SocketClose:
            socket.io_context.closed(socket, event, link)
        elif type(event) is SocketOpened:
            socket.io_context.opened(socket, event, link)
        else:
            socket.io_context.failed(socket, event, link)

    def _welcome(self, link: GatewayLink, event: Welcome) -> None:
        link.epoch, link.given_before, link.again = event.epoch, event.given_before, set(event.again)
        link.heard_before(event.life, event.said, event.said_besides)
        link.welcome = True
        for _, life, group, envelopes in self._unsaid.pop(event.epoch, ()):
            self._unsaid_bytes -= len(envelopes)
            if not link.has_heard(life, group):
                link.send_envelopes(envelopes)
        for actor in self.actors:  # awake before this gateway was here
            self.waking.ask(actor, link)

    def say_later(self, words: Words) -> None:
        """What an earlier life of an object had to say to a gateway that is not here (yet)."""
        epoch, _, _, envelopes = words
        if self._unsaid_bytes + len(envelopes) > _MAX_UNSAID_BYTES or (
            len(self._unsaid) >= _MAX_UNSAID and epoch not in self._unsaid
        ):
            if not self.counters.answers_unsaid:
                _log.error("host: a gateway is away for too long: what objects had said to its sockets is lost")
            self.counters.answers_unsaid += 1
            return
        self._unsaid_bytes += len(envelopes)
        self._unsaid.setdefault(epoch, []).append(words)

    def _left(self, link: GatewayLink, event: Leaving) -> None:
        link.left = True

    def _auto_answered(self, link: GatewayLink, event: AutoAnswered) -> None:
        socket = link.sockets.get(event.socket)
        if socket is None:
            link.link.send(Asleep(event.actor))
        else:
            socket.auto_answered_ms = event.at_ms

    # requests

    def _request(self, link: GatewayLink, event: Request) -> None:
        self.counters.requests += 1
        self.mark.begun(link.index)
        self.requests.begin(link, event)

    def _call(self, link: GatewayLink, event: Call) -> None:
        self.mark.begun(link.index)
        self.calls.from_link(link, event)

    def _response(self, link: GatewayLink, event: Response) -> None:
        answered = link.responses.get(event.request)
        if (answered is None or answered.done()) and event.more_body:
            link.link.send(Abort(event.request, "The caller gave up."))
        if answered is not None and not answered.done():
            if event.more_body:  # at once: its pieces may be in this very batch
                reader = BodyReader(link, event.request, event.body)
                link.bodies[event.request] = link.readers[event.request] = reader
            answered.set_result(event)

    def _result(self, link: GatewayLink, event: Result) -> None:
        answered = link.responses.get(event.request)
        if answered is not None and not answered.done():
            answered.set_result(event)

    def _body_data(self, link: GatewayLink, event: BodyData) -> None:
        reader = link.bodies.get(event.request)
        if reader is not None:
            reader.feed(event)
            if event.last:
                link.bodies.pop(event.request, None)

    def _abort(self, link: GatewayLink, event: Abort) -> None:
        reader = link.bodies.pop(event.request, None)
        if reader is not None:
            reader.abort(event.reason)
        answered = link.responses.get(event.request)
        if answered is not None and not answered.done():
            answered.set_exception(raised(event.fault, event.reason))
        self.requests.abort(link, event.request)

    def _dialled(self, link: GatewayLink, event: Dialled) -> None:
        dialled = link.dials.pop(event.dial, None)
        if dialled is not None:
            dialled(link, event)

    async def probe(self, class_name: str, timeout_s: float) -> None:
        """Build a new object of a class. Raises WorkerError if that fails, its cause what the constructor raised."""
        key = namespace_key("probe", class_name)
        actor = self.waking.awaken(
            ObjectRef(class_name, id_from_random(key, self._random_bytes(16))), "a probe of new code"
        )
        deadline = self.loop.time() + timeout_s
        while actor.failure is None and (actor.blocked or not actor.built) and self.loop.time() < deadline:
            await asyncio.sleep(0.005)
        if actor.failure is not None:
            error = actor.failure
            raise WorkerError(f"{class_name} cannot be built: {type(error).__name__}: {error}") from error

    # storage from outside

    async def replace_storage(self, ref: ObjectRef, alarm_ms: int | None) -> None:
        """Put the file that `roost storage restore` has made in the object's place. Its sockets stay."""
        if (ref.class_name, ref.id) in self.elsewhere:
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

    # tasks

    def owns(self, ref: ObjectRef) -> bool:
        """Whether an object is this host's: by its id, unless a successor has them all."""
        return slot_of(ref.id, self.slots) == self.slot and not self.released

    def in_task(self) -> bool:
        """Whether a task is running: then nothing may be driven in place."""
        return asyncio.current_task(self.loop) is not None

    def spawn(self, coroutine: Coroutine[Any, Any, Any], variables: contextvars.Context) -> asyncio.Task[Any]:
        """A task that the host owns until it ends; who asks for it pins what it must."""
        self.counters.tasks += 1
        task = asyncio.Task(coroutine, loop=self.loop, context=variables)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """The loop's task factory: a task that worker code starts pins its object until it ends."""
        if not hasattr(type(coroutine), "send"):  # what the platform's calls return is awaitable, as promises are there
            coroutine = awaiting(coroutine)
        task = asyncio.Task(coroutine, loop=loop, **options)
        context = current_context.get(None)
        if isinstance(context, Actor):
            context.started(task, f"task {getattr(coroutine, '__qualname__', 'unnamed')}")
        return task

    # sleeping

    def _rate_uncounted(self) -> None:
        self.counters.rates_uncounted += 1

    async def evict(self, wanted: str | None, *, cut: bool, timeout_s: float) -> int:
        """Put objects to sleep now (by label or id; without one, all): each once nothing pins it. How many. `cut` ends
        their sockets, too, without a Close frame and without an event."""
        deadline = self.loop.time() + timeout_s
        left = {actor.ref for actor in self.actors if wanted in (None, actor.label, actor.ref.id)}
        evicted = 0
        while left and self.loop.time() < deadline:
            tried: asyncio.Future[int] = self.loop.create_future()
            # In a turn of its own, like the sweep: a farewell is driven in place, which a task must not be.
            self.loop.call_soon(self._evict_some, left, cut, tried, context=NO_CONTEXT)
            evicted += await tried
            if left:
                await asyncio.sleep(0.005)
        self.counters.sleeps += evicted
        return evicted

    def _evict_some(self, left: set[ObjectRef], cut: bool, tried: asyncio.Future[int]) -> None:
        evicted = 0
        for ref in list(left):
            actor = self.actors.get(ref)
            now = self.loop.time()
            if actor is None:
                left.discard(ref)
            elif actor.may_sleep(now, 0.0) and not say_farewell(actor, "inactive") and actor.may_sleep(now, 0.0):
                self.actors.forget(actor)
                actor.sleep()
                evicted += 1
                for link in self.links if cut else []:
                    link.link.send(DropSockets(ref))
                    link.link.flush()
        tried.set_result(evicted)

    def arm_sweep(self) -> None:
        """There is an object that will want to sleep some time."""
        if self._sweep is None:
            self._sweep = self.loop.call_later(max(self._idle_s / 4, 0.01), self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        slept = self.actors.put_to_sleep(self.loop.time(), self._idle_s)
        self.counters.sleeps += slept
        if len(self.actors):
            self.arm_sweep()
        elif slept:
            self._give_back_memory()

    def _give_back_memory(self) -> None:
        """All objects sleep: let the tables shrink, and give what they held back to the system."""
        for link in self.links:
            link.link.flush()
            link.shrink()
        gc.collect()
        memory.trim()

    def _busy(self) -> bool:
        for link in self.links:
            link.link.flush()
        pending = any(link.running or link.link.unsent or (self.leaving and not link.left) for link in self.links) or any(
            actor.is_writing for actor in self.actors
        )
        return bool(self.requests.open or self._tasks or self.alarms.running or self.calls.running or pending)

    def leave(self) -> None:
        """Take nothing new: what the gateways get from now on is for the successor. `close` follows."""
        if not self.leaving:
            self.leaving = True
            self.alarms.end()
            self.crons.end()
            for link in self.links:
                link.link.send(Leaving())
                link.link.flush()

    # giving the objects to a successor

    async def release(self, timeout_s: float, why: str) -> list[ObjectRef]:
        """Let the objects go, for at most `timeout_s` each as soon as none of its own handlers runs, and say so to the
        gateways: a successor serves them from now on. Returns those that are still held, as a request or a `waitUntil` of
        theirs goes on: `held` follows them. What is no object's goes on (`finish`)."""
        deadline = self.loop.time() + timeout_s
        self.closing = True
        self.alarms.end()
        self.crons.end()
        while self.loop.time() < deadline and self._handling():
            await asyncio.sleep(0.002)
        for actor in self.actors:
            if not actor.is_serving:
                self.loop.call_soon(say_farewell, actor, why, context=NO_CONTEXT)
        await asyncio.sleep(0)
        while self.loop.time() < deadline and (self._handling() or any(a.blocked for a in self.actors if not a.is_serving)):
            await asyncio.sleep(0.002)
        self.abandoning = True  # what is cut now is not done, and the successor's
        held = [actor for actor in self.actors if actor.is_serving and self.loop.time() < deadline]
        for actor in list(self.actors):
            if actor not in held:
                self._let_go(actor)
        self.released = True
        await self.disk.closed()
        for link in self.links:
            link.link.send(Released())
            link.link.flush()
        self._held = held
        return [actor.ref for actor in held]

    def _handling(self) -> bool:
        """Whether an object's handler of an event runs, or what one has written or said is on its way."""
        for link in self.links:
            link.link.flush()
        return bool(
            self.alarms.running
            or self.calls.running
            or any(link.running or link.link.unsent or not link.left for link in self.links)
            or any(actor.is_writing for actor in self.actors)
        )

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
        while self.loop.time() < deadline and (self.requests.open or self._tasks):
            await asyncio.sleep(0.01)

    async def close(self, timeout_s: float = 5.0, why: str = "inactive") -> None:
        """Let running handlers finish, for at most `timeout_s`, tell the objects (`preShutdown`), then end."""
        deadline = self.loop.time() + timeout_s
        self.closing = True
        self.alarms.end()
        self.crons.end()
        while self.loop.time() < deadline and self._busy():
            await asyncio.sleep(0.01)
        if timeout_s:
            for actor in self.actors:
                self.loop.call_soon(say_farewell, actor, why, context=NO_CONTEXT)
            await asyncio.sleep(0)
            while self.loop.time() < deadline and (self._busy() or any(actor.blocked for actor in self.actors)):
                await asyncio.sleep(0.01)
        self.abandoning = True
        if self._sweep is not None:
            self._sweep.cancel()
        for actor in self.actors:
            actor.shut()
            actor.end_storage()
        self.runner.close()
        if self._leftovers is not None:
            self._leftovers.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)
        await self.outbound.close()
        if (asgi := sys.modules.get("roost.compat.asgi")) is not None:
            await asgi.end_lifespans(min(timeout_s, _LIFESPAN_S))
        for link in self.links:
            link.link.close()
        self.rpc.close()
        self.kv.close()
        self.caches.close()
        self.disk.end()


def _entrypoint_takes(entrypoint: Any) -> int:
    """How many of its arguments the worker's fetch wants (relaxed calls, reference 1.2)."""
    if isinstance(entrypoint, type):
        function = getattr(entrypoint, "fetch", None)
        takes = 2 if function is None else accepted_positionals(function)
        return 1 if takes is None else min(takes - 1, 1)
    takes = accepted_positionals(entrypoint)
    return 3 if takes is None else takes
