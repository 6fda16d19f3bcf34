"""gateway/routing/host_slot.py: what is owed to a host that dies, leaves or departs."""

import os
import sys
from types import SimpleNamespace

import pytest

from roost import events as e
from unit.test_router import HELLO, REF, Link, Parts, Socket, bound, gateway, messages, slot  # noqa: F401 - fixtures


class StartedLink(Link):
    def __init__(self):
        super().__init__()
        self.receiver = None
        self.rider = None

    def start(self, receiver):
        self.receiver = receiver


def say(gateway, slot, texts, number=7):  # noqa: F811
    socket = bound(gateway, slot, number)
    for text in texts:
        gateway.router.message(socket, text)
    return socket


def test_done_of_some_keeps_the_rest_for_the_successor(gateway, slot):  # noqa: F811
    slot.attach(Link(), HELLO)
    say(gateway, slot, "abcd")
    slot.done(2, ())
    assert [event.event for event in slot.unfinished] == [3, 4]
    slot.on_closed("it was killed")
    successor = Link()
    slot.attach(successor, HELLO)
    assert messages(successor.sent) == [(3, "c"), (4, "d")]
    assert successor.sent[0].redelivered == [3, 4]


def test_an_event_that_kills_its_hosts_is_dropped_though_its_neighbours_get_done(gateway, slot, caplog):  # noqa: F811
    slot.attach(Link(), HELLO)
    say(gateway, slot, ["poison", "b"])
    given = 0
    for life in range(8):
        say(gateway, slot, [f"neighbour {life}"], 100 + life)
        link = slot.link
        given += (1, "poison") in messages(link.sent)
        slot.done(slot.last_event, (1,))  # everything but the poison
        slot.on_closed("it died")
        slot.attach(Link(), HELLO)
    assert given == 5
    assert "was dropped after 5 hosts died" in caplog.text
    assert not slot.stragglers
    assert not slot.unfinished
    assert gateway.counters.events_dropped == 1


def test_one_counter_of_events_for_all_slots():
    """An object's record of finished events, by epoch and number, may move to another slot."""
    parts = Parts(2)
    router = parts.router
    first, second = parts.slots
    for each in (first, second):
        each.attach(Link(), HELLO)
    sockets = []
    for number, each in ((1, first), (2, second)):
        sockets.append(Socket(number, None))
        parts.sockets.bind(sockets[-1], e.ObjectRef("Room", f"{number:064x}", None), each)
    for which, text in ((0, "a"), (0, "b"), (1, "c"), (1, "d"), (0, "e")):
        router.message(sockets[which], text)
    numbers = [event.event for each in (first, second) for event in each.unfinished]
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    first.done(first.last_event, ())
    assert [event.event for event in second.unfinished] == [3, 4]


def test_a_confirmation_rides_on_the_link_that_asked(gateway, slot):  # noqa: F811
    old, new = StartedLink(), StartedLink()
    slot.attach(old, HELLO)
    gateway.router.from_host(slot, [e.Done(0, ()), e.Confirm(3)])
    assert old.rider == e.Confirmed(3)
    old.rider = None
    slot.leave()
    assert type(old.sent[-1]) is e.Leaving
    gateway.router.from_host(slot, [e.Released()])
    (departed,) = slot.departed
    assert old.receiver is departed
    slot.attach(new, HELLO)
    departed.on_events([e.Confirm(4)])
    assert old.rider == e.Confirmed(4)
    assert new.rider is None


def test_a_host_that_departs_leaves_its_events_to_its_successor(gateway, slot):  # noqa: F811
    old, new = StartedLink(), StartedLink()
    slot.attach(old, HELLO)
    say(gateway, slot, "abc")
    slot.done(1, ())
    slot.leave()
    say(gateway, slot, "d", 9)
    gateway.router.from_host(slot, [e.Released()])
    slot.attach(new, HELLO)
    assert messages(new.sent) == [(2, "b"), (3, "c"), (4, "d")]
    slot.departed[0].on_events([e.Done(4, ())])  # it owes no events any more
    assert [event.event for event in slot.unfinished] == [2, 3, 4]
    slot.departed[0].on_closed("it has finished")
    assert not slot.departed
    assert slot.link is new
    assert [event.event for event in slot.unfinished] == [2, 3, 4]


