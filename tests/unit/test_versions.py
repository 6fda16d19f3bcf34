"""What travels between processes of different versions of Roost is told apart by its version."""

import hashlib
import json

import msgspec

from roost import events
from roost.gateway.handover import state
from roost.protocol import envelope


def fingerprint(types, *more):
    """Changes with the shape of what travels, not with its documentation. Counters have defaults and go by name."""

    def bare(value):
        if isinstance(value, dict):
            return {key: bare(inner) for key, inner in value.items() if key not in ("description", "Counters")}
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    _, parts = msgspec.json.schema_components(types)
    return hashlib.sha256(json.dumps([bare(parts), more], sort_keys=True).encode()).hexdigest()[:16]


def test_the_envelope_has_changed_only_with_its_version():
    """If this fails: raise ENVELOPE_VERSION (also when only a meaning changed) and write down the new pair here."""
    kinds = {number: kind.__name__ for number, kind in envelope._STRUCTS.items()}
    shape = fingerprint(list(envelope._STRUCTS.values()), envelope.HEADER.format, kinds)
    assert (events.ENVELOPE_VERSION, shape) == (6, "e3cd591751b7cf19")


def test_the_handover_has_changed_only_with_its_version():
    """If this fails: raise HANDOVER_VERSION and write down the new pair here."""
    assert (state.HANDOVER_VERSION, fingerprint([state.Handover])) == (3, "d9cdb6bcf67d908a")


def test_a_changed_shape_is_noticed():
    class Before(msgspec.Struct, array_like=True):
        """One way to say it."""

        number: int

    documented = msgspec.defstruct("Before", [("number", int)], array_like=True)
    grown = msgspec.defstruct("Before", [("number", int), ("text", str)], array_like=True)
    assert fingerprint([Before]) == fingerprint([documented])
    assert fingerprint([Before]) != fingerprint([grown])
