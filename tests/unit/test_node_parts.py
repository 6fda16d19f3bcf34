"""node: a child's life, who is replaced and when, who is suspected. Plain decisions, without a process."""

import signal
import struct
from types import SimpleNamespace

import pytest

from roost.errors import ConfigError, WorkerError
from roost.events import BEGUN_OFFSET
from roost.node import heartbeat as beat
from roost.node import restarts
from roost.node.child_process import FOLLOWS, MUTE_S, ChildProcess, Life
from roost.node.heartbeat import Heartbeat, mute
from roost.node.orders import Failed, Quarantine
from roost.node.quarantine import Suspects
from roost.node.restarts import Past


class Loop:
    """As much of one as making a child needs."""

    @staticmethod
    def time():
        return 100.0


@pytest.fixture
def child(monkeypatch):
    monkeypatch.setattr("roost.node.child_process.asyncio.get_running_loop", Loop)
    written = []
    writer = SimpleNamespace(is_closing=lambda: False, write=written.append)
    made = ChildProcess("host 0", SimpleNamespace(pid=1 << 22, returncode=None), writer, lambda _: None)
    made.written = written
    return made


# a child's life


@pytest.mark.parametrize("before", Life)
@pytest.mark.parametrize("after", Life)
def test_what_may_follow(child, before, after):
    child.life = before
    assert child.go(after) == (after in FOLLOWS[before])
    assert child.life == (after if after in FOLLOWS[before] else before)


def test_the_way_of_one_that_is_replaced(child):
    for life in (Life.LOADED, Life.READY):
        assert child.go(life)
    assert not child.is_ready  # it has not connected
    child.connected.set()
    assert child.is_ready
    assert not child.is_replaced
    assert child.go(Life.LEAVING)
    assert child.is_ready
    assert child.is_replaced
    assert not child.go(Life.LOADED)
    assert child.go(Life.READY)  # its successor did not come
    assert not child.is_replaced
    assert child.go(Life.LEAVING)
    assert child.go(Life.LEFT)
    assert child.has_left
    assert not child.go(Life.READY)  # a late word moves nothing
    assert child.go(Life.GONE)
    assert child.is_gone
    assert child.is_replaced
    assert child.has_left
    assert not child.go(Life.GONE)


def test_one_that_dies_while_it_serves_is_not_replaced(child):
    child.go(Life.READY)
    child.go(Life.GONE)
    assert not child.is_replaced
    assert not child.has_left
    assert not child.is_ready


def test_why_it_cannot_start(child):
    child.process.returncode = 3
    assert type(child.error()) is WorkerError
    assert "host 0 ended (exit code 3)" in str(child.error())
    child.failure = Failed("no such class")
    assert type(child.error()) is WorkerError
    child.failure = Failed("main is missing", "config", "Traceback…")
    error = child.error()
    assert type(error) is ConfigError
    assert error.__notes__ == ["Traceback…"]


def test_one_ping_at_a_time(child):
    child.ping()
    child.ping()
    assert child.written == [b'{"command":"ping"}\n']


# when it is started again


def test_pauses_grow_and_begin_anew():
    past, pauses = Past(), []
    for _ in range(8):
        decided = restarts.after(past, 1.0, 5.0)
        past = decided.past
        pauses.append(decided.pause_s)
    assert pauses == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]
    assert decided.is_hopeless
    assert not restarts.after(Past(3), 1.0, 5.0).is_hopeless
    assert restarts.after(Past(4), 1.0, 5.0).is_hopeless
    assert restarts.after(Past(7), 10.1, 5.0) == (Past(), 0.0, False)
    assert restarts.after(Past(7), 10.0, 5.0).past.deaths == 8
    assert restarts.after(Past(7), 1.0, 0.3).pause_s == 0.3


