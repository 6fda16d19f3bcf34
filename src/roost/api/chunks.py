"""The chunks of a stream: a bounded channel between who makes them and who reads them, and the chunks of any source.

Source: WHATWG Streams §4 (queues and back-pressure).
"""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from roost.api.runtime import require_context
from roost.errors import JsTypeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


AHEAD: Final = 16  # chunks written and not read; then `write` waits


MAX_BUFFERED_BYTES: Final = 32 * 1024 * 1024  # by those who do not wait, and for the slower branch of a `tee`


def promise(coroutine: Any, what: str) -> Awaitable[Any]:
    return require_context(what).promise(coroutine, what)


def size_of_chunk(chunk: Any) -> int:
    return len(chunk) if isinstance(chunk, bytes | bytearray | memoryview | str) else 64


def member_of(source: Any, name: str) -> Any:
    """`start`, `pull`… of an object literal, or of an object."""
    return source.get(name) if isinstance(source, dict) else getattr(source, name, None)


async def called(function: Callable[..., Any], *arguments: Any) -> None:
    """Call what may be a plain or an async function, and wait for it."""
    result = function(*arguments)
    if inspect.isawaitable(result):
        await result


def options_of(options: Any, more: dict[str, Any]) -> dict[str, Any]:
    """Options as a dict, as keywords, or both."""
    return {**(options if isinstance(options, dict) else {}), **more}


def as_error(reason: Any) -> BaseException:
    return reason if isinstance(reason, BaseException) else JsTypeError(str(reason or "The stream was aborted."))


class Channel:
    """Chunks between one who makes them and one who reads them. An async iterator; `aclose` is the reader's leaving."""

    def __init__(self) -> None:
        self.cancelled: Callable[[Any], Any] | None = None
        self.left: Callable[[], None] | None = None  # called when the reader has gone
        self.wanted: Callable[[], Any] | None = None  # called when the reader waits
        self.gone: BaseException | None = None  # the reader
        self.ended = False
        self._error: BaseException | None = None
        self._chunks: deque[Any] = deque()
        self._bytes = 0
        self._reading: Any = None
        self._writing: list[Any] = []

    @property
    def room(self) -> int:
        return AHEAD - len(self._chunks)

    def put(self, chunk: Any) -> None:
        """Raises TypeError if nobody will read it, or if too much waits."""
        if self.gone is not None:
            raise self.gone
        if self._error is not None:
            raise self._error
        if self.ended:
            raise JsTypeError("This WritableStream has been closed.")
        size = size_of_chunk(chunk)
        if self._bytes and self._bytes + size > MAX_BUFFERED_BYTES:  # one that is larger by itself may go
            raise JsTypeError(
                f"More than {MAX_BUFFERED_BYTES} bytes were written to a stream and not read: await write(), or look at"
                " desiredSize."
            )
        self._bytes += size
        self._chunks.append(chunk)
        self.wake_reader()

    async def has_room(self) -> None:
        """Return when the reader has caught up. Raises what it left with."""
        while self.room < 0 and self.gone is None and self._error is None:
            waiting = require_context("write()").future()
            self._writing.append(waiting)
            await waiting
        if self.gone is not None:
            raise self.gone

    def end(self) -> None:
        self.ended = True
        self.wake_reader()

    def fail(self, error: BaseException) -> None:
        if not self.ended and self._error is None:
            self._error = error
            self.wake_reader()
            self._wake_writers()

    def wake_reader(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def _wake_writers(self) -> None:
        writing, self._writing = self._writing, []
        for each in writing:
            if not each.done():
                each.set_result(None)

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> Any:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended or self.gone is not None:
                raise StopAsyncIteration
            if self.wanted is not None:
                await called(self.wanted)
                if self._chunks or self.ended or self._error is not None:
                    continue
            self._reading = require_context("read()").future()
            await self._reading
        chunk = self._chunks.popleft()
        self._bytes -= size_of_chunk(chunk)
        if self._writing:
            self._wake_writers()
        return chunk

    def leave(self, reason: Any = None) -> bool:
        """Nobody reads on: who writes is told. Whether that is news."""
        if self.gone is not None or (self.ended and not self._chunks):
            return False
        self.gone = as_error(reason or "The readable side of the stream was cancelled.")
        self._chunks.clear()
        self._bytes = 0
        self._wake_writers()
        self.wake_reader()
        if self.left is not None:
            self.left()
        return True

    async def cancel(self, reason: Any) -> None:
        if self.leave(reason) and self.cancelled is not None:
            await called(self.cancelled, reason)

    async def aclose(self) -> None:
        await self.cancel(None)


class _Items:
    """A plain iterable as an async iterator."""

    def __init__(self, items: Any) -> None:
        self._items = iter(items)

    async def __anext__(self) -> Any:
        for item in self._items:
            return item
        raise StopAsyncIteration


def _iterator_of(source: Any) -> Any:
    if source is None:
        return _Items(())
    if isinstance(source, bytes | bytearray | memoryview | str):
        return _Items((source,) if len(source) else ())
    return aiter(source) if hasattr(source, "__aiter__") else _Items(source)


class Chunks:
    """The chunks of any source, one read at a time. A read that fails or is cancelled is no end: a generator cannot go on
    after it, so the next read fails, too, instead of saying that all was read."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._iterator: Any = None
        self._broken: BaseException | None = None
        self._over = False

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> Any:
        if self._broken is not None:
            raise self._broken
        if self._iterator is None:
            self._iterator = _iterator_of(self._source)
        try:
            return await anext(self._iterator)
        except StopAsyncIteration:
            self._over = True
            raise
        except Exception as error:
            self._broken = error
            raise
        except BaseException:
            if inspect.isasyncgen(self._iterator):
                self._broken = JsTypeError("A read of this stream was cancelled, and what it would have given is lost.")
            raise

    async def aclose(self) -> None:
        self._over = True
        await close_source(self._source if self._iterator is None else self._iterator, None)

    def __del__(self) -> None:
        if not self._over and isinstance(self._source, Channel):
            self._source.leave()


def chunks_of(source: Any) -> Chunks:
    return source if isinstance(source, Chunks) else Chunks(source)


async def close_source(source: Any, reason: Any) -> None:
    if isinstance(source, Channel):
        await source.cancel(reason)
        return
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()
