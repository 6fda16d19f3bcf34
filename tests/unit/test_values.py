"""values.py: what goes in comes out; what cannot is refused with its path; bytes of version 1 stay readable."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.values import DataCloneError, decode, encode

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(),
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)),
)  # fmt: skip
hashable = st.one_of(st.booleans(), st.integers(), st.text(), st.binary())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(hashable, inner), st.sets(hashable)),
    max_leaves=30,
)


@given(values)
def test_round_trip(value):
    assert decode(encode(value)) == value


def test_types_are_kept():
    value = {"t": True, "one": 1, "f": 1.0, "b": b"x", "set": {1}, 5: "int key", "big": 2**200, "neg": -(2**70)}
    back = decode(encode(value))
    assert back == value
    assert [type(v) for v in back.values()] == [type(v) for v in value.values()]
    assert decode(encode((1, [2, (3,)]))) == [1, [2, [3]]]
    assert decode(encode(bytearray(b"ab"))) == b"ab"
    aware = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2)))
    assert decode(encode(aware)) == aware
    assert decode(encode(aware)).tzinfo is UTC


def test_cycles_and_sharing():
    value = {"list": [1]}
    value["self"] = value
    value["same"] = value["list"]
    back = decode(encode(value))
    assert back["self"] is back
    assert back["same"] is back["list"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lambda: 0, "value is of type function"),
        ({"players": [1, {"ws": object()}]}, "value['players'][1]['ws'] is of type object"),
        ({(1, 2): 3}, "value has a tuple as key"),
        ({"a": {frozenset()}}, "value['a'] has a frozenset as element"),
    ],
)
def test_refused_with_the_path(value, path):
    with pytest.raises(DataCloneError) as caught:
        encode(value)
    assert path in str(caught.value)
    assert caught.value.name == "DataCloneError"


def test_too_deep_is_refused():
    value: list = []
    for _ in range(600):
        value = [value]
    with pytest.raises(DataCloneError, match="nested more than"):
        encode(value)


@given(st.binary(max_size=60))
def test_garbage_is_a_value_error_or_a_value(data):
    try:
        decode(data)
    except ValueError:
        pass


def test_pickles_are_refused():
    import pickle

    with pytest.raises(ValueError, match="not an encoded value"):
        decode(pickle.dumps({"a": 1}))


GOLDEN_1 = bytes.fromhex(
    "017b027304" + b"name".hex() + "7302" + "c3a9" + "7301" + b"l".hex() + "5b03" + "6e" + "74" + "69ac02"
)


def test_golden_version_1():
    assert encode({"name": "é", "l": [None, True, 300]}) == GOLDEN_1
    assert decode(GOLDEN_1) == {"name": "é", "l": [None, True, 300]}
