"""gateway/io/connection.py: the states of a WebSocket's end, over a real pair of descriptors and a turn without a loop."""

import struct
import zlib

import pytest

from roost import memory
from roost.gateway.io import connection as module
from roost.gateway.io.channel import Backlog
from roost.gateway.io.connection import Connection, State, find_socket, flush_all
from roost.gateway.io.owner import Owner, Relay
from roost.gateway.io.reactor import READ, WRITE
from roost.gateway.routing.host_slot import HostSlot
from roost.protocol.websocket import encode_message, mask_frame, message_head
from turns import flush, make_turn, pair, received

MADE = []


class Client:
    """A connection and the other end of its descriptor."""

    def __init__(self, plain=True, kind=Connection, **limits):
        self.turn = make_turn(**limits)
        fd, self.end = pair()
        self.slot = HostSlot(self.turn, 0)
        self.connection = kind(self.turn, fd, 5 << 20 | fd, self.slot.plain if plain else Owner(None, 0))
        self.turn.adopt(self.connection)
        MADE.append(self)

    @property
    def told(self):
        return self.turn.told

    @property
    def ends(self):
        return [end for end in self.told.ends if end != "descriptor closed"]

    def says(self, *frames):
        self.end.sendall(b"".join(frames))
        self.connection.ready(READ)

    def hears(self):
        flush(self.turn)
        return received(self.end)

    def fill(self, backlog=1):
        """The client does not read, until so many bytes wait here."""
        while type(self.connection.out) is not Backlog or self.connection.out.size < backlog:
            self.connection.write(encode_message(b"x" * 60_000, False))
            flush(self.turn)

    def drain(self):
        data = b""
        while self.connection.fd >= 0 and type(self.connection.out) is Backlog:
            data += received(self.end)
            self.connection.ready(WRITE)
            flush(self.turn)
        return data + received(self.end)

    def waits_s(self, seconds):
        """Time passes, and the connection is looked at."""
        self.turn.clock.advance(seconds)
        self.connection.expire(self.turn.loop.time())
        flush(self.turn)


def text(data):
    return mask_frame(encode_message(data.encode(), True), b"1234")


def control(opcode, payload=b""):
    return mask_frame(bytes([0x80 | opcode, len(payload)]) + payload, b"abcd")


def close(code=1000, reason=b""):
    return control(8, struct.pack(">H", code) + reason)


def closing(code, reason=b""):
    """A server's Close frame."""
    payload = struct.pack(">H", code) + reason
    return bytes([0x88, len(payload)]) + payload


@pytest.fixture
def client():
    return Client()


@pytest.fixture(autouse=True)
def nothing_stays_open():
    MADE.clear()
    yield
    for made in MADE:
        made.end.close()
        made.connection.close_fd()


def is_over(client):
    assert client.connection.fd == -1
    assert client.connection.state == State.GONE
    assert client.told.ends[-1] == "descriptor closed"
    assert client.turn.counters.connections == client.turn.counters.sockets == 0
    assert not client.turn.closing_due
    return True


# messages


def test_whole_messages_need_no_decoder_and_parts_do(client):
    client.says(text("a"))
    client.says(text("b"), text("c" * 300), mask_frame(encode_message(b"\x00", False), b"4321"))
    assert client.told.messages == ["a", "b", "c" * 300, b"\x00"]
    assert client.connection.decoder is None
    frame = text("in parts")
    for byte in frame[:-1]:
        client.says(bytes([byte]))
        assert client.connection.decoder is not None
    client.says(frame[-1:], text("behind"))
    assert client.told.messages[4:] == ["in parts", "behind"]
    assert client.connection.decoder is None


def test_a_whole_message_and_a_part_in_one_read(client):
    frame = text("second")
    client.says(text("first") + frame[:4])
    assert client.told.messages == ["first"]
    client.says(frame[4:])
    assert client.told.messages == ["first", "second"]


def test_nothing_to_read_is_nothing(client):
    client.connection.ready(READ)
    assert client.connection.state == State.OPEN
    assert not client.told.messages
    assert not client.ends


