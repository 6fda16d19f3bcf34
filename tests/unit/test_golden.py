"""tests/golden: what other implementations of a host read and write. Never change what is there for a version: add."""

import json

import pytest

from conftest import ROOT
from roost import events, ids
from roost.protocol import envelope
from roost.protocol.envelope import Splitter, encode, encode_batch

ENVELOPE = json.loads((ROOT / "tests/golden/envelope.json").read_text())
IDS = json.loads((ROOT / "tests/golden/ids.json").read_text())
KEY = ids.namespace_key(IDS["worker"], IDS["class"])


def decoded(text):
    return Splitter(1 << 20).feed(bytes.fromhex(text))


def test_the_file_is_of_this_version():
    """If this fails: the version was raised; write the file anew, in the same change."""
    assert ENVELOPE["version"] == events.ENVELOPE_VERSION


@pytest.mark.parametrize("name", ENVELOPE["envelopes"])
def test_envelopes_are_read_and_written_as_they_stand(name):
    text = ENVELOPE["envelopes"][name]
    (event,) = decoded(text)
    assert type(event).__name__ == name.split()[0]
    assert encode(event).hex() == text


def test_a_done_may_ride_on_a_send():
    send, done = decoded(ENVELOPE["Send to one with Done"])
    assert (type(send), type(done)) == (events.Send, events.Done)
    assert encode_batch([send, done]).hex() == ENVELOPE["Send to one with Done"]


def test_each_kind_has_an_example():
    named = {name.split()[0] for name in ENVELOPE["envelopes"]}
    assert named == {kind.__name__ for kind in envelope._STRUCTS.values()} | {"SocketMessage", "Send", "Done"}


def test_ids_and_slots():
    assert KEY.hex() == IDS["namespace_key"]
    for name, made in IDS["from_name"].items():
        assert ids.id_from_name(KEY, name) == made
    for random, made in IDS["from_random"].items():
        assert ids.id_from_random(KEY, bytes.fromhex(random)) == made
    for made, slots in IDS["slot_of"].items():
        for count, slot in slots.items():
            assert ids.slot_of(made, int(count)) == slot