def test_one_that_others_kill_comes_back_at_once():
    """The worker is not to blame: no breaker, and what it did before still counts."""
    past, pauses, hopeless = Past(deaths=4), [], []
    for _ in range(25):
        decided = restarts.after(past, 1.0, 5.0, by_others=True)
        past = decided.past
        pauses.append(decided.pause_s)
        hopeless.append(decided.is_hopeless)
    assert pauses == [0.0, 0.0, 0.1, *[0.2] * 16, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]  # nobody kills for ever: it may be its own
    assert hopeless == [False] * 19 + [True] * 6
    assert past.deaths == 4
    assert restarts.after(past, 1.0, 5.0).is_hopeless
    assert restarts.after(past, 11.0, 5.0, by_others=True) == (Past(), 0.0, False)


@pytest.mark.parametrize(
    ("code", "replaced", "blamed", "suspect"),
    [
        (1, False, False, True),
        (0, False, False, True),
        (-signal.SIGSEGV, False, False, True),
        (-signal.SIGKILL, False, False, False),
        (-signal.SIGKILL, False, True, True),
        (0, True, False, False),
        (-signal.SIGKILL, True, True, False),
        (1, True, False, True),
    ],
)
def test_who_is_a_suspect(code, replaced, blamed, suspect):
    assert restarts.is_suspect(code, replaced=replaced, blamed=blamed) == suspect


def test_an_end_in_words():
    assert restarts.how(3) == "exit code 3"
    assert restarts.how(-9) == "SIGKILL"


# quarantine


@pytest.fixture
def suspects():
    told = []
    made = Suspects(SimpleNamespace(tell_hosts=told.append))
    made.told = told
    return made


def stuck(event=5, name="a", what="Room(a)"):
    return {"what": what, "stack": "in it", "class_name": "Room", "id": name, "epoch": 9, "event": event}


def test_the_second_time_is_the_last(suspects):
    suspects.stuck(stuck())
    assert list(suspects.not_again) == [(9, 5)]
    assert not suspects.quarantined
    suspects.stuck(stuck(event=0))
    assert list(suspects.not_again) == [(9, 5)]
    assert suspects.told == [Quarantine([("Room", "a")])]
    assert suspects.report() == [{"class": "Room", "id": "a", "object": "Room(a)", "stack": "in it"}]
    suspects.stuck({**stuck(), "id": ""})  # nobody's doing
    assert len(suspects.quarantined) == 1


def test_what_is_released_begins_anew(suspects):
    for name in ("a", "b"):
        for _ in range(2):
            suspects.stuck(stuck(name=name, what=f"Room({name})"))
    with pytest.raises(ConfigError, match=r"c is not in quarantine \(in it are: Room\(a\), Room\(b\)\)"):
        suspects.release("c")
    assert suspects.release("Room(a)") == 1
    suspects.stuck(stuck())
    assert ("Room", "a") not in suspects.quarantined
    assert suspects.release("b") == 1
    assert suspects.release(None) == 0
    with pytest.raises(ConfigError, match="in it are: none"):
        suspects.release("a")
    assert suspects.told[-1] == Quarantine([])


def test_few_hangs_are_remembered(suspects, monkeypatch):
    monkeypatch.setattr("roost.node.quarantine._MAX_HUNG", 2)
    for name in ("a", "b", "c"):
        suspects.stuck(stuck(name=name))
    suspects.stuck(stuck(name="a"))  # it was forgotten
    assert not suspects.quarantined
    suspects.stuck(stuck(name="c"))
    assert suspects.quarantined


def test_who_could_tell_nobody_has_left_a_mark(suspects, tmp_path, caplog):
    page = bytearray(4096)
    text = b"Room\0" + b"ab" * 32 + b"\0Room(x)"
    struct.pack_into("=QQ", page, 0, 9, 5)
    struct.pack_into("<I", page, 16, len(text))
    page[20 : 20 + len(text)] = text
    assert len(text) < BEGUN_OFFSET
    (tmp_path / "mark").write_bytes(page)
    suspects.died_in_handler("host 0", tmp_path / "mark")
    assert list(suspects.not_again) == [(9, 5)]
    assert "host 0 ended in webSocketMessage of Room(x)" in caplog.text
    suspects.died_in_handler("host 0", tmp_path / "none")
    assert len(suspects.not_again) == 1


