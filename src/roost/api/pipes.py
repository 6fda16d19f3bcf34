"""`stream.pipeTo()`: every chunk of a source to a writer, and the end, an error or a leaving from one side to the other.

Source: WHATWG Streams §4.9.1 (ReadableStreamPipeTo).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from roost.api.runtime import require_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
from roost.api.chunks import chunks_of, close_source


class PipeTarget(Protocol):
    """`writable_streams.StreamWriter`, as much of it as a pipe needs."""

    def write(self, chunk: Any = None) -> Awaitable[None]: ...

    def close(self) -> Awaitable[None]: ...

    def abort(self, reason: Any = None) -> Awaitable[None]: ...

    def check(self) -> None: ...

    def when_reader_leaves(self, function: Callable[[], Any] | None) -> None: ...

    def releaseLock(self) -> None: ...


async def pipe(source: Any, writer: PipeTarget, options: dict[str, Any]) -> None:
    chunks = chunks_of(source)
    context = require_context("pipeTo()")
    if not options.get("preventCancel"):  # also while the source is silent: its read then fails, or ends
        writer.when_reader_leaves(lambda: context.promise(_cancel_quietly(source), "pipeTo()"))
    try:
        async for chunk in chunks:
            try:
                await writer.write(chunk)
            except BaseException as error:
                if not options.get("preventCancel"):
                    await close_source(source, error)
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
        await close_source(chunks, None)
    if not options.get("preventClose"):
        await writer.close()


async def _cancel_quietly(source: Any) -> None:
    """A generator that is being read cannot be closed: it hears of it at its next chunk."""
    try:
        await close_source(source, None)
    except RuntimeError:
        pass
