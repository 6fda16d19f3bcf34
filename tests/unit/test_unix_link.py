"""link/unix.py: errors, backlog and congestion, with a socket and a loop that do what a test says."""

import itertools
import struct
from types import SimpleNamespace

import pytest

from roost.events import Asleep, Call, Chain, ObjectRef, Result, Send, SocketMessage
from roost.link import unix
from roost.link.unix import HIGH_WATER_BYTES, READ_BYTES, READ_MORE_BYTES, UnixLink
from roost.protocol.envelope import encode, encode_batch


class Socket:
    """`takes`: how many bytes the kernel takes next, or an error; everything without it. `arrives`: what is read next."""

    def __init__(self):
        self.takes, self.arrives, self.sent, self.asked = [], [], b"", []
        self.is_open = True
        self.blocking = True

    def setblocking(self, value):
        self.blocking = value

    def setsockopt(self, level, option, value):
        self.options = {(level, option): value}

    def fileno(self):
        return 9

    def send(self, data):
        taken = self.takes.pop(0) if self.takes else len(data)
        if isinstance(taken, OSError):
            raise taken
        self.sent += bytes(data[:taken])
        return min(taken, len(data))

    def sendmsg(self, buffers):
        return self.send(b"".join(buffers))

    def recv_into(self, room):
        data = self.recv(len(room))
        if len(data) > len(room):
            self.arrives.insert(0, data[len(room) :])
            data = data[: len(room)]
        room[: len(data)] = data
        return len(data)

    def recv(self, size):
        self.asked.append(size)
        data = self.arrives.pop(0) if self.arrives else BlockingIOError()
        if isinstance(data, OSError):
            raise data
        return data

    def close(self):
        self.is_open = False


class Loop:
    def __init__(self):
        self.readers, self.writers, self.soon = {}, {}, []

    def add_reader(self, fd, call):
        self.readers[fd] = call

    def add_writer(self, fd, call):
        self.writers[fd] = call

    def remove_reader(self, fd):
        self.readers.pop(fd, None)

    def remove_writer(self, fd):
        self.writers.pop(fd, None)

    def call_soon(self, call, *arguments, context=None):
        self.soon.append((call, arguments))

    def turn(self):
        soon, self.soon = self.soon, []
        for call, arguments in soon:
            call(*arguments)


class Told:
    def __init__(self):
        self.events, self.closed, self.drained = [], [], 0

    def on_events(self, events):
        self.events += events

    def on_closed(self, reason):
        self.closed.append(reason)

    def on_drained(self):
        self.drained += 1


def made(hold_reading=False, **more):
    sock, loop, told = Socket(), Loop(), Told()
    link = UnixLink(sock, loop, hold_reading=hold_reading, **more)
    link.start(told)
    return SimpleNamespace(link=link, sock=sock, loop=loop, told=told)


@pytest.fixture
def end():
    return made()


ONE, TWO = Asleep(1), Asleep(2)


def test_events_of_a_turn_leave_in_one_write(end):
    assert not end.sock.blocking
    end.link.send(ONE)
    end.link.send(TWO)
    assert end.sock.sent == b""
    assert len(end.loop.soon) == 1
    end.loop.turn()
    assert end.sock.sent == encode_batch([ONE, TWO])
    assert not end.loop.writers
    end.link.send(ONE)  # the next turn
    assert len(end.loop.soon) == 1
    end.loop.turn()
    assert end.sock.sent == encode_batch([ONE, TWO]) + encode_batch([ONE])
    end.link.flush()
    assert not end.link.unsent


