"""The table of sockets by owner."""

import random
from types import SimpleNamespace

import pytest

from roost.events import ObjectRef
from roost.gateway.routing.sockets import ActorRecord, shared_tags


@pytest.mark.parametrize("seed", range(20))
def test_a_record_is_a_dict_by_number_however_many_it_holds(seed):
    chance = random.Random(seed)
    record, model = ActorRecord(None, 1, ObjectRef("Room", "ab" * 32, "")), {}
    for _ in range(60):
        number = chance.randrange(1, 4)
        if chance.random() < 0.5:
            connection = SimpleNamespace(number=number)  # one dialled again takes the other's place
            record.add(connection)
            model[number] = connection
        else:
            assert record.remove(number) is (model.pop(number, None) is not None)
        assert list(record.sockets) == list(model.values())
        assert len(record.sockets) == len(model)
        assert [number for number in range(1, 4) if number in record] == sorted(model)


def test_equal_tags_are_one_object():
    first, again = shared_tags(("room", "".join(["us", "er"]))), shared_tags(("room", "".join(["u", "ser"])))
    assert again is first
    assert shared_tags(("room",)) == ("room",)
