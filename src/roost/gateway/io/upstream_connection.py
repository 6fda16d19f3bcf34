"""A WebSocket that Roost dialled: the client's side of the protocol (RFC 6455 §5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.closes import STOPPED_RECONNECTING
from roost.gateway.io.connection import DEAF, Connection, SocketState, State, UpstreamState
from roost.protocol.websocket import Decoder, mask_frame

if TYPE_CHECKING:
    import asyncio

    from roost.events import Dial, Redial
    from roost.gateway.io.owner import Owner
    from roost.gateway.io.turn import Turn


class UpstreamConnection(Connection):
    """A WebSocket that Roost dialled: frames out are masked, frames in are not (RFC 6455 §5.1). One that an object keeps
    may be dialled again when it ends (`outbound`); until then it is closed, and found by its number."""

    __slots__ = ("attempts", "dial", "opened_at", "redial", "waiting")

    def __init__(self, turn: Turn, fd: int, number: int, owner: Owner) -> None:
        super().__init__(turn, fd, number, owner)
        self.dial: Dial | None = None
        self.redial: Redial | None = None
        self.attempts = 0  # since it was last open for a while
        self.opened_at = turn.loop.time()
        self.waiting: asyncio.Task[None] | None = None  # for the next attempt

    def close(self, code: int, reason: str) -> None:
        self.redial = None  # it is our will
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            super().close(code, reason)
            return
        waiting.cancel()
        self.turn.socket_events.closed(self, *STOPPED_RECONNECTING, clean=False)

    def cut(self) -> None:
        """Close the descriptor now; its end has been told."""
        self._gone()

    def new_decoder(self) -> Decoder:
        return Decoder(self.turn.limits.max_message_bytes, masked=False, deflate=self.deflate != 0)

    def encode(self, frame: bytes) -> bytes:
        return mask_frame(frame, self.turn.random_bytes(4))

    def send_frame(self, frame: bytes) -> bool:
        if self.state > State.PEER_CLOSED:
            return False
        self.write(self.encode(self.turn.deflated(frame, self.deflate) if self.deflate else frame))
        return True

    def received(self, data: bytes) -> None:
        if self.state in DEAF:
            self._discard(len(data))
            return
        if self.decoder is None:
            self.decoder = self.new_decoder()
        decoder = self.decoder
        self._events(decoder.feed(data))
        if decoder.idle:
            self.decoder = None

    # for another process

    def described(self) -> SocketState:
        told = super().described()
        told.dialled = True
        if self.dial is not None:
            told.upstream = UpstreamState(self.dial, self.redial, self.attempts, self.waiting is not None)
        return told

    def restore(self, told: SocketState) -> None:
        super().restore(told)
        if told.upstream is not None:
            self.dial, self.redial = told.upstream.dial, told.upstream.redial
            self.attempts = told.upstream.attempts
