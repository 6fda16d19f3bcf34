"""What a program gives an `AbortSignal` to ends when that is aborted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from roost.api.abort import AbortSignal
    from roost.host.http_client import FetchedBody


async def unless_aborted(signal: AbortSignal, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The coroutine's result. Raises the signal's reason, and has cancelled the coroutine then."""
    if signal.aborted:
        coroutine.close()
        raise signal.error()
    task = asyncio.ensure_future(coroutine)
    take_back = signal.when_aborted(task.cancel)  # type: ignore[arg-type]
    try:
        return await task
    except asyncio.CancelledError:
        if signal.aborted:
            raise signal.error() from None
        raise
    finally:
        take_back()


def ends_body(signal: AbortSignal, opened: Callable[[FetchedBody], None]) -> Callable[[FetchedBody], None]:
    """`opened`, and the body ends with the signal."""

    def both(body: FetchedBody) -> None:
        opened(body)
        weakly = ref(body)

        def end() -> None:
            if (alive := weakly()) is not None:
                alive.abort(signal.error())

        body.when_over = signal.when_aborted(end)

    return both
