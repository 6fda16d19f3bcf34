"""A gateway or a host as the node sees it: a process, and a control socket with JSON lines both ways."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from roost.errors import ConfigError, WorkerError
from roost.host.worker.mark import STACK_SIGNAL
from roost.node.orders import (
    AskReport,
    Drain,
    Failed,
    FromChild,
    HandOver,
    Left,
    LetGo,
    Loaded,
    Ping,
    Ready,
    Release,
    Released,
    Report,
    Stuck,
)
from roost.node.orphans import end_orphans

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.node.orders import Key, Order

_log = logging.getLogger("roost.node")


MUTE_S = 3.0  # silence that is said, and that costs a gateway its new clients
_STACK_S = 0.2  # to write a stack
_LAST_WORDS_S = 0.2  # to read what a child that has ended had still to say


class Life(Enum):
    """A child's, from its start to its end. Who dies while READY is replaced."""

    STARTING = "starting"
    LOADED = "loaded"  # a successor that waits for its turn
    READY = "ready"
    LEAVING = "leaving"  # its end is wanted: a successor takes its place
    LEFT = "left"  # a successor has everything, but for TLS sessions or requests that go on
    GONE = "gone"


FOLLOWS: Final[dict[Life, frozenset[Life]]] = {
    Life.STARTING: frozenset({Life.LOADED, Life.READY, Life.LEAVING, Life.GONE}),
    Life.LOADED: frozenset({Life.READY, Life.LEAVING, Life.GONE}),
    Life.READY: frozenset({Life.LEAVING, Life.GONE}),
    Life.LEAVING: frozenset({Life.READY, Life.LEFT, Life.GONE}),  # READY: its successor did not come, and it goes on
    Life.LEFT: frozenset({Life.GONE}),
    Life.GONE: frozenset(),
}
"""The legal moves. What a child says of itself out of turn (a late "ready" of one that leaves) moves nothing."""


