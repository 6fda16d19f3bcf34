"""gateway/io/channel.py's Backlog, and what a gateway has heard of a host: plain state."""

from roost.gateway.io.channel import Backlog
from roost.gateway.routing.owed import GroupsReceived


def filled(*chunks):
    backlog = Backlog(*chunks[:2])
    for chunk in chunks[2:]:
        backlog.add(chunk)
    return backlog


def test_writes_are_whole_chunks_and_of_a_good_size():
    backlog = filled(b"a" * 10, b"b" * 40_000, b"c" * 40_000, b"d")
    assert backlog.head() == b"a" * 10 + b"b" * 40_000 + b"c" * 40_000
    backlog.taken(15)
    assert backlog.head()[:3] == b"bbb"
    assert backlog.size == 80_011 - 15
    backlog.taken(len(backlog.head()))
    backlog.taken(1)
    assert not backlog.chunks
    assert backlog.size == 0


def test_the_oldest_whole_frames_are_dropped_and_never_one_that_has_begun():
    backlog = filled(b"half", b"one", b"two", b"three")
    assert backlog.drop_oldest(9) == 2
    assert list(backlog.chunks) == [b"half", b"three"]
    assert backlog.drop_oldest(0) == 0, "the newest stays"
    backlog.add(b"four")
    assert backlog.drop_oldest(0) == 1
    assert list(backlog.chunks) == [b"half", b"four"]


def test_groups_that_arrive_in_another_order():
    heard = GroupsReceived(1)
    for group in (2, 3, 5):
        heard.add(group)
    assert (heard.upto, heard.besides) == (0, {2, 3, 5})
    heard.add(1)
    assert (heard.upto, heard.besides) == (3, {5})
    heard.add(4)
    assert (heard.upto, heard.besides) == (5, set())
