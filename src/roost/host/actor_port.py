"""What an object's sockets speak through: each message, close and attachment waits for the object's writes.

What is said while a batch of writes is on its way to the disk leaves as one, so a loop over all sockets costs one encoding
of the payload here, too; and its bytes can be committed with the writes, for a successor to send if this host dies first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.events import Attach, CloseSocket
from roost.link.port import Batch
from roost.protocol.envelope import encode

if TYPE_CHECKING:
    from roost.events import Event
    from roost.host.gates import OutputGate
    from roost.host.gateway_link import GatewayLink


class ActorPort:
    """`api.runtime.SocketPort` of one object's sockets at one gateway."""

    __slots__ = ("_gate", "_held", "_held_for", "link")

    def __init__(self, gate: OutputGate, link: GatewayLink) -> None:
        self.link = link
        self._gate = gate
        self._held: Batch | None = None
        self._held_for = 0  # the batch of writes that it waits for

    def send_message(self, number: int, payload: bytes, text: bool) -> None:
        if self._gate.shut:
            self._hold().add_message(number, payload, text)
        else:
            self.link.link.send_to(number, payload, text)

    def close_socket(self, number: int, code: int, reason: str) -> None:
        self.send(CloseSocket(number, code, reason))

    def attach(self, number: int, attachment: bytes | None) -> None:
        self.send(Attach(number, attachment))

    def send(self, event: Event) -> None:
        if self._gate.shut:
            self._hold().add(event)
        else:
            self.link.link.send(event)

    def _hold(self) -> Batch:
        """What waits for the writes made so far."""
        held = self._held
        if held is None or self._held_for != self._gate.last:
            held = self._held = Batch()
            self._held_for = self._gate.last
            self._gate.hold(lambda error: self._release(held, error))
        return held

    def _release(self, held: Batch, error: BaseException | None) -> None:
        if self._held is held:
            self._held = None
        if error is None:
            for event in held.take():
                self.link.link.send(event)

    def said_for(self, batch: int) -> bytes:
        """The envelopes of what waits for the open batch of writes (or for a later one: a log that is only synced)."""
        if self._held is None or self._held_for < batch:
            return b""
        return b"".join([encode(event) for event in self._held.events])
