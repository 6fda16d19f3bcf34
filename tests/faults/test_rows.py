"""The fault matrix (behaviour 5.5) on one node: each row under load, judged by the same checkers; and the checkers proven
by broken variants of the runtime. `make torture` strings the rows together at random for as long as it is told."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from harness import Faults, Load, write_rooms
from roost.testing import running, wait_for

SEED = int(os.environ.get("ROOST_SEED", "1"))
MINUTES = float(os.environ.get("ROOST_MINUTES", "0"))
STOPS_S = [float(stop) for stop in os.environ.get("ROOST_STOPS_S", "1,3").split(",")]

pytestmark = pytest.mark.timeout(300)


def node_with(tmp_path, gateways=2, mutant=""):
    app = write_rooms(tmp_path / "app", mutant=mutant)
    return running(app, "--hosts", "2", "--gateways", str(gateways), own_errors=bool(mutant))


def pids(node, role):
    return [pid for name, pid in node.status()["pids"].items() if name.startswith(role)]


def kill(node, role, rng):
    """kill -9 of one of a role; returns once another is there."""
    victim = rng.choice(pids(node, role))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in pids(node, role) and all(node.status()[f"{role}s"]), f"another {role}")


def stop_for(node, role, seconds, rng):
    victim = rng.choice(pids(node, role))
    try:
        os.kill(victim, signal.SIGSTOP)
        time.sleep(seconds)  # the length of the fault itself
        os.kill(victim, signal.SIGCONT)
    except ProcessLookupError:
        pass  # another fault has ended it


def roost(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "roost", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr


def deploy(node, tmp_path, rng, broken=False):
    mutant = "raise ValueError('broken on purpose')\n" if broken else ""
    app = write_rooms(tmp_path / "next", rng.randrange(1, 1000), mutant)
    roost("deploy", app, "--data", node.data, code=1 if broken else 0)


FAULTS = {
    "F1 kill a host": lambda node, tmp_path, rng: kill(node, "host", rng),
    "F2 kill a gateway": lambda node, tmp_path, rng: kill(node, "gateway", rng),
    "F6 stop a host": lambda node, tmp_path, rng: stop_for(node, "host", rng.choice(STOPS_S), rng),
    "F7 stop a gateway": lambda node, tmp_path, rng: stop_for(node, "gateway", rng.choice(STOPS_S), rng),
    "F16 deploy": deploy,
    "F16 deploy broken code": lambda node, tmp_path, rng: deploy(node, tmp_path, rng, broken=True),
    "F17 upgrade": lambda node, tmp_path, rng: roost("upgrade", "--data", node.data),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_row(tmp_path, fault):
    rng = random.Random(SEED)
    gateways = 2 if "gateway" in fault else 1
    with node_with(tmp_path, gateways) as node, Load(node, seed=SEED) as load:
        load.start()
        load.go_on(300)
        for _ in range(2):
            FAULTS[fault](node, tmp_path, rng)
            load.go_on(300)
        load.check()
        if "gateway" not in fault or "stop" in fault:
            assert not load.closes, load.closes
        print(f"{fault}: {load.answers()} messages, p99 {load.p99_s():.2f} s, longest {max(load.pauses_s):.2f} s")


def stop_across_a_death(node, rng, seconds=2.0):
    """A gateway is stopped, a host dies meanwhile and has a successor, then the gateway goes on."""
    stopping = threading.Thread(target=stop_for, args=(node, "gateway", seconds, rng))
    stopping.start()
    time.sleep(0.2)  # into the stop
    victim = rng.choice(pids(node, "host"))
    os.kill(victim, signal.SIGKILL)
    stopping.join()
    wait_for(lambda: victim not in pids(node, "host") and all(node.status()["hosts"]), "another host")


def test_a_gateway_stopped_across_the_death_of_a_host(tmp_path):
    """Nothing is said twice to its clients, and no event counts twice: what the dead host had said and done is in the
    gateway's buffers, where the successor cannot see it. A host that says it again turns `unit/test_sent_again.py` red;
    here that shows only where the death has cut the buffer between what was said and its `Done`."""
    rng = random.Random(SEED)
    # Not strict: while the gateway is stopped, objects wake without its sockets, which miss what is told to the room.
    with node_with(tmp_path) as node, Load(node, seed=SEED, strict=False) as load:
        load.start()
        load.go_on(300)
        for _ in range(2):
            stop_across_a_death(node, rng)
            load.go_on(300)
        load.check()
        assert not load.closes, load.closes
        assert not load.repeated


@pytest.mark.parametrize("second", ["F1 kill a host", "F2 kill a gateway", "F6 stop a host"])
def test_with_a_second_fault(tmp_path, second):
    """Each row also once with another fault 0-3 s after the first."""
    rng = random.Random(SEED)
    with node_with(tmp_path) as node, Load(node, seed=SEED, strict=False) as load:
        load.start()
        load.go_on(300)
        first = threading.Thread(target=FAULTS["F1 kill a host"], args=(node, tmp_path, rng))
        first.start()
        time.sleep(rng.random())
        FAULTS[second](node, tmp_path, rng)
        first.join()
        load.go_on(300)
        load.check()


def test_crash_every_second(tmp_path):
    """The acceptance's row: a host killed every second, for ROOST_CRASH_S seconds."""
    seconds = float(os.environ.get("ROOST_CRASH_S", "4"))
    sockets = int(os.environ.get("ROOST_CRASH_SOCKETS", "200"))
    rng = random.Random(SEED)
    with (
        running(write_rooms(tmp_path / "app"), "--hosts", "2") as node,
        Load(node, rooms=50, sockets=sockets, seed=SEED) as load,
    ):
        load.start()
        load.go_on(sockets)
        began = time.monotonic()
        killed = set()
        while time.monotonic() - began < seconds:
            next_at = time.monotonic() + 1.0
            alive = [pid for pid in pids(node, "host") if pid not in killed]
            if alive:
                victim = rng.choice(alive)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
            time.sleep(max(0.0, next_at - time.monotonic()))  # the fault's own rhythm
        load.go_on(sockets)
        load.check()
        assert not load.closes, load.closes
        ordered = sorted(load.pauses_s)
        print(
            f"{len(killed)} kills in {seconds:g} s, {sockets} sockets, 50 objects: {load.answers()} messages, 0 closed,"
            f" 0 lost, 0 doubled; recovery pause p99 {ordered[int(len(ordered) * 0.99)]:.2f} s, longest {ordered[-1]:.2f} s"
        )


