"""gateway/routing (router, sockets): what is kept, done, redelivered and forgotten. No socket, no loop."""

from functools import partial
from types import SimpleNamespace

import pytest

from roost import events as e
from roost.api.state import MAX_TAG_BYTES, MAX_TAGS
from roost.api.websocket import MAX_ATTACHMENT_BYTES
from roost.clock import ManualClock
from roost.closes import BAD_CLOSE, CLASS_DELETED, OBJECT_RESET, RELAY_FAILED, WORKER_RESTARTED
from roost.errors import RemoteProtocolError
from roost.gateway.counters import Counters
from roost.gateway.gateway import Gateway
from roost.gateway.io.connection import Connection, State
from roost.gateway.io.owner import Owner, Relay
from roost.gateway.io.turn import Turn
from roost.gateway.limits import GatewayLimits
from roost.gateway.routing import router as router_module
from roost.gateway.routing.exchanges import Exchanges
from roost.gateway.routing.host_slot import Departed, HostSlot, check_hello
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


class Open(Connection):
    """A connection that only notes what is sent and how it is closed."""

    __slots__ = ("closed", "frames")

    def __init__(self, number, owner=None):
        self.number, self.owner, self.state, self.fd = number, owner, State.OPEN, number
        self.deflate, self.out, self.protocol, self.attachment = 0, b"", "", None
        self.closed, self.frames = [], []

    def send_frame(self, frame):
        self.frames.append(frame)
        return True

    def close(self, code, reason):
        self.closed.append((code, reason))


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
        e.Hello(e.ENVELOPE_VERSION, 2, 2),
        e.Hello(e.ENVELOPE_VERSION, -1, 2),
        e.Hello(e.ENVELOPE_VERSION, 0, 3),
    ):
        with pytest.raises(RemoteProtocolError):
            check_hello(wrong, 2)


# what becomes of a socket's messages


class UpdatedLink(Link):
    def __init__(self):
        super().__init__()
        self.rider = None


def relay(gateway):
    """Two sockets whose messages go to each other."""
    one, other = Socket(21, None), Socket(22, None)
    one.owner, other.owner = Relay(other), Relay(one)
    return one, other


def test_a_relay_passes_messages_and_ends_on(gateway):
    one, other = relay(gateway)
    gateway.router.message(one, "text")
    gateway.router.message(one, b"\x00")
    assert other.frames == [b"\x81\x04text", b"\x82\x01\x00"]
    assert gateway.counters.messages_in == 2
    gateway.router.closed(one, 4000, "bye", clean=True)
    assert other.closes == [4000]
    gateway.router.failed(other, 1002, "wrong")
    assert one.closes == [RELAY_FAILED.code]
    assert gateway.counters.closed_protocol_error == 1


