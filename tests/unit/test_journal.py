"""gateway/routing/journal.py: what a killed gateway's successor reads."""

import os

import pytest

from roost.events import ObjectRef
from roost.gateway.routing import journal
from roost.gateway.routing.journal import Journal, Lost, read

ROOM = ObjectRef("Room", "ab" * 32, "na\u00efve")


def lost(number, attachment=None):
    return Lost(number, ROOM, ("a", "b"), attachment, "chat")


def bind(made, number, attachment=None):
    made.bound(number, ROOM, ("a", "b"), "chat", attachment)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "journal")


@pytest.fixture
def made(path):
    journal = Journal(path)
    journal.start([])
    yield journal
    journal.leave()


def test_it_is_read_up_to_where_it_is_whole(path, made):
    for number in (1, 2, 3):
        bind(made, number, b"\xff\x00" if number == 2 else None)
    made.forgotten(1)
    made.flush(list)
    expected = [lost(2, b"\xff\x00"), lost(3)]
    assert read(path) == expected
    with open(path, "ab") as file:
        file.write(b"[3]\n[2")  # the last line was cut
    assert read(path) == expected[:1]
    with open(path, "ab") as file:
        file.write(b", nonsense\n[2]\n")
    assert read(path) == expected[:1]


def test_a_number_that_is_bound_or_forgotten_twice(path, made):
    bind(made, 1, b"first")
    bind(made, 1, b"second")
    bind(made, 2)
    made.forgotten(2)
    made.forgotten(2)
    made.flush(list)
    assert read(path) == [lost(1, b"second")]
    made.forgotten(1)
    bind(made, 2, b"again")
    made.flush(list)
    assert read(path) == [lost(2, b"again")]


def test_nothing_is_there_before_the_first(path):
    assert read(path) == []


def test_the_last_word_about_an_attachment_counts(path, made):
    bind(made, 1, b"old")
    made.attached(1, b"new")
    bind(made, 2, b"old")
    made.attached(2, None)
    made.attached(9, b"of nobody")
    made.forgotten(8)
    made.flush(list)
    assert read(path) == [lost(1, b"new"), lost(2)]


def test_lines_wait_for_the_turn_to_end(path, made):
    bind(made, 1)
    assert made.lines
    assert read(path) == []
    made.flush(list)
    assert not made.lines
    assert read(path) == [lost(1)]


def test_it_is_written_anew_when_it_is_mostly_history(path, made, monkeypatch):
    monkeypatch.setattr(journal, "_ANEW_FROM", 10)
    live = [lost(1, b"x"), lost(2)]
    for each in live:
        bind(made, each.number, each.attachment)
    asked = []

    def all_live():
        asked.append(True)
        return live

    made.flush(all_live)
    for number in range(3, 6):
        bind(made, number)
        made.forgotten(number)
    made.flush(all_live)
    assert not asked  # 9 entries
    bind(made, 6)
    made.forgotten(6)
    made.flush(all_live)
    assert asked == [True]  # 11 of which 2 are live
    with open(path, "rb") as file:
        assert len(file.read().split(b"\n")) == 4  # two bindings, an attachment, and nothing behind the last line
    assert read(path) == live
    bind(made, 7)
    made.flush(all_live)
    assert read(path) == [*live, lost(7)]


def test_many_that_live_are_no_history(path, made, monkeypatch):
    monkeypatch.setattr(journal, "_ANEW_FROM", 10)
    for number in range(1, 20):
        bind(made, number)
    made.flush(lambda: pytest.fail("it was written anew"))
    assert len(read(path)) == 19


def test_a_name_with_half_a_character_is_left_out(path, made):
    made.bound(1, ObjectRef("Room", "ab" * 32, "\ud800"), (), "", None)
    bind(made, 2)
    made.flush(list)
    assert read(path) == [lost(2)]


