"""Whose event is this, and which link does it take? And back: which connection does the host speak to?

Sockets and their messages are here; requests and their answers are `exchanges`. It owns no descriptor and no link, and
decides synchronously. The invariant: a socket's number finds its connection until the host is done with its end.

Long because its two directions share their tables.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from roost.closes import (
    BAD_CLOSE,
    CLASS_DELETED,
    OBJECT_RESET,
    RELAY_FAILED,
    WORKER_RESTARTED,
    Close,
    CloseCode,
    may_be_sent,
)
from roost.errors import RemoteProtocolError
from roost.events import (
    Abort,
    Asleep,
    Attach,
    AutoAnswered,
    BodyCredit,
    BodyData,
    Call,
    CloseSocket,
    Confirm,
    Confirmed,
    Dial,
    DialKept,
    Dialled,
    Done,
    DropSockets,
    GroupEnd,
    Hello,
    KeepSocket,
    Leaving,
    Released,
    Request,
    Response,
    Result,
    RosterRequest,
    Send,
    SetAutoResponse,
    SocketClose,
    SocketError,
    SocketMessage,
    SocketOpened,
    WakingMessage,
)
from roost.gateway.io.connection import Connection, State, find_socket, flush_all, sent_large
from roost.gateway.io.owner import Owner, Relay
from roost.gateway.io.turn import FD_MASK
from roost.gateway.io.upstream_connection import UpstreamConnection
from roost.gateway.routing.host_slot import Departed, HostSlot
from roost.gateway.routing.owed import COUNT_FROM_BYTES
from roost.gateway.routing.sockets import ActorRecord
from roost.protocol.envelope import LARGE_BYTES
from roost.protocol.websocket import encode_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roost.events import Event
    from roost.gateway.io.owner import Slot
    from roost.gateway.io.turn import Turn
    from roost.gateway.routing.exchanges import Exchanges
    from roost.gateway.routing.sockets import SocketTable
    from roost.gateway.routing.upgrades import Upgrades
    from roost.link.port import Link

_log = logging.getLogger("roost.gateway")

_PEER_CLOSED: Final = State.PEER_CLOSED
_ROSTER_BESIDE: Final = 8  # sockets; a roster of more could make a long message's envelope too long


class Upstreams(Protocol):
    """Who dials, and dials again what objects keep."""

    def dial(self, slot: HostSlot, dial: Dial) -> None: ...

    def dial_kept(self, slot: HostSlot, event: DialKept) -> None: ...

    def redial(self, connection: UpstreamConnection, why: str) -> bool:
        """A kept upstream has ended: whether it is dialled again, so that its object need not hear of it."""
        ...


class Router:
    """The gateway's decisions. Owns no descriptor and no link. A `SocketEvents`, a `SlotOwner`."""

    upstreams: Upstreams

    def __init__(
        self,
        turn: Turn,
        slots: list[HostSlot],
        sockets: SocketTable,
        exchanges: Exchanges,
        upgrades: Upgrades,
        epoch: int,
    ) -> None:
        self.turn = turn
        self.slots = slots
        self.sockets = sockets
        self.exchanges = exchanges
        self.upgrades = upgrades
        self.epoch = epoch  # of this process, to hosts
        self.last_event = 0  # the number that was given last, to whichever slot
        self._held_for: dict[int, list[Connection]] = {}
        for slot in slots:
            slot.owner = self

    # clients → hosts

    def message(self, connection: Connection, data: str | bytes) -> None:
        """A whole message from a client: answer it here, or give it to the host that owns the object."""
        owner = connection.owner
        turn = self.turn
        turn.counters.messages_in += 1
        if owner.auto is not None and data == owner.auto.request:
            turn.counters.auto_responses += 1
            connection.auto_at_ms = turn.clock.wall_ms()
            connection.send_frame(encode_message(owner.auto.response.encode(), True))
            if owner.awake and owner.slot.link is not None:  # type: ignore[union-attr]
                owner.slot.link.send(AutoAnswered(owner.actor, connection.number, connection.auto_at_ms))  # type: ignore[union-attr]
            return
        slot = owner.slot
        if slot is None:
            if not isinstance(owner, Relay):
                return  # it has been parted from its object and is closing
            payload = data.encode() if type(data) is str else data
            owner.other.send_frame(encode_message(payload, type(data) is str))  # type: ignore[arg-type]
            return
        self.last_event = slot.last_event = number = self.last_event + 1  # `next_event`, once a message
        message = SocketMessage(number, owner.actor, connection.number, data)
        slot.unfinished.append(message)
        link = slot.link
        if link is not None:  # messages come in turns, which end in a flush: no timer for each
            if owner.awake:
                link.queue(message)
            else:
                _queue_waking(link, owner, message)  # type: ignore[arg-type]
        elif not owner.actor and slot.leaving is not None:
            slot.leaving.send(message)  # a plain socket's program is there
        if len(data) >= COUNT_FROM_BYTES and slot.count_large(message, 1):
            slot.update_full()  # a small read may inflate to many large messages
        if not number & 0x3FF:
            slot.update_full()  # besides once a turn: one turn may bring a million tiny messages
        if slot.full:
            self._hold_back(connection, slot)

    def closed(self, connection: Connection, code: int, reason: str, *, clean: bool) -> None:
        """A client's end is over. The host is told once, and its record stays until the host has finished with it."""
        owner = connection.owner
        if owner.slot is None:
            if isinstance(owner, Relay):
                owner.other.close(code, reason)
            return
        if isinstance(connection, UpstreamConnection) and self.upstreams.redial(
            connection, reason or f"it closed with {code}"
        ):
            return
        event = SocketClose(owner.slot.next_event(), owner.actor, connection.number, code, reason, clean)
        self._tell_end(connection, owner.slot, event)

    def failed(self, connection: Connection, code: int, reason: str) -> None:
        """A client broke the protocol or a limit; it has been closed with `code`."""
        counters = self.turn.counters
        counters.closed_too_big += code == CloseCode.TOO_BIG
        counters.closed_protocol_error += code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA)
        owner = connection.owner
        if owner.slot is None:
            if isinstance(owner, Relay):
                owner.other.close(*RELAY_FAILED)
            return
        if isinstance(connection, UpstreamConnection) and self.upstreams.redial(connection, reason):
            return
        event = SocketError(owner.slot.next_event(), owner.actor, connection.number, code, reason)
        self._tell_end(connection, owner.slot, event)

    def _tell_end(self, connection: Connection, slot: Slot, event: SocketClose | SocketError) -> None:
        self.turn.aliases[connection.number] = connection  # found by number even when the descriptor is reused
        if type(connection.owner) is Owner and slot.current is None:
            self.end_finished(event)  # its host, and with it the program's end of the socket, is gone already
        else:
            slot.deliver(event)

    def end_finished(self, event: SocketClose | SocketError) -> None:
        """The host is done with a socket's end (or never knew the socket)."""
        connection = self.turn.aliases.get(event.socket)
        if connection is None:
            return
        owner = connection.owner
        if isinstance(owner, ActorRecord):
            self.sockets.unbind(owner, event.socket)
        if connection.fd < 0:
            del self.turn.aliases[event.socket]
        else:  # the closing handshake is still under way; `descriptor_closed` removes it
            connection.end_finished()

    def descriptor_closed(self, connection: Connection) -> None:
        """The number is forgotten unless the host still owes an answer to the end."""
        if connection.number in self.turn.aliases:
            owner = connection.owner
            if not isinstance(owner, ActorRecord) or connection.number not in owner:
                del self.turn.aliases[connection.number]

    def _hold_back(self, connection: Connection, slot: Slot) -> None:
        if connection.number not in self.turn.held_back and connection.fd >= 0:
            self.turn.counters.clients_held_back += 1
            self.turn.held_back.add(connection.number)
            self._held_for.setdefault(slot.index, []).append(connection)
            connection.rewatch()

    def hold_again(self, connection: Connection) -> None:
        """A client that another gateway had held back."""
        self.turn.held_back.add(connection.number)
        if connection.owner.slot is not None:
            self._held_for.setdefault(connection.owner.slot.index, []).append(connection)
            connection.owner.slot.full = True  # until it is seen that it is not

    def release_held(self, slot: HostSlot) -> None:
        """The host has caught up: read its clients again."""
        for connection in self._held_for.pop(slot.index, []):
            self.turn.held_back.discard(connection.number)
            if connection.fd >= 0:
                connection.rewatch()

    # hosts → clients

    def from_host(self, slot: HostSlot | Departed, events: Sequence[Event]) -> None:
        """A batch from a host; connections written to are flushed once, at its end, and before what it has done with is
        forgotten: clients come first."""
        table = self.turn.reactor.table
        aliases = self.turn.aliases
        fd_mask = FD_MASK
        counters = self.turn.counters
        if slot.leaving is not None and self._batch_of_departure(slot, events):
            return
        done: Done | None = None  # each says all that those before it said
        confirm: Confirm | None = None
        for event in events:
            try:
                kind = type(event)
                if kind is Send:
                    if len(event.payload) >= LARGE_BYTES and self._sent_large(event):  # type: ignore[union-attr,arg-type]
                        continue
                    frame = encode_message(event.payload, event.text)  # type: ignore[union-attr]
                    dirty = self.turn.dirty
                    number: int
                    for number in event.sockets:  # type: ignore[union-attr,assignment]
                        connection = table[number & fd_mask]
                        if (
                            type(connection) is Connection
                            and connection.out is None
                            and connection.number == number
                            and connection.state <= _PEER_CLOSED
                            and not connection.deflate
                        ):  # `send_frame` in place of two calls: nearly every target of a room
                            connection.out = frame
                            dirty.append(connection)
                            continue
                        if connection is None or connection.number != number:
                            connection = aliases.get(number)
                            if connection is None:
                                self._send_to_nobody(number, event)  # type: ignore[arg-type]
                                continue
                        if not connection.send_frame(frame):
                            counters.sends_to_closed += 1
                    counters.sends += len(event.sockets)  # type: ignore[union-attr]
                elif kind is GroupEnd:
                    slot.groups_received.add(event.group)  # type: ignore[union-attr]
                elif kind is Done:
                    done = event  # type: ignore[assignment]
                elif kind is Confirm:
                    confirm = event  # type: ignore[assignment]
                else:
                    self._HANDLERS[kind](self, slot, event)
            except Exception:  # noqa: BLE001 - one event's bug must not lose the rest of the batch
                _log.exception("gateway: internal error in %s; please report it", type(event).__name__)
        if done is not None:
            self.flush_connections()
            try:
                slot.done(done.event, done.stragglers)
            except Exception:  # noqa: BLE001 - likewise
                _log.exception("gateway: internal error in Done; please report it")
        if confirm is not None and slot.current is not None:
            slot.current.rider = Confirmed(confirm.number)
        self.turn.end()

    def _send_to_nobody(self, number: int, event: Send) -> None:
        """The socket is not there yet, or not any more."""
        if number in self.upgrades.pending:
            self.upgrades.pending[number].events.append(Send([number], event.payload, event.text))
        else:
            self.turn.counters.sends_to_closed += 1

    def _sent_large(self, event: Send) -> bool:
        return not self.sockets.journal.lines and sent_large(self.turn, event)  # see `flush_connections`

    def flush_connections(self) -> None:
        """Write what is queued for clients. What must not leave before the journal knows of it waits for the turn's end."""
        if self.sockets.journal.lines:
            return
        dirty, self.turn.dirty = self.turn.dirty, []
        flush_all(dirty)

    def _close(self, slot: HostSlot, event: CloseSocket) -> None:
        connection = find_socket(self.turn, event.socket)
        if not may_be_sent(event.code) and event.code not in (CloseCode.NO_STATUS, CloseCode.ABNORMAL):
            _log.error("gateway: a host closed socket %d with %d, which no Close frame may have", event.socket, event.code)
            event = CloseSocket(event.socket, *BAD_CLOSE)
        if connection is not None:
            connection.close(event.code, event.reason)
        elif event.socket in self.upgrades.pending:
            self.upgrades.pending[event.socket].events.append(event)

    def _attach_value(self, slot: HostSlot, event: Attach) -> None:
        connection = find_socket(self.turn, event.socket)
        if connection is not None:
            self.sockets.attach(connection, event.attachment)
        elif event.socket in self.upgrades.pending:
            self.upgrades.pending[event.socket].events.append(event)

    def _set_auto(self, slot: HostSlot, event: SetAutoResponse) -> None:
        record = self.sockets.get(event.object)
        if record is not None:
            record.auto = event.auto_response

    def _drop(self, slot: HostSlot, event: DropSockets) -> None:
        record = self.sockets.get(event.object)
        if record is not None:
            self._part(record, OBJECT_RESET)

    def change_classes(self, renamed: dict[str, str], deleted: list[str]) -> None:
        """New code calls classes by other names; the sockets of one that is gone end."""
        for record in list(self.sockets):
            name = record.object.class_name
            if name in deleted:
                self._part(record, CLASS_DELETED)
            elif name in renamed:
                self.sockets.rename(record, renamed[name])
        self.sockets.start_journal()
        self.turn.end()

    def _part(self, record: ActorRecord, why: Close) -> None:
        """An object's sockets end, and it hears nothing of them any more."""
        for connection in list(record.sockets):
            self.sockets.unbind(record, connection.number)
            if connection.fd < 0:
                self.turn.aliases.pop(connection.number, None)
            connection.owner = Owner(None, 0)
            connection.close(*why)

    def _keep(self, slot: HostSlot | Departed, event: KeepSocket) -> None:
        """A dialled socket becomes an object's; if it has ended in the meantime, its program hears so as of any other."""
        connection = find_socket(self.turn, event.socket)
        owner = slot.slot  # whose successor has the object
        if isinstance(connection, UpstreamConnection) and connection.owner is owner.plain:
            self.keep(connection, owner, event)

    def keep(self, connection: UpstreamConnection, slot: HostSlot, event: KeepSocket) -> None:
        """From now on it is an object's."""
        record = self.sockets.bind(connection, event.object, slot, event.tags, event.attachment)
        slot.give_to(record.actor, connection.number)
        connection.redial = event.redial

    def opened_again(self, connection: UpstreamConnection) -> None:
        """A kept upstream has a new connection, with the same number."""
        record = connection.owner
        assert isinstance(record, ActorRecord)
        assert record.slot is not None
        record.add(connection)
        self.turn.aliases[connection.number] = connection
        self.turn.adopt(connection)
        event = SocketOpened(record.slot.next_event(), record.actor, connection.number, connection.attempts)
        record.slot.deliver(event)

    def _roster(self, slot: HostSlot, event: RosterRequest) -> None:
        if slot.current is not None:
            for roster in self.sockets.rosters(event.actor, event.object):
                slot.current.send(roster)

    def _asleep(self, slot: HostSlot, event: Asleep) -> None:
        table = self.sockets
        record = table.by_actor(event.actor) if event.object is None else table.get(event.object)
        if record is not None:
            record.awake = False

    def _dial(self, slot: HostSlot | Departed, event: Dial) -> None:
        if isinstance(slot, Departed):
            slot.link.send(Dialled(event.dial, 0, 0, [], "This code was replaced; it can open no more sockets."))
            return
        self.upstreams.dial(slot, event)

    def _dial_kept(self, slot: HostSlot | Departed, event: DialKept) -> None:
        if isinstance(slot, Departed):
            self._dial(slot, event.dial)
        else:
            self.upstreams.dial_kept(slot, event)

    def _hello(self, slot: HostSlot, event: Hello) -> None:
        raise RemoteProtocolError(1002, "a host said hello twice")

    # a host's death

    def give(self, request: Request | Call, slot: HostSlot) -> None:
        self.exchanges.give(request, slot)

    def host_lost(self, slot: HostSlot, link: Link | None) -> None:
        """Requests end with 502, plain sockets with 1012; hibernatable sockets notice nothing."""
        self.exchanges.host_lost(slot, link)
        self.close_plain(slot)
        slot.forget_plain()
        self.turn.end()

    def departed_lost(self, departed: Departed) -> None:
        """What it had still to answer ends with 502."""
        self.exchanges.host_lost(departed.slot, departed.link, departed=True)
        self.turn.end()

    def close_plain(self, slot: HostSlot) -> None:
        """The program's end of its plain sockets is about to go, or gone."""
        for connection in [c for c in self.turn.reactor.table if isinstance(c, Connection)]:
            if connection.owner is slot.plain and connection.state < State.CLOSING:
                self.turn.counters.closed_host_lost += 1
                connection.close(*WORKER_RESTARTED)

    def _batch_of_departure(self, slot: HostSlot | Departed, events: Sequence[Event]) -> bool:
        """What comes behind a `Released` in the same batch is of a host that has departed; whether it was that."""
        if not isinstance(slot, HostSlot):
            return False
        at = next((index for index, event in enumerate(events) if type(event) is Released), -1)
        if at < 0 or at == len(events) - 1:
            return False
        departing = slot.leaving
        self.from_host(slot, events[:at])
        self._released(slot, events[at])
        departed = next((each for each in slot.departed if each.link is departing), None)
        if departed is not None:
            self.from_host(departed, events[at + 1 :])
        return True

    def _released(self, slot: HostSlot | Departed, event: Event) -> None:
        if isinstance(slot, HostSlot):
            slot.depart()

    _HANDLERS: dict[Any, Any] = {  # noqa: RUF012 - a constant table
        CloseSocket: _close,
        Attach: _attach_value,
        SetAutoResponse: _set_auto,
        DropSockets: _drop,
        RosterRequest: _roster,
        Released: _released,
        Response: lambda router, slot, event: router.exchanges.response(slot, event),
        Request: lambda router, slot, event: router.exchanges.stub_request(slot, event),
        Call: lambda router, slot, event: router.exchanges.stub_call(slot, event),
        Result: lambda router, slot, event: router.exchanges.result(slot, event),
        BodyData: lambda router, slot, event: router.exchanges.body_data(slot, event),
        BodyCredit: lambda router, slot, event: router.exchanges.forward(slot, event),
        Abort: lambda router, slot, event: router.exchanges.forward(slot, event),
        Asleep: _asleep,
        Dial: _dial,
        KeepSocket: _keep,
        DialKept: _dial_kept,
        Hello: _hello,
        Leaving: lambda router, slot, event: slot.leave(),
    }


def _queue_waking(link: Link, record: ActorRecord, message: SocketMessage) -> None:
    """The object sleeps: its host is told what it must know to wake, so that it need not ask."""
    rosters = record.rosters()
    if len(rosters[0].sockets) <= _ROSTER_BESIDE:
        data = message.data
        string, binary = (data, None) if type(data) is str else (None, data)
        link.queue(WakingMessage(message.event, message.socket, string, binary, rosters[0]))  # type: ignore[arg-type]
    else:
        for roster in rosters:
            link.queue(roster)
        link.queue(message)