# The checkers, proven: a broken variant of the runtime for each invariant, which must turn it red (I1, I2: test_crash).

MUTANTS = {
    "I5": """
from roost.host.objects.actor_storage import ActorStorage
from roost.host.objects.output_gate import OutputGate
OutputGate.shut = property(lambda self: False, lambda self, value: None)
OutputGate.hold = lambda self, release: release(None)
ActorStorage._schedule = lambda self: (setattr(self, "_scheduled", True), self._loop.call_later(0.05, self._commit))
""",
    "I6": """
import random
from roost.host.objects.actor_port import ActorPort
send_message = ActorPort.send_message
ActorPort.send_message = lambda self, *a: random.random() > 0.01 and send_message(self, *a)
""",
    "I7": """
from roost.host.objects.actor import Actor
end = Actor._end
def twice(self, socket, item, link, event):
    self.instance.ended(socket, "again")
    end(self, socket, item, link, event)
Actor._end = twice
""",
    "I8": """
from roost.api.websocket import WebSocket
from roost.values import encode
restored = WebSocket.restored.__func__
def forgetful(cls, entry, context, port):
    socket = restored(cls, entry, context, port)
    socket.raw_attachment = encode({"id": "somebody else"})
    return socket
WebSocket.restored = classmethod(forgetful)
""",
    "I9": """
from roost.host.objects.alarms import Alarms
from roost.clock import SystemClock
class Early(SystemClock):
    def wall_ms(self):
        return super().wall_ms() + 250
init = Alarms.__init__
Alarms.__init__ = lambda self, surroundings, clock: init(self, surroundings, Early())
""",
    "I12": """
from roost.host.objects.actor_port import ActorPort
send_message, kept = ActorPort.send_message, []
ActorPort.send_message = lambda self, *a: (kept.append(bytearray(20_000)), send_message(self, *a))[1]
""",
    "I14": """
from roost.host.gateway_link import GatewayLink
GatewayLink.send_done = lambda self: None
""",
}