def test_it_ends_with_its_sockets_and_stays_for_a_successor(tmp_path, path):
    ends, stays = Journal(path), Journal(str(tmp_path / "stays"))
    for each in (ends, stays):
        each.start([lost(1)])
        assert each.is_written
    ends.end()
    stays.leave()
    assert not (tmp_path / "journal").exists()
    assert read(str(tmp_path / "stays")) == [lost(1)]
    for each in (ends, stays):
        assert not each.is_written
        bind(each, 2)
        each.attached(2, b"")
        each.forgotten(2)
        assert not each.lines
    ends.end()  # again, and nothing is wrong


def test_without_a_path_nothing_is_written(tmp_path):
    made = Journal()
    made.start([lost(1)])
    bind(made, 2)
    assert not made.lines
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_written_is_given_up_and_removed(tmp_path, path, made, caplog, monkeypatch):
    bind(made, 1)
    monkeypatch.setattr(journal.os, "write", lambda fd, data: len(data) - 1)
    made.flush(list)
    assert "given up" in caplog.text
    assert "a part only was written" in caplog.text
    assert not (tmp_path / "journal").exists()  # what is there would be wrong
    assert not made.is_written
    made.start([lost(1)])
    assert not (tmp_path / "journal").exists()


def test_its_file_is_for_its_owner_only(tmp_path, made):
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_open(tmp_path):
    before = open_descriptors()
    for name, over in (("a", Journal.end), ("b", Journal.leave)):
        made = Journal(str(tmp_path / name))
        for _ in range(5):
            made.start([lost(1)])
        assert open_descriptors() == before + 1
        over(made)
        assert open_descriptors() == before


def test_giving_up_closes_and_needs_no_journal(path, made, monkeypatch):
    before = open_descriptors()
    monkeypatch.setattr(journal.os, "write", lambda fd, data: 0)
    bind(made, 1)
    made.flush(lambda: pytest.fail("it was written anew"))
    assert open_descriptors() == before - 1
    made.flush(list) if made.is_written else None
    made.leave()
    made.end()
    assert open_descriptors() == before - 1


def test_one_that_cannot_be_begun_is_given_up(tmp_path, caplog):
    made = Journal(str(tmp_path / "no folder" / "journal"))
    made.start([lost(1)])
    assert "given up" in caplog.text
    assert not made.is_written
    bind(made, 2)
    assert not made.lines


def test_one_that_cannot_be_put_in_place_is_given_up(tmp_path, path, made, monkeypatch, caplog):
    bind(made, 1)
    made.flush(list)

    def refused(*_):
        raise OSError(5, "I/O error")

    monkeypatch.setattr(journal.os, "replace", refused)
    made.start([lost(1)])
    assert "I/O error" in caplog.text
    assert not list(tmp_path.glob("journal*"))


@pytest.mark.parametrize(
    ("live", "entries", "anew"), [(2, 8, False), (2, 9, True), (3, 12, False), (3, 13, True), (0, 9, True)]
)
def test_when_most_of_it_is_history(path, made, monkeypatch, live, entries, anew):
    """Anew from more than 8 entries on, if more than four times as many as live."""
    monkeypatch.setattr(journal, "_ANEW_FROM", 8)
    for number in range(1, live + 1):
        bind(made, number)
    for _ in range(entries - live):
        made.attached(1 if live else 99, b"x")
    written = []
    made.flush(lambda: written.append(True) or [])
    assert bool(written) == anew
    made.flush(lambda: written.append(True) or [])
    assert len(written) == anew  # and its count begins anew


def test_damage_in_the_middle_ends_the_reading_with_a_word(path, caplog):
    with open(path, "wb") as file:
        file.write(b'[1,"Room","ab","x",[],""]\n[2,"Room"\n[3,"Room","ab","x",[],""]\n')
    assert [each.number for each in read(path)] == [1]
    assert "is damaged" in caplog.text
    for line in (b"[]", b'["x"]', b"[1,2,3]", b"[4,17]", b"{}", b"\xff"):
        with open(path, "wb") as file:
            file.write(b'[1,"Room","ab","x",[],""]\n' + line + b"\n[1]\n")
        assert [each.number for each in read(path)] == [1], line
