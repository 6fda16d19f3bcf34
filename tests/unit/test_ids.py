"""ids.py."""

from collections import Counter

from roost import ids

ROOM = ids.namespace_key("app", "Room")
OTHER = ids.namespace_key("app", "Other")


def test_names_are_deterministic_per_class():
    """Golden: another derivation would orphan every stored object."""
    assert ids.id_from_name(ROOM, "lobby") == "a8d94ee74e0ce65ebbca8f5915e1f2f74357c427b33227cd2b3c784e2ebe2516"
    assert ids.id_from_name(ROOM, "é🎉") == "e0d0355d3c1888a81079d9186a713c0cd4696376017f4ba4d3cff31149788f61"
    assert ids.id_from_name(ROOM, "lobby") != ids.id_from_name(OTHER, "lobby")
    assert ids.id_from_name(ROOM, "\ud800") != ids.id_from_name(ROOM, "\ud801")


def test_validation():
    made = ids.id_from_name(ROOM, "lobby")
    assert ids.is_object_id(made)
    assert ids.belongs_to(ROOM, made)
    assert not ids.belongs_to(OTHER, made)
    for bad in ("", "x" * 64, made.upper(), made + "0", made[:-1], "../" + made[3:], made[:-1] + "\n"):
        assert not ids.is_object_id(bad)


def test_unique_ids_belong_and_differ():
    one, two = ids.id_from_random(ROOM, b"a" * 16), ids.id_from_random(ROOM, b"b" * 16)
    assert one != two
    assert ids.belongs_to(ROOM, one)


def test_slots_are_even_and_stable():
    names = [ids.id_from_name(ROOM, str(n)) for n in range(3000)]
    three = [ids.slot_of(n, 3) for n in names]
    four = [ids.slot_of(n, 4) for n in names]
    assert all(800 < count < 1200 for count in Counter(three).values())
    moved = sum(a != b for a, b in zip(three, four, strict=True))
    assert all(b == 3 for a, b in zip(three, four, strict=True) if a != b)  # only to the new slot
    assert 600 < moved < 900
    assert ids.slot_of(names[0], 1) == 0
