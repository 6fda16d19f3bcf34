"""What an object's sockets speak through: each message, close and attachment waits for the object's writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.events import Attach, CloseSocket

if TYPE_CHECKING:
    from roost.events import Event
    from roost.host.gates import OutputGate
    from roost.host.gateway_link import GatewayLink


class ActorPort:
    """`api.runtime.SocketPort` of one object's sockets at one gateway."""

    __slots__ = ("_gate", "_link")

    def __init__(self, gate: OutputGate, link: GatewayLink) -> None:
        self._gate = gate
        self._link = link.link

    def send_message(self, number: int, payload: bytes, text: bool) -> None:
        if self._gate.shut:
            self._gate.hold(lambda error: None if error else self._link.send_to(number, payload, text))
        else:
            self._link.send_to(number, payload, text)

    def close_socket(self, number: int, code: int, reason: str) -> None:
        self.send(CloseSocket(number, code, reason))

    def attach(self, number: int, attachment: bytes | None) -> None:
        self.send(Attach(number, attachment))

    def send(self, event: Event) -> None:
        if self._gate.shut:
            self._gate.hold(lambda error: None if error else self._link.send(event))
        else:
            self._link.send(event)
