"""What a program gives an `AbortSignal` to ends when that is aborted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from roost.api.abort import AbortSignal


class Abortable(Protocol):
    """A body that a `fetch` is about to read: an `http_client.FetchedBody`."""

    when_over: Callable[[], None] | None

    def let_go(self) -> None: ...

    def abort(self, reason: BaseException) -> None: ...


def unless_aborted(signal: AbortSignal | None, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    """A coroutine with the given one's result; the same if there is no signal. Raises the signal's reason at once when it
    aborts, and has cancelled the given one then."""
    return coroutine if signal is None else _unless_aborted(signal, coroutine)


async def _unless_aborted(signal: AbortSignal, coroutine: Coroutine[Any, Any, Any]) -> Any:
    if signal.aborted:
        coroutine.close()
        raise signal.error()
    task = asyncio.ensure_future(coroutine)
    aborted = task.get_loop().create_future()
    take_back = signal.when_aborted(lambda: aborted.set_result(None))
    try:
        await asyncio.wait({task, aborted}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise signal.error()
    finally:
        take_back()
        if not task.done():
            task.cancel()
            task.add_done_callback(_nobody_asks)


def _nobody_asks(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def ends_body(signal: AbortSignal, opened: Callable[[Abortable], None]) -> Callable[[Abortable], None]:
    """`opened`, and the body ends with the signal."""

    def both(body: Abortable) -> None:
        opened(body)
        weakly = ref(body)

        def end() -> None:
            if (alive := weakly()) is not None:
                alive.abort(signal.error())

        body.when_over = signal.when_aborted(end)

    return both