def test_what_the_kernel_does_not_take_waits_for_the_writer(end):
    data = encode_batch([ONE, TWO])
    end.sock.takes = [4]
    end.link.send(ONE)
    end.link.send(TWO)
    end.link.flush()
    assert end.sock.sent == data[:4]
    assert end.link.unsent
    assert end.link.backlog == data[4:]
    end.link.send(ONE)
    end.link.flush()  # behind it, and not before
    assert end.sock.sent == data[:4]
    end.sock.takes = [BlockingIOError(), 3]
    writer = end.loop.writers[9]
    writer()
    assert end.link.unsent
    writer()
    assert end.link.unsent
    assert 9 in end.loop.writers
    writer()
    assert end.sock.sent == data + encode_batch([ONE])
    assert not end.link.unsent
    assert not end.loop.writers
    assert end.told.drained == 0  # it was never congested


def test_a_full_kernel_takes_nothing(end):
    end.sock.takes = [BlockingIOError()]
    end.link.send(ONE)
    end.link.flush()
    assert end.link.backlog == encode_batch([ONE])
    assert 9 in end.loop.writers


@pytest.mark.parametrize("hold", [False, True])
def test_congestion_is_a_matter_of_bytes(hold, monkeypatch):
    monkeypatch.setattr(unix, "HIGH_WATER_BYTES", 1000)
    end = made(hold_reading=hold)
    large = Send([1], b"x" * 990, True)
    end.sock.takes = [0]
    end.link.send(large)
    end.link.flush()
    size = len(end.link.backlog)
    assert size > 990
    assert end.link.congested == (size > 1000)
    end.link.send(large)
    end.link.flush()
    assert end.link.congested
    assert (9 in end.loop.readers) == (not hold)
    writer = end.loop.writers[9]
    end.sock.takes = [len(end.link.backlog) - 251, 1]
    writer()
    assert end.link.congested
    assert end.told.drained == 0
    writer()  # 250 are left: a quarter of the mark
    assert not end.link.congested
    assert end.told.drained == 1
    assert 9 in end.loop.readers
    assert 9 in end.loop.writers
    writer()
    assert end.told.drained == 1
    assert not end.loop.writers


def test_exactly_the_mark_is_not_congested(end, monkeypatch):
    end.sock.takes = [0]
    event = Send([1], b"x" * 100, True)
    monkeypatch.setattr(unix, "HIGH_WATER_BYTES", len(encode(event)))
    end.link.send(event)
    end.link.flush()
    assert not end.link.congested
    end.link.send(ONE)
    end.link.flush()
    assert end.link.congested
    assert HIGH_WATER_BYTES == 4 * 1024 * 1024


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_write_that_fails_ends_the_link_once(end, when):
    end.link.send(ONE)
    if when == "later":
        end.sock.takes = [1]
        end.link.flush()
        writer = end.loop.writers[9]
    end.sock.takes = [ConnectionResetError("gone"), ConnectionResetError("gone")]
    if when == "later":
        writer()
    else:
        end.link.flush()
    assert end.told.closed == ["write failed: gone"]
    assert not end.sock.is_open
    assert not end.loop.readers
    assert not end.loop.writers
    end.link.send(TWO)
    end.link.flush()
    end.link.close()
    assert end.told.closed == ["write failed: gone"]


def test_reading(end):
    read = end.loop.readers[9]
    end.sock.arrives = [encode_batch([ONE, TWO])]
    read()
    assert end.told.events == [ONE, TWO]
    read()  # nothing is there
    assert end.told.events == [ONE, TWO]
    assert not end.told.closed


def test_an_envelope_in_parts(end):
    data = encode(ONE)
    end.sock.arrives = [data[:3], data[3:] + data[:2]]
    read = end.loop.readers[9]
    read()
    assert end.told.events == []
    assert end.link.unread == data[:3]
    read()
    assert end.told.events == [ONE]
    assert end.link.unread == data[:2]