class ChildProcess:
    """One child as the node sees it. Owns the process and the control socket."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        writer: asyncio.StreamWriter,
        stuck: Callable[[dict[str, Any]], None],
    ) -> None:
        self.name = name
        self._stuck = stuck
        self.told_stuck = False
        self.held: set[Key] = set()  # objects (class, id) that it has though a successor is there
        self.came: Callable[[list[Key]], None] = lambda objects: None  # called as it lets go of those
        self.orphans = ""  # the mark of what its worker starts
        self.mark = Path()  # the file in which a host notes what it does
        self.process = process
        self.life = Life.STARTING
        self._before_gone = Life.STARTING
        self.failure: Failed | None = None
        self.started_at = asyncio.get_running_loop().time()
        self.settled = asyncio.Event()  # loaded, ready, failed or gone
        self.connected = asyncio.Event()  # ready, or gone
        self.over = asyncio.Event()  # gone, or its successor has everything
        self.blamed = False  # it was ended as it did not answer, though it ran
        self.silent_s = 0.0  # since it was last heard of, counting only while the node ran
        self._pinged = False
        self.listening: asyncio.Task[None] | None = None
        self._writer = writer
        self._reports: dict[int, asyncio.Future[Any]] = {}
        self._last_report = 0

    # its life

    def go(self, life: Life) -> bool:
        """The next stage, if it may follow; whether it does."""
        if life not in FOLLOWS[self.life]:
            return False
        if life is Life.GONE:
            self._before_gone = self.life
        self.life = life
        return True

    @property
    def _last_life(self) -> Life:
        return self._before_gone if self.life is Life.GONE else self.life

    @property
    def is_ready(self) -> bool:
        """Whether it serves, also one that is to be replaced."""
        return self.life in (Life.READY, Life.LEAVING, Life.LEFT) and self.connected.is_set()

    @property
    def is_replaced(self) -> bool:
        """Whether its end is, or was, wanted."""
        return self._last_life in (Life.LEAVING, Life.LEFT)

    @property
    def has_left(self) -> bool:
        """Whether a successor has everything that can be moved."""
        return self._last_life is Life.LEFT

    @property
    def is_gone(self) -> bool:
        return self.life is Life.GONE

    def error(self) -> Exception:
        """Why it cannot start. It has told so, or has ended."""
        failure = self.failure
        if failure is None:
            return WorkerError(f"{self.name} ended (exit code {self.process.returncode}).")
        error: Exception = ConfigError(failure.text) if failure.fault == "config" else WorkerError(failure.text)
        if failure.traceback:
            error.add_note(failure.traceback)
        return error

    def _let_go(self, objects: list[Key]) -> None:
        self.held.difference_update(objects)
        if objects:
            self.came(objects)

    async def release(self, grace_s: float, finish_s: float, why: str) -> None:
        """A host: let a successor have its objects. It goes on with the rest, for at most `finish_s`; killed if it takes
        longer than it may."""
        self.tell(Release(grace_s, why))
        try:
            await asyncio.wait_for(self.over.wait(), grace_s + 2)
        except TimeoutError:
            _log.warning("node: %s has not let go of its objects within %g s and is killed", self.name, grace_s + 2)
            self.kill()
            await self.process.wait()
            return
        asyncio.get_running_loop().call_later(grace_s + finish_s + 5, self.kill)

    def ping(self) -> None:
        """Ask for a sign of life; one at a time."""
        if not self._pinged:
            self._pinged = True
            self.tell(Ping())

    def kill(self) -> None:
        """SIGKILL. Not `process.kill()`: that may reap a child that has just died, and asyncio then reports exit code 255,
        which would read as the worker's own exit."""
        if self.process.returncode is None:
            try:
                os.kill(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended already

    def end_mute(self, *, blamed: bool) -> None:
        """It does not answer. `blamed`: it runs, so the handler that it is in is the reason: its stack is asked for."""
        self.blamed = blamed
        if not blamed:
            self.kill()
            return
        try:
            os.kill(self.process.pid, STACK_SIGNAL)
        except ProcessLookupError:
            return
        asyncio.get_running_loop().call_later(_STACK_S, self.kill)

    def tell(self, order: Order) -> None:
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(order) + b"\n")

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Take the child's messages until it ends. Not until the socket does: children of its own may hold that open."""
        taking = asyncio.create_task(self._take_messages(reader))
        ending = asyncio.create_task(self.process.wait())
        await asyncio.wait({taking, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await asyncio.wait({taking}, timeout=_LAST_WORDS_S)
            taking.cancel()
        elif taking.exception() is not None:  # it was killed in the middle of a line, or worse
            _log.debug("node: the control socket of %s broke: %s", self.name, taking.exception())
            self.kill()
        await asyncio.gather(taking, return_exceptions=True)
        await ending
        self._let_go(list(self.held))
        if self.has_left and (self.process.returncode or 0) < 0:
            how = signal.Signals(-(self.process.returncode or 0)).name
            _log.warning("node: an old %s was ended (%s), and with it what it had still to do", self.name, how)
        if self.has_left and self.orphans:
            self.mark.unlink(missing_ok=True)
        if self.orphans:
            await asyncio.to_thread(end_orphans, self.orphans)
        self.go(Life.GONE)
        self.settled.set()
        self.connected.set()
        self.over.set()
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)
        for waiting in self._reports.values():
            if not waiting.done():
                waiting.set_result(None)

    async def _take_messages(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.json.Decoder(FromChild)
        while line := await reader.readline():
            self.silent_s, self._pinged = 0.0, False
            self._take(decoder.decode(line))

    def _take(self, message: FromChild) -> None:
        if isinstance(message, Loaded):
            self.go(Life.LOADED)
            self.settled.set()
        elif isinstance(message, Ready):
            if self.life is not Life.LEAVING:
                self.go(Life.READY)
            self.settled.set()
            self.connected.set()
        elif isinstance(message, Left):
            self.go(Life.LEFT)
            self.over.set()
        elif isinstance(message, Released):
            self.held = set(message.objects)
            self.go(Life.LEFT)
            self.over.set()
        elif isinstance(message, LetGo):
            self._let_go(message.objects)
        elif isinstance(message, Failed):
            self.failure = message
            self.settled.set()
        elif isinstance(message, Stuck):
            self.told_stuck = True
            self._stuck(msgspec.json.decode(message.report))
        elif isinstance(message, Report):
            waiting = self._reports.pop(message.request, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(msgspec.json.decode(message.report))

    async def report(self) -> Any:
        """The child's own report; None if it is not ready, or does not answer in time."""
        if not self.is_ready:
            return None
        return await self.ask(AskReport, timeout_s=0.5 if self.silent_s > MUTE_S else 5.0)

    async def hand_over(self, path: str, grace_s: float, timeout_s: float) -> str:
        """A gateway: give everything to the one that waits there; what went wrong."""
        request, waiting = self._asked()
        self.tell(HandOver(path, grace_s, request))
        left = asyncio.create_task(self.over.wait())
        done, _ = await asyncio.wait({waiting, left}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if left in done:
            return "" if self.has_left else "it ended"
        answer = waiting.result() if waiting in done else None
        return str(answer["error"]) if answer else "it does not answer"

    def _asked(self) -> tuple[int, asyncio.Future[Any]]:
        self._last_report += 1
        waiting = self._reports[self._last_report] = asyncio.get_running_loop().create_future()
        return self._last_report, waiting

    async def ask(self, order: Callable[[int], Order], timeout_s: float = 5.0) -> Any:
        """The answer to an order, which is made with the number of its answer; None if it does not answer in time."""
        request, waiting = self._asked()
        self.tell(order(request))
        try:
            return await asyncio.wait_for(waiting, timeout_s)
        except TimeoutError:
            self._reports.pop(request, None)
            return None

    async def stop(self, timeout_s: float, why: str = "") -> None:
        """Drain it; kill it if it takes longer than it may."""
        self.tell(Drain(timeout_s, why))
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s + 2)
        except TimeoutError:
            _log.warning("node: %s did not end within %g s and is killed", self.name, timeout_s + 2)
            self.kill()
            await self.process.wait()
