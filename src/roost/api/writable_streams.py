"""`WritableStream` and `TransformStream`: what is written goes to a sink's functions, or to a reader.

Source: WHATWG Streams §5, §6; platform documentation, "Streams".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from roost.api.chunks import AHEAD, MAX_BUFFERED_BYTES, Channel, as_error, called, member_of, promise, size_of_chunk
from roost.api.promises import Failed, Settled
from roost.api.runtime import require_context
from roost.api.streams import ReadableStream, ReadableStreamDefaultController
from roost.errors import JsTypeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class WritableStream:
    """The end that is written to: of a `TransformStream`, or of a sink with `start`, `write`, `close`, `abort`."""

    def __init__(self, sink: Any = None, strategy: Any = None, **more: Any) -> None:
        literal = {**sink, **more} if isinstance(sink, dict) else more
        self._sink = sink if isinstance(sink, _Sink) else _Sink(literal or sink)
        self._locked = False

    @classmethod
    def new(cls, sink: Any = None, strategy: Any = None, **more: Any) -> Self:
        return cls(sink, strategy, **more)

    @property
    def locked(self) -> bool:
        return self._locked

    def getWriter(self) -> StreamWriter:
        if self._locked:
            raise JsTypeError("This WritableStream is currently locked to a writer.")
        self._locked = True
        return StreamWriter(self, self._sink)

    get_writer = getWriter

    def close(self) -> Awaitable[None]:
        return self._sink.close()

    def abort(self, reason: Any = None) -> Awaitable[None]:
        return self._sink.abort(reason)


class StreamWriter:
    """`stream.getWriter()`. What is written goes at once; awaiting `write` waits while the reader is behind."""

    def __init__(self, stream: WritableStream, sink: _Sink) -> None:
        self._stream = stream
        self._sink = sink

    @property
    def desiredSize(self) -> int:
        return self._sink.room

    desired_size = desiredSize

    @property
    def ready(self) -> Awaitable[None]:
        return promise(self._sink.ready(), "ready")

    @property
    def closed(self) -> Awaitable[None]:
        over: Awaitable[None] = self._sink.over()
        return over

    def write(self, chunk: Any = None) -> Awaitable[None]:
        return self._sink.write(chunk)

    def close(self) -> Awaitable[None]:
        return self._sink.close()

    def abort(self, reason: Any = None) -> Awaitable[None]:
        return self._sink.abort(reason)

    def releaseLock(self) -> None:
        self._stream._locked = False

    release_lock = releaseLock

    def check(self) -> None:
        """Raise what made the stream unusable."""
        self._sink.check()

    def when_reader_leaves(self, function: Callable[[], Any] | None) -> None:
        """Of a transform: whom to tell that nobody reads its other end any more."""
        self._sink.when_reader_leaves(function)


class _Sink:
    """Where chunks go, one after the other in the order of the calls: an underlying sink's functions."""

    def __init__(self, functions: Any) -> None:
        self._write, self._close, self._abort = (member_of(functions, name) for name in ("write", "close", "abort"))
        self._calls = self._served = 0
        self._turns: dict[int, Any] = {}
        self._finished: set[int] = set()
        self._over: Any = None
        self._ended: BaseException | None = None
        self._closed = False
        self._bytes = 0
        start = member_of(functions, "start")
        if start is not None:
            self.write_soon(lambda: start(self))

    @property
    def room(self) -> int:
        return AHEAD - (self._calls - self._served)

    def error(self, reason: Any = None) -> None:
        """`controller.error()` of a sink's `start`."""
        self._ended = self._ended or as_error(reason)

    def write(self, chunk: Any) -> Awaitable[None]:
        try:
            self.check()
            size = size_of_chunk(chunk)
            if self._bytes and self._bytes + size > MAX_BUFFERED_BYTES:
                raise JsTypeError(f"More than {MAX_BUFFERED_BYTES} bytes wait for a WritableStream: await write().")
            self._bytes += size
        except Exception as error:  # noqa: BLE001 - a promise
            return Failed(error, "write()")

        async def wrote() -> None:
            try:
                if self._write is not None:
                    await called(self._write, chunk, self)
            finally:
                self._bytes -= size

        return self.write_soon(wrote)

    def write_soon(self, function: Callable[[], Any]) -> Awaitable[None]:
        number, self._calls = self._calls, self._calls + 1
        return promise(self._in_turn(number, function), "write()")

    async def _in_turn(self, number: int, function: Callable[[], Any]) -> None:
        try:
            if self._served < number:
                waiting = self._turns[number] = require_context("write()").future()
                await waiting
            if self._ended is not None:
                raise self._ended
            await called(function)
        except Exception as error:
            self._ended = self._ended or error
            raise
        finally:
            self._turns.pop(number, None)
            self._finished.add(number)
            while self._served in self._finished:  # one that was cancelled before its turn is passed over in its turn
                self._finished.discard(self._served)
                self._served += 1
            waiting = self._turns.get(self._served)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
            self._settle()

    def _settle(self) -> None:
        """Tell who waits for `closed`."""
        if self._over is None or self._over.done():
            return
        if self._ended is not None:
            self._over.set_exception(self._ended)
            self._over.exception()  # nobody needs to look at it
        elif self._closed and self._served >= self._calls:
            self._over.set_result(None)

    def when_reader_leaves(self, function: Callable[[], Any] | None) -> None:
        """Only a transform has a reader."""

    def check(self) -> None:
        """Raise what made it unusable."""
        if self._ended is not None:
            raise self._ended
        if self._closed:
            raise JsTypeError("This WritableStream has been closed.")

    async def ready(self) -> None:
        if self.room <= 0:
            await self.write_soon(lambda: None)

    def over(self) -> Any:
        """A future: settled when it is closed, aborted or broken."""
        if self._over is None:
            self._over = require_context("closed").future()
            self._settle()
        return self._over

    def close(self) -> Awaitable[None]:
        try:
            self.check()
        except Exception as error:  # noqa: BLE001 - a promise
            return Failed(error, "close()")
        self._closed = True
        return self.write_soon(self._close or _nothing)

    def abort(self, reason: Any = None) -> Awaitable[None]:
        if self._ended is not None:
            return Settled(None)
        self._ended = as_error(reason)
        self._settle()
        if self._abort is None:
            return Settled(None)
        return promise(called(self._abort, reason), "abort()")


