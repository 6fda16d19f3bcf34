"""host/: one host, with the test as its gateway: waking, order, what is done and when. No socket, no process."""

import asyncio

import pytest

from hosted import ENTRIES, REF, run_hosted, settle
from roost import events as e

SOURCE = """
import asyncio
from workers import DurableObject, Response, WorkerEntrypoint

GATES, SEEN, FAIL = {}, [], []

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        if FAIL:
            raise ValueError(FAIL.pop())

    async def webSocketMessage(self, ws, message):
        if message.startswith("wait"):
            GATES[message] = asyncio.get_running_loop().create_future()
            await GATES[message]
        if message == "write and fail":
            self.ctx.storage.kv.put("a", 1)
            raise ValueError("after the write")
        if message == "cancelled":
            task = asyncio.get_running_loop().create_future()
            task.cancel()
            await task
        SEEN.append(message)
        ws.send("did " + message)

    async def webSocketClose(self, ws, code, reason, wasClean):
        SEEN.append(("close", code, len(self.ctx.getWebSockets())))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("ok")
"""


def hosted(tmp_path, test, **options):
    run_hosted(tmp_path, SOURCE, test, **options)


def test_waking_asks_once_and_keeps_order(tmp_path):
    async def body(host, gateway, module):
        for number in range(5):
            gateway.message(101 + number % 2, str(number))
        await settle()
        assert gateway.take(e.RosterRequest) == [e.RosterRequest(1, None)]
        assert sorted(gateway.done().stragglers) == [1, 2, 3, 4, 5]  # none of them is done
        gateway.message(101, "5")
        gateway.roster()
        gateway.message(102, "6")
        await settle()
        assert module["SEEN"] == [str(n) for n in range(7)]
        assert gateway.done() == e.Done(7, ())

    hosted(tmp_path, body)


def test_a_message_that_brings_the_roster_asks_nothing(tmp_path):
    async def body(host, gateway, module):
        gateway.waking_message(101, "a")
        gateway.message(102, "b")
        await settle()
        assert module["SEEN"] == ["a", "b"]
        assert gateway.take(e.RosterRequest) == []
        assert gateway.done() == e.Done(2, ())
        assert list(host.links[0].sockets) == [101, 102]

    hosted(tmp_path, body)


def test_a_message_that_brings_the_roster_to_an_object_awake_after_all(tmp_path):
    async def body(host, gateway, module):
        gateway.waking_message(101, "a")
        await settle()
        gateway.waking_message(102, "b")
        await settle()
        assert module["SEEN"] == ["a", "b"]
        assert gateway.done() == e.Done(2, ())
        assert host.counters.wakes == 1

    hosted(tmp_path, body)