def test_what_is_sent_in_a_turn_leaves_in_order(client):
    for word in (b"a", b"b", b"c"):
        assert client.connection.send_frame(encode_message(word, True))
    assert received(client.end) == b""  # not before the turn ends
    assert client.hears() == b"\x81\x01a\x81\x01b\x81\x01c"


def test_no_message_is_heard_behind_a_failure(client):
    client.says(text("a"), b"\x81\x01x", text("b"))  # the second is not masked
    assert client.told.messages == ["a"]
    assert [end[:2] for end in client.ends] == [("failed", 1002)]


# the closing handshake


def test_the_client_closes_first(client):
    client.says(text("a"), close(1000, b"bye"), text("b"))
    assert client.told.messages == ["a"]
    assert client.ends == [("closed", 1000, "bye", True)]
    assert client.connection.state == State.PEER_CLOSED
    assert client.turn.closing_due
    assert client.connection.send_frame(encode_message(b"last", True))
    client.connection.close(1000, "bye")
    assert client.connection.state == State.FLUSHING
    assert client.hears() == b"\x81\x04last" + closing(1000, b"bye") + b"<end>"
    assert is_over(client)
    assert client.ends == [("closed", 1000, "bye", True)]


def test_the_program_closes_first(client):
    client.connection.close(4000, "enough")
    assert client.connection.state == State.CLOSING
    assert client.hears() == closing(4000, b"enough")
    assert not client.connection.send_frame(encode_message(b"late", True))
    client.connection.close(4001, "twice")
    client.says(text("on its way"))
    assert client.told.messages == ["on its way"]
    client.says(control(9, b"?"))
    assert client.hears() == b""  # nothing behind a Close
    assert client.turn.closing_due
    client.says(close(4000))
    assert client.ends == [("closed", 4000, "", True)]
    assert is_over(client)


def test_a_close_behind_a_message_in_one_read_ends_both(client):
    client.connection.close(1000, "")
    client.hears()
    client.says(text("x"), close())
    assert client.told.messages == ["x"]
    assert is_over(client)


def test_1006_cuts_without_a_frame(client):
    client.connection.close(1006, "cut")
    assert client.ends == [("closed", 1006, "cut", False)]
    assert received(client.end) == b"<end>"
    assert is_over(client)


@pytest.mark.parametrize("before", [State.PEER_CLOSED, State.ENDED, State.FLUSHING, State.LINGERING])
def test_1006_tells_no_second_end(client, before):
    client.connection.state = before
    client.connection.close(1006, "cut")
    assert client.ends == []
    assert is_over(client)


def test_a_stream_that_ends_while_closing_is_abnormal(client):
    client.connection.close(1000, "")
    client.hears()
    client.end.close()
    client.connection.ready(READ)
    assert client.ends == [("closed", 1006, "WebSocket disconnected without sending Close frame.", False)]
    assert is_over(client)


def test_a_broken_descriptor_is_an_end(client):
    client.says(text("a"))
    client.connection.lost()
    assert client.ends == [("closed", 1006, "WebSocket disconnected without sending Close frame.", False)]
    assert is_over(client)


@pytest.mark.parametrize("state", [State.PEER_CLOSED, State.ENDED, State.FLUSHING, State.LINGERING])
def test_a_broken_descriptor_is_no_second_end(client, state):
    client.connection.state = state
    client.connection.lost()
    assert client.ends == []
    assert is_over(client)


# half-closed clients


def test_a_half_closed_client_still_hears(client):
    client.says(text("question"))
    client.end.shutdown(1)
    client.connection.ready(READ)
    assert client.connection.state == State.ENDED
    assert client.ends == [("closed", 1006, "WebSocket disconnected without sending Close frame.", False)]
    assert client.turn.reactor.masks[client.connection.fd] == 0  # not read: it would be ready for ever
    assert client.turn.closing_due
    assert client.connection.send_frame(encode_message(b"answer", True))
    assert client.hears() == b"\x81\x06answer"
    client.connection.end_finished()
    assert client.connection.state == State.GONE
    assert client.hears() == b"<end>"
    assert is_over(client)


