"""One suite for every link: memory and unix. link/port.py says what each must do."""

import asyncio
import socket

import pytest

from roost.events import Asleep, BodyData, CloseSocket, Done, Send, SocketMessage
from roost.link.memory import memory_pair
from roost.link.unix import HIGH_WATER_BYTES, UnixLink


class Recorder:
    def __init__(self):
        self.events = []
        self.batches = 0
        self.closed = []
        self.drained = 0
        self.changed = asyncio.Event()

    def on_events(self, events):
        self.events += events
        self.batches += 1
        self.changed.set()

    def on_closed(self, reason):
        self.closed.append(reason)
        self.changed.set()

    def on_drained(self):
        self.drained += 1
        self.changed.set()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def make_pair(kind):
    loop = asyncio.get_running_loop()
    if kind == "memory":
        return memory_pair(loop)
    one, other = socket.socketpair()
    return UnixLink(one, loop, hold_reading=False), UnixLink(other, loop, hold_reading=True)


def on_link(kind):
    """Run an async test with both ends and their recorders."""

    def wrap(test):
        async def body():
            one, other = make_pair(kind)
            left, right = Recorder(), Recorder()
            try:
                await test(one, other, left, right)
            finally:
                one.close()
                other.close()
                await asyncio.sleep(0)

        asyncio.run(body())

    return wrap


both = pytest.mark.parametrize("kind", ["memory", "unix"])

EVENTS = [
    SocketMessage(1, 2, 3, "text"),
    SocketMessage(2, 2, 3, b"\xff"),
    Done(5, (3,)),
    BodyData(1, b"x" * 100_000, last=True),
]


@both
def test_order_both_ways(kind):
    @on_link(kind)
    async def _(one, other, left, right):
        one.start(left)
        other.start(right)
        for event in EVENTS:
            one.send(event)
        other.send(Asleep(7))
        await right.until(lambda: len(right.events) == 4)
        await left.until(lambda: left.events)
        assert right.events == EVENTS
        assert left.events == [Asleep(7)]
        assert right.batches <= 3


@both
def test_what_is_sent_before_the_start_is_kept(kind):
    @on_link(kind)
    async def _(one, other, left, right):
        one.start(left)
        one.send(Asleep(1))
        one.flush()
        await asyncio.sleep(0)
        other.start(right)
        await right.until(lambda: right.events)
        assert right.events == [Asleep(1)]


@both
def test_equal_payloads_in_a_row_become_one_send(kind):
    @on_link(kind)
    async def _(one, other, left, right):
        one.start(left)
        other.start(right)
        for number in range(1000):
            one.send_to(number, b"same", True)
        one.send_to(1, b"same", False)
        one.send_to(2, b"other", False)
        one.send(CloseSocket(2, 1000, ""))
        one.send_to(3, b"other", False)
        await right.until(lambda: len(right.events) >= 5)
        assert right.events == [
            Send(list(range(1000)), b"same", True),
            Send([1], b"same", False),
            Send([2], b"other", False),
            CloseSocket(2, 1000, ""),
            Send([3], b"other", False),
        ]


@both
def test_successive_dones_become_one(kind):
    @on_link(kind)
    async def _(one, other, left, right):
        one.start(left)
        other.start(right)
        for number in range(10):
            one.send(Done(number, ()))
        one.send(Asleep(1))
        one.send(Done(11, ()))
        await right.until(lambda: len(right.events) >= 3)
        assert right.events == [Done(9, ()), Asleep(1), Done(11, ())]


@both
def test_closing_tells_the_other_end_once(kind):
    @on_link(kind)
    async def _(one, other, left, right):
        one.start(left)
        other.start(right)
        one.close()
        one.close()
        await right.until(lambda: right.closed)
        one.send(Asleep(1))
        other.send(Asleep(1))
        other.flush()
        await asyncio.sleep(0)
        assert len(right.closed) == 1
        assert left.closed == []
        assert left.events == right.events == []


def test_unix_congestion_is_reported_and_ends():
    @on_link("unix")
    async def _(one, other, left, right):
        one.start(left)
        sent = 0
        while not one.congested:
            one.send(BodyData(1, b"x" * 100_000, last=False))
            one.flush()
            sent += 1
        assert sent * 100_000 >= HIGH_WATER_BYTES
        other.start(right)
        await right.until(lambda: len(right.events) == sent)
        assert left.drained == 1
        assert not one.congested


def test_unix_breaks_the_link_on_garbage():
    async def body():
        one, raw = socket.socketpair()
        link = UnixLink(one, asyncio.get_running_loop(), hold_reading=False)
        recorder = Recorder()
        link.start(recorder)
        raw.sendall(b"\x40\x00\x00\x00\xee" + b"\x00" * 100)
        await recorder.until(lambda: recorder.closed)
        assert "envelope" in recorder.closed[0]
        raw.close()

    asyncio.run(body())
