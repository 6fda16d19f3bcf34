"""gateway/routing (router, sockets): what is kept, done, redelivered and forgotten. No socket, no loop."""

from functools import partial
from types import SimpleNamespace

import pytest

from roost import events as e
from roost.api.state import MAX_TAG_BYTES, MAX_TAGS
from roost.api.websocket import MAX_ATTACHMENT_BYTES
from roost.clock import ManualClock
from roost.errors import RemoteProtocolError
from roost.gateway.counters import Counters
from roost.gateway.io.connection import State
from roost.gateway.io.turn import Turn
from roost.gateway.limits import GatewayLimits
from roost.gateway.routing.exchanges import Exchanges
from roost.gateway.routing.host_slot import HostSlot, check_hello
from roost.gateway.routing.router import Router
from roost.gateway.routing.sockets import SocketTable
from roost.gateway.routing.upgrades import Upgrades
from roost.link.unix import MAX_ENVELOPE_BYTES
from roost.protocol.envelope import encode

HELLO = e.Hello(e.ENVELOPE_VERSION, 0, 1)
REF = e.ObjectRef("Room", "ab" * 32, "x")


class Link:
    congested = False

    def __init__(self):
        self.sent = []

    def send(self, event):
        self.sent.append(event)

    queue = send

    def close(self):
        pass


class Socket:
    """What the router needs of a connection."""

    def __init__(self, number, owner):
        self.number, self.owner = number, owner
        self.fd, self.state = number & 0xFFFFF, State.OPEN
        self.tags, self.attachment, self.auto_at_ms, self.protocol = (), None, 0, ""
        self.frames, self.closes = [], []

    def send_frame(self, frame):
        self.frames.append(frame)
        return True

    def close(self, code, reason):
        self.closes.append(code)

    def rewatch(self):
        pass


class Parts(SimpleNamespace):
    """A gateway's routing, over a turn without a loop and without descriptors."""

    def __init__(self, slots=1):
        turn = SimpleNamespace(
            limits=GatewayLimits(max_unfinished_events=10),
            counters=Counters(),
            clock=ManualClock(),
            reactor=SimpleNamespace(table=[None] * 3000),
            end=lambda: None,
            dirty=[],
            aliases={},
            held_back=set(),
            loop=None,
        )
        turn.find = partial(Turn.find, turn)
        super().__init__(turn=turn, slots=[HostSlot(turn, index) for index in range(slots)], counters=turn.counters)
        self.sockets = SocketTable(turn.counters)
        self.upgrades = Upgrades(turn, self.sockets)
        self.exchanges = Exchanges(turn, self.slots, self.upgrades)
        self.router = Router(turn, self.slots, self.sockets, self.exchanges, self.upgrades, 7)


@pytest.fixture
def gateway():
    return Parts()


@pytest.fixture
def slot(gateway):
    return gateway.slots[0]


def bound(gateway, slot, number):
    socket = Socket(number, None)
    gateway.sockets.bind(socket, REF, slot)
    return socket


def messages(events):
    return [(event.event, event.data) for event in events if isinstance(event, e.SocketMessage)]


