"""What calls of the platform return: they act when they are called, and `await` only waits for the outcome.

In JavaScript these are promises. A coroutine does nothing until it is awaited, so `storage.put(…)` without `await`, which
works on the platform, would do nothing here. What nobody awaits and fails is logged, with the line that called it.
Source: reference 1.4; ECMAScript §27.2.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from roost.api.runtime import IoContext, current_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator

P = ParamSpec("P")
T = TypeVar("T")


class Settled:
    """The outcome of what is over already."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise StopIteration(self._value)  # at once: nothing is waited for


class Failed:
    """What has failed already; raised where it is awaited, and logged if it never is."""

    __slots__ = ("_context", "_error", "_what", "_where")

    def __init__(self, error: Exception, what: str) -> None:
        self._error: Exception | None = error
        self._what = what
        self._where = calling_line()
        self._context = current_context.get(None)

    def __await__(self) -> Generator[Any, Any, Any]:
        error, self._error = self._error, None
        raise error or RuntimeError(f"{self._what} has failed; it was awaited before.")

    def __del__(self) -> None:
        if self._error is not None and self._context is not None:
            nobody_awaits(self._context, self._what, self._where, self._error)


class Pending:
    """What goes on: a future, and what becomes of its result."""

    __slots__ = ("_future", "_then", "_watch")

    def __init__(self, future: Any, what: str, then: Callable[[Any], Any] | None = None) -> None:
        self._future = future
        self._then = then
        self._watch = _Watch(what)
        future.add_done_callback(self._watch.over)

    def __await__(self) -> Generator[Any, Any, Any]:
        self._watch.awaited = True
        future = self._future if self._future.done() else waiter_of(self._future)
        value = yield from future.__await__()
        return value if self._then is None else self._then(value)

    def __del__(self) -> None:
        self._watch.let_go(self._future)


def waiter_of(future: Any) -> Any:
    """A future of one who waits for it: who gives that up cancels it for nobody else."""
    waiter = future.get_loop().create_future()

    def over(_: Any) -> None:
        error = None if future.cancelled() else future.exception()
        if waiter.done():
            return
        if future.cancelled():
            waiter.cancel()
        elif error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(future.result())

    future.add_done_callback(over)
    waiter.add_done_callback(lambda _: future.remove_done_callback(over))
    return waiter


async def settled(future: Any) -> None:
    """Wait until it is over, however it ends."""
    waiter = future.get_loop().create_future()
    future.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
    await waiter
    if not future.cancelled():
        future.exception()  # whose it is has it


class _Watch:
    """Whether anybody has asked how it ended."""

    __slots__ = ("_context", "_dropped", "_what", "_where", "awaited")

    def __init__(self, what: str) -> None:
        self.awaited = False
        self._dropped = False
        self._what = what
        self._where = calling_line()
        self._context = current_context.get(None)

    def over(self, future: Any) -> None:
        if self._dropped and not self.awaited and not future.cancelled():
            error = future.exception()
            if error is not None and self._context is not None:
                nobody_awaits(self._context, self._what, self._where, error)

    def let_go(self, future: Any) -> None:
        self._dropped = True
        if future.done():
            self.over(future)


def nobody_awaits(context: IoContext, what: str, where: str, error: BaseException) -> None:
    """Log the failure of a call."""
    context.failed_in(f"{what} in {where}, which nobody awaits,", error)


def calling_line() -> str:
    """File and line of the worker's code that calls."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("roost."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


_NOTHING: Final = Settled(None)


def at_once(method: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """A method that acts within its call: what it returns or raises is the outcome of an awaitable."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        try:
            value = method(*args, **kwargs)
            return Settled(value) if value is not None else _NOTHING
        except Exception as error:  # noqa: BLE001 - whoever awaits it gets it
            return Failed(error, f"{method.__name__}()")

    return call


def begun(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """A method that begins within its call and returns what to await; what it raises is raised there, too."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        try:
            return method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whoever awaits it gets it
            return Failed(error, f"{method.__name__}()")

    return call


def eager(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Awaitable[T]]:
    """A coroutine function that begins where it is awaited, or else in the next turn of the loop.

    Outside of a context (at module level, in a test) it is a coroutine as ever.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        coroutine = method(*args, **kwargs)
        context = current_context.get(None)
        return coroutine if context is None else context.promise(coroutine, f"{method.__name__}()")

    return call
