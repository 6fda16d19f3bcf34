"""`ReadableStream` and `TransformStream` as Python Workers use them: to answer with a body that is made while it is sent.

A stream is an async iterator of bytes with JavaScript's names. Source: reference 1.4; WHATWG Streams §4, §5, §6.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from roost.errors import JsTypeError
from roost.values import JsDict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_AHEAD: Final = 16  # chunks written and not read; then `write` waits


class ReadableStream:
    """Chunks, read once: by `async for`, or by `getReader().read()`."""

    def __init__(self, source: Any = None) -> None:
        self._source = source
        self._taken = False

    @classmethod
    def new(cls, source: Any = None, *_: Any, **more: Any) -> Self:
        """`ReadableStream.new(start=..., pull=...)` is not offered: give `Response` an async generator instead."""
        if more or isinstance(source, dict):
            raise NotImplementedError(
                "ReadableStream.new(source) is not supported by Roost; return Response(async_generator())."
            )
        return cls(source)

    @classmethod
    def from_(cls, items: Any) -> Self:
        return cls(items)

    @property
    def locked(self) -> bool:
        return self._taken

    def getReader(self, *_: Any, **__: Any) -> StreamReader:
        return StreamReader(self.__aiter__())

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._taken:
            raise JsTypeError("This ReadableStream is currently locked to a reader.")
        self._taken = True
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[Any]:
        if self._source is None:
            return
        if hasattr(self._source, "__aiter__"):
            async for chunk in self._source:
                yield chunk
        else:
            for chunk in self._source:
                yield chunk


class StreamReader:
    """`stream.getReader()`."""

    def __init__(self, chunks: AsyncIterator[Any]) -> None:
        self._chunks = chunks

    async def read(self) -> JsDict:
        """The next chunk as `{value, done}`."""
        try:
            return JsDict(value=await anext(self._chunks), done=False)
        except StopAsyncIteration:
            return JsDict(value=None, done=True)

    async def cancel(self, reason: Any = None) -> None:
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    def releaseLock(self) -> None:
        """Nothing to release: a stream has one reader."""


class WritableStream:
    """The end of a `TransformStream` that is written to."""

    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self._queue = queue

    def getWriter(self) -> StreamWriter:
        return StreamWriter(self._queue)


class StreamWriter:
    """`stream.getWriter()`. `write` waits while the reader is behind."""

    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self._queue = queue

    async def write(self, chunk: Any) -> None:
        await self._queue.put(chunk)

    async def close(self) -> None:
        await self._queue.put(_END)

    async def abort(self, reason: Any = None) -> None:
        await self._queue.put(_Broken(str(reason or "The stream was aborted.")))

    def releaseLock(self) -> None:
        """Nothing to release."""


class TransformStream:
    """What is written to `.writable` is read from `.readable`."""

    def __init__(self) -> None:
        queue: asyncio.Queue[Any] = asyncio.Queue(_AHEAD)
        self.writable = WritableStream(queue)
        self.readable = ReadableStream(_drain(queue))

    @classmethod
    def new(cls, transformer: Any = None, *_: Any) -> Self:
        if transformer is not None:
            raise NotImplementedError("TransformStream.new(transformer) is not supported by Roost: transform in Python.")
        return cls()


_END: Final = object()


class _Broken:
    def __init__(self, reason: str) -> None:
        self.reason = reason


async def _drain(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (chunk := await queue.get()) is not _END:
        if isinstance(chunk, _Broken):
            raise ConnectionError(chunk.reason)
        yield chunk
