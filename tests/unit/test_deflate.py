"""permessage-deflate: negotiation, bounds, and every split of the bytes. Source: RFC 7692."""

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.closes import CloseCode
from roost.errors import RemoteProtocolError
from roost.protocol import compression
from roost.protocol.compression import deflate, inflate
from roost.protocol.deflate import OFFER, agree, check_agreed, parse_extensions
from roost.protocol.websocket import (
    Decoder,
    Failure,
    deflate_frame,
    encode_message,
    mask_frame,
)

MASK = b"\x01\x02\x03\x04"


@pytest.fixture(autouse=True, scope="module", params=["as installed", "isal", "zlib"])
def library(request):
    """Everything by isal, everything by zlib, and each where it is ahead."""
    fast, *least = compression.fast, compression._ISAL_FROM_BYTES, compression._ISAL_INFLATES_FROM_BYTES
    if request.param == "zlib":
        compression.fast = None
    elif request.param == "isal":
        if fast is None:
            pytest.skip("without isal")
        compression._ISAL_FROM_BYTES = compression._ISAL_INFLATES_FROM_BYTES = 1
    yield request.param
    compression.fast, compression._ISAL_FROM_BYTES, compression._ISAL_INFLATES_FROM_BYTES = fast, *least


def decoder(max_bytes=1 << 20, deflate=True):
    return Decoder(max_bytes, masked=True, deflate=deflate)


def compressed(payload, text=True, bits=15):
    frame = deflate_frame(encode_message(payload, text), bits, 6)
    assert frame[0] & 0x40
    return frame


@pytest.mark.parametrize(
    ("offer", "bits", "answer"),
    [
        ("permessage-deflate", 15, OFFER),
        ("permessage-deflate; client_max_window_bits", 15, OFFER),
        ('permessage-deflate; server_max_window_bits="10"', 10, f"{OFFER}; server_max_window_bits=10"),
        ("permessage-deflate; server_max_window_bits=8", 8, f"{OFFER}; server_max_window_bits=8"),
        ("permessage-deflate; nonsense, permessage-deflate", 15, OFFER),
        ("x-webkit-deflate-frame, permessage-deflate; server_no_context_takeover", 15, OFFER),
        ("permessage-deflate; server_max_window_bits=7", 0, ""),
        ("permessage-deflate; server_max_window_bits=016", 0, ""),
        ("permessage-deflate; server_max_window_bits", 0, ""),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", 0, ""),
        ("permessage-deflate; server_no_context_takeover=1", 0, ""),
        ("something-else", 0, ""),
        ("permessage-deflate; ;", 0, ""),
        ("", 0, ""),
    ],
)
def test_what_a_server_agrees_to(offer, bits, answer):
    assert agree(offer) == (bits, answer)


def test_the_worker_decides():
    assert agree("permessage-deflate", "") == (0, "")
    assert agree("permessage-deflate", "something") == (0, "")
    assert agree("permessage-deflate", "permessage-deflate") == (15, OFFER)
    assert agree("", "permessage-deflate") == (0, "")  # what was not offered cannot be chosen


def test_offers_in_several_headers():
    assert agree("bbf-usp-protocol, permessage-deflate; server_max_window_bits=9")[0] == 9


def test_parsing():
    assert parse_extensions('a; b=1; c="x y", d') == [("a", [("b", "1"), ("c", "x y")]), ("d", [])]
    with pytest.raises(ValueError, match="cannot be parsed"):
        parse_extensions("a=;")


@pytest.mark.parametrize(
    ("answer", "bits"),
    [(None, 0), ("", 0), (OFFER, 15), ("permessage-deflate; server_no_context_takeover; server_max_window_bits=9", 15)],
)
def test_what_a_client_takes(answer, bits):
    assert check_agreed(answer, offered=True) == bits


@pytest.mark.parametrize(
    "answer",
    [
        "permessage-deflate",  # it would keep its window
        "permessage-deflate; server_no_context_takeover; client_max_window_bits=9",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=99",
        f"{OFFER}; server_no_context_takeover",
        f"{OFFER}, permessage-deflate",
        "other",
        ";;",
    ],
)
def test_what_a_client_refuses(answer):
    with pytest.raises(RemoteProtocolError, match="upstream"):
        check_agreed(answer, offered=True)


def test_an_upstream_that_chooses_what_was_not_offered():
    with pytest.raises(RemoteProtocolError, match="not offered"):
        check_agreed(OFFER, offered=False)


@given(st.binary(max_size=5000), st.sampled_from([8, 9, 12, 15]))
def test_there_and_back(payload, bits):
    payload += b"a" * 50
    data = deflate(payload, bits, 6)
    if data is not None:
        assert inflate(data, len(payload)) == payload
        # What the peer was told about the window is kept to: a decompressor of that size must do.
        if bits >= 9:
            decompressor = zlib.decompressobj(-bits)
            assert decompressor.decompress(data + b"\x00\x00\xff\xff") == payload


@pytest.mark.parametrize("bits", range(8, 16))
@pytest.mark.parametrize("level", [1, 9])
def test_windows_are_honoured(bits, level):
    """What repeats itself at every distance: whoever has a window of the size that was agreed on must do with it."""
    block = os.urandom(200)
    payload = bytes(30_000) + b"".join(
        block + os.urandom(distance) for distance in (0, 20, 250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000)
    )
    data = deflate(payload, bits, level)
    if data is not None:
        assert zlib.decompressobj(-bits).decompress(data + b"\x00\x00\xff\xff") == payload
        assert inflate(data, len(payload)) == payload
    assert (data is None) == (bits == 8)


