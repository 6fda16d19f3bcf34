"""protocol/websocket.py: every split of the same bytes gives the same events; RFC 6455 rule by rule."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.protocol.websocket import (
    CloseFrame,
    Decoder,
    DecoderState,
    Failure,
    Opcode,
    Ping,
    Pong,
    close_payload,
    decode_messages,
    decode_short_text,
    encode_control,
    encode_message,
    is_valid_close_code,
    mask_frame,
    unmask,
)

MASK = b"\x11\x22\x33\x44"
LIMIT = 1 << 20


def masked(frame: bytes) -> bytes:
    return mask_frame(frame, MASK)


def frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    head = bytes((opcode | (0x80 if fin else 0),))
    if len(payload) < 126:
        head += bytes((len(payload),))
    elif len(payload) < 65536:
        head += b"\x7e" + len(payload).to_bytes(2, "big")
    else:
        head += b"\x7f" + len(payload).to_bytes(8, "big")
    return masked(head + payload)


def events_of(data: bytes, limit: int = LIMIT) -> list:
    return Decoder(limit, masked=True).feed(data)


texts = st.text(max_size=300)
messages = st.one_of(texts, st.binary(max_size=300))


@st.composite
def streams(draw):
    """Frames of a well-behaved client, and the events they mean."""
    data, events = b"", []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["whole", "fragments", "ping", "pong"]))
        if kind == "ping":
            payload = draw(st.binary(max_size=125))
            data += frame(9, payload)
            events.append(Ping(payload))
        elif kind == "pong":
            payload = draw(st.binary(max_size=125))
            data += frame(10, payload)
            events.append(Pong(payload))
        else:
            message = draw(messages)
            raw = message.encode() if isinstance(message, str) else message
            opcode = 1 if isinstance(message, str) else 2
            if kind == "whole":
                data += frame(opcode, raw)
            else:
                cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=3)))
                pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
                for index, piece in enumerate(pieces):
                    data += frame(opcode if index == 0 else 0, piece, fin=index == len(pieces) - 1)
            events.append(message)
    if draw(st.booleans()):
        data += frame(8, close_payload(1000, "bye"))
        events.append(CloseFrame(1000, "bye"))
    return data, events


@given(streams(), st.lists(st.integers(0, 2000), max_size=8))
def test_any_split_gives_the_same_events(stream, cuts):
    data, expected = stream
    decoder = Decoder(LIMIT, masked=True)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    events = []
    for start, end in itertools.pairwise(places):
        events += decoder.feed(data[start:end])
    assert events == expected


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_garbage_is_split_invariant_and_never_raises(data, cuts):
    whole = events_of(data, 200)
    decoder = Decoder(200, masked=True)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = []
    for start, end in itertools.pairwise(places):
        pieces += decoder.feed(data[start:end])
    assert pieces == whole
    assert decoder.buffered_bytes <= len(data)


@given(st.lists(messages, max_size=5), st.integers(0, 40))
def test_short_way_agrees_with_the_decoder(sent, cut):
    data = b"".join(frame(1 if isinstance(m, str) else 2, m.encode() if isinstance(m, str) else m) for m in sent)
    data = data[: len(data) - cut] if cut < len(data) else data
    found, end = decode_messages(data, LIMIT)
    assert [*found, *events_of(data[end:])] == events_of(data)


@given(messages, st.integers(0, 3), st.binary(max_size=2))
def test_the_shortest_way_agrees_with_the_decoder(sent, cut, behind):
    data = frame(1 if isinstance(sent, str) else 2, sent.encode() if isinstance(sent, str) else sent)
    data = data[: len(data) - cut] + behind
    found = decode_short_text(data, LIMIT)
    whole = isinstance(sent, str) and len(sent.encode()) < 126 and not cut and not behind
    assert found is None or [found] == events_of(data)
    assert found == sent if whole else True


@pytest.mark.parametrize("size", range(126))
def test_a_text_of_each_short_size_is_unmasked(size):
    text = "".join(chr(33 + at % 90) for at in range(size))
    for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x37\xfa\x21\x3d"):
        data = bytes((0x81, 128 + size)) + mask + unmask(text.encode(), mask)
        assert decode_short_text(data, 125) == text
        assert decode_short_text(data, size - 1) is None


def test_the_shortest_way_leaves_everything_else_to_the_others():
    whole = frame(1, b"ab")
    known = (frame(9, b""), frame(1, b"\xff"), frame(2, b"x"), frame(1, b"a", fin=False))
    for odd in (b"", b"\x81", b"\x81\x02hiabcd", whole + b"\x81", whole[:-1], *known):
        assert decode_short_text(odd, LIMIT) is None


def test_short_way_stops_at_what_it_does_not_know():
    good = frame(1, b"ok")
    for odd in (frame(9, b""), frame(1, b"\xff"), frame(1, b"x" * 70000)[:-1], b"\x81\x02hi", frame(1, b"a", fin=False)):
        assert decode_messages(good + odd, LIMIT) == (["ok"], len(good))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1\x80\x00\x00\x00\x00", 1002),  # RSV1 without an extension
        (b"\xa1\x80\x00\x00\x00\x00", 1002),
        (b"\x91\x80\x00\x00\x00\x00", 1002),
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # reserved data opcode
        (b"\x8b\x80\x00\x00\x00\x00", 1002),  # reserved control opcode
        (b"\x81\x02hi", 1002),  # not masked
        (frame(0, b"x"), 1002),  # continues nothing
        (frame(1, b"a", fin=False) + frame(1, b"b"), 1002),  # a message inside a message
        (frame(9, b"", fin=False), 1002),  # fragmented ping
        (b"\x89\xfe\x00\x7e", 1002),  # ping of 126 bytes
        (b"\x81\xfe\x00\x05", 1002),  # length not in its shortest form
        (b"\x81\xff" + (5).to_bytes(8, "big"), 1002),
        (b"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00", 1009),  # top bit of the length
        (b"\x81\xff" + (LIMIT + 1).to_bytes(8, "big"), 1009),  # before any of it arrives
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b"\xce", fin=False) + frame(0, b"\xff", fin=False), 1007),  # as soon as it is wrong
        (frame(1, b"\xce"), 1007),  # incomplete at the end
        (frame(8, b"\x03"), 1002),  # close of one byte
        (frame(8, (1005).to_bytes(2, "big")), 1002),
        (frame(8, (999).to_bytes(2, "big")), 1002),
        (frame(8, (5000).to_bytes(2, "big")), 1002),
        (frame(8, (1000).to_bytes(2, "big") + b"\xff"), 1007),
    ],
)
def test_faults(data, code):
    events = events_of(data)
    assert isinstance(events[-1], Failure), events
    assert events[-1].code == code
    decoder = Decoder(LIMIT, masked=True)
    decoder.feed(data)
    assert decoder.finished
    assert decoder.feed(frame(1, b"after")) == []


def test_exhaustive_first_two_bytes_never_raise():
    for first in range(256):
        for second in range(256):
            Decoder(LIMIT, masked=True).feed(bytes((first, second)) + b"\x00" * 12)


def test_exactly_the_limit_passes_and_one_more_fails():
    assert events_of(frame(2, b"x" * 1000), 1000) == [b"x" * 1000]
    assert events_of(frame(2, b"x" * 1001), 1000)[-1].code == 1009


def test_fragment_flood_is_bounded_by_overhead():
    """Empty fragments count: behaviour 4.1, "400,000 empty fragments"."""
    decoder = Decoder(10_000, masked=True)
    assert decoder.feed(frame(1, b"", fin=False)) == []
    for count in range(1000):
        events = decoder.feed(frame(0, b"", fin=False))
        if events:
            assert events[0].code == 1009
            assert count > 500
            return
    pytest.fail("never refused")


def test_65536_fragments_pass_within_a_large_limit():
    """Autobahn's 9.3.1 sends that many."""
    decoder = Decoder(16 << 20, masked=True)
    decoder.feed(frame(1, b"x" * 64, fin=False))
    for _ in range(65_534):
        decoder.feed(frame(0, b"x" * 64, fin=False))
    assert decoder.feed(frame(0, b"x" * 64)) == ["x" * 64 * 65_536]
    assert decoder.idle


