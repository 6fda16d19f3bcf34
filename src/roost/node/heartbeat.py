"""A child that is not dead, but does not answer: stopped (SIGSTOP), frozen, starved. The node pings, and replaces it.

Silence counts only while the node itself runs: when everything was stopped together and goes on, nobody was silent. A child
that a debugger holds is not silent either. While another gateway listens, a silent one's listening socket is taken out of
the port's group, so that no new client waits for it; it listens again when it answers.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from roost.node.child_process import MUTE_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from roost.node.child_process import ChildProcess

_log = logging.getLogger("roost.node")

PING_S: Final = 1.0
_LATE_S: Final = 1.0  # a tick that comes so much too late: the node itself did not run


class Heartbeat:
    """One node's. `run` until cancelled."""

    def __init__(
        self,
        gateways: Sequence[ChildProcess | None],
        hosts: Sequence[ChildProcess | None],
        listeners: Sequence[socket.socket],
        host_silence_s: Callable[[], float],
        gateway_silence_s: float,
    ) -> None:
        self._gateways = gateways
        self._hosts = hosts
        self._listeners = listeners
        self._host_silence_s = host_silence_s
        self._gateway_silence_s = gateway_silence_s
        self._deaf: dict[int, ChildProcess] = {}  # gateways whose listening socket is closed for now

    async def run(self) -> None:
        """Ping, count, replace."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(PING_S)
            now = loop.time()
            passed, before = now - before, now
            try:
                self.tick(passed)
            except Exception:  # noqa: BLE001 - ours: the next tick must come all the same
                _log.exception("node: internal error in a heartbeat; please report it")

    def tick(self, passed_s: float) -> None:
        """So much time has passed since the last one."""
        ran = passed_s < PING_S + _LATE_S
        judged = [
            (role, index, child)
            for role, children in (("gateway", self._gateways), ("host", self._hosts))
            for index, child in enumerate(children)
            if child is not None and child.is_ready and not child.is_replaced
        ]
        for _, _, child in judged:
            if not ran or (child.silent_s > MUTE_S and _is_traced(child.process.pid)):
                child.silent_s = 0.0
            else:
                child.silent_s += passed_s
            child.ping()
        for role, index, child in judged:
            self._judge(role, index, child, passed_s)
        for index in list(self._deaf):
            self._listen_again(index)

    def _judge(self, role: str, index: int, child: ChildProcess, passed_s: float) -> None:
        limit_s = self._gateway_silence_s if role == "gateway" else self._host_silence_s()
        if child.silent_s > limit_s:
            state = _state_of(child.process.pid)
            _log.error("node: %s has not answered for %.0f s (%s) and is replaced", child.name, child.silent_s, state)
            child.end_mute(blamed=role == "host" and "(stopped)" not in state)
        elif child.silent_s > MUTE_S:
            if child.silent_s - passed_s <= MUTE_S:
                _log.warning("node: %s does not answer (%s)", child.name, _state_of(child.process.pid))
            if role == "gateway":
                self._stop_listening(index, child)

    def _stop_listening(self, index: int, child: ChildProcess) -> None:
        others = [other for other in self._gateways if other is not None and other is not child and other.is_ready]
        if index not in self._deaf and any(other.silent_s <= MUTE_S for other in others):
            self._deaf[index] = child
            self._listeners[index].shutdown(2)
            _log.warning("node: new clients go to the other gateways while %s does not answer", child.name)

    def _listen_again(self, index: int) -> None:
        child, now = self._deaf[index], self._gateways[index]
        if now is child and child.is_ready and child.silent_s > MUTE_S:
            return
        try:
            self._listeners[index].listen(4096)
        except OSError as error:
            _log.error("node: gateway %d cannot listen again: %s", index, error)
            return
        del self._deaf[index]


def mute(children: Sequence[ChildProcess | None]) -> dict[str, float]:
    """The children that do not answer at the moment, and for how many seconds."""
    return {each.name: round(each.silent_s, 1) for each in children if each is not None and each.silent_s > MUTE_S}


def _status(pid: int, key: str) -> str:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(f"{key}:")), "")
    except OSError:
        return ""


def _is_traced(pid: int) -> bool:
    """Whether a debugger is attached: it may take its time."""
    return _status(pid, "TracerPid") not in ("", "0")


def _state_of(pid: int) -> str:
    state = _status(pid, "State")
    return f"its state is {state}" if state else "its state is not known"