@pytest.mark.parametrize("invariant", MUTANTS)
def test_a_mutant_turns_its_checker_red(tmp_path, invariant):
    rng = random.Random(SEED)
    with node_with(tmp_path, mutant=MUTANTS[invariant]) as node, Load(node, seed=SEED) as load:
        load.start()
        load.go_on(500)
        if invariant == "I7":
            kill(node, "gateway", rng)
            load.go_on(100)
        elif invariant == "I8":
            load.rest()
            wait_for(lambda: node.awake() == [])
            load.speak()
            load.go_on(100)
        elif invariant == "I5":
            kill(node, "host", rng)
            load.go_on(100)
        elif invariant == "I12":
            load.go_on(3000)
        with pytest.raises(Faults, match=f"{invariant}:"):
            load.check(max_memory_bytes=150 << 20, rest_s=10)  # an answer that is dropped never comes


# The same for gateways: their processes are started with a `sitecustomize` that breaks them.

GATEWAY_MUTANTS = {
    "I1 or I10": """
from roost.gateway.routing.host_slot import HostSlot
def forgets(self, upto, stragglers):
    self.unfinished.clear()
    self.stragglers.clear()
HostSlot.done = forgets
deliver = HostSlot.attach
def attach(self, link, hello):
    self.unfinished.clear()
    self.stragglers.clear()
    deliver(self, link, hello)
HostSlot.attach = attach
""",
    "I6": """
import random
from roost.gateway.io.connection import Connection
send_frame = Connection.send_frame
from roost.gateway.routing import router
from_host = router.Router.from_host
def twice(self, slot, events):
    from roost.events import Send
    from_host(self, slot, [each for event in events for each in
                           ([event, event] if type(event) is Send and random.random() < 0.01 else [event])])
router.Router.from_host = twice
""",
    "I7": """
from roost.gateway.routing.journal import Journal
Journal.forgotten = lambda self, number: None
from roost.gateway.routing.router import Router
tell_end = Router._tell_end
def silent(self, connection, slot, event):
    if connection.number % 3:
        tell_end(self, connection, slot, event)
    else:
        self.end_finished(event)
Router._tell_end = silent
""",
    "I7 or I8 journal not removed from": """
from roost.gateway.routing.journal import Journal
Journal.forgotten = lambda self, number: None
""",
    "I7 restore forgets": """
from roost.gateway.routing import journal
journal.read = lambda path: []
""",
    "I7 told twice": """
from roost.gateway.routing.router import Router
from roost.events import SocketClose
tell_end = Router._tell_end
def twice(self, connection, slot, event):
    again = SocketClose(slot.next_event(), event.actor, event.socket, event.code, event.reason, False)
    tell_end(self, connection, slot, event)
    slot.deliver(again)
Router._tell_end = twice
""",
    "I8": """
from roost.gateway.routing.router import Router
import msgspec
Router._attach_value = lambda self, slot, event: None
Router._HANDLERS = {kind: (Router._attach_value if kind.__name__ == "Attach" else handler)
                    for kind, handler in Router._HANDLERS.items()}
from roost.gateway.routing.upgrades import Upgrades
bind = Upgrades.bind
def forgetful(self, slot, http, answer, number, response):
    if answer.binding is not None and answer.binding.attachment is not None:
        binding = msgspec.structs.replace(answer.binding, attachment=None)
        answer = msgspec.structs.replace(answer, binding=binding)
        response = answer
    bind(self, slot, http, answer, number, response)
Upgrades.bind = forgetful
""",
    "I14": """
from roost.gateway.routing.host_slot import HostSlot
HostSlot.done = lambda self, upto, stragglers: None
""",
}


QUICK = ("I6", "I14")  # the others wait for what never comes; `make acceptance` runs them, too