def _nothing() -> None:
    """A sink without `close`."""


class _ChannelSink(_Sink):
    """The writable end of a transform: what its `transform` makes of a chunk goes to the reader."""

    def __init__(self, channel: Channel, transformer: Any) -> None:
        self._channel = channel
        self._transform, self._flush = (member_of(transformer, name) for name in ("transform", "flush"))
        self._controller = ReadableStreamDefaultController(channel)
        super().__init__({"start": None})
        self._write, self._close, self._abort = self._put, self._end, self._fail
        start = member_of(transformer, "start")
        if start is not None:
            self.write_soon(lambda: start(self._controller))

    @property
    def room(self) -> int:
        return self._channel.room

    def when_reader_leaves(self, function: Callable[[], Any] | None) -> None:
        self._channel.left = function

    def check(self) -> None:
        if self._channel.gone is not None:
            raise self._channel.gone
        super().check()

    def write(self, chunk: Any) -> Awaitable[None]:
        if self._transform is not None or self._served < self._calls:
            return super().write(chunk)
        try:
            self.check()
            self._channel.put(chunk)
        except Exception as error:  # noqa: BLE001 - a promise
            return Failed(error, "write()")
        return Settled(None) if self._channel.room >= 0 else promise(self._channel.has_room(), "write()")

    async def _put(self, chunk: Any, _: Any = None) -> None:
        try:
            if self._transform is None:
                self._channel.put(chunk)
            else:
                await called(self._transform, chunk, self._controller)
        except BaseException as error:
            self._channel.fail(error)
            raise
        await self._channel.has_room()

    async def _end(self) -> None:
        if self._flush is not None:
            try:
                await called(self._flush, self._controller)
            except BaseException as error:
                self._channel.fail(error)
                raise
        self._channel.end()

    def close(self) -> Awaitable[None]:
        if self._flush is None and self._served == self._calls:  # at once: nobody needs to await it
            try:
                self.check()
            except Exception as error:  # noqa: BLE001 - a promise
                return Failed(error, "close()")
            self._closed = True
            self._channel.end()
            self._settle()
            return Settled(None)
        return super().close()

    def abort(self, reason: Any = None) -> Awaitable[None]:
        """At once: who reads must not wait for it."""
        self._channel.fail(as_error(reason))
        self._ended = self._ended or as_error(reason)
        self._settle()
        return Settled(None)

    async def ready(self) -> None:
        await self._channel.has_room()

    def _fail(self, reason: Any) -> None:
        self._channel.fail(as_error(reason))


class TransformStream:
    """What is written to `.writable` is read from `.readable`, through `transform(chunk, controller)` if there is one."""

    def __init__(self, transformer: Any = None, *_: Any, **more: Any) -> None:
        literal = {**transformer, **more} if isinstance(transformer, dict) else more
        channel = Channel()
        self.writable = WritableStream(_ChannelSink(channel, literal or transformer))
        self.readable = ReadableStream(channel)

    @classmethod
    def new(cls, *arguments: Any, **more: Any) -> Self:
        return cls(*arguments, **more)


class IdentityTransformStream(TransformStream):
    """`TransformStream()`, of bytes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
