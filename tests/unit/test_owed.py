"""gateway/routing/owed.py: events until they are done, groups that have arrived, requests that have begun."""

import sys

import pytest

from roost import events as e
from roost.gateway.counters import Counters
from roost.gateway.limits import GatewayLimits
from roost.gateway.routing import owed as module
from roost.gateway.routing.owed import COUNT_FROM_BYTES, MAX_ATTEMPTS, Begun, GroupsReceived, Owed

LARGE = b"x" * COUNT_FROM_BYTES


class Slot(Owed):
    def __init__(self, **limits):
        super().__init__(GatewayLimits(**limits), Counters())
        self.ended = []

    def end_finished(self, event):
        self.ended.append(event.event)

    def message(self, number, data="x", actor=1, socket=7):
        self.last_event = number
        event = e.SocketMessage(number, actor, socket, data)
        self.unfinished.append(event)
        if len(data) >= COUNT_FROM_BYTES:
            return self.count_large(event, 1)
        return False

    def close(self, number, actor=1, socket=7):
        self.last_event = number
        self.keep(e.SocketClose(number, actor, socket, 1000, "", True))

    def opened(self, number, actor=1, socket=7):
        self.last_event = number
        self.keep(e.SocketOpened(number, actor, socket, 1))

    @property
    def waits(self):
        return [event.event for event in self.unfinished]

    @property
    def is_quiet(self):
        """Nothing is owed, and the counts say so, too."""
        return not (self.unfinished or self.stragglers or self.attempts or self._ends or self._large_bytes)


@pytest.fixture
def slot():
    return Slot()


def test_small_messages_are_done_at_once(slot):
    for number in (1, 2, 3):
        slot.message(number)
    slot.done(2, ())
    assert slot.waits == [3]
    slot.done(3, ())
    assert slot.is_quiet


def test_a_done_of_the_past_changes_nothing(slot):
    slot.message(5)
    slot.done(4, ())
    assert slot.waits == [5]
    slot.done(0, ())
    assert slot.waits == [5]


def test_stragglers_stay_until_they_are_named_no_more(slot):
    for number in range(1, 6):
        slot.message(number)
    slot.done(4, (2, 3))
    assert slot.waits == [5]
    assert list(slot.stragglers) == [2, 3]
    slot.done(4, (3,))
    assert list(slot.stragglers) == [3]
    slot.done(2, ())  # of before it: 3 is not done yet
    assert list(slot.stragglers) == [3]
    slot.done(5, ())
    assert slot.is_quiet


def test_ends_are_told_when_they_are_done(slot):
    slot.close(1)
    slot.message(2)
    slot.opened(3)
    slot.done(1, (1,))
    assert slot.ended == []
    slot.done(3, ())
    assert slot.ended == [1]
    assert slot.is_quiet
    slot.close(4)
    slot.done(4, ())
    assert slot.ended == [1, 4]
    assert slot.is_quiet


def test_an_end_alone_is_not_forgotten_by_the_short_way(slot):
    slot.close(1)
    slot.done(9, ())
    assert slot.ended == [1]


def test_large_messages_are_counted_in_bytes():
    slot = Slot(max_unfinished_bytes=3 * COUNT_FROM_BYTES)
    assert not slot.message(1, LARGE)
    assert not slot.message(2, LARGE)
    assert not slot.message(3, LARGE)
    assert not slot.is_too_much(congested=False)
    assert slot.message(4, b"more" + LARGE)
    assert slot.is_too_much(congested=False)
    slot.done(4, (4,))
    assert not slot.is_too_much(congested=False)
    slot.done(4, ())
    assert slot.is_quiet


def test_small_ones_are_counted_by_number():
    slot = Slot(max_unfinished_events=3)
    for number in (1, 2, 3):
        slot.message(number, "x" * (COUNT_FROM_BYTES - 1))
    assert not slot.is_too_much(congested=False)
    slot.message(4)
    assert slot.is_too_much(congested=False)
    slot.done(2, (1, 2))  # stragglers count as well
    assert slot.is_too_much(congested=False)
    slot.done(2, (1,))
    assert not slot.is_too_much(congested=False)
    assert slot.is_too_much(congested=True)


# hosts that die


def test_the_oldest_event_is_the_suspect(slot):
    slot.suspect()
    assert not slot.attempts
    for number in (1, 2, 3):
        slot.message(number)
    slot.done(3, (2,))
    slot.message(4)
    slot.suspect()
    slot.suspect()
    assert slot.attempts == {2: 2}


def test_a_successor_gets_everything_in_order(slot):
    for number in (1, 2, 3):
        slot.message(number)
    slot.close(4)
    slot.done(3, (1, 3))
    slot.suspect()
    last, given = slot.redelivered()
    assert last == 4
    assert [event.event for event in given] == [1, 3, 4]
    assert slot.waits == [1, 3, 4]
    assert not slot.stragglers
    assert slot._counters.events_redelivered == 1  # those behind it have harmed nobody
    assert Slot().redelivered() == (0, [])


