"""host/objects/output_gate.py: the output gate, without network, disk or time. Numbers: observed behaviour."""

import pytest

from roost.errors import RoostError
from roost.host.objects.output_gate import OutputGate


@pytest.fixture
def gate():
    return OutputGate()


@pytest.fixture
def out():
    return []


def say(gate, out, what):
    gate.hold(lambda error: out.append(what) if error is None else None)


def test_w25_nothing_leaves_while_shut_then_all_in_order(gate, out):
    batch = gate.begin()
    for word in ("send", "close"):
        say(gate, out, word)
    assert gate.shut
    assert out == []
    gate.confirm(batch)
    assert out == ["send", "close"]
    assert not gate.shut


def test_open_gate_holds_nothing(gate, out):
    say(gate, out, "at once")
    assert out == ["at once"]


def test_w47_waits_for_all_earlier_writes_also_out_of_order(gate, out):
    one = gate.begin()
    say(gate, out, "after one")
    two = gate.begin()
    say(gate, out, "after two")
    gate.confirm(two)
    assert out == []
    gate.confirm(one)
    assert out == ["after one", "after two"]


def test_w47_earlier_output_does_not_wait_for_later_writes(gate, out):
    one = gate.begin()
    say(gate, out, "after one")
    gate.begin()
    say(gate, out, "after two")
    gate.confirm(one)
    assert out == ["after one"]
    assert gate.shut


def test_w47_a_failed_write_breaks_it_for_good(gate, out):
    one = gate.begin()
    say(gate, out, "dropped")
    dropped = []
    gate.hold(lambda error: dropped.append(str(error)))
    gate.break_off(RoostError("disk full"))
    say(gate, out, "dropped too")
    gate.confirm(one)
    gate.break_off(RoostError("again"))
    assert out == []
    assert dropped == ["disk full"]
    assert gate.shut


def test_what_is_said_while_it_opens_stays_behind(gate, out):
    batch = gate.begin()
    gate.hold(lambda error: (out.append("first"), say(gate, out, "said meanwhile")))
    say(gate, out, "second")
    gate.confirm(batch)
    assert out == ["first", "second", "said meanwhile"]


def test_w52_sync_waits_for_writes_before_it_not_after(gate, out):
    one = gate.begin()
    say(gate, out, "sync")
    gate.begin()
    gate.confirm(one)
    assert out == ["sync"]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3)])
def test_any_order_of_confirmations_gives_the_same_output(gate, out, order):
    for number in (1, 2, 3):
        assert gate.begin() == number
        say(gate, out, number)
    for number in order:
        gate.confirm(number)
        assert out == list(range(1, len(out) + 1))
    assert out == [1, 2, 3]


def test_a_mutant_that_does_not_wait_is_seen(out):
    """The checker of this file is proven: a gate that replies before the commit turns it red."""

    class Mutant(OutputGate):
        def hold(self, release):
            release(None)

    gate = Mutant()
    gate.begin()
    say(gate, out, "too early")
    with pytest.raises(AssertionError):
        assert out == []
