"""Running coroutines of worker code: driven in place, and a task only if they really suspend.

A handler that never waits for anything (most message handlers) costs no task and no turn of the loop. One that does wait
keeps the identity it began with: it ran as the host's *spare* task, a real `asyncio.Task` that until then only waited,
and that task carries it on. So `asyncio.current_task()`, `asyncio.timeout()`, task groups and anyio see one task
throughout.

Each run has its own copy of the context variables, so nothing one handler sets is seen by another.
"""

from __future__ import annotations

import types
from asyncio.tasks import _enter_task, _leave_task  # documented for alternative loops
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context

    Done = Callable[[Any, BaseException | None], None]

SUSPENDED: Final = object()
"""What `Runner.start` returns for a coroutine that went on as a task."""


@types.coroutine
def in_context(variables: Context, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await `coroutine` in this task but with other context variables (a call from one object into another)."""
    try:
        awaited = variables.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    return (yield from _carry_on(variables, coroutine, awaited))


@types.coroutine
def _carry_on(variables: Context, coroutine: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """The rest of a coroutine whose first step ended in waiting for `awaited`."""
    while True:
        try:
            value = yield awaited
        except BaseException as error:  # noqa: BLE001 - cancellation, too, belongs to the coroutine
            step: Callable[[Any], Any] = coroutine.throw
            argument: Any = error
        else:
            step, argument = coroutine.send, value
        try:
            awaited = variables.run(step, argument)
        except StopIteration as stop:
            return stop.value


class _Spare:
    """A task that waits to be given a coroutine which has begun in its name."""

    __slots__ = ("_handed", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handed: asyncio.Future[tuple[Context, Coroutine[Any, Any, Any], Any, Done]] = loop.create_future()
        self.task: asyncio.Task[None] = loop.create_task(self._run(), name="roost handler")

    async def _run(self) -> None:
        variables, coroutine, awaited, done = await self._handed
        result: Any = None
        failure: BaseException | None = None
        try:
            result = await _carry_on(variables, coroutine, awaited)
        except BaseException as error:  # noqa: BLE001 - handed to `done`, which logs it
            failure = error
        done(result, failure)

    def hand(self, variables: Context, coroutine: Coroutine[Any, Any, Any], awaited: Any, done: Done) -> None:
        self._handed.set_result((variables, coroutine, awaited, done))


class Runner:
    """Starts coroutines of worker code. Owns their tasks until `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spare: _Spare | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, variables: Context, coroutine: Coroutine[Any, Any, Any], done: Done) -> Any:
        """Run until it ends or first waits. Its result, its exception, or SUSPENDED: then `done` is called later.

        Must not be called from within a task.
        """
        spare = self._spare
        if spare is None or spare.task.done() or spare.task.cancelling():
            spare = self._spare = _Spare(self._loop)
        loop = self._loop
        _enter_task(loop, spare.task)
        try:
            awaited = variables.run(coroutine.send, None)
        except StopIteration as stop:
            return stop.value
        finally:
            _leave_task(loop, spare.task)
        self._spare = None
        task = spare.task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        spare.hand(variables, coroutine, awaited, done)
        return SUSPENDED

    def close(self) -> None:
        """Cancel what still runs."""
        if self._spare is not None:
            self._spare.task.cancel()
            self._spare = None
        for task in list(self._tasks):
            task.cancel()