def test_a_socket_that_is_nobodys_is_not_heard(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    socket = Socket(9, Owner(None, 0))
    gateway.router.message(socket, "x")
    gateway.router.closed(socket, 1000, "", clean=True)
    gateway.router.failed(socket, 1009, "")
    assert not slot.unfinished
    assert socket.frames == []
    assert gateway.counters.closed_too_big == 1


@pytest.mark.parametrize(
    ("code", "counter"),
    [(1009, "closed_too_big"), (1002, "closed_protocol_error"), (1007, "closed_protocol_error"), (1013, "")],
)
def test_a_failure_is_counted_and_told_with_its_reason(gateway, slot, code, counter):
    slot.attach(Link(), HELLO)
    socket = bound(gateway, slot, 7)
    gateway.router.failed(socket, code, "why")
    assert slot.link.sent[-1] == e.SocketError(1, 1, 7, code, "why")
    assert gateway.counters.closed_too_big == (counter == "closed_too_big")
    assert gateway.counters.closed_protocol_error == (counter == "closed_protocol_error")
    assert gateway.turn.aliases == {7: socket}


def test_an_end_without_a_host_is_over_for_a_plain_socket_and_waits_for_an_objects(gateway, slot):
    plain = Socket(9, slot.plain)
    plain.fd = -1
    gateway.router.closed(plain, 1000, "", clean=True)
    assert gateway.turn.aliases == {}
    assert not slot.unfinished
    socket = bound(gateway, slot, 7)
    gateway.router.closed(socket, 1000, "bye", clean=False)
    assert list(slot.unfinished) == [e.SocketClose(2, 1, 7, 1000, "bye", False)]
    link = Link()
    slot.attach(link, HELLO)
    assert link.sent[1:] == [e.SocketClose(2, 1, 7, 1000, "bye", False)]


def test_a_leaving_host_hears_its_plain_sockets_only(gateway, slot):
    link = Link()
    slot.attach(link, HELLO)
    socket, plain = bound(gateway, slot, 7), Socket(9, slot.plain)
    slot.leave()
    link.sent.clear()
    gateway.router.message(plain, "to the program")
    gateway.router.message(socket, "to the successor")
    gateway.router.closed(plain, 1000, "", clean=True)
    gateway.router.closed(socket, 1000, "", clean=True)
    assert link.sent == [e.SocketMessage(1, 0, 9, "to the program"), e.SocketClose(3, 0, 9, 1000, "", True)]
    assert [event.event for event in slot.unfinished] == [1, 2, 3, 4]


def test_an_end_whose_handshake_is_under_way_stays_until_the_descriptor_is_closed(gateway, slot):
    slot.attach(Link(), HELLO)
    finished = []
    socket = bound(gateway, slot, 7)
    socket.end_finished = lambda: finished.append(True)
    gateway.router.closed(socket, 1000, "", clean=True)
    slot.done(1, ())
    assert finished == [True]
    assert gateway.turn.aliases == {7: socket}
    gateway.router.descriptor_closed(socket)
    assert gateway.turn.aliases == {}
    gateway.router.end_finished(e.SocketClose(1, 1, 99, 1000, "", True))  # of one that nobody knows


def test_a_descriptor_may_close_before_the_host_is_done(gateway, slot):
    slot.attach(Link(), HELLO)
    socket = bound(gateway, slot, 7)
    gateway.router.closed(socket, 1000, "", clean=True)
    gateway.router.descriptor_closed(socket)
    assert gateway.turn.aliases == {7: socket}
    socket.fd = -1
    slot.done(1, ())
    assert gateway.turn.aliases == {}
    gateway.router.descriptor_closed(socket)


# what is held back


def test_one_client_is_held_back_once_and_released(gateway, slot):
    slot.attach(Link(), HELLO)
    watched = []
    sockets = [bound(gateway, slot, number) for number in (7, 8, 9)]
    for each in sockets:
        each.rewatch = lambda number=each.number: watched.append(number)
    slot.full = True
    gateway.router.message(sockets[0], "a")
    gateway.router.message(sockets[0], "b")
    gateway.router.message(sockets[1], "c")
    sockets[2].fd = -1
    gateway.router.message(sockets[2], "d")
    assert gateway.turn.held_back == {7, 8}
    assert gateway.counters.clients_held_back == 2
    assert watched == [7, 8]
    sockets[1].fd = -1
    gateway.router.release_held(slot)
    assert gateway.turn.held_back == set()
    assert watched == [7, 8, 7]
    gateway.router.release_held(slot)
    assert watched == [7, 8, 7]


def test_large_messages_fill_a_slot_at_once(gateway, slot):
    gateway.turn.limits = slot._limits = GatewayLimits(max_unfinished_bytes=10_000)
    slot.attach(Link(), HELLO)
    socket = bound(gateway, slot, 7)
    for _ in range(2):
        gateway.router.message(socket, "x" * 5000)
    assert not slot.full
    gateway.router.message(socket, "x" * 5000)
    assert slot.full
    assert gateway.turn.held_back == {7}


def test_a_turn_of_tiny_messages_is_noticed_before_its_end(gateway, slot):
    slot.attach(Link(), HELLO)
    socket = bound(gateway, slot, 7)
    for _ in range(1, 1024):
        gateway.router.message(socket, "")
    assert not slot.full
    gateway.router.message(socket, "")
    assert slot.full


def test_a_client_that_another_gateway_held_back(gateway, slot):
    socket = bound(gateway, slot, 7)
    gateway.router.hold_again(socket)
    assert gateway.turn.held_back == {7}
    assert slot.full
    slot.update_full()
    assert gateway.turn.held_back == set()
    gateway.router.hold_again(Socket(8, Owner(None, 0)))
    assert gateway.turn.held_back == {8}


# what hosts say


def test_what_hosts_say_to_a_socket(gateway, slot):
    gateway.turn.reactor.table[7] = socket = Open(7)
    gateway.sockets.bind(socket, REF, slot)
    gateway.router.from_host(
        slot,
        [e.Send([7], b"a", True), e.Send([7], b"b", False), e.CloseSocket(7, 4000, "x"), e.Attach(7, b"kept")],
    )
    assert socket.frames == [b"\x81\x01a", b"\x82\x01b"]
    assert socket.closed == [(4000, "x")]
    assert socket.attachment == b"kept"
    assert gateway.counters.sends == 2
    assert gateway.counters.sends_to_closed == 0


@pytest.mark.parametrize("code", [1000, 1003, 1005, 1006, 1011, 2999, 3000, 4999])
def test_codes_that_a_host_may_close_with(gateway, slot, code):
    gateway.turn.reactor.table[7] = socket = Open(7)
    gateway.router.from_host(slot, [e.CloseSocket(7, code, "x")])
    assert socket.closed == [(code, "x")]


@pytest.mark.parametrize("code", [0, 999, 1004, 1015, 5000, 70_000])
def test_a_code_that_no_frame_may_have_is_said_and_ends_the_socket(gateway, slot, code, caplog):
    gateway.turn.reactor.table[7] = socket = Open(7)
    gateway.router.from_host(slot, [e.CloseSocket(7, code, "x")])
    assert socket.closed == [BAD_CLOSE]
    assert f"closed socket 7 with {code}" in caplog.text
    pending = SimpleNamespace(events=[])
    gateway.upgrades.pending[30] = pending
    gateway.router.from_host(slot, [e.CloseSocket(30, code, "x")])
    assert pending.events == [e.CloseSocket(30, *BAD_CLOSE)]


def test_epochs_are_below_what_json_carries():
    made = Gateway(SimpleNamespace(), ManualClock(), slots=1, random_bytes=lambda size: b"\xff" * size)
    assert made.router.epoch == 2**53 - 1


def test_a_reused_descriptor_is_not_the_socket(gateway, slot):
    """A socket's number has more than its descriptor's."""
    old, new = bound(gateway, slot, 1 << 20 | 7), bound(gateway, slot, 2 << 20 | 7)
    gateway.turn.reactor.table[7] = new
    gateway.router.from_host(slot, [e.Send([1 << 20 | 7], b"a", True)])
    assert new.frames == []
    assert gateway.counters.sends_to_closed == 1
    gateway.turn.aliases[old.number] = old
    gateway.router.from_host(slot, [e.Send([1 << 20 | 7], b"b", True)])
    assert old.frames == [b"\x81\x01b"]
    assert new.frames == []
    old.send_frame = lambda frame: False
    gateway.router.from_host(slot, [e.Send([1 << 20 | 7], b"c", True)])
    assert gateway.counters.sends_to_closed == 2
    assert gateway.counters.sends == 3


def test_what_is_said_to_a_socket_that_is_not_yet_there_waits(gateway, slot):
    pending = SimpleNamespace(events=[])
    gateway.upgrades.pending[30] = pending
    said = [e.Send([30], b"a", True), e.CloseSocket(30, 1000, ""), e.Attach(30, b"x")]
    gateway.router.from_host(slot, said)
    assert pending.events == said
    assert gateway.counters.sends_to_closed == 0


def test_groups_and_dones_of_a_batch(gateway, slot):
    link = UpdatedLink()
    slot.attach(link, HELLO)
    socket = bound(gateway, slot, 7)
    for text in "abc":
        gateway.router.message(socket, text)
    ended = []
    gateway.turn.end = lambda: ended.append(True)
    gateway.router.from_host(slot, [e.Done(1, ()), e.GroupEnd(1), e.Done(2, ()), e.Confirm(5), e.GroupEnd(3)])
    assert [event.event for event in slot.unfinished] == [3]
    assert (slot.groups_received.upto, slot.groups_received.besides) == (1, {3})
    assert link.rider == e.Confirmed(5)
    assert ended == [True]


def test_a_batch_reaches_clients_before_its_events_are_forgotten(gateway, slot):
    slot.attach(UpdatedLink(), HELLO)
    order = []
    gateway.router.flush_connections = lambda: order.append("written")
    slot.done = lambda *_: order.append("done")
    gateway.router.from_host(slot, [e.Done(1, ())])
    assert order == ["written", "done"]
    order.clear()
    gateway.router.from_host(slot, [e.GroupEnd(1)])
    assert order == []


@pytest.mark.parametrize("waits", [True, False])
def test_a_large_message_waits_for_the_journal_too(gateway, slot, monkeypatch, waits):
    early = []
    monkeypatch.setattr(router_module, "sent_large", lambda turn, event: early.append(event.sockets) or True)
    socket = Open(7)
    gateway.turn.reactor.table[7] = socket
    if waits:
        gateway.sockets.journal.lines.append(b"[1]")
    gateway.router.from_host(slot, [e.Send([7], bytes(100_000), False), e.Send([7], bytes(100), False)])
    assert early == ([] if waits else [[7]])
    assert len(socket.frames) == (2 if waits else 1)
    gateway.sockets.journal.lines.clear()


def test_what_the_journal_must_know_first_waits(gateway, slot):
    flushed = []
    gateway.turn.dirty = [SimpleNamespace(flush=lambda: flushed.append(True), out=None)]
    gateway.sockets.journal.lines.append(b"[1]")
    gateway.router.flush_connections()
    assert flushed == []
    gateway.sockets.journal.lines.clear()
    gateway.router.flush_connections()
    assert flushed == [True]
    assert gateway.turn.dirty == []


def test_an_error_in_done_is_said_and_the_turn_ends(gateway, slot, caplog):
    ended = []
    gateway.turn.end = lambda: ended.append(True)
    slot.done = lambda *_: 1 / 0
    gateway.router.from_host(slot, [e.Done(1, ())])
    assert "internal error in Done" in caplog.text
    assert ended == [True]


def test_an_object_sleeps_and_sets_its_automatic_answer(gateway, slot):
    bound(gateway, slot, 7)
    record = gateway.sockets.get(REF)
    answer = e.AutoResponse("ping", "pong")
    gateway.router.from_host(slot, [e.Asleep(1), e.SetAutoResponse(REF, answer)])
    assert not record.awake
    assert record.auto == answer
    gateway.router.from_host(slot, [e.SetAutoResponse(REF, None)])
    assert record.auto is None
    record.awake = True
    gateway.router.from_host(slot, [e.Asleep(0, REF)])
    assert not record.awake
    stranger = e.ObjectRef("Room", "cd" * 32, None)
    gateway.router.from_host(slot, [e.Asleep(9), e.SetAutoResponse(stranger, answer), e.DropSockets(stranger)])


def test_a_roster_is_given_to_who_asks(gateway, slot):
    link = UpdatedLink()
    bound(gateway, slot, 7)
    gateway.router.from_host(slot, [e.RosterRequest(0, REF)])  # nobody is there to get it
    slot.attach(link, HELLO)
    link.sent.clear()
    gateway.router.from_host(slot, [e.RosterRequest(0, REF)])
    (roster,) = link.sent
    assert [entry.socket for entry in roster.sockets] == [7]


@pytest.mark.parametrize("open_", [True, False])
def test_an_object_that_is_reset_loses_its_sockets(gateway, slot, open_):
    slot.attach(UpdatedLink(), HELLO)
    socket, other = bound(gateway, slot, 7), bound(gateway, slot, 8)
    if not open_:
        gateway.router.closed(socket, 1000, "", clean=True)
        socket.fd = -1
    gateway.router.from_host(slot, [e.DropSockets(REF)])
    assert socket.closes == other.closes == [OBJECT_RESET.code]
    assert socket.owner.slot is None
    assert gateway.sockets.get(REF) is None
    assert gateway.counters.hibernatable == 0
    assert gateway.turn.aliases == {}


def test_new_code_renames_and_deletes_classes(gateway, slot):
    slot.attach(UpdatedLink(), HELLO)
    socket = bound(gateway, slot, 7)
    gone = Socket(8, None)
    gateway.sockets.bind(gone, e.ObjectRef("Gone", "cd" * 32, None), slot)
    kept = Socket(9, None)
    gateway.sockets.bind(kept, e.ObjectRef("Kept", "cd" * 32, None), slot)
    ended = []
    gateway.turn.end = lambda: ended.append(True)
    gateway.router.change_classes({"Room": "Hall"}, ["Gone"])
    assert gateway.sockets.get(REF) is None
    renamed = gateway.sockets.get(e.ObjectRef("Hall", REF.id, None))
    assert renamed.object == e.ObjectRef("Hall", REF.id, "x")
    assert socket.owner is renamed
    assert (socket.closes, gone.closes, kept.closes) == ([], [CLASS_DELETED.code], [])
    assert ended == [True]


def test_a_departed_hosts_dials_are_refused(gateway, slot):
    old = UpdatedLink()
    departed = Departed(slot, old)
    dial = e.Dial(3, "ws://x/", [], [])
    gateway.router.upstreams = None  # nobody dials
    gateway.router.from_host(departed, [dial])
    assert [(type(each), each.dial, each.status) for each in old.sent] == [(e.Dialled, 3, 0)]
    assert "replaced" in old.sent[0].error


def test_dials_go_to_who_dials(gateway, slot):
    dialled = []
    gateway.router.upstreams = SimpleNamespace(dial=lambda slot, event: dialled.append(event))
    dial = e.Dial(3, "ws://x/", [], [])
    gateway.router.from_host(slot, [dial])
    assert dialled == [dial]


def test_the_loss_of_a_host_ends_its_plain_sockets_and_is_counted(gateway, slot):
    plain, closing, hibernatable = (Open(n, slot.plain) for n in (1, 2, 3))
    closing.state = State.CLOSING
    gateway.sockets.bind(hibernatable, REF, slot)
    for each in (plain, closing, hibernatable):
        gateway.turn.reactor.table[each.number] = each
    slot.attach(UpdatedLink(), HELLO)
    ended = []
    gateway.turn.end = lambda: ended.append(True)
    slot.on_closed("killed")
    assert plain.closed == [WORKER_RESTARTED]
    assert closing.closed == hibernatable.closed == []
    assert gateway.counters.closed_host_lost == 1
    assert ended == [True]
