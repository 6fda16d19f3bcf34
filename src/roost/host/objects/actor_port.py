"""What an object's sockets speak through: each message, close and attachment waits for the object's writes.

What is said while a batch of writes is on its way to the disk leaves as one group, so a loop over all sockets costs one
encoding of the payload here, too; and its bytes can be committed with the writes, for a successor to send if this host dies
first. The group's number tells the successor whether the gateway has it already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.events import Attach, CloseSocket, GroupEnd
from roost.link.port import Batch
from roost.protocol.envelope import encode

if TYPE_CHECKING:
    from roost.events import Event
    from roost.host.gateway_link import GatewayLink, StoredGroup
    from roost.host.objects.output_gate import OutputGate


class _Group:
    """What waits for one batch of writes. `stored`: how many of its events are in a commit already."""

    __slots__ = ("batch", "held_for", "number", "stored")

    def __init__(self, number: int, held_for: int) -> None:
        self.number = number
        self.held_for = held_for
        self.batch = Batch()
        self.stored = 0


class ActorPort:
    """`api.runtime.SocketPort` of one object's sockets at one gateway."""

    __slots__ = ("_gate", "_waiting", "link")

    def __init__(self, gate: OutputGate, gateway: GatewayLink) -> None:
        self.link = gateway
        self._gate = gate
        self._waiting: list[_Group] | None = None  # a few, in order; the last one may still grow

    def send_message(self, number: int, payload: bytes, text: bool) -> None:
        if self._gate.shut:
            self._hold().send_to(number, payload, text)
        else:
            self.link.link.send_to(number, payload, text)

    def close_socket(self, number: int, code: int, reason: str) -> None:
        self.send(CloseSocket(number, code, reason))

    def attach(self, number: int, attachment: bytes | None) -> None:
        self.send(Attach(number, attachment))

    def send(self, event: Event) -> None:
        if self._gate.shut:
            self._hold().send(event)
        else:
            self.link.link.send(event)

    def _hold(self) -> Batch:
        """What waits for the writes made so far."""
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = []
        if waiting and waiting[-1].held_for == self._gate.last:
            return waiting[-1].batch
        group = _Group(self.link.new_group(), self._gate.last)
        waiting.append(group)
        self._gate.hold(self._release)  # at once, and for nothing, if the gate is broken
        return group.batch

    def _release(self, error: BaseException | None) -> None:
        assert self._waiting  # `_hold` has put it there
        group = self._waiting.pop(0)
        if error is None:
            for event in group.batch.take():
                self.link.link.send(event)
        self.link.link.send(GroupEnd(group.number))  # also if it was dropped: the numbers have no gaps

    def to_store(self) -> list[StoredGroup]:
        """What is said and in no commit yet, by groups; it belongs into the one that is about to be made."""
        found: list[StoredGroup] = []
        for group in self._waiting or ():
            events = group.batch.events
            if group.stored < len(events):
                envelopes = b"".join([encode(event) for event in events[group.stored :]])
                found.append((self.link.epoch, self.link.life, group.number, envelopes))
                group.stored = len(events)
                group.batch.seal()
        return found