def test_an_event_that_kills_its_hosts_is_dropped(slot, caplog):
    assert MAX_ATTEMPTS == 5
    slot.close(1)
    slot.message(2)
    for _ in range(MAX_ATTEMPTS - 1):
        slot.suspect()
        assert [event.event for event in slot.redelivered()[1]] == [1, 2]
    slot.suspect()
    last, given = slot.redelivered()
    assert [event.event for event in given] == [2]
    assert last == 2
    assert slot.ended == [1]  # whoever waits for it need not
    assert slot._counters.events_dropped == 1
    assert "dropped after 5 hosts" in caplog.text
    slot.done(2, ())
    assert slot.is_quiet


def test_attempts_are_forgotten_when_all_is_done(slot):
    slot.message(1)
    slot.message(2)
    slot.suspect()
    slot.done(1, ())
    assert slot.attempts == {1: 1}
    slot.done(2, (2,))
    assert slot.attempts
    slot.done(2, ())
    assert slot.is_quiet


def test_plain_sockets_go_with_their_host(slot):
    slot.message(1, LARGE, actor=0)
    slot.close(2, actor=0)
    slot.message(3, LARGE)
    slot.close(4)
    slot.opened(5, actor=0)
    slot.done(3, (1, 3))
    slot.forget_plain()
    assert slot.waits == [4]
    assert list(slot.stragglers) == [3]
    assert slot.ended == [2]
    slot.done(5, ())
    assert slot.ended == [2, 4]
    assert slot.is_quiet


def test_what_is_unfinished_moves_with_its_socket(slot):
    slot.message(1, actor=0)
    slot.message(2, actor=0)
    slot.message(3, actor=0, socket=8)
    slot.message(4, actor=2)
    slot.done(1, (1,))
    slot.give_to(5, 7)
    assert slot.stragglers[1].actor == 5
    assert [(event.event, event.actor) for event in slot.unfinished] == [(2, 5), (3, 0), (4, 2)]
    before = slot.unfinished
    slot.give_to(6, 99)
    assert slot.unfinished is before


def test_what_another_gateway_was_owed():
    slot = Slot(max_unfinished_bytes=COUNT_FROM_BYTES)
    events = [e.SocketMessage(3, 1, 7, LARGE), e.SocketClose(4, 1, 7, 1000, "", True)]
    slot.restore(4, events, [e.SocketMessage(1, 1, 7, LARGE)], {1: 2})
    assert slot.last_event == 4
    assert slot.waits == [3, 4]
    assert list(slot.stragglers) == [1]
    assert slot.attempts == {1: 2}
    assert slot.is_too_much(congested=False)
    slot.done(4, ())
    assert slot.ended == [4]
    assert slot.is_quiet


# groups


def test_groups_arrive_in_any_order(monkeypatch):
    groups = GroupsReceived(9)
    assert (groups.life, groups.upto, groups.besides) == (9, 0, set())
    groups.add(1)
    groups.add(3)
    groups.add(4)
    assert (groups.upto, groups.besides) == (1, {3, 4})
    groups.add(2)
    assert (groups.upto, groups.besides) == (4, set())
    groups.add(6)
    groups.add(5)
    assert (groups.upto, groups.besides) == (6, set())
    monkeypatch.setattr(module, "_MAX_BESIDES", 2)
    for group in (9, 10, 11):
        groups.add(group)
    assert groups.besides == {9, 10}
    assert GroupsReceived(1, 5, [7]).besides == {7}


# requests that have begun


def test_the_count_of_a_host_is_read_from_its_file(tmp_path):
    path = tmp_path / "mark"
    data = bytearray(e.BEGUN_END)
    data[e.BEGUN_OFFSET + 8 : e.BEGUN_OFFSET + 16] = (77).to_bytes(8, sys.byteorder)
    path.write_bytes(data)
    begun = Begun.open(str(path), 1)
    assert begun.count() == 77
    assert Begun(begun.fd, e.BEGUN_OFFSET).count() == 0
    assert Begun(begun.fd, e.BEGUN_END - 8).count() == 0
    assert Begun(begun.fd, e.BEGUN_END - 7).count() == sys.maxsize  # no link has that place
    begun.close()
    assert begun.fd == -1
    assert begun.count() == sys.maxsize
    begun.close()


def test_what_cannot_be_read_counts_as_all(tmp_path, caplog):
    begun = Begun.open(str(tmp_path / "nowhere"), 0)
    assert begun.count() == sys.maxsize
    assert "cannot be read" in caplog.text
    begun.close()
