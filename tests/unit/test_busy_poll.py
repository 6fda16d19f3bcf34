"""When a gateway stays awake for its clients, and what that may cost."""

import os
import socket

import pytest

from roost.gateway.counters import Counters
from roost.gateway.io.busy_poll import BusyPoll
from roost.gateway.io.reactor import Reactor

LIMIT_S = 100e-6
US = 1e-6


class Waits:
    """A gateway whose waits last as long as the test says."""

    def __init__(self):
        self.now = 1.0
        self.counters = Counters()
        self.poll = BusyPoll(LIMIT_S, self.counters)
        self.polled_s = 0.0

    def wait(self, seconds, gave_way_s=0.0):
        """One wait, in looks of 2 µs; whether it ended awake."""
        over = self.now + seconds
        awake = self.poll.begin(self.now)
        while awake and self.now < over:
            before = self.now
            self.now += 2 * US + gave_way_s
            self.polled_s += 2 * US
            awake = self.poll.goes_on(self.now, self.now - before)
        self.now = max(self.now, over)
        self.poll.end(self.now)
        self.now += 20 * US  # the work
        return awake


@pytest.fixture
def waits():
    return Waits()


def test_a_gateway_that_is_rarely_asked_never_polls(waits):
    for _ in range(1000):
        assert not waits.wait(0.001)
    assert waits.polled_s == 0
    assert waits.counters.busy_polls_missed == 0


def test_short_waits_end_awake(waits):
    found = [waits.wait(30 * US) for _ in range(100)]
    assert not any(found[:5])
    assert all(found[6:])
    assert waits.counters.busy_polls_found == sum(found)


def test_a_wait_costs_its_limit_at_most(waits):
    for _ in range(20):
        waits.wait(30 * US)
    before = waits.polled_s
    assert not waits.wait(10.0)
    assert waits.polled_s - before == pytest.approx(LIMIT_S, abs=4 * US)
    assert waits.counters.busy_polls_missed == 1


def test_it_stops_when_waits_become_long(waits):
    for _ in range(20):
        waits.wait(30 * US)
    for _ in range(20):
        waits.wait(0.005)
    before = waits.polled_s
    for _ in range(1000):
        waits.wait(0.005)
    assert waits.polled_s == before


def test_waits_longer_than_a_look_are_spent_asleep(waits):
    assert not any(waits.wait(1.2 * LIMIT_S) for _ in range(100))
    assert waits.polled_s == 0
    assert any(waits.wait(0.8 * LIMIT_S) for _ in range(100))


def test_half_of_the_waits_decide(waits):
    """One short wait among three is not enough to go on polling."""
    for number in range(300):
        waits.wait(0.005 if number % 3 else 30 * US)
    before = waits.polled_s
    for number in range(300):
        waits.wait(0.005 if number % 3 else 30 * US)
    assert waits.polled_s == before


def test_a_host_may_finish_its_turn_first(waits):
    """The host that has answered shares the processor: letting it go on once is not a sign that others need it."""
    for _ in range(20):
        waits.wait(30 * US)
    waits.poll.begin(waits.now)
    assert waits.poll.goes_on(waits.now + 0.9 * LIMIT_S, 40 * US)
    assert waits.poll.goes_on(waits.now + 1.1 * LIMIT_S, 1 * US)


def test_others_who_need_the_processor_are_left_alone(waits):
    """A busy neighbour gets in the way of ever fewer waits: it would hold each up for a whole time slice."""
    for _ in range(20):
        waits.wait(30 * US)
    waits.counters.busy_polls_found = 0
    began = waits.now
    while waits.now < began + 60:
        waits.wait(30 * US, gave_way_s=0.003)
    assert waits.counters.busy_polls_found + waits.counters.busy_polls_missed < 100


def test_a_hiccup_is_forgotten(waits):
    for _ in range(20):
        waits.wait(30 * US)
    waits.wait(0.01, gave_way_s=0.003)
    waits.now += 0.002
    assert any(waits.wait(30 * US) for _ in range(10))


def test_what_hosts_say_is_not_what_clients_send(waits):
    """A room that is fed by its host and hears nothing of its clients does not keep the gateway awake."""
    for _ in range(20):
        waits.wait(30 * US)
    for _ in range(20):
        waits.poll.begin(waits.now)
        waits.now += 30 * US
    assert not waits.poll.begin(waits.now)


class Loop:
    """What a reactor asks of its loop, one turn at a time."""

    def __init__(self):
        self.soon = []

    def add_reader(self, fd, callback):
        self.readable = callback

    def remove_reader(self, fd):
        pass

    def call_soon(self, callback):
        self.soon.append(callback)

    def turn(self):
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Seen:
    def __init__(self, sock):
        self.sock = sock
        self.data = b""

    def ready(self, mask):
        self.data += os.read(self.sock.fileno(), 100)


def test_the_reactor_looks_between_turns_of_the_loop():
    loop, counters, now = Loop(), Counters(), [1.0]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reactor = Reactor(loop, lambda: reactor.wait(), BusyPoll(LIMIT_S, counters), lambda: now[0])
        reactor.start()
        seen = Seen(ours)
        reactor.register(ours.fileno(), seen)
        for _ in range(7):  # short waits, asleep
            theirs.send(b"a")
            loop.readable()
        assert len(loop.soon) == 1
        now[0] += 10 * US
        loop.turn()
        assert len(loop.soon) == 1, "it stays awake"
        theirs.send(b"b")
        loop.turn()
        assert seen.data == b"aaaaaaab"
        assert counters.busy_polls_found == 1
        assert len(loop.soon) == 1, "the next wait has begun"
        now[0] += LIMIT_S + 10 * US
        loop.turn()
        assert not loop.soon
        assert counters.busy_polls_missed == 1


def test_a_reactor_that_pauses_does_not_look():
    """A gateway that hands its sockets over must leave what they send to its successor."""
    loop, now = Loop(), [1.0]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reactor = Reactor(loop, lambda: reactor.wait(), BusyPoll(LIMIT_S, Counters()), lambda: now[0])
        reactor.start()
        seen = Seen(ours)
        reactor.register(ours.fileno(), seen)
        for _ in range(7):
            theirs.send(b"a")
            loop.readable()
        theirs.send(b"b")
        reactor.pause()
        loop.turn()
        assert seen.data == b"aaaaaaa"
        assert not loop.soon
        reactor.start()
        loop.readable()
        assert seen.data == b"aaaaaaab"
        reactor.close()
        loop.turn()
