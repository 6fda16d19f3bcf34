"""`stream.tee()`: one source for two readers, with a bound for what the slower one has not read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from roost.api.runtime import require_context
from roost.errors import JsTypeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
from roost.api.chunks import MAX_BUFFERED_BYTES, close_source, promise, size_of_chunk


class Tee:
    """One source for two readers: whoever comes first reads on for both."""

    def __init__(self, source: AsyncIterator[Any]) -> None:
        self.branches = [_Branch(self), _Branch(self)]
        self._source = source
        self._waiting: list[Any] | None = None  # for the read that is under way
        self._over = False
        self._error: BaseException | None = None

    async def read_on(self) -> None:
        """Return when there is another chunk, or the end. Who is cancelled while waiting takes nothing from the other."""
        if self._waiting is None:
            self._waiting = []
            promise(self._read(), "tee()")  # a task of its own
        waiting = require_context("tee()").future()
        self._waiting.append(waiting)
        await waiting

    async def _read(self) -> None:
        try:
            chunk = await anext(self._source)
        except StopAsyncIteration:
            self._over = True
        except Exception as error:  # noqa: BLE001 - both get it
            self._error = error
        except BaseException:
            self._error = JsTypeError("The stream's request has ended.")
            raise
        else:
            for branch in self.branches:
                branch.take(chunk)
        finally:
            waiting, self._waiting = self._waiting or [], None
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    def check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._over:
            raise StopAsyncIteration

    def fail(self, error: BaseException) -> None:
        self._error = error

    async def left(self) -> None:
        if all(branch.gone for branch in self.branches):
            await close_source(self._source, None)


class _Branch:
    """One of a tee's two."""

    def __init__(self, tee: Tee) -> None:
        self.gone = False
        self._tee = tee
        self._chunks: deque[Any] = deque()
        self._bytes = 0

    def take(self, chunk: Any) -> None:
        if self.gone:
            return
        size = size_of_chunk(chunk)
        fits = not self._bytes or self._bytes + size <= MAX_BUFFERED_BYTES
        self._chunks.append(chunk)
        self._bytes += size
        if not fits:
            self._tee.fail(
                JsTypeError(f"ReadableStream.tee() buffer limit exceeded: one branch is {self._bytes} bytes behind.")
            )
            self._chunks.clear()

    def __aiter__(self) -> _Branch:
        return self

    async def __anext__(self) -> Any:
        while not self._chunks:
            self._tee.check()
            await self._tee.read_on()
        chunk = self._chunks.popleft()
        self._bytes -= size_of_chunk(chunk)
        return chunk

    async def aclose(self) -> None:
        self.gone = True
        self._chunks.clear()
        await self._tee.left()