# silence


class Child:
    def __init__(self, name="host 0", silent_s=0.0, ready=True, replaced=False):
        self.name, self.silent_s, self.is_ready, self.is_replaced = name, silent_s, ready, replaced
        self.process = SimpleNamespace(pid=1 << 22)
        self.pinged, self.ended = 0, []

    def ping(self):
        self.pinged += 1

    def end_mute(self, *, blamed):
        self.ended.append(blamed)


class Listener:
    def __init__(self):
        self.did = []

    def shutdown(self, how):
        self.did.append("shut")

    def listen(self, count):
        self.did.append("listen")


def heart(gateways=(), hosts=(), listeners=(), host_s=10.0, gateway_s=6.0):
    return Heartbeat(gateways, hosts, listeners, lambda: host_s, gateway_s)


def test_a_silent_host_is_replaced_after_its_time(caplog):
    child, other = Child(), Child("host 1", ready=False)
    made = heart(hosts=[child, None, other])
    for _ in range(10):
        made.tick(1.0)
    assert child.ended == []
    assert child.pinged == 10
    assert caplog.text.count("does not answer") == 1
    assert mute([child, None, other]) == {"host 0": 10.0}
    made.tick(1.0)
    assert child.ended == [True]
    assert "has not answered for 11 s (its state is not known) and is replaced" in caplog.text
    assert other.pinged == 0


def test_a_stopped_host_is_not_to_blame(monkeypatch):
    monkeypatch.setattr(beat, "_status", lambda pid, key: "T (stopped)" if key == "State" else "0")
    child = Child(silent_s=20.0)
    heart(hosts=[child]).tick(1.0)
    assert child.ended == [False]


def test_nobody_was_silent_while_the_node_itself_stood():
    child = Child(silent_s=9.0)
    made = heart(hosts=[child])
    made.tick(60.0)
    assert child.silent_s == 0.0
    assert child.ended == []
    made.tick(1.9)
    assert child.silent_s == 1.9


def test_who_is_debugged_may_take_its_time(monkeypatch):
    monkeypatch.setattr(beat, "_status", lambda pid, key: "77" if key == "TracerPid" else "t (tracing stop)")
    child = Child(silent_s=9.9)
    heart(hosts=[child]).tick(1.0)
    assert child.silent_s == 0.0


def test_a_silent_gateway_gets_no_new_clients_until_it_answers():
    silent, well = Child("gateway 0"), Child("gateway 1")
    listeners = [Listener(), Listener()]
    made = heart(gateways=[silent, well], listeners=listeners)
    for _ in range(5):
        made.tick(1.0)
        well.silent_s = 0.0
    assert listeners[0].did == ["shut"]
    assert listeners[1].did == []
    silent.silent_s = 0.0
    made.tick(1.0)
    assert listeners[0].did == ["shut", "listen"]
    assert silent.ended == []


def test_the_only_gateway_goes_on_listening():
    silent = Child("gateway 0", silent_s=MUTE_S + 0.5)
    listeners = [Listener()]
    made = heart(gateways=[silent], listeners=listeners)
    made.tick(1.0)
    assert listeners[0].did == []
    for _ in range(3):
        made.tick(1.0)
    assert silent.ended[:1] == [False]  # a gateway runs nobody's code


def test_a_gateways_successor_listens():
    silent, well = Child("gateway 0", silent_s=5.0), Child("gateway 1")
    gateways, listeners = [silent, well], [Listener(), Listener()]
    made = heart(gateways=gateways, listeners=listeners)
    made.tick(0.5)
    assert listeners[0].did == ["shut"]
    gateways[0] = Child("gateway 0")
    made.tick(0.5)
    assert listeners[0].did == ["shut", "listen"]