@pytest.mark.parametrize("invariant", GATEWAY_MUTANTS if "ROOST_KILLS" in os.environ else QUICK)
def test_a_broken_gateway_turns_its_checker_red(tmp_path, invariant):
    rng = random.Random(SEED)
    breaker = tmp_path / "breaker"
    breaker.mkdir()
    (breaker / "sitecustomize.py").write_text(GATEWAY_MUTANTS[invariant])
    app = write_rooms(tmp_path / "app")
    with (
        running(app, "--hosts", "2", env={"PYTHONPATH": str(breaker)}, own_errors=True) as node,
        Load(node, sockets=60, seed=SEED) as load,
    ):
        load.start()
        with pytest.raises((Faults, AssertionError)) as found:
            load.go_on(300, 20)
            if invariant == "I1 or I10":
                kill(node, "host", rng)
                load.go_on(100, 20)
            elif invariant == "I8":
                load.rest(20)
                wait_for(lambda: node.awake() == [])
                load.speak()
                load.go_on(100, 20)
            elif invariant == "I7 restore forgets":
                kill(node, "gateway", rng)
                load.go_on(100, 30)
            elif invariant.startswith("I7"):
                load.rest(20)
                for client in load.clients[:12]:
                    client.ws.abort()
                load.speak()
                load.go_on(60, 20)
                if "journal" in invariant:
                    kill(node, "gateway", rng)
                    load.go_on(60, 30)
            load.check()
        wanted = [each[:3].strip() for each in invariant.split(" or ")]
        assert any(each in str(found.value) for each in (*wanted, "stands still", "close events")), found.value


WAITS_FOR_READERS = """
import time
from roost.host.objects.actor_port import ActorPort
send_message = ActorPort.send_message
def patient(self, number, payload, text):
    if payload.startswith(b'["flood"'):
        time.sleep(0.005)
    send_message(self, number, payload, text)
ActorPort.send_message = patient
"""


@pytest.mark.parametrize("mutant", ["", WAITS_FOR_READERS], ids=["", "mutant"])
def test_slow_readers_do_not_slow_the_others(tmp_path, mutant):
    """F13 with I12 and I13: five sockets are sent megabytes that they do not read."""
    with node_with(tmp_path, gateways=1, mutant=mutant) as node, Load(node, sockets=40, seed=SEED) as load:
        load.start()
        load.go_on(1000)
        quiet_s, since = load.p99_s(), len(load.pauses_s)
        with contextlib.ExitStack() as slow:
            readers = [slow.enter_context(node.connect(f"/room-{number}?id=slow-{number}")) for number in range(5)]
            for _ in range(40):
                for ws in readers:
                    try:
                        ws.send(json.dumps(["flood", ""]))
                    except OSError:
                        pass  # it has been closed
                load.go_on(40)
                if node.counter("closed_slow_reader") == 5:
                    break
            else:
                raise AssertionError("the slow readers were not closed")
            if mutant:
                with pytest.raises(Faults, match="I13:"):
                    load.check_others(quiet_s, since)
                return
            print(f"others' p99 {quiet_s * 1000:.1f} -> {load.check_others(quiet_s, since) * 1000:.1f} ms")
        wait_for(lambda: node.counter("sockets") == 40)
        load.check()
        assert not load.closes, load.closes


# `make torture SEED=… MINUTES=…`


@pytest.mark.skipif(not MINUTES, reason="make torture")
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_torture(tmp_path):
    rng = random.Random(SEED)
    done = dict.fromkeys(FAULTS, 0)
    with node_with(tmp_path) as node, Load(node, rooms=50, sockets=500, seed=SEED, strict=False) as load:
        load.start()
        load.go_on(500)
        ends = time.monotonic() + MINUTES * 60
        while time.monotonic() < ends:
            fault = rng.choice(list(FAULTS))
            FAULTS[fault](node, tmp_path, rng)
            done[fault] += 1
            load.go_on(200, 120)
        load.check()
        ended = sum(load.closes.values())
        faults = ", ".join(f"{name.split(' ', 1)[1]} {times}" for name, times in done.items())
        print(
            f"\ntorture: seed {SEED}, {MINUTES:g} min, 50 objects, 500 sockets, 2 gateways, 2 hosts: {sum(done.values())}"
            f" faults ({faults}); {load.answers()} messages, {ended} sockets ended with their gateway and came back;"
            f" 0 lost, 0 doubled; of what was told across gateways {load.missed} missed, {load.repeated} repeated;"
            f" p99 {load.p99_s():.2f} s, longest {max(load.pauses_s):.2f} s"
        )
