"""A link inside one process: events are handed over as they are, without bytes. Used by `--inline` and the test kit."""

from __future__ import annotations

from asyncio import current_task
from typing import TYPE_CHECKING

from roost.link.port import NO_CONTEXT, Batch

if TYPE_CHECKING:
    import asyncio

    from roost.link.port import Receiver


class MemoryLink(Batch):
    """One end; make both with `memory_pair`. Delivery happens in `flush`, on the caller's stack."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.congested = False  # never: the other end has handled a batch when `flush` returns
        self._loop = loop
        self._peer: MemoryLink | None = None
        self._receiver: Receiver | None = None
        self._scheduled = False
        self._flushing = False

    @property
    def unsent(self) -> bool:
        return False

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        if self._peer is not None and self._peer.events:
            self._peer._schedule()

    def _begun(self) -> None:
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._turn, context=NO_CONTEXT)

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hand the queue to the other end. What that end sends back in the meantime is its own flush's business."""
        if self._flushing or not self.events:
            return
        peer = self._peer
        if peer is None:
            self.take()
            return
        if peer._receiver is None:
            return  # kept until the other end starts
        if current_task(self._loop) is not None:
            self._schedule()  # the other end drives coroutines in place, which nothing may do inside a task
            return
        self._flushing = True
        peer._scheduled = True  # its replies leave with this very call, below
        try:
            while self.events:
                events = self.take()
                if peer._receiver is not None:  # looked up each time: a hello makes another take its place
                    peer._receiver.on_events(events)
        finally:
            self._flushing = False
            peer._scheduled = False
            if peer.events:
                peer.flush()
            if self.events:  # the other end failed, and what is left must not wait for ever
                self._begun()

    def read_rest(self) -> None:
        """What was flushed has been handled."""

    def close(self) -> None:
        peer, self._peer = self._peer, None
        self.take()
        if peer is not None and peer._peer is self:
            peer._peer = None
            if peer._receiver is not None:
                self._loop.call_soon(peer._receiver.on_closed, "the other end closed the link")


def memory_pair(loop: asyncio.AbstractEventLoop) -> tuple[MemoryLink, MemoryLink]:
    """Two ends joined to each other."""
    one, other = MemoryLink(loop), MemoryLink(loop)
    one._peer, other._peer = other, one
    return one, other
