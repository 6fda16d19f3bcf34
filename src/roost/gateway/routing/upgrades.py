"""A 101: the client's connection becomes the WebSocket that a worker has accepted, an object's or an upstream's other side.

An object on another host accepts before the client's connection is at hand: until then its 101 waits here, and what it says
meanwhile. The invariant: a socket that was accepted for a client who never comes is told so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from roost.closes import CLIENT_LEFT, LOST, UPSTREAM_GONE
from roost.events import Attach, CloseSocket, Response, Send, SocketClose
from roost.gateway.io.connection import Connection, State, find_socket
from roost.gateway.io.owner import Owner, Relay
from roost.gateway.routing.host_slot import HostSlot

if TYPE_CHECKING:
    from roost.gateway.io.http_connection import HttpConnection
    from roost.gateway.io.turn import Turn
    from roost.gateway.routing.host_slot import Departed
    from roost.gateway.routing.sockets import SocketTable

_PENDING_S: Final = 30.0  # for the client's connection of an object on another host


class PendingUpgrade:
    """A 101 whose client's connection is not bound yet, and what the object has said in the meantime."""

    __slots__ = ("answer", "events", "slot")

    def __init__(self, slot: HostSlot, answer: Response) -> None:
        self.slot = slot
        self.answer = answer
        self.events: list[Send | CloseSocket | Attach] = []


class Upgrades:
    """Those of one gateway."""

    def __init__(self, turn: Turn, sockets: SocketTable) -> None:
        self._turn = turn
        self._sockets = sockets
        self.pending: dict[int, PendingUpgrade] = {}  # by the number that the socket will have

    def wait(self, slot: HostSlot, answer: Response) -> None:
        """An object has accepted; its caller returns the socket to a client, or does not."""
        self.pending[answer.socket] = PendingUpgrade(slot, answer)
        self._turn.loop.call_later(_PENDING_S, self._expired, answer.socket)

    def _expired(self, number: int) -> None:
        self.drop(number)
        self._turn.end()

    def drop(self, number: int) -> None:
        """The client of a 101 will not come any more."""
        pending = self.pending.pop(number, None)
        if pending is not None:
            self.end_unbound(pending.slot, number, pending.answer)

    def host_lost(self, slot: HostSlot) -> None:
        """What its objects have accepted is gone with them."""
        for number, pending in list(self.pending.items()):
            if pending.slot is slot:
                del self.pending[number]

    def bind_pending(self, http: HttpConnection, response: Response) -> bool:
        """The client of a 101 that waits; whether there is one."""
        pending = self.pending.pop(response.socket, None)
        if pending is None:
            return False
        self.bind(pending.slot, http, pending.answer, response.socket, response)
        pending.slot.on_events(pending.events)
        return True

    def end_unbound(self, slot: HostSlot | Departed, number: int, answer: Response) -> None:
        """A socket whose client never came: its program hears of the end like of any other."""
        assert answer.binding is not None
        if answer.binding.relay:
            upstream = find_socket(self._turn, answer.binding.relay)
            if upstream is not None:
                upstream.close(*CLIENT_LEFT)
        elif isinstance(slot, HostSlot):  # else its program goes anyway
            slot.deliver(SocketClose(slot.next_event(), 0, number, *LOST, clean=False))

    def bind(self, slot: HostSlot, http: HttpConnection, answer: Response, number: int, response: Response) -> None:
        """The client's connection becomes the WebSocket that a worker accepted."""
        turn, binding = self._turn, answer.binding
        assert binding is not None
        try:
            leftover = http.upgraded(response)
        except ValueError as error:
            turn.log_worker_fault("101", str(error))
            http.refuse(500, "Internal Server Error")
            self.end_unbound(slot, number, answer)
            return
        connection = http.websocket(number, slot.plain)
        for name, value in response.headers:
            if name.lower() == "sec-websocket-protocol":
                connection.protocol = value
        turn.dirty.append(connection)  # `http` is there too, but without a descriptor it does nothing
        if number != http.number:
            turn.aliases[number] = connection
        turn.reactor.replace(http.fd, connection)
        http.is_replaced()
        turn.counters.upgrades += 1
        turn.counters.sockets += 1
        if binding.relay:
            self._splice(connection, binding.relay)
        elif binding.object is not None:
            record = self._sockets.bind(connection, binding.object, slot, binding.tags, binding.attachment)
            if binding.auto_response is not None:
                record.auto = binding.auto_response
        if leftover or http.number in turn.held_back or http.is_half_closed:
            turn.held_back.discard(http.number)
            turn.early.append((connection, leftover))

    def _splice(self, connection: Connection, upstream_number: int) -> None:
        upstream = find_socket(self._turn, upstream_number)
        if upstream is None or upstream.state != State.OPEN:
            connection.owner = Owner(None, 0)
            connection.close(*UPSTREAM_GONE)
            return
        connection.owner = Relay(upstream)
        upstream.owner = Relay(connection)