@pytest.mark.parametrize("cuts", [[1], [27], [28], [29], [5, 30], [40_000], [28, 40_000, 40_001], [99_990]])
def test_a_large_envelope_is_read_to_where_it_belongs(end, cuts):
    events = [
        SocketMessage(1, 2, 3, "ä" * 20_000),
        Send([4], b"x" * 100_000, False),
        Send([5, 6], b"y" * 50_000, True),
        ONE,
    ]
    read = end.loop.readers[9]
    for event in events:
        data = encode(event) + encode(TWO)
        places = [0, *[cut for cut in cuts if cut < len(data)], len(data)]
        pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
        end.sock.arrives = pieces
        while end.sock.arrives:
            read()
        assert end.told.events == [event, TWO]
        end.told.events.clear()
    assert end.link.unread == b""


def test_a_large_payload_is_not_joined_to_its_head(end):
    """Nor is what the kernel does not take copied."""
    payload = b"x" * 100_000
    large = Send([1], payload, True)
    data = encode_batch([ONE, large, TWO, large])
    assert type(data) is list
    assert sum(piece is payload for piece in data) == 2
    assert b"".join(data) == b"".join([encode(each) for each in (ONE, large, TWO, large)])
    for event in (ONE, large, TWO, large):
        end.link.send(event)
    end.sock.takes = [50_000]
    end.link.flush()
    assert end.sock.sent == b"".join(data)[:50_000]
    assert end.link.backlog == b"".join(data)[50_000:]
    assert end.link.unread == b""
    end.loop.writers[9]()
    assert end.sock.sent == b"".join(data)
    assert not end.link.unsent


def test_a_last_word_leaves_behind_all_that_waits_or_not_at_all(end):
    end.sock.takes = [0]
    end.link.send(ONE)
    end.link.flush()
    for _ in range(200):
        end.link.send(TWO)
        end.link.flush()
    end.link.send(ONE)
    end.link.close()
    assert end.sock.sent == encode(ONE) + encode(TWO) * 200 + encode(ONE)


def test_unfinished_large_envelopes_move_to_another_process(end):
    data = encode(Send([1], b"x" * 100_000, True))
    end.sock.arrives = [data[:50_000]]
    end.loop.readers[9]()
    assert end.link.unread == data[:50_000]
    other = made(unread=end.link.unread)
    other.sock.arrives = [data[50_000:] + encode(ONE)]
    other.loop.readers[9]()
    other.loop.readers[9]()
    assert other.told.events == [Send([1], b"x" * 100_000, True), ONE]