def test_a_half_closed_client_with_output_is_let_go_when_it_has_left(client):
    client.fill()
    client.end.shutdown(1)
    client.connection.ready(READ)
    client.connection.end_finished()
    assert client.connection.state == State.FLUSHING
    assert client.connection.fd >= 0
    client.drain()
    assert is_over(client)


def test_half_closed_after_its_close_frame_is_told_once(client):
    client.says(close(1000))
    client.end.shutdown(1)
    client.connection.ready(READ)
    assert client.connection.state == State.ENDED
    assert client.ends == [("closed", 1000, "", True)]
    client.connection.close(1000, "")
    assert client.hears() == closing(1000) + b"<end>"
    assert is_over(client)


def test_half_closed_and_nobodys_is_over():
    client = Client(plain=False)
    client.end.shutdown(1)
    client.connection.ready(READ)
    assert is_over(client)
    client.end.close()


def test_an_end_that_is_done_changes_nothing_in_other_states(client):
    for state in (State.OPEN, State.PEER_CLOSED, State.CLOSING, State.FLUSHING, State.LINGERING):
        client.connection.state = state
        client.connection.end_finished()
        assert client.connection.state == state
        assert client.connection.fd >= 0


# failures


def test_a_failure_is_told_lingers_and_is_cut_by_their_end(client):
    client.connection.fail(1002, "wrong")
    assert client.ends == [("failed", 1002, "wrong")]
    assert client.connection.state == State.LINGERING
    assert client.turn.closing_due
    assert client.hears() == closing(1002, b"wrong") + b"<end>"  # our half only: theirs is read on
    assert client.connection.fd >= 0
    client.says(text("dropped"))
    assert not client.told.messages
    client.end.close()
    client.connection.ready(READ)
    assert client.ends == [("failed", 1002, "wrong")]
    assert is_over(client)


def test_a_failed_client_that_floods_is_cut(client, monkeypatch):
    monkeypatch.setattr(module, "_LINGER_BYTES", 10)
    client.connection.fail(1002, "wrong")
    client.hears()
    client.says(b"x" * 10)
    assert client.connection.fd >= 0
    client.says(b"x")
    assert is_over(client)


@pytest.mark.parametrize(
    ("state", "told", "frame"),
    [
        (State.OPEN, True, True),
        (State.PEER_CLOSED, False, True),
        (State.ENDED, False, True),
        (State.CLOSING, True, False),
        (State.FLUSHING, False, None),
        (State.LINGERING, False, None),
        (State.GONE, False, None),
    ],
)
def test_a_failure_in_each_state(client, state, told, frame):
    """`frame`: None if nothing happens."""
    client.connection.state = state
    client.connection.fail(1009, "big")
    assert bool(client.ends) == told
    assert client.connection.state == (state if frame is None else State.LINGERING)
    assert (closing(1009, b"big") in client.hears()) == (frame is True)


@pytest.mark.parametrize(
    ("state", "following"),
    [
        (State.OPEN, State.CLOSING),
        (State.PEER_CLOSED, State.FLUSHING),
        (State.ENDED, State.FLUSHING),
        (State.CLOSING, State.CLOSING),
        (State.FLUSHING, State.FLUSHING),
        (State.LINGERING, State.LINGERING),
        (State.GONE, State.GONE),
    ],
)
def test_our_close_in_each_state(client, state, following):
    client.connection.state = state
    client.connection.close(1000, "")
    assert client.connection.state == following
    assert not client.ends
    wrote = client.connection.out is not None
    assert wrote == (state != following)
    assert bool(client.turn.closing_due) == (following == State.CLOSING != state)


@pytest.mark.parametrize("state", [State.CLOSING, State.FLUSHING, State.LINGERING, State.GONE])
def test_no_message_leaves_behind_our_close(client, state):
    client.connection.state = state
    assert client.connection.send_frame(encode_message(b"late", True)) is False
    assert client.connection.out is None
    assert client.hears() == b""


