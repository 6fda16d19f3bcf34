"""New code, and new processes, for a node that runs: hosts load it and take the places of the old ones, gateways hand over.

The sockets stay. If the new code does not load, nothing has changed; once it serves at one place, the others follow.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from roost.errors import WorkerError
from roost.node.child_process import MUTE_S, Life
from roost.node.orders import AskAwake, AskReport, ChangeClasses, Connect, EndPumped, ServeApp

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from roost.node.child_process import ChildProcess
    from roost.node.children import Children
    from roost.node.config import App
    from roost.node.keeper import Keeper
    from roost.node.settings import Settings
    from roost.node.spawning import Spawner
    from roost.storage.migrations import Migrations, Plan

_log = logging.getLogger("roost.node")

_LOADING_S: Final = 60.0  # for new code


class Deployment:
    """One node's. Its methods are called one at a time (`Releases`)."""

    def __init__(
        self,
        children: Children,
        spawner: Spawner,
        keeper: Keeper,
        migrations: Migrations,
        settings: Settings,
        stopping: asyncio.Event,
    ) -> None:
        self._children = children
        self._spawner = spawner
        self._keeper = keeper
        self._migrations = migrations
        self._settings = settings
        self._stopping = stopping

    # new code

    async def reload(self, app: App, wait_s: float = 0.0) -> None:
        """Run an app: new hosts load it and try its constructors; then one after the other takes the place of an old one.
        `wait_s`: for how long the old code may go on until its objects sleep. Raises ConfigError or WorkerError if it does
        not load: then nothing has changed."""
        spawner = self._spawner
        plan = self._migrations.plan(app.migrations, app.exports)
        loaded = await self._load(app, plan.first_names)
        before, spawner.app = spawner.app, app
        try:
            if plan.moves_objects:
                await self._move_objects(plan, loaded)
            else:
                await asyncio.to_thread(self._migrations.apply, plan, len(self._children.hosts))
        except BaseException:
            spawner.app = before
            _kill(loaded)
            raise
        spawner.first_names = plan.first_names
        deadline = asyncio.get_running_loop().time() + (0.0 if plan.moves_objects else wait_s)
        await self._take_over(dict(enumerate(loaded)), before, deadline, moved=plan.moves_objects)
        for index in list(self._keeper.breakers):
            self._keeper.close_breaker(index)
        self.tell_app()

    def tell_app(self) -> None:
        """Gateways serve the app's static files."""
        self._children.tell_gateways(ServeApp(self._spawner.app))

    async def _take_over(self, waiting: dict[int, ChildProcess], before: App, deadline: float, *, moved: bool) -> None:
        """Those that wait take their places, one after the other. `moved`: the old code cannot go on any more."""
        count = len(waiting)
        while waiting:
            try:
                index = await self._next_asleep(waiting, deadline)
                await self._hand_over(index, waiting[index])
            except WorkerError as error:
                if len(waiting) == count and not moved:  # nothing runs the new code: the old one goes on
                    self._spawner.app = before
                if len(waiting) == count or self._stopping.is_set():
                    _kill(waiting.values())
                    raise
                _log.error("node: host %d: %s It is started again, with the new code.", index, error)
                waiting[index].kill()
                current = self._children.hosts[index]
                if current is not None and current is not waiting[index] and not current.has_left:
                    await self._let_go(current, wholly=True)
            except BaseException:
                _kill(waiting.values())
                raise
            del waiting[index]

    async def _next_asleep(self, places: Iterable[int], deadline: float) -> int:
        """One of the places whose host has no object awake; after `deadline`, the first of them."""
        loop = asyncio.get_running_loop()
        while loop.time() < deadline and not self._stopping.is_set():
            for index in places:
                current = self._children.hosts[index]
                if current is None or current.is_gone:
                    return index
                answer = await current.ask(AskAwake, timeout_s=MUTE_S)
                if answer is not None and not answer["awake"]:  # one that does not answer is busy
                    return index
            await asyncio.sleep(0.1)
        return min(places)

    async def _move_objects(self, plan: Plan, loaded: Sequence[ChildProcess]) -> None:
        """Class migrations: every old host ends, the objects get their new names, and then the new hosts begin. Raises
        ConfigError if they cannot be moved: then the old code goes on with what it has."""
        children, keeper = self._children, self._keeper
        keeper.may_start.clear()
        try:
            while keeper.starting:  # a host that is just being started again: it is ended with the others
                await asyncio.sleep(0.01)
            hosts = [*children.hosts, *children.left]
            ending = [child for child in hosts if child is not None and child.name.startswith("host")]
            await asyncio.gather(*(self._let_go(child, wholly=True) for child in ending))
            await asyncio.to_thread(self._migrations.apply, plan, len(children.hosts))
            children.tell_gateways(ChangeClasses(plan.renamed, plan.deleted))
            for index, successor in enumerate(loaded):
                children.successors["host", index] = successor
        finally:
            keeper.may_start.set()

    async def _let_go(self, child: ChildProcess, *, wholly: bool = False) -> None:
        """An old host gives its objects to the successor; `wholly`: it ends."""
        child.go(Life.LEAVING)
        timeouts = self._settings.timeouts
        if wholly:
            await child.stop(timeouts.deploy_grace_s, "codeUpdated")
        else:
            await child.release(timeouts.deploy_grace_s, timeouts.replaced_host_s, "codeUpdated")

    async def _load(self, app: App, first_names: dict[str, str]) -> list[ChildProcess]:
        """A host for each place that has loaded the app and waits."""
        found: list[ChildProcess] = []
        try:
            for index in range(len(self._children.hosts)):
                child = await self._spawner.host(index, app, first_names, hold=True)
                found.append(child)  # kept if the next one fails
            for child in found:
                try:
                    await asyncio.wait_for(child.settled.wait(), _LOADING_S)
                except TimeoutError:
                    raise WorkerError(f"the new code has not finished loading within {_LOADING_S:g} s.") from None
                if child.failure is not None:
                    raise child.error()
                if child.life is not Life.LOADED:
                    raise WorkerError(f"the new code's host ended while loading (exit code {child.process.returncode}).")
        except BaseException:
            _kill(found)
            raise
        return found

    async def _hand_over(self, index: int, successor: ChildProcess) -> None:
        """The old host finishes what it has begun; the new one gets what comes meanwhile. Raises WorkerError."""
        children = self._children
        if successor.life not in (Life.LOADED, Life.READY):
            raise WorkerError(f"the new code's host has ended before its turn (exit code {successor.process.returncode}).")
        if children.hosts[index] is not successor:
            children.successors.setdefault(("host", index), successor)
        while not successor.connected.is_set():
            current = children.hosts[index]
            # Again, if the keeper had just begun to start another host.
            if current is not None and current is not successor and not current.is_gone and not current.has_left:
                await self._let_go(current)
            try:
                await asyncio.wait_for(successor.connected.wait(), 0.2)
            except TimeoutError:
                if self._stopping.is_set():
                    raise WorkerError("the node is shutting down.") from None
        if not successor.is_ready:
            raise WorkerError(f"the new code's host ended as it took over (exit code {successor.process.returncode}).")

    # new gateways

    async def upgrade_gateway(self, index: int, listener: socket.socket, path: str) -> None:
        """Replace a gateway by one of the Roost that is installed now; it waits at `path` for the present one. Raises
        WorkerError if the one that runs goes on."""
        children, name = self._children, f"gateway {index}"
        current = children.gateways[index]
        if current is None or not current.is_ready:
            raise WorkerError(f"{name} is not running at the moment; try again.")
        if await current.ask(AskReport, timeout_s=MUTE_S) is None:
            raise WorkerError(f"{name} does not answer: it was not replaced. If that lasts, it is ended.")
        successor = await self._spawner.gateway(index, [listener.fileno()], take_over=path)
        try:
            await asyncio.wait_for(successor.settled.wait(), _LOADING_S)
            if successor.life is not Life.LOADED:
                raise WorkerError(_ended(successor))
            children.successors["gateway", index] = successor
            current.go(Life.LEAVING)
            successor.tell(Connect())
            grace_s = self._settings.timeouts.deploy_grace_s
            fault = await current.hand_over(path, grace_s, grace_s + _LOADING_S)
            if fault:
                raise WorkerError(f"{name} was not replaced and goes on: {fault}")
            await asyncio.wait_for(successor.connected.wait(), _LOADING_S)
            if not successor.is_ready:
                raise WorkerError(_ended(successor))
            self._bound_pumps(current.name, successor)
        except BaseException:
            if children.successors.get(("gateway", index)) is successor:
                del children.successors["gateway", index]
            if not current.has_left:
                current.go(Life.READY)
                successor.kill()
            raise

    def _bound_pumps(self, name: str, gateway: ChildProcess) -> None:
        """Old processes of a gateway go on for their TLS sessions: the oldest one's clients are closed if there are too
        many."""
        pumps = [child for child in self._children.left if child.name == name and not child.is_gone]
        for child in pumps[: max(0, len(pumps) - self._settings.limits.max_tls_pumps)]:
            _log.warning("node: the clients of an old %s are closed: limits.max_tls_pumps", name)
            gateway.tell(EndPumped(child.process.pid))


def _kill(children: Iterable[ChildProcess]) -> None:
    for child in children:
        child.kill()


def _ended(child: ChildProcess) -> str:
    """Why a gateway that should have come is not there."""
    if child.failure is not None:
        return child.failure.text
    return f"the new gateway ended (exit code {child.process.returncode})."
