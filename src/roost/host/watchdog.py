"""A handler that does not let go of the loop: named with its object and the Python stack where it hangs, then ended.

A thread looks whether the loop has come on. If it has not for the CPU limit, it says what runs and ends the process; the
node starts another, which does not try that event again. Code that holds the interpreter's lock, too, stops this thread;
then the node, which gets no answer to its pings, ends the process a little later, and asks for the stack before
(`STACK_SIGNAL`, by `faulthandler`, which needs no lock). Source: reference 4.5 (CPU per event).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from roost import memory
from roost.api.runtime import current_context
from roost.host.objects.actor import Actor
from roost.host.worker.mark import STACK_SIGNAL
from roost.link.port import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.worker")

EXIT_STUCK: Final = 75
_LOOKS_A_LIMIT: Final = 5
_LONGEST_PAUSE_S: Final = 1.0
_LATE_S: Final = 0.5


class Stuck(msgspec.Struct):
    """What the host was ended for: class and id if it was an object's doing, epoch and event if it was in a message."""

    what: str
    stack: str
    class_name: str = ""
    id: str = ""
    epoch: int = 0
    event: int = 0


class Watchdog:
    """One host's, for the thread that its loop runs on. `tell` is called on another thread, before the process ends."""

    def __init__(
        self,
        surroundings: Surroundings,
        limit_s: float,
        class_limits_s: Mapping[str, float],
        max_memory_bytes: int,
        tell: Callable[[Stuck], None],
        debugged: Callable[[], None] = lambda: None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._surroundings = surroundings
        self._limit_s = limit_s
        self._class_limits_s = class_limits_s
        self._shortest_s = min((limit_s, *class_limits_s.values()))
        self._max_memory_bytes = max_memory_bytes
        self._tell = tell
        self._debugged = debugged  # called while somebody debugs the code that holds the loop
        self._end = end
        self._pause_s = min(self._shortest_s / _LOOKS_A_LIMIT, _LONGEST_PAUSE_S)
        self._beats = 0
        self._stop = threading.Event()
        self._thread_id = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="roost watchdog", daemon=True)

    def start(self) -> None:
        self._beat()
        self._thread.start()
        if sys.__stderr__ is not None and signal.getsignal(STACK_SIGNAL) == signal.SIG_DFL:
            faulthandler.register(STACK_SIGNAL, file=sys.__stderr__, all_threads=False)

    def stop(self) -> None:
        self._stop.set()

    def _beat(self) -> None:
        self._beats += 1
        if not self._stop.is_set():
            self._surroundings.loop.call_later(self._pause_s, self._beat, context=NO_CONTEXT)

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        now = since
        while not self._stop.wait(self._pause_s):
            progress = self._beats + self._surroundings.handled + self._surroundings.runner.steps
            looked_before, now = now, time.monotonic()
            # A look that comes much too late: the whole process was stopped, or the machine.
            if progress != seen or now - looked_before > 2 * self._pause_s + _LATE_S:
                seen, since = progress, now
            elif now - since >= self._pause_s and _is_debugged(sys._current_frames().get(self._thread_id)):
                seen, since = progress, now
                self._debugged()
            elif now - since >= self._shortest_s and now - since >= self._limit_of_running_s():
                self._give_up(f"has not let go of the loop for {now - since:.1f} s (limits.cpu_ms)")
                return
            if self._max_memory_bytes and (used := memory.resident_bytes()) > self._max_memory_bytes:
                self._give_up(f"was running when the host had {used // 2**20} MiB (limits.max_host_memory_bytes)")
                return

    def _limit_of_running_s(self) -> float:
        if not self._class_limits_s:
            return self._limit_s
        running = describe(sys._current_frames().get(self._thread_id))
        return self._class_limits_s.get(running.class_name, self._limit_s)

    def _give_up(self, why: str) -> None:
        frame = sys._current_frames().get(self._thread_id)
        stuck = describe(frame)
        _log.error("%s %s; the host ends and another takes its place. It was here:\n%s", stuck.what, why, stuck.stack)
        try:
            self._tell(stuck)
        finally:
            logging.shutdown()
            self._end(EXIT_STUCK)


def _is_debugged(frame: FrameType | None) -> bool:
    """Whether the code waits at a debugger's prompt."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(("/pdb.py", "/bdb.py")):
            return True
        frame = frame.f_back
    return False


def describe(frame: FrameType | None) -> Stuck:
    """Whose code a frame runs, for which event, and where; Roost's own frames are left out of the stack."""
    own = __file__.rsplit("/host/", 1)[0]
    actor: Actor | None = None
    label = ""
    epoch = event = 0
    frames = []
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((own, "<frozen")):
            frames.append(frame)
        elif not label:
            label, actor = _context_of(frame.f_locals)
        if actor is not None and not event and "/host/objects/" in file:
            epoch, event = _event_of(frame.f_locals)
        frame = frame.f_back
    lines = [f'  File "{f.f_code.co_filename}", line {f.f_lineno}, in {f.f_code.co_name}' for f in reversed(frames)]
    stack = "\n".join(lines) or "  (no code of the worker)"
    if actor is None:
        return Stuck(label or "The host", stack)
    if not event and len(actor.running_events) == 1:  # resumed after an await: the event is not on the stack
        epoch, event = next(iter(actor.running_events))
    return Stuck(label, stack, actor.ref.class_name, actor.ref.id, epoch, event)


def _context_of(local: dict[str, Any]) -> tuple[str, Actor | None]:
    variables = local.get("variables")
    if variables is None or not hasattr(variables, "get"):
        return "", None
    try:
        context = variables.get(current_context)
    except TypeError:
        return "", None
    if context is None:
        return "", None
    return str(context.label), context if isinstance(context, Actor) else None


def _event_of(local: dict[str, Any]) -> tuple[int, int]:
    gateway, event = local.get("gateway"), local.get("event")
    number = getattr(event, "event", event)
    if gateway is None or not isinstance(number, int):
        return 0, 0
    return gateway.epoch, number
