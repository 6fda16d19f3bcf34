"""Bodies that stream over a link, both ways, with at most `BODY_WINDOW_BYTES` on their way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from roost.events import BODY_WINDOW_BYTES, Abort, BodyCredit, BodyData

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from roost.events import Event
    from roost.link.port import Link


class Carrier(Protocol):
    """The way to a gateway: a `GatewayLink`."""

    link: Link

    def later(self, event: Event) -> None:
        """Send in a turn of its own, from whatever thread."""
        ...


class SenderGone(ConnectionError):
    """The sender of a body gave up, or broke it: who reads it is not at fault."""


class BodyReader:
    """A body that arrives: an async iterator of bytes. Raises SenderGone (a ConnectionError) if its sender gives up."""

    def __init__(self, gateway: Carrier, request: int, first: bytes) -> None:
        self._gateway = gateway
        self._request = request
        self._pieces: deque[bytes] = deque([first] if first else [])
        self._complete = False
        self._broken = ""
        self._is_discarded = False
        self._more: asyncio.Future[None] | None = None
        self.length: int | None = None  # if it was said, and holds

    def feed(self, event: BodyData) -> None:
        if event.data and self._is_discarded:
            self._gateway.link.send(BodyCredit(self._request, len(event.data)))
        elif event.data:
            self._pieces.append(event.data)
        self._complete = self._complete or event.last
        self._wake()

    def abort(self, reason: str) -> None:
        self._broken = reason
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def __del__(self) -> None:
        if not self._complete and not self._broken:  # nobody will read the rest: let its sender stop
            self._gateway.later(Abort(self._request, "The body was not read."))

    def __aiter__(self) -> BodyReader:
        return self

    async def aclose(self) -> None:
        """Read no further. What still comes is thrown away, so that the answer may go on."""
        self._is_discarded = True
        while self._pieces:
            self._gateway.link.send(BodyCredit(self._request, len(self._pieces.popleft())))
        self._wake()

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._broken:
                raise SenderGone(self._broken)
            if self._complete or self._is_discarded:
                raise StopAsyncIteration
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        piece = self._pieces.popleft()
        self._gateway.link.send(BodyCredit(self._request, len(piece)))
        return piece


class WatchedBody:
    """A body of whose end `over` is told: that it was read, broken, closed, or dropped. It may be told more than once."""

    def __init__(self, pieces: Any, over: Callable[[], None]) -> None:
        self._pieces = pieces
        self._over = over

    def __aiter__(self) -> WatchedBody:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece: bytes = await anext(self._pieces)
        except BaseException:
            self._over()
            raise
        return piece

    async def aclose(self) -> None:
        self._over()
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()

    def __del__(self) -> None:
        self._over()


class ReceiverGone(ConnectionError):
    """The receiver of a body gave up; its source is not at fault."""


class BodyWriter:
    """A body that leaves: waits while too much of it is on its way. `abort` ends it, also while its source is slow."""

    def __init__(self, gateway: Carrier, request: int) -> None:
        self._gateway = gateway
        self._request = request
        self._outstanding = 0
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room: asyncio.Future[None] | None = None

    def credit(self, size: int) -> None:
        self._outstanding -= size
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def abort(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)

    async def _unless_gone(self, awaitable: Any) -> Any:
        """Await something, unless the receiver goes first. Raises ReceiverGone."""
        waiting = asyncio.ensure_future(awaitable)
        await asyncio.wait({waiting, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        raise ReceiverGone("The client disconnected.")

    async def send(self, pieces: AsyncIterator[bytes]) -> None:
        """Send all pieces and the end. Raises ReceiverGone, or what the source raises."""
        try:
            while (piece := await self._unless_gone(_next(pieces))) is not None:
                for start in range(0, len(piece), BODY_WINDOW_BYTES):
                    await self._send_part(piece[start : start + BODY_WINDOW_BYTES])
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        self._gateway.link.send(BodyData(self._request, b"", last=True))

    async def _send_part(self, part: bytes) -> None:
        while self._outstanding and self._outstanding + len(part) > BODY_WINDOW_BYTES:
            self._room = asyncio.get_running_loop().create_future()
            await self._unless_gone(self._room)
        if self._gone.done():
            raise ReceiverGone("The client disconnected.")
        self._outstanding += len(part)
        self._gateway.link.send(BodyData(self._request, part, last=False))


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    """The next piece, None at the end."""
    return await anext(pieces, None)
