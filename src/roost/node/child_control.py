"""A child's end of the control socket, and what a role of a child is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from roost.node.orders import Report, ToChild

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from roost.node.orders import Connect, FromChild


class Role(Protocol):
    """What a child is: `gateway_child.GatewayChild`, `host_child.HostChild`."""

    async def connect(self, order: Connect | None) -> None:
        """Begin to serve; with an order, in the place of another. Raises InternalError."""
        ...

    async def obey(self, order: ToChild, control: Control) -> bool:
        """An order that only this role gets; whether the child is over."""
        ...

    def report(self) -> dict[str, Any]: ...

    async def drain(self, timeout_s: float, why: str = "") -> None: ...


class Control:
    """A child's end of the control socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.json.Decoder(ToChild)
        self._answering: set[asyncio.Task[None]] = set()
        self.finishing: asyncio.Task[None] | None = None  # the child is over when this is

    async def next(self) -> ToChild | None:
        """The node's next order; None when there is none any more: the node is gone, or `finishing` is over."""
        if self.finishing is None:
            return await self._read()
        reading = asyncio.ensure_future(self._read())
        await asyncio.wait({reading, self.finishing}, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        reading.cancel()
        self.finishing.result()
        return None

    async def _read(self) -> ToChild | None:
        line = await self._reader.readline()
        return self._decoder.decode(line) if line else None

    async def tell(self, message: FromChild) -> None:
        self._writer.write(msgspec.json.encode(message) + b"\n")
        await self._writer.drain()

    async def report(self, request: int, report: dict[str, Any]) -> None:
        """Answer an order."""
        await self.tell(Report(request, msgspec.Raw(msgspec.json.encode(report))))

    def report_later(self, request: int, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """What takes its time must not keep other orders waiting."""

        async def answer() -> None:
            await self.report(request, await work)

        task = asyncio.get_running_loop().create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