def test_reads_grow_when_they_are_full_and_shrink_again(end):
    read = end.loop.readers[9]
    many = encode(ONE) * (READ_BYTES // len(encode(ONE)) + 1)
    end.sock.arrives = [many[:READ_BYTES], many[READ_BYTES:], encode(ONE)]
    for _ in range(3):
        read()
    assert end.sock.asked == [READ_BYTES, READ_MORE_BYTES, READ_BYTES]
    assert len(end.told.events) == len(many) // len(encode(ONE)) + 1


def test_answers_to_a_batch_leave_in_one_write(end):
    answered = []

    def on_events(events):
        for _ in events:
            end.link.send(ONE)
            answered.append(end.sock.sent)

    end.told.on_events = on_events
    end.sock.arrives = [encode_batch([ONE, TWO])]
    end.loop.readers[9]()
    assert answered == [b"", b""]
    assert end.sock.sent == encode_batch([ONE, ONE])
    assert not end.loop.soon


def test_answers_leave_also_if_the_receiver_fails(end):
    def on_events(events):
        end.link.send(ONE)
        raise ZeroDivisionError

    end.told.on_events = on_events
    end.sock.arrives = [encode_batch([ONE])]
    with pytest.raises(ZeroDivisionError):
        end.loop.readers[9]()
    assert end.sock.sent == encode_batch([ONE])
    end.link.send(TWO)
    assert len(end.loop.soon) == 1  # it is not stuck in that turn


@pytest.mark.parametrize(
    ("arrives", "reason"),
    [
        (b"", "the other end closed the link"),
        (ConnectionResetError("gone"), "read failed: gone"),
        (struct.pack("<I", 0xFFFFFFFF) * 7, "the other end broke the envelope format"),
    ],
)
def test_a_read_that_ends_the_link(end, arrives, reason):
    end.sock.arrives = [arrives]
    end.loop.readers[9]()
    assert len(end.told.closed) == 1
    assert end.told.closed[0].startswith(reason)
    assert not end.sock.is_open
    assert not end.loop.readers


def test_the_rest_is_read_until_there_is_none(end):
    end.sock.arrives = [encode(ONE), encode(TWO)]
    end.link.read_rest()
    assert end.told.events == [ONE, TWO]
    assert len(end.sock.asked) == 3
    end.sock.arrives = [encode(ONE), b""]
    end.link.read_rest()
    assert end.told.events == [ONE, TWO, ONE]
    assert end.told.closed == ["the other end closed the link"]
    end.link.read_rest()
    assert len(end.sock.asked) == 5


def test_a_pause_writes_and_then_neither_reads_nor_writes(end):
    end.sock.takes = [2]
    end.link.send(ONE)
    end.link.pause()
    assert end.sock.sent == encode(ONE)[:2]
    assert not end.loop.readers
    assert not end.loop.writers
    end.link.resume()
    assert 9 in end.loop.readers
    end.loop.writers[9]()
    assert end.sock.sent == encode(ONE)


def test_another_process_goes_on_where_this_one_was():
    data = encode(TWO)
    end = made(unread=data[:5], backlog=b"rest of one")
    assert end.link.unsent
    assert end.link.fileno() == 9
    end.sock.arrives = [data[5:]]
    end.loop.readers[9]()
    assert end.told.events == [TWO]
    end.loop.writers[9]()
    assert end.sock.sent == b"rest of one"


def test_a_last_word_is_tried_at_the_end(end):
    end.sock.takes = [3]
    end.link.send(ONE)
    end.link.flush()
    end.link.send(TWO)
    end.link.close()
    assert end.sock.sent == encode(ONE) + encode(TWO)
    assert not end.sock.is_open
    assert not end.loop.writers
    end.link.close()
    assert not end.told.closed  # it was ours


def test_a_last_word_that_cannot_leave_is_no_error(end):
    end.sock.takes = [BlockingIOError()]
    end.link.send(ONE)
    end.link.close()
    assert end.sock.sent == b""
    assert not end.sock.is_open
    assert not end.link.unsent


def test_nothing_to_say_at_the_end(end):
    end.sock.takes = [OSError("it would be an error to send")]
    end.link.close()
    assert end.sock.takes


def test_a_handler_that_says_much_is_written_while_it_runs(end):
    end.link.send_to(1, b"x" * UnixLink.FULL_BYTES, False)
    assert end.sock.sent == b""
    end.link.send_to(1, b"y", False)
    assert len(end.sock.sent) > UnixLink.FULL_BYTES


def test_an_event_that_cannot_travel_does_not_take_the_others_along(end):
    ref = ObjectRef("Room", "ab" * 32, "x")
    end.link.send(ONE)
    end.link.send(Call(4, ref, "method", object(), Chain()))
    end.link.send(TWO)
    end.link.flush()
    assert end.sock.sent == encode(ONE) + encode(TWO)
    assert not end.told.events
    end.loop.turn()
    (answer,) = end.told.events
    assert type(answer) is Result
    assert answer.request == 4
    assert not end.told.closed


def test_without_a_receiver_nobody_is_told():
    sock, loop = Socket(), Loop()
    link = UnixLink(sock, loop, hold_reading=False)
    sock.takes = [ConnectionResetError("gone")]
    link.send(ONE)
    link.flush()
    assert not sock.is_open


def test_two_ends_that_would_not_agree_any_more_part(end):
    end.link.send(Asleep(object()))
    end.link.flush()
    assert len(end.told.closed) == 1
    assert "cannot be encoded" in end.told.closed[0]
    assert not end.sock.is_open
