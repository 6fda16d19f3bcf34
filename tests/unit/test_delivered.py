"""host/delivered.py: which events count as finished after a crash, what is said again, and that the record stays small."""

from roost.host.delivered import MAX_SAID_BYTES, MAX_TURN_SAID_BYTES, Delivered


class Life(Delivered):
    """One life of an object; `said` is what it had to say again."""

    def __init__(self, stored, comes_again=lambda epoch, event: True):
        super().__init__()
        self.said = self.load(stored, comes_again)


def commit(delivered, batch, events, said=(), clogged=False):
    for event in events:
        delivered.finished(7, event)
    return delivered.to_store(batch, list(said), keep_released=clogged)


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


def test_forgotten_once_the_gateway_has_heard_of_it():
    delivered = Life(None)
    commit(delivered, 1, [1])
    delivered.release(1)
    stored = commit(delivered, 2, [2])
    assert Life(stored).was_finished(7, 1), "its Done may not have left"
    delivered.release(2)
    stored = commit(delivered, 3, [3])
    assert not Life(stored).was_finished(7, 1)
    assert Life(stored).was_finished(7, 2)


def test_kept_while_a_link_is_clogged():
    delivered = Life(None)
    for batch in range(1, 6):
        stored = commit(delivered, batch, [batch], clogged=True)
        delivered.release(batch)
    successor = Life(stored)
    assert all(successor.was_finished(7, event) for event in range(1, 6))


def test_a_second_crash_before_the_done_has_left():
    stored = commit(Life(None), 1, [1], [(7, 1, 1, b"x")])
    second = Life(stored)
    assert second.was_finished(7, 1)
    stored = commit(second, 1, [2])
    third = Life(stored)
    assert third.said == [(7, 1, 1, b"x")]
    assert third.was_finished(7, 1)
    stored = commit(third, 1, [3])
    third.release(1)
    stored = commit(third, 2, [4])
    assert not Life(stored).was_finished(7, 1), "two commits later it is known to be done"


def test_the_record_does_not_grow_from_life_to_life():
    stored = None
    for number in range(50):
        delivered = Life(stored, lambda epoch, event, number=number: event == number * 10 - 6)
        for batch in range(1, 5):
            stored = commit(delivered, batch, [number * 10 + batch], [(7, 1, 1, bytes(10_000))])
            delivered.release(batch)
    assert len(stored) < 60_000


def test_what_is_said_is_bounded_in_a_turn_and_in_all():
    delivered = Life(None)
    stored = commit(delivered, 1, [1], [(7, 1, 1, bytes(MAX_TURN_SAID_BYTES + 1))])
    successor = Life(stored)
    assert successor.said == []
    assert successor.was_finished(7, 1), "known, but there is nothing to send"
    assert delivered.too_much_said == 1
    for batch in range(2, 40):  # a disk that does not answer
        stored = commit(delivered, batch, [batch], [(7, 1, 1, bytes(60_000))])
        assert len(stored) <= MAX_SAID_BYTES + 70_000
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
