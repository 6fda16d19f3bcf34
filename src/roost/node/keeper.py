"""Keeping a node's children running: a new one for one that died, after a pause that grows while they die young.

What has a successor is followed by it. A host that dies again and again has a breaker: requests for it are refused at once
while it is not there; its sockets stay, and what they send waits.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from typing import TYPE_CHECKING

from roost.errors import InternalError
from roost.host.worker import mark
from roost.node import restarts
from roost.node.child_process import Life
from roost.node.orders import Breaker, Connect
from roost.node.out_of_memory import KernelKills

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.node.child_process import ChildProcess
    from roost.node.children import Children
    from roost.node.quarantine import Suspects
    from roost.node.settings import Settings
    from roost.node.spawning import Spawner

_log = logging.getLogger("roost.node")


class Keeper:
    """One node's. `version_name` says what runs, for a breaker's reason."""

    def __init__(
        self,
        children: Children,
        spawner: Spawner,
        suspects: Suspects,
        settings: Settings,
        stopping: asyncio.Event,
        version_name: Callable[[], str],
    ) -> None:
        self._children = children
        self._spawner = spawner
        self._suspects = suspects
        self._settings = settings
        self._stopping = stopping
        self._version_name = version_name
        self._kernel_kills = KernelKills()
        self._spawn_error = ""
        self.starting = 0  # hosts that are just being spawned
        self.may_start = asyncio.Event()  # cleared while objects move: no host may run
        self.may_start.set()
        self.breakers: dict[int, str] = {}  # by host: why nobody should wait for it

    async def keep(self, role: str, index: int, listen_fds: list[int]) -> None:
        """One place, until the node stops."""
        past = restarts.Past()
        while not self._stopping.is_set():
            child = await self._next(role, index, listen_fds)
            if child is None:
                continue
            self._children.of(role)[index] = child
            self._tell_breakers(role, index, child)
            if self._stopping.is_set():
                child.kill()
            await child.over.wait()
            if child.has_left:
                self._children.has_left(child)
            elif self._stopping.is_set():
                return
            elif child.is_replaced:
                past = restarts.Past()
                self._look_for_culprit(role, child)
            else:
                past = await self._died(role, index, child, past)

    async def _next(self, role: str, index: int, listen_fds: list[int]) -> ChildProcess | None:
        """The successor that waits for the place, or a new child; None if it could not be started."""
        children = self._children
        try:
            if role == "host":
                await self.may_start.wait()
            child = children.successors.pop((role, index), None)
            if child is not None:
                if role == "host":
                    suspects = self._suspects
                    child.tell(Connect(list(suspects.quarantined), list(suspects.not_again), children.elsewhere(index)))
                return child
            if role == "gateway":
                return await self._spawner.gateway(index, listen_fds)
            self.starting += 1
            try:
                child = await self._spawner.host(index)
                children.hosts[index] = child
                return child
            finally:
                self.starting -= 1
        except (OSError, subprocess.SubprocessError) as error:
            self._spawn_error = f"{role} {index} cannot be started: {error}"
            _log.error("node: %s", self._spawn_error)
            await asyncio.sleep(restarts.LONGEST_PAUSE_S)
            return None

    async def _died(self, role: str, index: int, child: ChildProcess, past: restarts.Past) -> restarts.Past:
        """It was to go on: say so, and wait before the next; how many have died in a row."""
        ran_s = asyncio.get_running_loop().time() - child.started_at
        code = child.process.returncode or 0
        out_of_memory = code == -signal.SIGKILL and self._kernel_kills.happened()
        by_others = not out_of_memory and not restarts.is_suspect(code, replaced=False, blamed=child.blamed)
        restart = restarts.after(past, ran_s, self._settings.timeouts.restart_pause_s, by_others=by_others)
        if role == "host" and restart.is_hopeless:
            self._open_breaker(index, sum(restart.past))
        how = restarts.how(code)
        if out_of_memory:
            doing = mark.read(child.mark) if role == "host" else None
            how += " by the kernel: memory ran out" + (f", in webSocketMessage of {doing['what']}" if doing else "")
        if child.failure is not None:
            _log.error("node: %s cannot start: %s", child.name, child.failure.text)
            if child.failure.traceback:
                _log.error("%s", child.failure.traceback)
            child.mark.unlink(missing_ok=True)
        else:
            pause = f" in {restart.pause_s:g} s" if restart.pause_s else ""
            _log.error("node: %s ended (%s) and is replaced%s", child.name, how, pause)
            self._look_for_culprit(role, child)
        await asyncio.sleep(restart.pause_s)
        return restart.past

    def _look_for_culprit(self, role: str, child: ChildProcess) -> None:
        """A host has ended: whether the handler that ran then was the reason."""
        code = child.process.returncode or 0
        suspect = restarts.is_suspect(code, replaced=child.is_replaced, blamed=child.blamed)
        if role == "host" and suspect and not child.told_stuck:
            self._suspects.died_in_handler(child.name, child.mark)
        child.mark.unlink(missing_ok=True)

    async def all_ready(self) -> None:
        """Wait until every child is ready; raise what made one fail."""
        while True:
            if self._spawn_error:
                raise InternalError(self._spawn_error)
            for child in self._children:
                if child.failure is not None:
                    raise child.error()
                if child.is_gone:
                    raise InternalError(f"{child.name} ended while starting (exit code {child.process.returncode}).")
            if self._children.are_complete and all(child.life is Life.READY for child in self._children):
                return
            await asyncio.sleep(0.002)

    # breakers

    def _tell_breakers(self, role: str, index: int, child: ChildProcess) -> None:
        if role == "gateway":
            for slot in range(len(self._children.hosts)):
                child.tell(Breaker(slot, self.breakers.get(slot, "")))
        elif index in self.breakers:
            asyncio.get_running_loop().call_later(restarts.STABLE_AFTER_S, self._calm, index, child)

    def _open_breaker(self, index: int, deaths: int) -> None:
        """Requests for that host are refused at once while it is not there. Sockets stay, and what they send waits."""
        reason = (
            f"{self._version_name()} has crashed {deaths} times in a row and is being restarted slowly (see the server's"
            " log). Try again later; a deployment of other code ends this."
        )
        if index not in self.breakers:
            _log.error("node: host %d: %s", index, reason)
        self.breakers[index] = reason
        self._children.tell_gateways(Breaker(index, reason))

    def _calm(self, index: int, child: ChildProcess) -> None:
        if self._children.hosts[index] is child and child.is_ready:
            _log.info("node: host %d runs again", index)
            self.close_breaker(index)

    def close_breaker(self, index: int) -> None:
        """One may wait for that host again."""
        self.breakers.pop(index, None)
        self._children.tell_gateways(Breaker(index))
