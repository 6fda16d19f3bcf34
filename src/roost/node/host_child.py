"""A host as a child process: it keeps a link to every gateway, and may be replaced by another that takes its objects."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from roost.host.forking import Forks, die_with_parent
from roost.link.port import NO_CONTEXT
from roost.link.unix import UnixLink
from roost.node.assemble import HostPlace, host_report, load, make_host, probe, restore_object, start_apps, watch
from roost.node.orders import (
    AskAwake,
    Came,
    EndSoon,
    Evict,
    LetGo,
    Pong,
    Quarantine,
    Release,
    Released,
    Restore,
    Stuck,
)
from roost.observe import logs

if TYPE_CHECKING:
    from roost.host.watchdog import Stuck as StuckReport
    from roost.host.worker.loader import Worker
    from roost.node.child_control import Control
    from roost.node.orders import Connect, FromChild, ToChild
    from roost.node.spec import ChildSpec

_log = logging.getLogger("roost.node")

_RETRY_S: Final = 0.05
_EVICT_WAITS_S: Final = 4.0  # for what pins an object


class HostChild:
    """A `child_control.Role`."""

    def __init__(self, spec: ChildSpec, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._sockets = spec.sockets
        place = HostPlace(
            slot=spec.index,
            slots=spec.slots,
            gateways=len(spec.sockets),
            data=spec.data,
            mark=spec.mark,
            not_again=spec.not_again,
            quarantined=spec.quarantined,
            elsewhere=spec.elsewhere,
            first_names=spec.first_names,
            ca_file=spec.ca_file,
            dev=spec.dev,
        )
        self._host = make_host(loop, worker, spec.app, spec.settings, place)
        self._watchdog = watch(self._host, spec.app, spec.settings, _tell_stuck, _tell_debugged)
        self._connectors: list[asyncio.Task[None]] = []
        self._finish_s = spec.settings.timeouts.replaced_host_s

    @classmethod
    async def start(cls, spec: ChildSpec) -> HostChild:
        """Load the worker. Raises ConfigError or WorkerError."""
        die_with_parent()  # it may be stuck in the worker's code when the node is killed
        Forks(spec.data, int(sys.argv[1])).guard()
        logs.redirect_prints()
        worker = load(spec.app)
        await start_apps(spec.settings)
        if spec.hold:
            await probe(asyncio.get_running_loop(), worker, spec.app, spec.settings)
        return cls(spec, worker)

    async def connect(self, order: Connect | None) -> None:
        if order is not None:
            self._host.quarantine(frozenset(order.quarantined))
            self._host.know(order.objects, frozenset(order.not_again))
        self._watchdog.start()  # before: the first event that a gateway gives again may be one that hangs
        self._connectors = [self._loop.create_task(self._keep_connected(path)) for path in self._sockets]
        while len(self._host.links) < len(self._sockets):
            await asyncio.sleep(0.002)

    async def _keep_connected(self, path: str) -> None:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await self._loop.sock_connect(sock, path)
            except OSError:
                sock.close()
                await asyncio.sleep(_RETRY_S)
                continue
            gateway = self._host.add_gateway(UnixLink(sock, self._loop, hold_reading=True))
            await gateway.gone.wait()

    # orders

    async def obey(self, order: ToChild, control: Control) -> bool:
        host = self._host
        if isinstance(order, Release):
            control.finishing = self._loop.create_task(self._release(order, control))
        elif isinstance(order, Came):  # in a turn of its own: handlers are driven in place, which a task must not be
            self._loop.call_soon(host.waking.came, order.objects, context=NO_CONTEXT)
        elif isinstance(order, EndSoon):
            host.end_soon()
        elif isinstance(order, Quarantine):
            host.quarantine(frozenset(order.quarantined))
        elif isinstance(order, AskAwake):
            await control.report(order.request, {"awake": len(host.actors)})
        elif isinstance(order, Evict):
            control.report_later(order.request, self._evict(order))
        elif isinstance(order, Restore):
            control.report_later(
                order.request, restore_object(host, order.class_name, order.id, order.name, order.alarm_ms)
            )
        else:
            _log.error("host: the node gave an order that is not for hosts: %s", type(order).__name__)
        return False

    async def _evict(self, order: Evict) -> dict[str, Any]:
        sleeping = self._host.sleeping
        return {"evicted": await sleeping.evict(order.object, cut=order.cut, timeout_s=_EVICT_WAITS_S)}

    def report(self) -> dict[str, Any]:
        return host_report(self._host)

    # its end

    async def _release(self, order: Release, control: Control) -> None:
        """A successor takes the objects; what is no object's goes on here for a while."""
        began = time.monotonic()
        self._leave()
        held = await self._host.release(order.timeout_s, order.why or "codeUpdated")
        await control.tell(Released([(ref.class_name, ref.id) for ref in held]))
        async for ref in self._host.held(order.timeout_s - (time.monotonic() - began)):
            await control.tell(LetGo([(ref.class_name, ref.id)]))
        await self._host.finish(self._finish_s)

    def _leave(self) -> None:
        for connector in self._connectors:
            connector.cancel()
        self._host.leave()

    async def drain(self, timeout_s: float, why: str = "") -> None:
        self._leave()
        await self._host.close(timeout_s, why or "inactive")
        self._watchdog.stop()


def _tell_stuck(stuck: StuckReport) -> None:
    """At the end of this process."""
    _tell_past_loop(Stuck(msgspec.Raw(msgspec.json.encode(stuck))))


def _tell_debugged() -> None:
    _tell_past_loop(Pong())


def _tell_past_loop(message: FromChild) -> None:
    """From the watchdog's thread, while the loop hangs: straight to the node."""
    try:
        os.write(int(sys.argv[1]), msgspec.json.encode(message) + b"\n")
    except OSError as error:
        _log.error("node: could not be told: %s", error)
