"""host/objects/delivered.py: which events count as finished after a crash, what is said again, and its size."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from roost.host.objects.delivered import MAX_COMMIT_GROUP_BYTES, MAX_GROUP_BYTES, Delivered


class Life(Delivered):
    """One life of an object; `said` is what it had to say again."""

    def __init__(self, stored, is_redelivered=lambda epoch, event: True):
        super().__init__()
        self.said = self.load(stored, is_redelivered)


class Gateways:
    """Their confirmations: what is said on a link is heard once `hear` is called for it."""

    def __init__(self):
        self.asked = {}
        self.heard = {}

    def __call__(self, epoch):
        self.asked[epoch] = number = self.asked.get(epoch, 0) + 1
        return Receipt(self, epoch, number)

    def hear(self, epoch=7):
        self.heard[epoch] = self.asked.get(epoch, 0)


class Receipt:
    def __init__(self, gateways, epoch, number):
        self.gateways, self.epoch, self.number = gateways, epoch, number

    @property
    def has_come(self):
        return self.gateways.heard.get(self.epoch, 0) >= self.number


def commit(delivered, batch, events, said=(), ask=lambda epoch: None):
    for event in events:
        delivered.finished(*(event if isinstance(event, tuple) else (7, event)))
    return delivered.to_store(batch, list(said), ask)


def test_a_finished_event_is_known_and_what_it_said_is_said_again():
    stored = commit(Life(None), 1, [10, 11], [(7, 1, 1, b"envelopes")])
    successor = Life(stored)
    assert successor.said == [(7, 1, 1, b"envelopes")]
    assert not successor.was_finished(7, 9)
    assert not successor.was_finished(8, 10), "another gateway's"
    assert successor.was_finished(7, 10)
    assert successor.was_finished(7, 11)
    assert not successor.was_finished(7, 10), "once"


def test_what_several_commits_have_said_is_said_in_their_order():
    delivered = Life(None)
    for batch, event in ((1, 5), (2, 3), (3, 4)):
        stored = commit(delivered, batch, [event], [(7, 1, 1, b"%d" % event)])
    assert Life(stored).said == [(7, 1, 1, b"5"), (7, 1, 1, b"3"), (7, 1, 1, b"4")]
    assert Life(stored, lambda epoch, event: event != 3).said == [(7, 1, 1, b"5"), (7, 1, 1, b"4")], (
        "only of what comes again"
    )
    second = Life(stored)
    assert second.was_finished(7, 5)
    stored = commit(second, 1, [6], [(7, 1, 1, b"6")])
    assert Life(stored).said == [(7, 1, 1, b"5"), (7, 1, 1, b"3"), (7, 1, 1, b"4"), (7, 1, 1, b"6")]


def test_kept_until_the_gateway_confirms_however_many_commits_come():
    delivered, gateways = Life(None), Gateways()
    for batch in range(1, 7):
        stored = commit(delivered, batch, [batch], ask=gateways)
        delivered.release(batch, gateways)
        assert all(Life(stored).was_finished(7, event) for event in range(1, batch + 1))
    gateways.hear()
    stored = commit(delivered, 7, [7], ask=gateways)
    assert not any(Life(stored).was_finished(7, event) for event in range(1, 7))
    assert Life(stored).was_finished(7, 7)


def test_each_gateway_concerned_must_confirm():
    delivered, gateways = Life(None), Gateways()
    commit(delivered, 1, [1, (8, 2)], ask=gateways)
    delivered.release(1, gateways)
    gateways.hear(7)
    stored = commit(delivered, 2, [3], ask=gateways)
    assert Life(stored).was_finished(8, 2)
    gateways.hear(8)
    stored = commit(delivered, 3, [4], ask=gateways)
    assert not Life(stored).was_finished(8, 2)


def test_a_gateway_that_is_gone_gives_nothing_again():
    delivered = Life(None)
    commit(delivered, 1, [1])
    delivered.release(1, lambda epoch: None)
    assert not Life(commit(delivered, 2, [2])).was_finished(7, 1)


def test_a_second_crash_before_the_done_has_left():
    gateways = Gateways()
    stored = commit(Life(None), 1, [1], [(7, 1, 1, b"x")], ask=gateways)
    second = Life(stored)
    assert second.was_finished(7, 1)
    stored = commit(second, 1, [2], ask=gateways)
    third = Life(stored)
    assert third.said == [(7, 1, 1, b"x")]
    assert third.was_finished(7, 1)
    commit(third, 1, [3], ask=gateways)
    third.release(1, gateways)
    stored = commit(third, 2, [4], ask=gateways)
    assert Life(stored).was_finished(7, 1), "nobody has said that its Done was heard"
    gateways.hear()
    stored = commit(third, 3, [5], ask=gateways)
    assert not Life(stored).was_finished(7, 1)


def test_the_record_does_not_grow_from_life_to_life():
    stored, gateways = None, Gateways()
    for number in range(50):
        delivered = Life(stored, lambda epoch, event, number=number: event == number * 10 - 6)
        for batch in range(1, 5):
            stored = commit(delivered, batch, [number * 10 + batch], [(7, 1, 1, bytes(10_000))], gateways)
            delivered.release(batch, gateways)
            gateways.hear()
    assert len(stored) < 60_000


def test_what_is_said_is_bounded_in_a_turn_and_in_all():
    delivered = Life(None)
    stored = commit(delivered, 1, [1], [(7, 1, 1, bytes(MAX_COMMIT_GROUP_BYTES + 1))])
    successor = Life(stored)
    assert successor.said == []
    assert successor.was_finished(7, 1), "known, but there is nothing to send"
    assert delivered.groups_too_large == 1
    for batch in range(2, 40):  # a disk that does not answer
        stored = commit(delivered, batch, [batch], [(7, 1, 1, bytes(60_000))])
        assert len(stored) <= MAX_GROUP_BYTES + 70_000
    assert Life(stored).was_finished(7, 39)


def test_what_a_gateway_has_heard_is_not_said_again():
    delivered = Life(None)
    commit(delivered, 1, [1], [(7, 5, 1, b"one")])
    stored = commit(delivered, 2, [2], [(7, 5, 1, b"still one"), (7, 5, 2, b"two"), (8, 5, 1, b"to another")])
    successor = Delivered()
    said = successor.load(stored, lambda epoch, event: event == 2, lambda epoch, life, group: (epoch, group) == (7, 1))
    assert said == [(7, 5, 2, b"two"), (8, 5, 1, b"to another")]
    assert successor.was_finished(7, 2)


def test_what_wrote_nothing_is_recorded_with_the_next_commit_or_not_at_all():
    delivered = Life(None)
    delivered.finished(7, 1)
    delivered.done(7, 1)
    delivered.finished(7, 2)
    stored = commit(delivered, 1, [3])
    successor = Life(stored)
    assert [successor.was_finished(7, event) for event in (1, 2, 3)] == [False, True, True]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_over_lives_commits_and_confirmations(data):
    """A host dies at any moment. An event whose commit the disk has and whose gateway does not know it is never run again;
    one whose commit was lost is."""
    gateways, stored = Gateways(), None
    on_disk, known, lost = set(), set(), set()  # events; `known`: to the gateway
    numbers, batches = itertools.count(1), itertools.count(1)
    for _ in range(data.draw(st.integers(1, 5), label="lives")):
        redelivered = (on_disk - known) | lost
        life = Life(stored, lambda epoch, event, those=redelivered: event in those)
        for number in sorted(redelivered):
            assert life.was_finished(7, number) == (number in on_disk), number
            assert not life.was_finished(7, number)  # its `Done` is on its way
        told, lost, commits = redelivered & on_disk, set(), []
        for step in data.draw(st.lists(st.sampled_from(["commit", "disk", "hear"]), max_size=15), label="steps"):
            if step == "commit":
                events = [next(numbers) for _ in range(data.draw(st.integers(1, 3), label="events"))]
                batch = next(batches)
                commits.append((batch, events, commit(life, batch, events, ask=gateways)))
            elif step == "disk" and commits:
                batch, events, stored = commits.pop(0)
                life.release(batch, gateways)
                on_disk |= set(events)
                told |= set(events)
            elif step == "hear":
                gateways.hear()
                known |= told
        for _, events, record in commits:
            if data.draw(st.booleans(), label="the disk had it, and nobody was told"):
                stored = record
                on_disk |= set(events)
            else:
                break
        lost = {event for _, events, _ in commits for event in events} - on_disk
    for _ in range(3):  # what every gateway knows is not kept
        batch = next(batches)
        stored = commit(life, batch, [next(numbers)], ask=gateways)
        life.release(batch, gateways)
        gateways.hear()
    assert len(Life(stored).earlier) <= 2 + len(on_disk - known) + len(lost)
