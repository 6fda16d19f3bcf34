"""A coroutine as a promise: awaited at once it runs in its caller's place; else it begins in the next turn, as a task."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from roost.api.promises import calling_line, nobody_awaits
from roost.api.rpc import Pipelined, pipelined
from roost.errors import JsException

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from roost.api.runtime import IoContext


class Promise:
    """What `fetch()`, `env.NAME.fetch()` and the like return. May be awaited more than once."""

    __slots__ = ("__weakref__", "_awaited", "_context", "_coroutine", "_loop", "_outcome", "_what", "_where")

    def __init__(
        self, context: IoContext, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], what: str
    ) -> None:
        self._context = context
        self._loop = loop
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine
        self._outcome: asyncio.Future[Any] | None = None
        self._awaited = False
        self._what = what
        self._where = calling_line()
        loop.call_soon(self._begin)  # in the caller's context variables

    def _begin(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is None:
            return
        task = self._outcome = self._context.begin(coroutine, self._what)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Future[Any]) -> None:
        if not self._awaited and not task.cancelled() and (error := task.exception()) is not None:
            # Somebody may still hold it and await it later; who does gets the error, too.
            nobody_awaits(self._context, self._what, self._where, error)

    def __await__(self) -> Generator[Any, Any, Any]:
        self._awaited = True
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is None:
            assert self._outcome is not None
            return (yield from asyncio.shield(self._outcome).__await__())  # it is not this one's to cancel
        outcome = self._outcome = self._loop.create_future()
        try:
            result = yield from coroutine.__await__()
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            why = JsException(f"{self._what} was cancelled where it was first awaited.") if cancelled else error
            outcome.set_exception(why if isinstance(why, Exception) else RuntimeError(repr(error)))
            outcome.exception()  # who awaits it in this place has it
            raise
        outcome.set_result(result)
        return result


class RpcPromise(asyncio.Future[Any]):
    """The outcome of a call through a stub: a future, whose members are those of the result (`stub.open().write(…)`)."""

    def __getattr__(self, name: str) -> Pipelined:
        return pipelined(self, name)


async def awaiting(awaitable: Any) -> Any:
    """A coroutine that awaits it, for those who take only coroutines (`asyncio.create_task`)."""
    return await awaitable