def test_server_frames_must_not_be_masked():
    assert Decoder(LIMIT, masked=False).feed(frame(1, b"hi"))[-1].code == 1002
    assert Decoder(LIMIT, masked=False).feed(encode_message(b"hi", True)) == ["hi"]


@given(st.binary(max_size=70_000), st.booleans(), st.binary(min_size=4, max_size=4))
def test_encoding_is_decoded_back(payload, text, mask):
    if text:
        payload = payload.hex().encode()
    expected = payload.decode() if text else payload
    assert Decoder(LIMIT, masked=False).feed(encode_message(payload, text)) == [expected]
    assert Decoder(LIMIT, masked=True).feed(mask_frame(encode_message(payload, text), mask)) == [expected]


def test_unmask_is_the_rfcs_example():
    """RFC 6455 §5.7."""
    assert unmask(bytes.fromhex("7f9f4d5158"), bytes.fromhex("37fa213d")) == b"Hello"
    assert encode_message(b"Hello", True) == bytes.fromhex("810548656c6c6f")
    assert encode_control(Opcode.PING, b"Hello") == bytes.fromhex("890548656c6c6f")


def test_close_payload_is_cut_on_a_character():
    assert close_payload(1005, "x") == b""
    assert close_payload(1000, "é" * 100) == (1000).to_bytes(2, "big") + "é".encode() * 61