def test_what_comes_behind_a_departure_in_one_batch_is_the_departed_hosts(gateway, slot):  # noqa: F811
    old, new = StartedLink(), StartedLink()
    slot.attach(old, HELLO)
    say(gateway, slot, "ab")
    slot.leave()
    call = e.Call(5, REF, "method", b"", e.Chain())
    gateway.turn.loop = SimpleNamespace(call_later=lambda *_: None)
    gateway.router.from_host(slot, [e.Done(1, ()), e.Released(), call, e.Confirm(9)])
    assert [event.event for event in slot.unfinished] == [2]
    assert old.rider == e.Confirmed(9)
    assert gateway.exchanges.origins[5].asker is old
    slot.attach(new, HELLO)
    assert call in new.sent
    gateway.router.from_host(slot, [e.Result(5, b"answer", None)])
    assert e.Result(5, b"answer", None) in old.sent


@pytest.mark.parametrize("by", ["departed", "link"])
def test_requests_end_with_the_host_that_has_them(gateway, slot, by):  # noqa: F811
    old, new = StartedLink(), StartedLink()
    exchanges = gateway.exchanges
    gateway.turn.loop = None
    slot.attach(old, HELLO)
    aborted = []

    class Client:
        def __init__(self, name):
            self.name = name

        def on_abort(self, event):
            aborted.append(self.name)

    def ask(name):
        number = exchanges.new_request(Client(name))
        exchanges.request(e.Request(number, "GET", "http://x/", [], b"", False, False, 0, ""))

    ask("of the old")
    slot.leave()
    gateway.router.from_host(slot, [e.Released()])
    slot.attach(new, HELLO)
    ask("of the new")
    if by == "departed":
        slot.departed[0].on_closed("it died")
        assert aborted == ["of the old"]
    else:
        slot.on_closed("it died")
        assert aborted == ["of the new"]


# for another process


class Moving(StartedLink):
    """A link that another process may go on with."""

    unread, backlog = b"half", b"unsent"

    def fileno(self):
        return 33

    flush = read_rest = pause = resume = send_to = lambda self, *_: None
    unsent = True


def mark_file(tmp_path, link, count):
    path = tmp_path / "mark"
    data = bytearray(e.BEGUN_END)
    at = e.BEGUN_OFFSET + 8 * link
    data[at : at + 8] = count.to_bytes(8, sys.byteorder)
    path.write_bytes(data)
    return str(path)


def request(number):
    return e.Request(number, "GET", "http://x/", [], b"", False, False, 0, "")


def test_a_slot_describes_itself_and_another_goes_on(gateway, slot, tmp_path):  # noqa: F811
    hello = e.Hello(e.ENVELOPE_VERSION, 0, 1, mark=mark_file(tmp_path, 2, 5), link=2, life=77)
    slot.attach(Moving(), hello)
    socket = say(gateway, slot, "abcd")
    gateway.router.closed(socket, 1000, "bye", clean=True)
    slot.done(2, (1,))
    for number in (2, 4):
        slot.give(request(number))
    slot.groups_received.add(1)
    slot.groups_received.add(4)
    slot.groups_received.add(3)
    slot.suspect()
    slot.breaker = "it crashes"
    slot.waiting.extend([request(6), request(8)])
    state, descriptors = slot.described(lambda event: event.request == 8)
    assert descriptors[0] == 33
    assert state.link == 33
    assert (state.unread, state.unsent) == (b"half", b"unsent")
    assert descriptors[1] == state.begun
    assert state.begun_offset == e.BEGUN_OFFSET + 16
    assert slot.begun() == 5

    other = Parts()
    after, link = other.slots[0], Link()
    after.adopt(state, link, os.dup(state.begun))
    assert after.link is link
    assert [event.event for event in after.unfinished] == [3, 4, 5]
    assert list(after.unfinished) == list(slot.unfinished)
    assert after.stragglers == slot.stragglers
    assert after.attempts == {1: 1}
    assert (after.given, after.breaker) == (2, "it crashes")
    assert (after.groups_received.life, after.groups_received.upto, after.groups_received.besides) == (77, 1, {3, 4})
    assert after.begun() == 5
    assert [event.request for event in after.waiting] == [8]
    assert after.last_event == other.router.last_event == 5
    for each in (slot, after):
        each._begun.close()


