"""gateway/routing/host_slot.py: what is owed to a host that dies, leaves or departs."""

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
    assert successor.sent[0].again == [3, 4]


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
