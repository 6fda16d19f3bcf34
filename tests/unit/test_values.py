"""values.py: what goes in comes out; what cannot is refused with its path; bytes of version 1 stay readable."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.values import DataCloneError, decode, decode_all_js, encode

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


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}], ids=["lists", "dicts"])
def test_two_hundred_levels_and_no_more(wrap):
    value = 1
    for _ in range(199):
        value = wrap(value)
    assert decode(encode(value)) == value
    for _ in range(2):
        value = wrap(value)
    with pytest.raises(DataCloneError, match="nested more than 200 deep"):
        encode(value)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["lists", "dicts"])
def test_what_was_written_deeper_is_refused(opening):
    data = encode([])
    head = data[: data.index(b"\x90")]
    with pytest.raises(ValueError, match=r"nested too deep|damaged"):
        decode(head + opening * 5000 + b"\x01")


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


GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "values.json").read_text())


def _loop():
    loop: list = [1]
    loop.append({"self": loop})
    return loop


def _shared():
    part = ["shared"]
    return [part, part, {"again": part}]


GOLDEN_VALUES = {
    "none": None,
    "booleans": [True, False],
    "ints": [0, 1, -1, 127, 128, -129, 2**31, -(2**63), 2**64 - 1],
    "large ints": [2**64, -(2**64), 10**30],
    "floats": [0.0, -0.0, 1.5, -1e300, float("inf")],
    "text": ["", "a", "é🎉", "x" * 300, "a\0b"],
    "lone surrogate": "\ud800",
    "bytes": [b"", b"\x00\xff", b"y" * 300],
    "times": [datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC), datetime(1969, 12, 31)],
    "set": {1, "two"},
    "dict": {"a": {"b": [1, {}]}, 1: "int key", 2.5: "float key", b"k": "bytes key", None: "none key"},
    "cycle": _loop(),
    "shared": _shared(),
}


@pytest.mark.parametrize(("name", "version"), [(name, version) for name, texts in GOLDEN.items() for version in texts])
def test_golden_files_stay_readable(name, version):
    """What earlier versions of Roost have written. Never change the file: add to it."""
    found = decode(bytes.fromhex(GOLDEN[name][version]))
    if name == "cycle":
        assert found[0] == 1
        assert found[1]["self"] is found
        return
    assert found == GOLDEN_VALUES[name] if name == "set" else repr(found) == repr(GOLDEN_VALUES[name])
    if name == "shared":
        assert found[0] is found[1] is found[2]["again"]


def test_the_newest_version_is_written():
    for name, value in GOLDEN_VALUES.items():
        if name != "set":  # whose order may differ
            assert encode(value).hex() == GOLDEN[name][max(GOLDEN[name])], name


def test_many_at_once_are_the_same():
    values = [GOLDEN_VALUES[name] for name in ("none", "ints", "dict", "text", "bytes")]
    assert decode_all_js([encode(value) for value in values]) == values
    mixed = [*map(encode, values), bytes.fromhex(GOLDEN["times"]["1"])]
    assert decode_all_js(mixed) == [*values, GOLDEN_VALUES["times"]]
    with pytest.raises(ValueError, match="damaged"):
        decode_all_js([encode(1), encode([1])[:-1]])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_plain_values_come_back_with_their_types(value):
    found = decode(encode(value))
    assert repr(found) == repr(value)