def test_close_codes():
    allowed = {code for code in range(6000) if is_valid_close_code(code)}
    assert allowed == {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


@given(st.data())
def test_a_decoder_goes_on_in_another_process(data):
    """Cut anywhere: the state, moved to a new decoder, gives the same events as if nothing had been."""
    stream = b"".join(
        mask_frame(frame, b"abcd")
        for frame in (
            encode_message("é€𝄞".encode(), True),
            bytes((0x01, 4)) + "é€".encode()[:4],
            encode_control(Opcode.PING, b"p"),
            bytes((0x80, 1)) + "é€".encode()[4:],
            encode_message(b"x" * 300, False),
            bytes((0x02, 1)) + b"a",
        )
    )
    whole = Decoder(1000, masked=True)
    expected = whole.feed(stream)
    cut = data.draw(st.integers(0, len(stream)))
    first, second = Decoder(1000, masked=True), Decoder(1000, masked=True)
    events = first.feed(stream[:cut])
    second.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.state()), type=DecoderState))
    assert events + second.feed(stream[cut:]) == expected
    assert second.state() == whole.state()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 255, 256, 257, 383, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("text", [True, False])
def test_every_length_form_through_every_path(size, text):
    """RFC 6455 §5.2: 7, 16 and 64 bits of length, by the hot path and by the decoder, whole and in pieces."""
    payload = (b"ab\xc3\xa9" * (size // 4 + 1))[:size] if not text else b"x" * size
    wanted = payload.decode() if text else payload
    frame = mask_frame(encode_message(payload, text), b"\x01\x80\xff\x00")
    assert decode_messages(frame, 1 << 20) == ([wanted], len(frame))
    assert decode_messages(frame + frame, 1 << 20) == ([wanted, wanted], 2 * len(frame))
    if text and size < 126:
        assert decode_short_text(frame, 1 << 20) == wanted
    assert Decoder(1 << 20, masked=True).feed(frame) == [wanted]
    decoder, found = Decoder(1 << 20, masked=True), []
    for start in range(0, len(frame), 1 if size < 300 else 997):
        found += decoder.feed(frame[start : start + (1 if size < 300 else 997)])
    assert found == [wanted]
    assert Decoder(1 << 20, masked=False).feed(encode_message(payload, text)) == [wanted]
    if size:
        assert decode_messages(frame[:-1], 1 << 20) == ([], 0)


@pytest.mark.parametrize(("opcode", "kind"), [(9, Ping), (10, Pong)])
@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_control_frames_up_to_125_bytes(opcode, kind, size):
    payload = bytes(range(size))
    for data, masked_ in ((frame(opcode, payload), True), (encode_control(opcode, payload), False)):
        assert Decoder(LIMIT, masked=masked_).feed(data) == [kind(payload)]
        decoder = Decoder(LIMIT, masked=masked_)
        assert [event for byte in data for event in decoder.feed(bytes((byte,)))] == [kind(payload)]


@pytest.mark.parametrize("opcode", [8, 9, 10])
def test_control_frames_of_126_bytes_are_an_error(opcode):
    (event,) = events_of(frame(opcode, bytes(126)))
    assert event.code == 1002


# large frames


def large_stream():
    """Whole and fragmented large messages with small ones and a ping between, and the events they mean."""
    text, binary = "ä" * 60_000, bytes(range(256)) * 300
    data = frame(2, binary) + frame(1, b"small") + frame(1, text.encode(), fin=False)
    data += frame(9, b"ping") + frame(0, text.encode()) + frame(2, binary * 3) + frame(1, b"last")
    return data, [binary, "small", Ping(b"ping"), text * 2, binary * 3, "last"]


def read_as_a_connection_does(decoder, data, sizes):
    """`data` in pieces of these sizes, over and over, each to where it belongs."""
    events, position, turn = [], 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        room = decoder.room()
        if room is None:
            events += decoder.feed(data[position : position + size])
        else:
            with room:
                size = min(size, len(room), len(data) - position)
                room[:size] = data[position : position + size]
            events += decoder.filled(size)
        position += size
    return events


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("sizes", [[1000], [65_536], [13, 1], [262_144], [7, 65_536, 3], [1 << 21], [64_999, 17]])
def test_large_frames_however_they_are_read(direct, sizes):
    data, expected = large_stream()
    decoder = Decoder(LIMIT, masked=True)
    if direct:
        assert read_as_a_connection_does(decoder, data, sizes) == expected
    else:
        events, position, turn = [], 0, 0
        while position < len(data):
            events += decoder.feed(data[position : position + sizes[turn % len(sizes)]])
            position += sizes[turn % len(sizes)]
            turn += 1
        assert events == expected
    assert decoder.idle
    assert decoder.buffered_bytes == 0
    assert decoder.room() is None


def test_no_more_is_taken_for_a_frame_than_some_times_what_has_come():
    decoder = Decoder(64 << 20, masked=True)
    whole = frame(2, bytes(20 << 20))
    assert decoder.feed(whole[:14]) == []
    assert decoder.buffered_bytes <= 4096, "a head alone must not pin memory"
    come = 14
    while come < 2 << 20:
        decoder.feed(whole[come : come + 50_000])
        come += 50_000
        assert come - 14 <= decoder.buffered_bytes <= 4 * come


def test_a_large_frame_is_refused_before_it_has_a_buffer():
    decoder = Decoder(100_000, masked=True)
    (event,) = decoder.feed(frame(2, bytes(100_001))[:20])
    assert event.code == 1009
    assert decoder.room() is None
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("cut", [10, 14, 20, 65_000, 76_800])
def test_a_large_frame_goes_on_in_another_process(cut):
    data, expected = large_stream()
    first, second = Decoder(LIMIT, masked=True), Decoder(LIMIT, masked=True)
    events = first.feed(data[:cut])
    second.restore(first.state())
    assert first.state() == second.state()
    assert not second.idle
    assert events + read_as_a_connection_does(second, data[cut:], [65_536]) == expected


def test_bad_text_in_a_large_fragment_ends_it():
    decoder = Decoder(LIMIT, masked=True)
    events = decoder.feed(frame(1, b"\xff" * 70_000, fin=False) + frame(0, bytes(70_000)))
    assert [event.code for event in events] == [1007]
    assert decoder.room() is None
    assert decoder.feed(b"more") == []


def test_large_frames_of_a_server():
    decoder = Decoder(LIMIT, masked=False)
    payload = bytes(range(256)) * 400
    data = encode_message(payload, False)
    assert decoder.feed(data[:70_000]) + decoder.feed(data[70_000:]) == [payload]
