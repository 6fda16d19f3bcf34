"""`ReadableStream`, as sources of the platform use it; `WritableStream` and transforms are in `writable_streams`.

A readable stream is an async iterator of chunks with JavaScript's names; Python's `async for` over one, and an async
generator in place of one, work as well. Everything that is kept for a slow reader is bounded. Source: WHATWG Streams §4 to
§6; platform documentation, "Streams".
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

from roost.api.buffers import ArrayBuffer
from roost.api.promises import Failed
from roost.api.runtime import require_context
from roost.errors import JsTypeError
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
from roost.api.chunks import Channel, as_error, chunks_of, close_source, member_of, options_of, promise
from roost.api.pipes import pipe
from roost.api.tees import Tee


class ReadableStreamDefaultController:
    """What `start(controller)` and `pull(controller)` of a source get."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def desiredSize(self) -> int:
        return self._channel.room

    async def has_room(self) -> None:
        """Return when the reader has taken enough of what was put."""
        await self._channel.has_room()

    desired_size = desiredSize

    def enqueue(self, chunk: Any = None) -> None:
        self._channel.put(chunk)

    def close(self) -> None:
        self._channel.end()

    def error(self, reason: Any = None) -> None:
        self._channel.fail(as_error(reason))

    def terminate(self) -> None:
        self._channel.end()


class ReadableStream:
    """Chunks, read once: by `async for`, or by `getReader().read()`.

    `source` is an async or plain iterable, or an underlying source: a dict or object with `start`, `pull`, `cancel`.
    """

    def __init__(self, source: Any = None, strategy: Any = None, **more: Any) -> None:
        self._locked = False
        self._source: Any = source
        literal = {**source, **more} if isinstance(source, dict) else more
        if literal or (source is not None and not _iterable(source)):
            self._source = _from_underlying(literal or source)

    @classmethod
    def new(cls, source: Any = None, strategy: Any = None, **more: Any) -> Self:
        return cls(source, strategy, **more)

    @classmethod
    def from_(cls, items: Any) -> Self:
        """`ReadableStream.from(iterable)`."""
        return cls(items)

    @property
    def locked(self) -> bool:
        return self._locked

    def take(self) -> Any:
        """The source itself, which is nobody else's from here on. Raises TypeError if the stream has a reader."""
        if self._locked:
            raise JsTypeError("This ReadableStream is currently locked to a reader.")
        self._locked = True
        source, self._source = self._source, ()
        return source

    def getReader(self, options: Any = None, **more: Any) -> StreamReader:
        if options_of(options, more).get("mode") == "byob":
            raise JsTypeError("getReader({mode: 'byob'}) is not supported by Roost; use getReader().")
        return StreamReader(self)

    get_reader = getReader

    def __aiter__(self) -> AsyncIterator[Any]:
        return chunks_of(self.take())

    async def _cancel(self, reason: Any) -> None:
        await close_source(self.take(), reason)

    def cancel(self, reason: Any = None) -> Awaitable[None]:
        """Nobody wants the rest: its source is told, and may go."""
        if self._locked:
            return Failed(JsTypeError("This ReadableStream is currently locked to a reader."), "cancel()")
        return promise(self._cancel(reason), "cancel()")

    def tee(self) -> list[ReadableStream]:
        """Two streams of the same chunks. What the slower one has not read is kept, up to 32 MiB."""
        tee = Tee(chunks_of(self.take()))
        return [ReadableStream(tee.branches[0]), ReadableStream(tee.branches[1])]

    def pipeTo(self, destination: Any, options: Any = None, **more: Any) -> Awaitable[None]:
        """Write every chunk to a WritableStream, and close it. Options: `preventClose`, `preventAbort`, `preventCancel`."""
        chosen = options_of(options, more)
        try:
            chunks, writer = self.take(), destination.getWriter()
        except JsTypeError as error:
            return Failed(error, "pipeTo()")
        return promise(pipe(chunks, writer, chosen), "pipeTo()")

    pipe_to = pipeTo

    def pipeThrough(self, transform: Any, options: Any = None, **more: Any) -> ReadableStream:
        """`transform.readable`, of what is written to `transform.writable`."""
        piped = self.pipeTo(member_of(transform, "writable"), options, **more)
        require_context("pipeThrough()").wait_until(_quietly(piped))
        readable: ReadableStream = member_of(transform, "readable")
        return readable

    pipe_through = pipeThrough


async def _quietly(piped: Awaitable[None]) -> None:
    """Whoever reads the other end is told of the error there."""
    try:
        await piped
    except Exception:  # noqa: BLE001
        pass


def _iterable(source: Any) -> bool:
    return hasattr(source, "__aiter__") or hasattr(source, "__iter__")


def _from_underlying(source: Any) -> Channel:
    """The chunks of an underlying source (WHATWG Streams §4.2.3): `start` runs at once, `pull` when the reader waits."""
    start, pull, cancel = (member_of(source, name) for name in ("start", "pull", "cancel"))
    if not any(map(callable, (start, pull, cancel))):
        raise JsTypeError(
            "A ReadableStream is made of an iterable, or of an object with start(controller), pull(controller) or"
            f" cancel(reason), not of {type(source).__name__}."
        )
    channel = Channel()
    controller = ReadableStreamDefaultController(channel)
    if pull is not None:
        channel.wanted = lambda: pull(controller)
    if cancel is not None:
        channel.cancelled = cancel
    if start is not None:
        _begin(start, channel, controller)
    return channel


def _begin(start: Callable[[Any], Any], channel: Channel, controller: Any) -> None:
    result = start(controller)
    if not inspect.isawaitable(result):
        return
    wanted, channel.wanted = channel.wanted, None  # not before `start` is over

    async def started() -> None:
        try:
            await result
        except Exception as error:  # noqa: BLE001 - whoever reads gets it
            channel.fail(error)
        channel.wanted = wanted
        channel.wake_reader()

    require_context("ReadableStream").wait_until(started())


class StreamReader:
    """`stream.getReader()`."""

    def __init__(self, stream: ReadableStream) -> None:
        self._stream = stream
        self._source = stream.take()
        self._chunks: Any = chunks_of(self._source)
        self._over: Any = None
        self._outcome: tuple[Exception | None] | None = None  # what it ended with

    async def read(self) -> JsDict:
        """The next chunk as `{value, done}`; bytes are an ArrayBuffer."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._ended(None)
            return JsDict(value=None, done=True)
        except Exception as error:
            self._ended(error)
            raise
        return JsDict(value=ArrayBuffer(chunk) if isinstance(chunk, bytes) else chunk, done=False)

    def _ended(self, error: Exception | None) -> None:
        self._outcome = self._outcome or (error,)
        self._settle()

    def _settle(self) -> None:
        if self._over is None or self._outcome is None or self._over.done():
            return
        if self._outcome[0] is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(self._outcome[0])
            self._over.exception()  # nobody needs to look at it

    @property
    def closed(self) -> Awaitable[None]:
        """Over when the stream is."""
        if self._over is None:
            self._over = require_context("closed").future()
            self._settle()
        over: Awaitable[None] = self._over
        return over

    async def _cancel(self, reason: Any) -> None:
        await close_source(self._source, reason)
        await close_source(self._chunks, reason)
        self._ended(None)

    def cancel(self, reason: Any = None) -> Awaitable[None]:
        return promise(self._cancel(reason), "cancel()")

    def releaseLock(self) -> None:
        """Another reader may go on where this one stopped."""
        self._stream._source, self._stream._locked = self._chunks, False
        self._chunks = chunks_of(None)

    release_lock = releaseLock
