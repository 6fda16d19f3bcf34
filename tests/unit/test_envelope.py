"""protocol/envelope.py: each event survives the wire, whatever the pieces it arrives in."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost import events as e
from roost.errors import RemoteProtocolError
from roost.protocol.envelope import HEADER_BYTES, Splitter, encode, encode_batch

REF = e.ObjectRef("Room", "ab" * 32, "löbby")

numbers = st.integers(0, 2**62)
tags = st.lists(st.text(), max_size=10).map(tuple)
entries = st.builds(e.RosterEntry, numbers, tags, st.none() | st.binary(), numbers, st.text(), st.text(), st.booleans())
rosters = st.builds(e.Roster, st.integers(0, 2**31), st.just(REF), st.lists(entries, max_size=3), st.none())
samples = st.one_of(
    st.builds(e.SocketMessage, numbers, st.integers(0, 2**31), numbers, st.one_of(st.text(), st.binary())),
    st.builds(e.WakingMessage, numbers, numbers, st.text(), st.none(), rosters),
    st.builds(e.WakingMessage, numbers, numbers, st.none(), st.binary(), rosters),
    st.builds(lambda n, p: e.Send(n, p.encode(), True), st.lists(numbers, min_size=1, max_size=5), st.text()),
    st.builds(e.Send, st.lists(numbers, min_size=1, max_size=5), st.binary(), st.just(False)),
    st.builds(e.Done, numbers, st.lists(numbers, max_size=5).map(tuple)),
    st.sampled_from(
        [
            e.Hello(e.ENVELOPE_VERSION, 0, 2),
            e.Request(2, "GET", "http://a/", [("A", "b")], b"\xff", True, True, 7, "127.0.0.1", REF),
            e.Response(2, 101, "", [], b"", False, e.Binding(REF, ("t",), b"\x00", e.AutoResponse("a", "b")), 9),
            e.BodyData(1, b"x", last=True),
            e.BodyCredit(1, 5),
            e.Abort(1, "gone"),
            e.SocketClose(1, 2, 3, 1006, "r", clean=False),
            e.SocketError(1, 2, 3, 1009, "big"),
            e.Roster(4, REF, [e.RosterEntry(1, ("a",), b"x", 5, "", "p", close_sent=True)], e.AutoResponse("a", "b")),
            e.RosterRequest(4, None),
            e.CloseSocket(1, 1000, "é"),
            e.Attach(1, None),
            e.SetAutoResponse(REF, None),
            e.DropSockets(REF),
            e.Dial(1, "ws://a/", ["p"], []),
            e.Dialled(1, 2, 101, [], ""),
            e.AutoAnswered(1, 2, 3),
            e.Asleep(1),
        ]
    ),
)


@given(st.lists(samples, max_size=8), st.lists(st.integers(0, 2000), max_size=6))
def test_any_split_gives_the_events_back(events, cuts):
    data = b"".join(map(encode, events))
    splitter = Splitter(1 << 20)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    found = []
    for start, end in itertools.pairwise(places):
        found += splitter.feed(data[start:end])
    assert found == events


@given(st.lists(samples, max_size=3))
def test_a_batch_gives_the_events_back(events):
    assert Splitter(1 << 20).feed(encode_batch(events)) == events


@given(st.text(), st.integers(1, 2**62))
def test_an_answer_and_its_done_are_one_envelope(text, number):
    answer = [e.Send([7], text.encode(), True), e.Done(number, ())]
    data = encode_batch(answer)
    assert len(data) == HEADER_BYTES + len(text.encode())
    assert Splitter(1 << 20).feed(data) == answer


@pytest.mark.parametrize("stragglers", [(), (1,)])
@pytest.mark.parametrize("sockets", [[7], [7, 8]])
def test_done_of_nothing_and_of_stragglers_survives(sockets, stragglers):
    events = [e.Send(sockets, b"x", False), e.Done(0, stragglers)]
    assert Splitter(1 << 20).feed(encode_batch(events)) == events


def test_every_event_has_an_envelope():
    every = set(e.Event.__args__)
    for kind in every - {e.SocketMessage, e.Send, e.Done}:
        from roost.protocol.envelope import _KINDS

        assert kind in _KINDS


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data):
    try:
        Splitter(1 << 16).feed(data)
    except (RemoteProtocolError, UnicodeDecodeError) as error:
        assert str(error)


def test_too_large_is_refused_before_it_arrives():
    head = encode(e.Send([1], b"x" * 100, False))[:HEADER_BYTES]
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        Splitter(50).feed(head)


def test_large_envelope_in_small_pieces():
    data = encode(e.Send([1], b"x" * 1_000_000, False))
    splitter = Splitter(1 << 21)
    found = []
    for start in range(0, len(data), 1000):
        found += splitter.feed(data[start : start + 1000])
    assert found == [e.Send([1], b"x" * 1_000_000, False)]
