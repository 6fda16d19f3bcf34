"""gateway/io/connection.py's Backlog, and what a gateway has heard of a host: plain state."""

from roost.gateway.io.connection import Backlog
from roost.gateway.routing.host_slot import Heard


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
    heard = Heard(1)
    for group in (2, 3, 5):
        heard.add(group)
    assert (heard.upto, heard.besides) == (0, {2, 3, 5})
    heard.add(1)
    assert (heard.upto, heard.besides) == (3, {5})
    heard.add(4)
    assert (heard.upto, heard.besides) == (5, set())


def test_a_journal_is_read_up_to_where_it_is_whole(tmp_path):
    from roost.events import ObjectRef
    from roost.gateway.io.connection import Connection
    from roost.gateway.routing.journal import Journal, Lost, read
    from roost.gateway.routing.sockets import ActorRecord, SocketTable

    path = str(tmp_path / "journal")
    assert read(path) == []
    journal, table = Journal(path), SocketTable()
    journal.start(table)
    record = ActorRecord(None, 1, ObjectRef("Room", "ab" * 32, "na\u00efve"))
    for number in (1, 2, 3):
        connection = Connection(None, -1, number, record)
        connection.tags, connection.protocol = ("a", "b"), "chat"
        connection.attachment = b"\xff\x00" if number == 2 else None
        journal.bound(connection, record)
    journal.forgotten(1)
    journal.flush(table)
    expected = [Lost(2, record.object, ("a", "b"), b"\xff\x00", "chat"), Lost(3, record.object, ("a", "b"), None, "chat")]
    assert read(path) == expected
    with open(path, "ab") as file:
        file.write(b"[3]\n[2")  # the last line was cut
    assert read(path) == expected[:1]
    with open(path, "ab") as file:
        file.write(b", nonsense\n[2]\n")
    assert read(path) == expected[:1]