def test_events_are_kept_until_done(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    socket = bound(gateway, slot, 7)
    for text in "abcd":
        gateway.router.message(socket, text)
    assert messages(link.sent) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    slot.done(3, (2,))
    assert [event.event for event in slot.unfinished] == [4]
    assert list(slot.stragglers) == [2]
    slot.done(3, ())
    assert slot.stragglers == {}
    slot.done(4, ())
    assert not slot.unfinished


def test_a_successor_gets_what_was_unfinished_in_order(gateway, slot):
    first = Link()
    slot.attach(first, HELLO)
    socket = bound(gateway, slot, 7)
    for text in "abcd":
        gateway.router.message(socket, text)
    slot.done(3, (2,))
    slot.on_closed("killed")
    gateway.router.message(socket, "e")  # while nobody is there
    second = Link()
    slot.attach(second, HELLO)
    assert messages(second.sent) == [(2, "b"), (4, "d"), (5, "e")]
    assert gateway.counters.events_redelivered == 1
    assert socket.closes == []
    slot.done(5, ())
    assert not slot.unfinished


def test_an_event_that_kills_every_host_is_dropped_and_its_neighbours_are_not(gateway, slot):
    socket = bound(gateway, slot, 7)
    slot.attach(Link(), HELLO)
    gateway.router.message(socket, "poison")
    gateway.router.message(socket, "innocent")
    for _ in range(5):
        slot.on_closed("killed")
        link = Link()
        slot.attach(link, HELLO)
    assert messages(link.sent) == [(2, "innocent")]
    assert gateway.counters.events_dropped == 1


def test_plain_sockets_die_with_their_host(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    plain = Socket(9, slot.plain)
    gateway.router.message(plain, "x")
    slot.on_closed("killed")
    assert not slot.unfinished


def test_the_record_stays_until_the_end_is_done(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    socket = bound(gateway, slot, 7)
    assert gateway.counters.hibernatable == 1
    gateway.router.closed(socket, 1000, "bye", clean=True)
    socket.fd = -1
    gateway.router.descriptor_closed(socket)
    (roster,) = gateway.sockets.rosters(1, None)
    assert [entry.socket for entry in roster.sockets] == [7]
    assert gateway.turn.find(7) is socket
    slot.done(1, ())
    assert gateway.sockets.rosters(1, None) == [e.Roster(1, None, [], None)]
    assert gateway.turn.aliases == {}
    assert len(gateway.sockets) == 0
    assert gateway.counters.hibernatable == 0


def test_roster_is_oldest_first_with_everything(gateway, slot):
    for number in (5, 6):
        socket = bound(gateway, slot, number)
        socket.tags, socket.attachment, socket.auto_at_ms = (f"t{number}",), b"a", number
    record = gateway.sockets.get(REF)
    record.auto = e.AutoResponse("ping", "pong")
    (roster,) = gateway.sockets.rosters(0, REF)
    assert [(s.socket, s.tags, s.attachment, s.auto_at_ms) for s in roster.sockets] == [
        (5, ("t5",), b"a", 5),
        (6, ("t6",), b"a", 6),
    ]
    assert roster.auto_response == e.AutoResponse("ping", "pong")


def asleep(gateway, slot, count):
    """The sockets of an object that sleeps."""
    sockets = [bound(gateway, slot, number) for number in range(1, count + 1)]
    gateway.sockets.get(REF).awake = False
    return sockets


def test_a_message_for_a_sleeping_object_brings_the_roster(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    sockets = asleep(gateway, slot, 8)
    link.sent.clear()
    gateway.router.message(sockets[1], "a")
    gateway.router.message(sockets[2], b"b")
    (waking, awake) = link.sent
    assert (waking.event, waking.socket, waking.string, waking.binary) == (1, 2, "a", None)
    assert [entry.socket for entry in waking.roster.sockets] == list(range(1, 9))
    assert awake == e.SocketMessage(2, 1, 3, b"b")
    assert [type(event) for event in slot.unfinished] == [e.SocketMessage, e.SocketMessage]  # for a successor


@pytest.mark.parametrize(("count", "pieces"), [(9, [9]), (1024, [1024]), (2500, [1024, 1024, 452])])
def test_the_roster_of_many_goes_before_the_message(gateway, slot, count, pieces):
    link = Link()
    slot.attach(link, HELLO)
    sockets = asleep(gateway, slot, count)
    link.sent.clear()
    gateway.router.message(sockets[0], "a")
    *rosters, message = link.sent
    assert message == e.SocketMessage(1, 1, 1, "a")
    assert [len(roster.sockets) for roster in rosters] == pieces
    assert [entry.socket for roster in rosters for entry in roster.sockets] == list(range(1, count + 1))
    assert [roster.piece for roster in rosters] == list(range(len(pieces)))
    assert [roster.more for roster in rosters] == [True] * (len(pieces) - 1) + [False]


def test_the_longest_piece_of_a_roster_fits_in_an_envelope(gateway, slot):
    for socket in asleep(gateway, slot, 1025):
        socket.tags = tuple(f"{n:0{MAX_TAG_BYTES}}" for n in range(MAX_TAGS))
        socket.attachment = bytes(MAX_ATTACHMENT_BYTES)
    for roster in gateway.sockets.rosters(1, None):
        assert len(encode(roster)) <= MAX_ENVELOPE_BYTES / 2


def test_auto_response_is_not_an_event(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    socket = bound(gateway, slot, 7)
    gateway.sockets.get(REF).auto = e.AutoResponse("ping", "pong")
    gateway.router.message(socket, "ping")
    assert socket.frames == [b"\x81\x04pong"]
    assert link.sent[1:] == [e.AutoAnswered(1, 7, gateway.turn.clock.wall_ms())]
    gateway.router.from_host(slot, [e.Asleep(1)])
    gateway.router.message(socket, "ping")
    assert len(link.sent) == 2
    assert not slot.unfinished
    gateway.router.message(socket, b"ping")
    assert len(slot.unfinished) == 1


def test_clients_are_held_back_while_a_host_is_behind(gateway, slot):
    slot.attach(Link(), HELLO)
    socket = bound(gateway, slot, 7)
    for number in range(11):
        gateway.router.message(socket, str(number))
    slot.update_full()
    assert slot.full
    gateway.router.message(socket, "one more")
    assert gateway.turn.held_back == {7}
    assert gateway.counters.clients_held_back == 1
    slot.done(12, ())
    slot.update_full()
    assert gateway.turn.held_back == set()


def test_one_bad_event_does_not_lose_the_batch(gateway, slot, caplog):
    socket = bound(gateway, slot, 7)
    gateway.turn.reactor.table[7] = socket
    gateway.router.from_host(slot, [e.Hello(e.ENVELOPE_VERSION, 0, 1), e.Send([7], b"after", True)])
    assert socket.frames == [b"\x81\x05after"]


def test_sends_to_nobody_are_counted(gateway, slot):
    gateway.router.from_host(slot, [e.Send([7, 1 << 40 | 3], b"x", True), e.CloseSocket(9, 1000, ""), e.Attach(9, b"")])
    assert gateway.counters.sends_to_closed == 2


def test_hello():
    assert check_hello(e.Hello(e.ENVELOPE_VERSION, 1, 2), 2).slot == 1
    for wrong in (
        None,
        e.Asleep(1),
        e.Hello(e.ENVELOPE_VERSION - 1, 0, 1),
        e.Hello(e.ENVELOPE_VERSION, 3, 2),
        e.Hello(e.ENVELOPE_VERSION, 0, 3),
    ):
        with pytest.raises(RemoteProtocolError):
            check_hello(wrong, 2)
