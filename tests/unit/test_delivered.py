"""host/delivered.py: which events count as finished after a crash, and that the record stays small."""

from roost.host.delivered import MAX_SAID_BYTES, MAX_TURN_SAID_BYTES, Delivered


def life(stored, may_come_again=lambda epoch, event: True):
    delivered = Delivered()
    delivered.load(stored, may_come_again)
    return delivered


def commit(delivered, batch, events, said=(), clogged=False):
    for event in events:
        delivered.finished(7, event)
    return delivered.to_store(batch, list(said), keep_released=clogged)


def test_a_finished_event_is_known_and_what_it_said_is_sent_once():
    stored = commit(life(None), 1, [10, 11], [(7, b"envelopes")])
    successor = life(stored)
    assert successor.was_finished(7, 9) is None
    assert successor.was_finished(8, 10) is None  # another gateway's
    assert successor.was_finished(7, 10) == [(7, b"envelopes")]
    assert successor.was_finished(7, 11) == []  # said already
    assert successor.was_finished(7, 10) is None


def test_forgotten_once_the_gateway_has_heard_of_it():
    delivered = life(None)
    commit(delivered, 1, [1])
    delivered.release(1)
    stored = commit(delivered, 2, [2])
    assert life(stored).was_finished(7, 1) is not None  # its Done may not have left
    delivered.release(2)
    stored = commit(delivered, 3, [3])
    assert life(stored).was_finished(7, 1) is None
    assert life(stored).was_finished(7, 2) is not None


def test_kept_while_a_link_is_clogged():
    delivered = life(None)
    for batch in range(1, 6):
        stored = commit(delivered, batch, [batch], clogged=True)
        delivered.release(batch)
    assert all(life(stored).was_finished(7, event) is not None for event in range(1, 6))


def test_a_second_crash_before_the_done_has_left():
    stored = commit(life(None), 1, [1], [(7, b"x")])
    second = life(stored)
    assert second.was_finished(7, 1) == [(7, b"x")]
    stored = commit(second, 1, [2])
    assert life(stored).was_finished(7, 1) == [(7, b"x")]


def test_the_record_does_not_grow_from_life_to_life():
    stored = None
    for number in range(50):
        delivered = life(stored, lambda epoch, event, number=number: event <= number * 10 - 5)
        delivered.all_given(7)  # a new event has come
        for batch in range(1, 5):
            stored = commit(delivered, batch, [number * 10 + batch], [(7, bytes(10_000))])
            delivered.release(batch)
    assert len(stored) < 60_000


def test_what_is_said_is_bounded_in_a_turn_and_in_all():
    delivered = life(None)
    stored = commit(delivered, 1, [1], [(7, bytes(MAX_TURN_SAID_BYTES + 1))])
    assert life(stored).was_finished(7, 1) == []  # known, but there is nothing to send
    assert delivered.too_much_said == 1
    for batch in range(2, 40):  # a disk that does not answer
        stored = commit(delivered, batch, [batch], [(7, bytes(60_000))])
        assert len(stored) <= MAX_SAID_BYTES + 70_000
    assert life(stored).was_finished(7, 39) is not None