@pytest.mark.parametrize("size", [255, 256, 599, 600, 601, 4096, 65_536, 131_072, 131_073, 1_000_000])
def test_sizes(size, library):
    payload = (b"some text, and numbers: %d. " % size * (size // 20))[:size]
    data = deflate(payload, 15, 6)
    if compression.fast is None and size > 131_072:
        assert data is None  # it would hold others up
    else:
        assert len(data) < size // 3
        assert zlib.decompressobj(-15).decompress(data + b"\x00\x00\xff\xff") == payload
        assert inflate(data, size) == payload
        assert inflate(data, size - 1) is None


def test_what_others_compress():
    payload = b"".join(b"%d " % number for number in range(40_000))
    for level in (0, 1, 9):
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY):
            compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
            data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
            assert inflate(data[:-4], len(payload)) == payload
            ended = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
            data = ended.compress(payload) + ended.flush() + b"\0"  # RFC 7692 §7.2.3.4: a last block
            assert inflate(data, len(payload)) == payload


def test_a_window_of_256_bytes():
    assert deflate(b"a" * 257, 8, 6) is None
    assert inflate(deflate(b"a" * 256, 8, 6), 256) == b"a" * 256


def test_what_does_not_get_smaller_leaves_as_it_is():
    noise = os.urandom(1000)
    frame = encode_message(noise, False)
    assert deflate_frame(frame, 15, 6) is frame


def test_the_rfcs_examples():
    """RFC 7692 §7.2.3.1, .3 (no compression) and .4 (a stream that ends)."""
    assert inflate(bytes.fromhex("f248cdc9c90700"), 100) == b"Hello"
    assert inflate(bytes.fromhex("000500faff48656c6c6f00"), 100) == b"Hello"
    assert inflate(bytes.fromhex("f348cdc9c9070000"), 100) == b"Hello"
    assert inflate(bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", "")), 100) == b"Hello"


@given(st.text(max_size=3000), st.lists(st.integers(1, 200), max_size=20))
def test_every_split_gives_the_same(text, splits):
    frame = compressed((text + "x" * 300).encode())
    data = mask_frame(frame, MASK)
    events, reader = [], decoder()
    for size in splits:
        events += reader.feed(data[:size])
        data = data[size:]
        again = decoder()
        again.restore(reader.state())  # another process goes on
        reader = again
    events += reader.feed(data)
    assert events == [text + "x" * 300]
    assert reader.idle


def fragments(payload, sizes, first):
    """Frames of a message in pieces; only the first has the opcode and RSV1."""
    frames, position = b"", 0
    for nth, size in enumerate([*sizes, len(payload)]):
        piece = payload[position : position + size] if nth < len(sizes) else payload[position:]
        position += size
        head = (first if nth == 0 else 0) | (0x80 if nth == len(sizes) else 0)
        whole = encode_message(piece, True)
        frames += mask_frame(bytes((head,)) + whole[1:], MASK)
    return frames


def test_fragments_of_a_compressed_message():
    text = "Hello, compressed world! " * 20
    body = compressed(text.encode())
    payload = body[2:] if body[1] < 126 else body[4:]
    reader = decoder()
    data = fragments(payload, [1, 5, 0, 7], 0x41)
    events = [event for byte in data for event in reader.feed(bytes((byte,)))]
    assert events == [text]


@pytest.mark.parametrize(
    ("frame", "agreed"),
    [
        (b"\xc1\x80" + MASK, False),  # nothing was agreed
        (b"\xe1\x80" + MASK, True),  # another reserved bit
        (b"\xc9\x80" + MASK, True),  # a compressed ping
        (b"\x41\x80" + MASK + b"\xc0\x80" + MASK, True),  # on a continuation
    ],
)
def test_reserved_bits(frame, agreed):
    events = decoder(deflate=agreed).feed(frame)
    assert [event.code for event in events] == [CloseCode.PROTOCOL_ERROR]


def test_a_bomb_takes_no_memory():
    import tracemalloc

    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = compressor.compress(b"\0" * (50 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
    assert len(bomb) < 60_000
    frame = mask_frame(encode_message(bomb, False), MASK)
    frame = bytes((0xC2,)) + frame[1:]
    tracemalloc.start()
    events = decoder(1 << 20).feed(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [event.code for event in events] == [CloseCode.TOO_BIG]
    assert peak < 4 << 20


def test_damage_and_bad_text():
    frame = compressed(b"a" * 500)
    broken = bytearray(mask_frame(frame, bytes(4)))
    broken[6] ^= 0xFF
    (failure,) = decoder().feed(bytes(broken))
    assert isinstance(failure, Failure)
    assert failure.code == CloseCode.INVALID_DATA
    (failure,) = decoder().feed(mask_frame(compressed(b"\xff" * 500), MASK))
    assert failure.code == CloseCode.INVALID_DATA


@given(st.binary(max_size=2000))
def test_noise_never_raises_anything_else(data):
    try:
        inflated = inflate(data, 10_000)
    except ValueError:
        return
    assert inflated is None or len(inflated) <= 10_000


def test_a_cut_message_and_endless_streams_are_refused():
    whole = deflate(b"some text that gets smaller " * 50, 15, 6)
    for cut in (1, 8, len(whole) // 2):
        with pytest.raises(ValueError, match=r"cut|damaged"):
            inflate(whole[:-cut], 100_000)
    import time

    began = time.monotonic()
    with pytest.raises(ValueError, match="streams"):
        inflate(b"\x03\x00" * 500_000, 100_000)  # each an empty stream: finding the next must not take the time
    assert time.monotonic() - began < 1.0