def test_a_message_that_brings_the_roster_comes_behind_those_that_wait_for_it(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        await settle()
        gateway.waking_message(102, "b")
        gateway.message(101, "c")
        await settle()
        assert module["SEEN"] == ["a", "b", "c"]
        gateway.roster()  # what was asked for comes too late
        await settle()
        assert gateway.done() == e.Done(3, ())
        assert host.counters.wakes == 1

    hosted(tmp_path, body)


def test_a_constructor_that_fails_at_a_message_that_brings_the_roster(tmp_path):
    async def body(host, gateway, module):
        module["FAIL"].append("not yet")
        gateway.waking_message(101, "lost")
        await settle()
        assert gateway.done() == e.Done(1, ())
        assert len(host.actors) == 0
        assert host.links[0].sockets == {}
        gateway.waking_message(101, "again")
        await settle()
        assert module["SEEN"] == ["again"]
        assert gateway.done() == e.Done(2, ())

    hosted(tmp_path, body)


@pytest.mark.parametrize("unasked", [False, True])
def test_an_object_wakes_when_all_pieces_of_its_roster_are_here(tmp_path, unasked):
    async def body(host, gateway, module):
        if not unasked:
            gateway.message(102, "a")
            await settle()
        gateway.roster(entries=ENTRIES[:1], more=True)
        if not unasked:
            await settle()
            assert module["SEEN"] == []
        gateway.roster(entries=ENTRIES[1:], piece=1)
        if unasked:
            gateway.message(102, "a")
        gateway.message(101, "b")
        await settle()
        assert module["SEEN"] == ["a", "b"]
        assert list(host.links[0].sockets) == [101, 102]
        assert len(gateway.take(e.RosterRequest)) == (0 if unasked else 1)
        assert gateway.done() == e.Done(2, ())

    hosted(tmp_path, body)


def test_pieces_that_came_unasked_are_used_in_a_later_batch(tmp_path):
    """A roster of many sockets is longer than one read of the link."""

    async def body(host, gateway, module):
        gateway.roster(entries=ENTRIES[:1], more=True)
        await settle()
        gateway.roster(entries=ENTRIES[1:], piece=1)
        gateway.message(102, "a")
        await settle()
        assert module["SEEN"] == ["a"]
        assert list(host.links[0].sockets) == [101, 102]
        assert gateway.take(e.RosterRequest) == []
        assert gateway.done() == e.Done(1, ())
        assert host.links[0].offered == []

    hosted(tmp_path, body)


def test_a_further_piece_of_an_object_that_there_was_no_room_for_wakes_nothing(tmp_path):
    async def body(host, gateway, module):
        gateway.roster(entries=ENTRIES[1:], piece=1)
        gateway.message(102, "a")
        await settle()
        assert module["SEEN"] == []
        assert gateway.take(e.RosterRequest) == [e.RosterRequest(1, None)]
        gateway.roster()
        await settle()
        assert module["SEEN"] == ["a"]

    hosted(tmp_path, body)


def test_a_host_that_leaves_takes_no_message_that_brings_the_roster(tmp_path):
    async def body(host, gateway, module):
        host.leave()
        gateway.waking_message(101, "for the successor")
        await settle()
        assert module["SEEN"] == []
        assert gateway.take(e.Done) == []

    hosted(tmp_path, body)


def test_nothing_is_done_before_it_ran(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        await settle()
        assert gateway.done() == e.Done(1, (1,))
        gateway.roster()
        await settle()
        assert gateway.done() == e.Done(1, ())
        gateway.message(101, "wait 1")
        gateway.message(102, "b")
        gateway.message(101, "wait 2")
        await settle()
        done = gateway.done()
        assert (done.event, sorted(done.stragglers)) == (4, [2, 4])
        module["GATES"]["wait 2"].set_result(None)
        await settle()
        assert gateway.done() == e.Done(4, (2,))
        module["GATES"]["wait 1"].set_result(None)
        await settle()
        assert gateway.done() == e.Done(4, ())
        assert module["SEEN"] == ["a", "b", "wait 2", "wait 1"]

    hosted(tmp_path, body)


def test_more_stragglers_than_64_do_not_stall_the_rest(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        gateway.roster()
        for number in range(100):
            gateway.message(101, f"wait {number}")
        gateway.message(102, "b")
        await settle()
        done = gateway.done()
        assert done.event == 102
        assert sorted(done.stragglers) == list(range(2, 102))

    hosted(tmp_path, body)


def test_constructor_that_fails_once(tmp_path):
    """The event is dropped and logged, the socket stays, and the next event builds the object."""

    async def body(host, gateway, module):
        module["FAIL"].append("not yet")
        gateway.message(101, "lost")
        gateway.roster()
        await settle()
        assert gateway.done() == e.Done(1, ())
        assert len(host.actors) == 0
        gateway.message(101, "again")
        await settle()
        assert gateway.take(e.RosterRequest)
        gateway.roster()
        await settle()
        assert module["SEEN"] == ["again"]
        assert gateway.done() == e.Done(2, ())

    hosted(tmp_path, body)


def test_a_class_that_is_gone_stalls_nothing(tmp_path):
    async def body(host, gateway, module):
        gateway.message(7, "x", actor=9)
        gateway.message(101, "a")
        await settle()
        gateway.roster(9, e.ObjectRef("Gone", REF.id, "x"), [])
        gateway.roster()
        await settle()
        assert module["SEEN"] == ["a"]
        assert gateway.done() == e.Done(2, ())

    hosted(tmp_path, body)


def test_cancelled_handler_does_not_take_its_neighbours(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        gateway.roster()
        await settle()
        gateway.message(101, "cancelled")
        gateway.message(102, "b")
        await settle()
        assert module["SEEN"] == ["a", "b"]
        assert gateway.done() == e.Done(3, ())

    hosted(tmp_path, body)


def test_a_handler_that_fails_after_writing_is_done_when_that_is_durable(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        gateway.roster()
        await settle()
        gateway.take(e.Done)
        gateway.message(101, "write and fail")
        dones = []
        async with asyncio.timeout(10):
            while not dones or dones[-1].stragglers:
                await asyncio.sleep(0)
                dones += gateway.take(e.Done)
        assert dones == [e.Done(2, (2,)), e.Done(2, ())]

    hosted(tmp_path, body)


def test_close_while_asleep_finds_its_socket(tmp_path):
    async def body(host, gateway, module):
        gateway.close(101)
        await settle()
        gateway.roster()
        await settle()
        assert module["SEEN"] == [("close", 1000, 2)]
        assert gateway.take(e.CloseSocket) == [e.CloseSocket(101, 1000, "")]
        assert gateway.done() == e.Done(1, ())
        assert list(host.links[0].sockets) == [102]

    hosted(tmp_path, body)


def test_sleep_forgets_and_is_told_to_the_gateway(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        gateway.roster()
        await settle()
        gateway.got.clear()
        assert host.sleeping.put_to_sleep(host.loop.time() + 60, 10) == 1
        await settle()
        assert gateway.got == [e.Asleep(0, REF)]
        assert host.links[0].sockets == {}
        gateway.message(101, "b")
        await settle()
        gateway.roster()
        await settle()
        assert module["SEEN"] == ["a", "b"]

    hosted(tmp_path, body)


def test_roster_of_an_object_that_is_gone(tmp_path):
    async def body(host, gateway, module):
        gateway.message(101, "a")
        await settle()
        gateway.roster(1, None, [])
        await settle()
        assert gateway.done() == e.Done(1, ())
        assert module["SEEN"] == []

    hosted(tmp_path, body)


def test_gateway_lost_while_waking_ends_the_wait(tmp_path):
    async def body(host, gateway, module):
        actor = host.waking.awaken(REF, "test")
        assert actor.phase.value == "waking"
        gateway.link.close()
        await settle()
        assert actor.phase.value == "awake"

    hosted(tmp_path, body)


def kept_timers(host, delays):
    """What is to be called after one of these delays, kept for the test to call."""
    call_later, kept = host.loop.call_later, []

    def keep(delay, call, *arguments, **options):
        if delay not in delays:
            return call_later(delay, call, *arguments, **options)
        kept.append((delay, call))
        return call_later(3600, call)

    host.loop.call_later = keep
    return kept


def test_a_gateway_that_hangs_is_waited_for_once(tmp_path, caplog):
    """The first object to wake waits two seconds for its roster, those after it not at all; its sockets join late."""

    async def body(host, gateway, module):
        timers = kept_timers(host, (2.0, 0.05))
        first = host.waking.awaken(REF, "test")
        assert first.phase.value == "waking"
        ((delay, look),) = timers
        assert delay == 2.0
        first.asked_at -= 2.0  # the time has passed
        look()
        assert first.phase.value == "waking", "what has come meanwhile is read first"
        delay, look = timers[1]
        assert delay == 0.05
        look()
        assert first.phase.value == "awake"
        assert caplog.text.count("gateway 0 does not answer") == 1
        second = host.waking.awaken(e.ObjectRef("Room", "0" * 64, None), "test")
        assert second.phase.value == "awake", "it is known to be slow"
        assert len(timers) == 2
        assert not first.sockets
        gateway.roster(0)  # it answers after all
        await settle()
        assert [socket.socket_number for socket in first.sockets] == [101, 102]
        assert not host.links[0].slow
        gateway.message(101, "late, and heard")
        await settle()
        assert module["SEEN"] == ["late, and heard"]
        third = host.waking.awaken(e.ObjectRef("Room", "1" * 64, None), "test")
        assert third.phase.value == "waking", "it is waited for again"

    hosted(tmp_path, body)


def test_one_that_asked_later_waits_for_its_own_time(tmp_path):
    async def body(host, gateway, module):
        timers = kept_timers(host, (2.0, 0.05))
        first = host.waking.awaken(REF, "test")
        second = host.waking.awaken(e.ObjectRef("Room", "0" * 64, None), "test")
        first.asked_at -= 2.0
        timers[0][1]()
        timers[1][1]()
        assert first.phase.value == "awake"
        assert second.phase.value == "waking"
        second.asked_at -= 2.0
        timers[2][1]()
        assert second.phase.value == "awake"

    hosted(tmp_path, body)


def test_interrupted_handlers_are_not_done(tmp_path):
    """A host that is told to end while a handler waits leaves the event to its successor."""

    async def body(host, gateway, module):
        gateway.message(101, "wait 1")
        gateway.roster()
        await settle()
        assert gateway.done() == e.Done(1, (1,))
        await host.close(0)
        await settle()
        assert all(1 in done.stragglers for done in gateway.take(e.Done))

    hosted(tmp_path, body)


@pytest.mark.parametrize("idle_s", [0, 10])
def test_requests_answer(tmp_path, idle_s):
    async def body(host, gateway, module):
        gateway.link.send(e.Request(2, "GET", "http://a/", [("Host", "a")], b"", False, False, 0, "1.2.3.4"))
        await settle()
        (response,) = gateway.take(e.Response)
        assert (response.request, response.status, response.body) == (2, 200, b"ok")

    hosted(tmp_path, body, idle_s=idle_s)
