"""Bodies that stream over a link, both ways, with at most `BODY_WINDOW_BYTES` on their way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from roost.events import BODY_WINDOW_BYTES, BodyCredit, BodyData

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from roost.host.gateway_link import GatewayLink


class BodyReader:
    """A body that arrives: an async iterator of bytes. Raises ConnectionError if its sender gives up."""

    def __init__(self, link: GatewayLink, request: int, first: bytes) -> None:
        self._link = link
        self._request = request
        self._pieces: deque[bytes] = deque([first] if first else [])
        self._complete = False
        self._broken = ""
        self._more: asyncio.Future[None] | None = None

    def feed(self, event: BodyData) -> None:
        if event.data:
            self._pieces.append(event.data)
        self._complete = self._complete or event.last
        self._wake()

    def abort(self, reason: str) -> None:
        self._broken = reason
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def __aiter__(self) -> BodyReader:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._broken:
                raise ConnectionError(self._broken)
            if self._complete:
                raise StopAsyncIteration
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        piece = self._pieces.popleft()
        self._link.link.send(BodyCredit(self._request, len(piece)))
        return piece


class BodyWriter:
    """A body that leaves: waits while too much of it is on its way. `abort` ends it: `send` then raises."""

    def __init__(self, link: GatewayLink, request: int) -> None:
        self._link = link
        self._request = request
        self._outstanding = 0
        self._broken = False
        self._room: asyncio.Future[None] | None = None

    def credit(self, size: int) -> None:
        self._outstanding -= size
        self._wake()

    def abort(self) -> None:
        self._broken = True
        self._wake()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def send(self, pieces: AsyncIterator[bytes]) -> None:
        """Send all pieces and the end. Raises ConnectionError if the receiver is gone."""
        async for piece in pieces:
            for start in range(0, len(piece), BODY_WINDOW_BYTES):
                part = piece[start : start + BODY_WINDOW_BYTES]
                while self._outstanding + len(part) > BODY_WINDOW_BYTES and self._outstanding:
                    if self._broken:
                        break
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                if self._broken:
                    raise ConnectionError("The client disconnected.")
                self._outstanding += len(part)
                self._link.link.send(BodyData(self._request, part, last=False))
        self._link.link.send(BodyData(self._request, b"", last=True))