def test_what_was_unfinished_at_a_handover_is_redelivered_once_if_the_host_then_dies(gateway, slot, tmp_path):  # noqa: F811
    slot.attach(Moving(), e.Hello(e.ENVELOPE_VERSION, 0, 1, mark=mark_file(tmp_path, 0, 0), life=5))
    say(gateway, slot, "abcd")
    slot.done(1, ())
    state, descriptors = slot.described(lambda _: False)
    other = Parts()
    after = other.slots[0]
    after.adopt(state, Link(), os.dup(descriptors[1]) if len(descriptors) > 1 else -1)
    after.done(2, ())  # said to the new gateway
    assert [event.event for event in after.unfinished] == [3, 4]
    after.on_closed("it was killed")
    successor = Link()
    after.attach(successor, HELLO)
    assert messages(successor.sent) == [(3, "c"), (4, "d")]
    assert successor.sent[0].redelivered == [3, 4]
    after.done(4, ())
    after.on_closed("this one, too")
    third = Link()
    after.attach(third, HELLO)
    assert messages(third.sent) == []
    for each in (slot, after):
        if each._begun is not None:
            each._begun.close()


def test_a_slot_without_a_host_describes_itself(gateway, slot):  # noqa: F811
    state, descriptors = slot.described(lambda _: True)
    assert (state.link, state.begun, state.begun_offset, descriptors) == (-1, -1, 0, [])
    after = Parts().slots[0]
    after.adopt(state, None, -1)
    assert after.link is None
    assert not after.unfinished
    assert after.begun() == 0  # as many as were given


def test_a_link_in_memory_and_a_closed_count_do_not_travel(gateway, slot, tmp_path):  # noqa: F811
    slot.attach(Link(), e.Hello(e.ENVELOPE_VERSION, 0, 1, mark=mark_file(tmp_path, 0, 1), link=0))
    slot._begun.close()
    state, descriptors = slot.described(lambda _: True)
    assert (state.link, state.begun, descriptors) == (-1, -1, [])


def test_an_older_number_than_the_gateways_does_not_count(gateway, slot):  # noqa: F811
    gateway.router.last_event = 9
    state, _ = slot.described(lambda _: True)
    slot.adopt(state, None, -1)
    assert gateway.router.last_event == 9


# a slot's state


def test_how_a_slot_begins(gateway, slot):  # noqa: F811
    assert (slot.plain.slot, slot.plain.actor) == (slot, 0)
    assert not slot.full
    assert (slot.groups_received.life, slot.groups_received.upto) == (0, 0)
    assert slot.current is None
    assert slot.given == slot.begun() == 0


def test_requests_are_numbered_for_each_host(gateway, slot, tmp_path):  # noqa: F811
    link = Link()
    slot.attach(link, HELLO)
    assert [slot.give(request(2)), slot.give(request(4))] == [1, 2]
    assert link.sent[-2:] == [request(2), request(4)]
    assert slot.begun() == 2  # all, without its word
    slot.attach(Link(), e.Hello(e.ENVELOPE_VERSION, 0, 1, mark=mark_file(tmp_path, 0, 1), link=0))
    assert slot.given == 0
    assert slot.give(request(6)) == 1
    before = slot._begun
    slot.attach(Link(), HELLO)
    assert before.fd == -1
    assert slot._begun is None


