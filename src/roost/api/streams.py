"""`ReadableStream`, as sources of the platform use it; `WritableStream` and transforms are in `writable_streams`.

A readable stream is an async iterator of chunks with JavaScript's names; Python's `async for` over one, and an async
generator in place of one, work as well. Everything that is kept for a slow reader is bounded. Source: WHATWG Streams §4 to
§6; platform documentation, "Streams".
"""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from roost.api.buffers import ArrayBuffer
from roost.api.promises import Failed
from roost.api.runtime import require_context
from roost.errors import JsTypeError
from roost.values import JsDict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


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
        self._wake_reader()

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
        self._wake_reader()

    def fail(self, error: BaseException) -> None:
        if not self.ended and self._error is None:
            self._error = error
            self._wake_reader()
            self._wake_writers()

    def _wake_reader(self) -> None:
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
        self._wake_reader()
        if self.left is not None:
            self.left()
        return True

    async def cancel(self, reason: Any) -> None:
        if self.leave(reason) and self.cancelled is not None:
            await called(self.cancelled, reason)

    async def aclose(self) -> None:
        await self.cancel(None)


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
        return _chunks_of(self.take())

    async def _cancel(self, reason: Any) -> None:
        await _close(self.take(), reason)

    def cancel(self, reason: Any = None) -> Awaitable[None]:
        """Nobody wants the rest: its source is told, and may go."""
        if self._locked:
            return Failed(JsTypeError("This ReadableStream is currently locked to a reader."), "cancel()")
        return promise(self._cancel(reason), "cancel()")

    def tee(self) -> list[ReadableStream]:
        """Two streams of the same chunks. What the slower one has not read is kept, up to 32 MiB."""
        tee = _Tee(_chunks_of(self.take()))
        return [ReadableStream(tee.branches[0]), ReadableStream(tee.branches[1])]

    def pipeTo(self, destination: Any, options: Any = None, **more: Any) -> Awaitable[None]:
        """Write every chunk to a WritableStream, and close it. Options: `preventClose`, `preventAbort`, `preventCancel`."""
        chosen = options_of(options, more)
        try:
            chunks, writer = self.take(), destination.getWriter()
        except JsTypeError as error:
            return Failed(error, "pipeTo()")
        return promise(_pipe(chunks, writer, chosen), "pipeTo()")

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
        await _close(self._source if self._iterator is None else self._iterator, None)

    def __del__(self) -> None:
        if not self._over and isinstance(self._source, Channel):
            self._source.leave()


def _chunks_of(source: Any) -> Chunks:
    return source if isinstance(source, Chunks) else Chunks(source)


async def _close(source: Any, reason: Any) -> None:
    if isinstance(source, Channel):
        await source.cancel(reason)
        return
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


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
        channel._wake_reader()

    require_context("ReadableStream").wait_until(started())


class StreamReader:
    """`stream.getReader()`."""

    def __init__(self, stream: ReadableStream) -> None:
        self._stream = stream
        self._source = stream.take()
        self._chunks: Any = _chunks_of(self._source)
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
        await _close(self._source, reason)
        await _close(self._chunks, reason)
        self._ended(None)

    def cancel(self, reason: Any = None) -> Awaitable[None]:
        return promise(self._cancel(reason), "cancel()")

    def releaseLock(self) -> None:
        """Another reader may go on where this one stopped."""
        self._stream._source, self._stream._locked = self._chunks, False
        self._chunks = _chunks_of(None)

    release_lock = releaseLock


class _Tee:
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
            await _close(self._source, None)


class _Branch:
    """One of a tee's two."""

    def __init__(self, tee: _Tee) -> None:
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


class _PipeTarget(Protocol):
    """`writable_streams.StreamWriter`, as much of it as a pipe needs."""

    def write(self, chunk: Any = None) -> Awaitable[None]: ...

    def close(self) -> Awaitable[None]: ...

    def abort(self, reason: Any = None) -> Awaitable[None]: ...

    def check(self) -> None: ...

    def when_reader_leaves(self, function: Callable[[], Any] | None) -> None: ...

    def releaseLock(self) -> None: ...


async def _pipe(source: Any, writer: _PipeTarget, options: dict[str, Any]) -> None:
    chunks = _chunks_of(source)
    context = require_context("pipeTo()")
    if not options.get("preventCancel"):  # also while the source is silent: its read then fails, or ends
        writer.when_reader_leaves(lambda: context.promise(_cancel_quietly(source), "pipeTo()"))
    try:
        async for chunk in chunks:
            try:
                await writer.write(chunk)
            except BaseException as error:
                if not options.get("preventCancel"):
                    await _close(source, error)
                raise
        writer.check()
    except BaseException as error:
        if not options.get("preventAbort"):
            aborting = writer.abort(error if isinstance(error, Exception) else None)
            if isinstance(error, Exception):
                await aborting
        raise
    finally:
        writer.when_reader_leaves(None)
        writer.releaseLock()
        await _close(chunks, None)
    if not options.get("preventClose"):
        await writer.close()


async def _cancel_quietly(source: Any) -> None:
    """A generator that is being read cannot be closed: it hears of it at its next chunk."""
    try:
        await _close(source, None)
    except RuntimeError:
        pass
