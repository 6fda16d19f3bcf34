"""One suite for every link: memory and unix. link/port.py says what each must do."""

import asyncio
import socket
from http import HTTPMethod

import pytest

from roost.events import (
    Abort,
    Asleep,
    Attach,
    BodyData,
    Call,
    Chain,
    CloseSocket,
    Dial,
    Dialled,
    Done,
    Fault,
    ObjectRef,
    Request,
    Response,
    Result,
    RosterRequest,
    Send,
    SocketMessage,
)
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


class Buffer(bytes):
    """As worker code's proxied buffers are."""


class Odd:
    """Nothing that could travel."""


def test_unix_passes_on_kinds_of_text_and_bytes():
    @on_link("unix")
    async def _(one, other, left, right):
        name = HTTPMethod("GET")
        one.send(Response(1, 200, "\ud800", [(name, "x\udfff")], Buffer(b"abc"), False))
        one.send(Request(2, name, "http://a/", [], Buffer(b"d"), False, False, 0, ""))
        one.send(Result(3, Buffer(b"v"), Fault("Error", "half \udc00")))
        other.start(right)
        await right.until(lambda: len(right.events) == 3)
        assert right.events == [
            Response(1, 200, "\ufffd", [("GET", "x\ufffd")], b"abc", False),
            Request(2, "GET", "http://a/", [], b"d", False, False, 0, ""),
            Result(3, b"v", Fault("Error", "half \ufffd")),
        ]
        assert not left.events


def test_unix_ends_what_an_event_that_cannot_travel_was_part_of(caplog):
    """Neither end waits for it: the request, call, dial or socket is over, and the others in the batch arrive."""

    @on_link("unix")
    async def _(one, other, left, right):
        why = "The runtime could not pass it on; please report it."
        sent = [
            Done(7, ()),
            Response(1, Odd(), "", [], b"", False),
            BodyData(2, Odd(), True),
            Result(3, Odd()),
            Request(4, "GET", Odd(), [], b"", False, False, 0, ""),
            Call(5, ObjectRef("Room", "0" * 64), "m", Odd(), Chain()),
            Dial(6, Odd(), [], []),
            Send([8, 9], Odd(), True),
            CloseSocket(10, 1 << 70, ""),
            Attach(11, Odd()),
            Asleep(12),
        ]
        left_started = Recorder()
        one.start(left_started)
        for event in sent:
            one.send(event)
        other.start(right)
        await right.until(lambda: Asleep(12) in right.events)
        await left_started.until(lambda: len(left_started.events) == 4)
        assert [type(event) for event in right.events] == [
            Done, Response, Abort, Result, CloseSocket, CloseSocket, CloseSocket, CloseSocket, Asleep,
        ]  # fmt: skip
        assert (right.events[1].request, right.events[1].status) == (1, 500)
        assert right.events[3].fault.message == f"The result of the call: {why}"
        assert [(event.socket, event.code) for event in right.events[4:8]] == [(8, 1011), (9, 1011), (10, 1011), (11, 1011)]
        assert left_started.events == [
            Abort(2, why),
            Abort(4, f"The request: {why}"),
            Result(5, b"", Fault("Error", f"The call: {why}")),
            Dialled(6, 0, 0, [], why),
        ]

    assert sum("cannot be encoded" in record.getMessage() for record in caplog.records) == 9


def test_unix_breaks_off_when_the_ends_would_not_agree():
    @on_link("unix")
    async def _(one, other, left, right):
        one.start(left)
        other.start(right)
        one.send(RosterRequest(Odd(), None))
        await left.until(lambda: left.closed)
        await right.until(lambda: right.closed)
        assert "RosterRequest cannot be encoded" in left.closed[0]