def test_a_welcome_says_what_has_arrived_of_the_life_before(gateway, slot):  # noqa: F811
    slot.attach(Link(), e.Hello(e.ENVELOPE_VERSION, 0, 1, life=5))
    for group in (1, 2, 5, 4):
        slot.groups_received.add(group)
    link = Link()
    slot.attach(link, e.Hello(e.ENVELOPE_VERSION, 0, 1, life=6))
    assert link.sent == [e.Welcome(7, 0, [], 5, 2, [4, 5])]
    assert slot.groups_received.life == 6


def test_what_waited_is_given_in_order(gateway, slot):  # noqa: F811
    slot.waiting.extend([request(2), request(4)])
    given = []
    slot.owner = SimpleNamespace(epoch=1, last_event=0, give=lambda event, _: given.append(event.request))
    slot.attach(Link(), HELLO)
    assert given == [2, 4]
    assert not slot.waiting


@pytest.mark.parametrize(
    ("full", "congested", "events", "released", "after"),
    [
        (False, False, 0, False, False),
        (False, True, 0, False, True),
        (False, False, 11, False, True),
        (True, False, 0, True, False),
        (True, True, 0, False, True),
        (True, False, 11, False, True),
        (False, False, 10, False, False),
    ],
)
def test_whether_clients_are_held_back(gateway, slot, full, congested, events, released, after):  # noqa: F811
    link = Link()
    link.congested = congested
    slot.attach(link, HELLO)
    say(gateway, slot, "x" * events)
    slot.full = full
    said = []
    gateway.router.release_held = said.append
    slot.on_drained()
    assert bool(said) == released
    assert slot.full == after


def test_without_a_host_only_what_waits_counts(gateway, slot):  # noqa: F811
    slot.update_full()
    assert not slot.full
    slot.full = True
    slot.update_full()
    assert not slot.full


def test_an_end_waits_for_a_host(gateway, slot):  # noqa: F811
    event = e.SocketClose(1, 3, 7, 1000, "", True)
    slot.deliver(event)
    assert list(slot.unfinished) == [event]
    link, plain = StartedLink(), e.SocketClose(3, 0, 8, 1000, "", True)
    slot.attach(link, HELLO)
    slot.deliver(e.SocketClose(2, 3, 8, 1000, "", True))
    assert [each.event for each in link.sent[1:]] == [1, 2]
    slot.leave()
    link.sent.clear()
    slot.deliver(e.SocketClose(4, 3, 9, 1000, "", True))
    slot.deliver(plain)
    assert link.sent == [plain]


def test_leaving_and_departing_happen_once(gateway, slot):  # noqa: F811
    slot.leave()
    slot.depart()
    assert not slot.departed
    link = StartedLink()
    slot.attach(link, HELLO)
    slot.depart()  # it has not left
    assert slot.link is link
    slot.leave()
    assert slot.current is link
    slot.leave()
    assert [type(event) for event in link.sent] == [e.Welcome, e.Leaving]
    slot.depart()
    (departed,) = slot.departed
    assert (departed.slot, departed.index, departed.current, departed.leaving) == (slot, 0, link, None)
    departed.done(9, ())
    departed.on_drained()
    departed.close()
    assert not slot.departed
    departed.on_closed("once more")


def test_an_orderly_end_makes_nobody_a_suspect(gateway, slot):  # noqa: F811
    slot.attach(StartedLink(), HELLO)
    say(gateway, slot, "a")
    slot.leave()
    slot.on_closed("it has ended")
    assert not slot.attempts
    slot.attach(StartedLink(), HELLO)
    slot.on_closed("it was killed")
    assert slot.attempts == {1: 1}
    assert slot.current is None