@pytest.mark.parametrize("state", [State.OPEN, State.PEER_CLOSED, State.ENDED])
def test_a_message_leaves_before_our_close(client, state):
    client.connection.state = state
    assert client.connection.send_frame(encode_message(b"hi", True)) is True
    assert client.hears() == encode_message(b"hi", True)


def test_1006_while_closing_is_the_one_end(client):
    client.connection.close(1000, "")
    client.connection.close(1006, "cut")
    assert client.ends == [("closed", 1006, "cut", False)]
    assert is_over(client)


@pytest.mark.parametrize("state", [State.OPEN, State.PEER_CLOSED, State.ENDED, State.CLOSING])
def test_a_failure_has_a_deadline_in_each_state(client, state):
    client.connection.state = state
    client.connection.fail(1009, "big")
    (due,) = client.turn.closing_due.values()
    client.hears()
    client.waits_s(due - client.turn.loop.time() - 0.02)
    assert client.connection.fd >= 0
    client.waits_s(0.03)
    assert is_over(client)
    assert len(client.ends) == (state in (State.OPEN, State.CLOSING))


@pytest.mark.parametrize("size", [40_000, 70_000, 3_000_000])
def test_a_large_message_leaves_at_once_and_whole(client, size):
    payload = bytes(range(256)) * (size // 256)
    assert client.connection.send_large(message_head(len(payload), False), payload) is True
    if size > 1_000_000:
        assert type(client.connection.out) is Backlog
        assert client.connection.out.size < size
    behind = b"" if size > 1_000_000 else encode_message(b"behind it", True)  # more would be closed as a slow reader
    if behind:
        client.connection.write(behind)
        flush(client.turn)
    assert client.drain() == encode_message(payload, False) + behind


def test_a_large_message_waits_behind_what_is_queued(client):
    client.connection.write(encode_message(b"first", True))
    assert client.connection.send_large(b"", bytes(40_000)) is False
    assert client.hears() == encode_message(b"first", True)
    client.fill()
    assert client.connection.send_large(b"", bytes(40_000)) is False


def test_a_large_message_of_which_the_kernel_takes_a_part_of_the_head(client, monkeypatch):
    payload = bytes(40_000)
    monkeypatch.setattr(module.os, "writev", lambda fd, parts: module._write(fd, parts[0][:3]))
    assert client.connection.send_large(message_head(len(payload), True), payload) is True
    monkeypatch.undo()
    assert client.drain() == encode_message(payload, True)


@pytest.mark.parametrize("state", [State.CLOSING, State.FLUSHING, State.LINGERING, State.GONE])
def test_no_large_message_leaves_behind_our_close(client, state):
    client.connection.state = state
    assert client.connection.send_large(b"", bytes(40_000)) is False
    assert client.hears() == b""


def test_memory_of_large_messages_goes_back_when_all_is_quiet_and_not_often(client, monkeypatch):
    trims = []
    monkeypatch.setattr(memory, "trim", lambda: trims.append(client.turn.loop.time()))
    began = client.turn.loop.time()

    waiting = []

    def passes(seconds):
        for _ in range(seconds):
            now = client.turn.loop.time()
            waiting.extend((now + delay, call) for delay, call, _ in client.turn.timers)
            client.turn.timers.clear()
            client.turn.clock.advance(1)
            for entry in [entry for entry in waiting if entry[0] <= now + 1]:
                waiting.remove(entry)
                entry[1]()

    for _ in range(10):  # one every second: never quiet
        client.turn.large_message()
        passes(1)
    assert trims == []
    passes(10)
    assert len(trims) == 1
    for _ in range(10):  # one every six seconds
        client.turn.large_message()
        passes(6)
    assert len(trims) == 2
    passes(300)
    assert len(trims) <= 3
    assert client.turn.loop.time() - began > 370
    assert not client.turn.timers
    assert not waiting


@pytest.mark.parametrize("at", [10, 70_000, 150_000])
def test_a_large_frame_is_read_to_where_it_belongs(client, at):
    payload = bytes(range(256)) * 800
    data = mask_frame(encode_message(payload, False), b"1234") + text("behind")
    client.end.setblocking(True)
    for piece in (data[:at], data[at:]):
        rest = piece
        while rest:
            sent = client.end.send(rest[:50_000])
            rest = rest[sent:]
            client.connection.ready(READ)
    for _ in range(2):
        client.connection.ready(READ)  # what came behind it is another read
    assert client.told.messages == [payload, "behind"]
    assert client.connection.decoder is None


@pytest.mark.parametrize("how", ["half-closed", "broken"])
def test_a_client_that_goes_within_a_large_frame(client, how, monkeypatch):
    client.says(mask_frame(encode_message(bytes(200_000), False), b"1234")[:5000])
    assert client.connection.decoder.room() is not None
    if how == "broken":
        monkeypatch.setattr(module.os, "readv", lambda *_: (_ for _ in ()).throw(ConnectionResetError()))
        client.connection.ready(READ)
        monkeypatch.undo()
        assert client.connection.fd == -1
    else:
        client.connection.ready(READ)  # nothing has come
        assert client.ends == []
        client.end.shutdown(1)
        client.connection.ready(READ)
    assert client.ends == [("closed", 1006, "WebSocket disconnected without sending Close frame.", False)]
    assert client.connection.decoder is None or client.connection.fd == -1


# deadlines


def test_a_program_that_never_answers_a_close_is_answered_for(client):
    client.says(close(1000))
    client.waits_s(client.turn.limits.close_timeout_s - 0.5)
    assert client.connection.state == State.PEER_CLOSED
    client.waits_s(0.5)
    assert received(client.end) == b"\x88\x00<end>"
    assert is_over(client)
    assert len(client.ends) == 1


def test_a_program_that_never_answers_one_who_does_not_read(client):
    client.fill()
    client.says(close(1000))
    client.waits_s(client.turn.limits.close_timeout_s)
    assert client.connection.state == State.FLUSHING
    assert client.connection.fd >= 0
    client.waits_s(client.turn.limits.close_timeout_s)
    assert is_over(client)


@pytest.mark.parametrize(
    ("state", "told"),
    [(State.CLOSING, True), (State.LINGERING, False), (State.FLUSHING, False), (State.ENDED, False)],
)
def test_a_handshake_that_takes_too_long(client, state, told):
    client.connection.state = state
    client.turn.close_deadline(client.connection)
    client.waits_s(client.turn.limits.close_timeout_s - 0.5)
    assert client.connection.fd >= 0
    client.waits_s(0.5)
    assert is_over(client)
    assert client.ends == ([("closed", 1006, "WebSocket disconnected without sending Close frame.", False)] if told else [])


@pytest.mark.parametrize("end", ["close", "fail"])
def test_an_end_that_finds_the_client_gone_leaves_no_deadline(client, end):
    client.end.close()
    for _ in range(511):
        client.connection.write(b"x")  # one more, and it is written at once
    getattr(client.connection, end)(1000, "")
    assert client.connection.fd == -1
    assert not client.turn.closing_due


def test_an_open_one_has_no_deadline(client):
    client.turn.close_deadline(client.connection)
    client.waits_s(100)
    assert client.connection.state == State.OPEN
    client.turn.closing_due.clear()
    client.connection.state = State.CLOSING
    client.connection.expire(client.turn.loop.time())
    assert client.connection.fd >= 0  # nobody has set one


# pings


def test_a_ping_is_answered(client):
    client.says(control(9, b"are you there"))
    assert client.hears() == b"\x8a\x0dare you there"


def test_too_many_pings_are_an_end():
    client = Client(max_pings_per_s=3)
    client.says(*[control(9)] * 3)
    assert client.hears() == b"\x8a\x00" * 3
    client.says(control(9))
    assert [end[:2] for end in client.ends] == [("failed", 1008)]
    assert client.turn.counters.closed_ping_flood == 1


def test_behind_a_backlog_one_pong_waits_and_it_is_the_newest(client):
    client.fill()
    client.says(control(9, b"1"))
    assert client.turn.counters.pongs_merged == 0
    client.says(control(9, b"2"))
    client.says(control(9, b"3"))
    assert client.turn.counters.pongs_merged == 2
    client.connection.send_frame(encode_message(b"last", True))
    data = client.drain()
    assert data.endswith(b"\x81\x04last\x8a\x013")
    assert data.count(b"\x8a\x01") == 1
    client.says(text("goes on"))
    assert client.told.messages == ["goes on"]


# clients that do not read


def test_one_who_does_not_read_is_closed_after_what_it_was_promised():
    client = Client(max_outbound_bytes=500_000)
    client.fill(backlog=500_001)
    client.connection.write(encode_message(b"too much", True))
    assert client.turn.counters.closed_slow_reader == 1
    assert [end[:2] for end in client.ends] == [("failed", 1013)]
    assert client.connection.state == State.LINGERING
    data = client.drain()
    assert data.endswith(b"<end>")
    assert closing(1013) in data or data.rindex(b"\x88") > data.rindex(b"\x82")
    assert b"too much" not in data
    client.connection.write(b"more")
    assert client.turn.counters.closed_slow_reader == 1


def test_one_who_does_not_read_may_miss_the_oldest():
    client = Client(max_outbound_bytes=500_000, drop_oldest=True)
    client.fill(backlog=500_001)
    for number in range(100):
        client.connection.write(encode_message(b"%03d" % number + b"y" * 30_000, False))
    assert client.turn.counters.dropped_oldest > 0
    assert client.connection.out.size <= 500_000 + 30_100
    assert client.connection.state == State.OPEN
    assert b"099yyy" in client.drain()


def test_no_end_is_told_to_one_who_is_closing_already():
    client = Client(max_outbound_bytes=100)
    client.fill()
    client.connection.state = State.FLUSHING
    client.connection.overflowed(b"x")
    assert not client.ends
    assert client.turn.counters.closed_slow_reader == 0


def test_a_close_waits_behind_the_backlog(client):
    client.fill()
    client.connection.close(1000, "bye")
    assert client.connection.state == State.CLOSING
    assert closing(1000, b"bye") == client.drain()[-7:]


def test_a_backlog_and_their_close_is_watched_for_writing_only(client):
    client.fill()
    client.says(close(1000))
    client.connection.close(1000, "")
    assert client.connection.state == State.FLUSHING
    assert client.turn.reactor.masks[client.connection.fd] == WRITE
    assert client.turn.closing_due
    assert client.drain().endswith(closing(1000) + b"<end>")
    assert is_over(client)


def test_their_close_after_ours_behind_a_backlog(client):
    client.fill()
    client.connection.close(1000, "")
    client.says(close(1000))
    assert client.connection.state == State.FLUSHING
    assert client.turn.reactor.masks[client.connection.fd] == WRITE
    client.drain()
    assert is_over(client)


# what is watched


def test_what_a_connection_is_watched_for(client):
    connection = client.connection
    assert connection.wanted() == READ
    client.turn.held_back.add(connection.number)
    assert connection.wanted() == 0
    client.turn.held_back.clear()
    for state, wanted in (
        (State.PEER_CLOSED, READ), (State.CLOSING, READ), (State.LINGERING, READ), (State.FLUSHING, 0), (State.ENDED, 0),
    ):  # fmt: skip
        connection.state = state
        assert connection.wanted() == wanted


def test_readable_and_writable_at_once(client):
    client.fill()
    client.end.sendall(text("while it was full"))
    received(client.end)
    client.connection.ready(READ | WRITE)
    assert client.told.messages == ["while it was full"]


# compression


def test_compressed_both_ways():
    client = Client(compress_min_bytes=10)
    client.connection.deflate = 15
    client.connection.send_frame(encode_message(b"hello" * 100, True))
    frame = client.hears()
    assert frame[0] == 0xC1
    assert len(frame) < 50
    payload = zlib.decompressobj(-15).decompress(frame[2:] + b"\x00\x00\xff\xff")
    assert payload == b"hello" * 100
    deflater = zlib.compressobj(wbits=-15)
    data = (deflater.compress(b"inwards" * 10) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    client.says(mask_frame(bytes([0xC1, len(data)]) + data, b"1234"))
    assert client.told.messages == ["inwards" * 10]


# for another process


def moved(client):
    """The same connection in the hands of a successor's turn."""
    told = client.connection.described()
    turn = make_turn()
    after = Connection(turn, told.fd, told.number, client.slot.plain)
    turn.adopt(after)
    after.restore(told)
    client.connection, client.turn = after, turn
    return told


def test_it_describes_itself_and_goes_on(client):
    connection = client.connection
    connection.tags, connection.attachment, connection.protocol, connection.auto_at_ms = ("t",), b"a", "chat", 7
    frame = text("half")
    client.says(frame[:5])
    client.turn.close_deadline(connection, 3.0)
    client.turn.held_back.add(connection.number)
    told = moved(client)
    assert (told.slot, told.actor, told.relay, told.dialled) == (0, 0, 0, False)
    assert told.closing_in_s == 3.0
    assert told.held_back
    after = client.connection
    assert (after.tags, after.attachment, after.protocol, after.auto_at_ms) == (("t",), b"a", "chat", 7)
    client.says(frame[5:])
    assert client.told.messages == ["half"]


def test_what_waits_goes_along(client):
    client.connection.write(b"\x81\x01a")
    client.connection.write(b"\x81\x01b")
    told = moved(client)
    assert told.backlog == [b"\x81\x01a", b"\x81\x01b"]
    assert client.drain() == b"\x81\x01a\x81\x01b"


def test_a_backlog_and_its_pong_go_along(client):
    client.fill()
    client.says(control(9, b"x"))
    size = client.connection.out.size
    told = moved(client)
    assert sum(map(len, told.backlog)) == size
    assert client.connection.out.pong == b"\x8a\x01x"
    assert client.drain().endswith(b"\x8a\x01x")


def test_a_pong_alone_goes_along(client):
    client.connection.out = Backlog()
    client.connection.out.pong = b"\x8a\x00"
    told = moved(client)
    assert told.backlog == []
    assert client.drain() == b"\x8a\x00"


def test_nothing_special_is_described_as_nothing(client):
    told = moved(client)
    assert told.backlog == []
    assert (told.pong, told.decoder, told.closing_in_s, told.held_back) == (None, None, None, False)
    assert client.connection.out is None
    assert client.connection.decoder is None


def test_a_relay_names_the_other(client):
    other = Client()
    client.connection.owner = Relay(other.connection)
    told = client.connection.described()
    assert (told.slot, told.relay) == (-1, other.connection.number)


# a room's targets


def test_flush_all_writes_to_each_and_one_that_breaks_hinders_none(client, caplog):
    class Broken(Connection):
        def flush(self):
            raise ZeroDivisionError

    second = Client(kind=Broken)
    for each in (second, client):
        each.connection.send_frame(encode_message(b"hi", True))
    flush_all([second.connection, client.connection])
    assert received(client.end) == b"\x81\x02hi"
    assert client.connection.out is None
    assert "internal error while writing" in caplog.text
    assert second.connection.fd == -1


def test_flush_all_keeps_what_the_kernel_does_not_take(client):
    client.connection.out = b"z" * 4_000_000
    flush_all([client.connection])
    assert type(client.connection.out) is Backlog
    assert len(client.drain()) == 4_000_000


def test_flush_all_finds_a_client_that_has_gone(client):
    client.end.close()
    client.connection.send_frame(encode_message(b"hi", True))
    flush_all([client.connection])
    assert is_over(client)
    assert len(client.ends) == 1


def test_a_socket_is_found_by_its_number(client):
    turn, number = client.turn, client.connection.number
    assert find_socket(turn, number) is client.connection
    assert find_socket(turn, number + (1 << 20)) is None
    turn.reactor.table[9] = object.__new__(Client)
    turn.reactor.table[9].number = 9
    assert find_socket(turn, 9) is None
