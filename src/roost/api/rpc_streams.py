"""Streams in calls: the reader pulls each chunk from where the stream is, the writer hands each over and waits.

What is passed is a target with these methods, so a stream takes the way of every other stub. Source: platform
documentation, "Remote-procedure call (RPC)", "ReadableStream, WritableStream".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.api.chunks import Chunks, as_error
from roost.api.entrypoint import RpcTarget
from roost.api.promises import settled, waiter_of
from roost.api.runtime import require_context
from roost.api.streams import ReadableStream
from roost.api.writable_streams import WritableStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from roost.api.writable_streams import StreamWriter


class Readable(RpcTarget):
    """The source's end of a stream that somebody else reads."""

    def __init__(self, source: Any) -> None:
        self._chunks = source if isinstance(source, Chunks) else Chunks(source)
        self._over = False
        self._pulling: Any = None

    async def pull(self) -> list[Any]:
        """`[chunk]`, or `[]` at the end."""
        self._pulling = require_context("pull()").begin(self._next(), "a stream's next chunk")
        found: list[Any] = await self._pulling
        return found

    async def _next(self) -> list[Any]:
        async for chunk in self._chunks:
            return [chunk]
        self._over = True
        return []

    async def cancel(self) -> None:
        """Nobody reads on, also while a chunk is awaited."""
        if self._over:
            return
        self._over = True
        if self._pulling is not None and not self._pulling.done():
            self._pulling.cancel()
            await settled(self._pulling)
        await self._chunks.aclose()

    released = cancel


class Writable(RpcTarget):
    """The sink's end of a stream that somebody else writes."""

    def __init__(self, stream: WritableStream) -> None:
        self._writer: StreamWriter = stream.getWriter()
        self._over = False

    async def write(self, chunk: Any) -> None:
        await self._writer.write(chunk)

    async def close(self) -> None:
        self._over = True
        await self._writer.close()

    async def abort(self, reason: Any) -> None:
        self._over = True
        await self._writer.abort(reason)

    async def released(self) -> None:
        """Who wrote has gone without an end."""
        if not self._over:
            self._over = True
            await self._writer.abort(as_error("The one who wrote this stream is gone."))


def read_from(stub: Any) -> AsyncIterator[Any]:
    """The chunks of a `Readable` elsewhere."""
    return _Pulled(stub)


class _Pulled:
    """An async iterator; `aclose` is the reader's leaving, and so is its end."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._pulling: Any = None  # stays if a read is given up: the next one gets that chunk

    def __aiter__(self) -> _Pulled:
        return self

    async def __anext__(self) -> Any:
        if self._stub is None:
            raise StopAsyncIteration
        if self._pulling is None:
            self._pulling = self._stub.pull()
        pulling = self._pulling
        try:
            found = await waiter_of(pulling)
        except BaseException as error:
            if self._stub is None:  # it was cancelled meanwhile: that is an end
                raise StopAsyncIteration from None
            if isinstance(error, Exception) or pulling.cancelled():
                self._pulling = None
            raise  # a read that was given up: what was pulled is for the next one
        self._pulling = None
        if not found:
            self._let_go()
            raise StopAsyncIteration
        return found[0]

    async def aclose(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """What is released is cancelled there."""
        stub, self._stub = self._stub, None
        if stub is not None:
            stub.dispose()
        if self._pulling is not None:
            self._pulling.cancel()


def readable(stub: Any) -> ReadableStream:
    """The reader's end of a stream elsewhere."""
    return ReadableStream(_Pulled(stub))


def writable(stub: Any) -> WritableStream:
    """The writer's end of a stream elsewhere."""

    async def write(chunk: Any, _: Any) -> None:
        await stub.write(chunk)

    async def close() -> None:
        await stub.close()
        stub.dispose()

    async def abort(reason: Any) -> None:
        await stub.abort(reason if isinstance(reason, BaseException) else str(reason or ""))
        stub.dispose()

    return WritableStream({"write": write, "close": close, "abort": abort})
