"""host/objects/actor.py: an object awake, its end, and what is looked at from outside. The test is its gateway."""

import asyncio
import gc
import types
import weakref

import pytest

from hosted import REF, Gateway, left, run_hosted, settle, until
from roost import events as e
from roost.api.socket_end import Accept
from roost.closes import NOT_ACCEPTED, OBJECT_BUSY
from roost.host.limits import HostLimits
from roost.host.objects.input_gate import Phase
from roost.host.worker.io_context import MAX_PENDING
from roost.link.memory import memory_pair

SOURCE = """
import asyncio
import contextvars
from workers import DurableObject, Response, WorkerEntrypoint

GATES, SEEN, LIVES, CONTEXTS = {}, [], [], []
VARIABLE = contextvars.ContextVar("variable", default=0)
ABORT = []

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        LIVES.append([ws.deserializeAttachment() for ws in ctx.getWebSockets()])
        if ABORT:
            ABORT.pop()
            ctx.abort("no")

    async def webSocketMessage(self, ws, message):
        SEEN.append(message)
        CONTEXTS.append(VARIABLE.get())
        VARIABLE.set(VARIABLE.get() + 1)
        if isinstance(message, str) and message.startswith("wait"):
            GATES[message] = asyncio.get_running_loop().create_future()
            await GATES[message]
        if message == "put":
            await self.ctx.storage.put("a", 1)
        if message == "abort":
            self.ctx.abort("on purpose")
        if message == "fail":
            1 / 0
        if message == "background":
            self.ctx.waitUntil(asyncio.sleep(1000))
        ws.send("did")

    async def fetch(self, request):
        GATES["fetch"] = asyncio.get_running_loop().create_future()
        await GATES["fetch"]

    async def hello(self):
        return "hello"

    async def slow(self):
        GATES["slow"] = asyncio.get_running_loop().create_future()
        await GATES["slow"]
        return "slow"

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("ok")
"""
STREAMS = """
import asyncio
from workers import DurableObject, Response, WorkerEntrypoint

GATES = []

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)

    async def fetch(self, request):
        async def pieces():
            yield b"first"
            GATES.append(asyncio.get_running_loop().create_future())
            await GATES[-1]
            yield b"last"
        return Response(pieces())

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("ok")
"""
SYNC = """
import contextvars
from workers import DurableObject, Response, WorkerEntrypoint

VARIABLE = contextvars.ContextVar("variable", default=0)
SEEN = []

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)

    def webSocketMessage(self, ws, message):
        SEEN.append((type(message).__name__, VARIABLE.get()))
        VARIABLE.set(7)
        ws.send("did")
        return {"send": "a dict, and no coroutine"}

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("ok")
"""


def hosted(tmp_path, test, source=SOURCE, **options):
    run_hosted(tmp_path, source, test, **options)


def entries(numbers):
    return [e.RosterEntry(number, (), None, 0, "", "", close_sent=False) for number in numbers]


async def awake(host, gateway):
    """The object, after its first message."""
    gateway.waking_message(101, "first")
    await settle()
    gateway.take(e.Send)
    return host.actors.get(REF)


def test_a_message_counts_and_its_object_was_active(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        assert host.counters.wakes == 1
        assert actor.surroundings.handled == 3  # the event, the constructor, the message that waited for it
        assert actor.phase is Phase.AWAKE
        assert actor.built
        assert actor._waiting is None
        before = actor.surroundings.handled
        actor.last_active = 0.0
        gateway.message(101, "a")
        await settle()
        assert actor.last_active > 0
        assert actor.surroundings.handled == before + 1
        assert [each.sockets for each in gateway.take(e.Send)] == [[101]]

    hosted(tmp_path, body)


def test_each_message_has_variables_of_its_own(tmp_path):
    async def body(host, gateway, module):
        await awake(host, gateway)
        gateway.message(101, "a")
        gateway.message(102, "b")
        await settle()
        assert module["CONTEXTS"] == [0, 0, 0]

    hosted(tmp_path, body)


def test_a_plain_function_as_handler(tmp_path):
    """It runs in variables of its own, too, and a dict that it returns is no coroutine, whatever it has."""

    async def body(host, gateway, module):
        await awake(host, gateway)
        gateway.message(101, b"\x00")
        gateway.message(101, "b")
        await settle()
        assert module["SEEN"] == [("str", 0), ("ArrayBuffer", 0), ("str", 0)]
        assert gateway.done() == e.Done(3, ())
        assert not host.actors.get(REF).pins

    hosted(tmp_path, body, SYNC)


def test_what_is_awaited_and_what_is_not(tmp_path, caplog):
    """Coroutines of other makes (a compiled module's) have `send` and another type; nothing else is driven."""
    runs = []

    @types.coroutine
    def of_another_make():
        runs.append("began")
        yield from asyncio.sleep(0).__await__()
        runs.append("ended")

    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        actor.kind.message_is_async, before = False, actor.kind.message_is_async
        for result in (of_another_make(), None, {"send": 1}, 5):
            actor._on_message = lambda ws, message, result=result: result
            gateway.message(101, "a")
            await settle()
        actor.kind.message_is_async = before
        assert runs == ["began", "ended"]
        assert gateway.done() == e.Done(5, ())
        assert "failed" not in caplog.text

    hosted(tmp_path, body)


def test_more_messages_than_may_wait_are_shed(tmp_path):
    """One whose handler runs counts; what was given before has waited once already."""

    async def body(host, gateway, module):
        await awake(host, gateway)
        gateway.message(101, "wait")
        gateway.message(101, "one too many")
        await settle()
        assert module["SEEN"] == ["first", "wait"]
        assert host.counters.events_shed == 1
        assert gateway.take(e.CloseSocket) == [e.CloseSocket(101, *OBJECT_BUSY)]
        host.links[0].redelivery_upto = 4
        gateway.message(102, "given before")
        await settle()
        assert module["SEEN"] == ["first", "wait", "given before"]
        module["GATES"]["wait"].set_result(None)
        await settle()
        assert gateway.done() == e.Done(4, ())
        gateway.message(102, "and on")
        await settle()
        assert module["SEEN"][-1] == "and on"

    hosted(tmp_path, body, limits=HostLimits(max_queued_events=1))


def test_what_comes_for_a_socket_that_nobody_accepted_waits_in_order(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        socket = next(iter(actor.sockets))
        socket.accepted_as = Accept.NONE
        for number in range(3):
            gateway.message(socket.socket_number, str(number))
        await settle()
        assert module["SEEN"] == ["first"]
        assert [item.data for item in socket.kept_items] == ["0", "1", "2"]
        assert gateway.done() == e.Done(4, ())
        taken = []
        socket.dispatch_item = lambda item: taken.append(item.data)
        socket.accept_with(actor, Accept.STANDARD)
        gateway.message(socket.socket_number, "3")  # in the same turn: behind them
        await settle()
        assert taken == ["0", "1", "2", "3"]

    hosted(tmp_path, body)


def test_what_nobody_accepts_is_kept_up_to_a_bound(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        socket = next(iter(actor.sockets))
        socket.accepted_as = Accept.NONE
        for number in range(MAX_PENDING + 2):
            gateway.message(socket.socket_number, str(number))
        await settle()
        assert gateway.take(e.CloseSocket) == [e.CloseSocket(socket.socket_number, *NOT_ACCEPTED)]
        assert socket.socket_number not in host.links[0].sockets
        assert not socket.kept_items

    hosted(tmp_path, body)


def test_the_mark_says_what_runs_and_then_nothing(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        words = host.surroundings.mark.words if hasattr(host, "surroundings") else actor.surroundings.mark.words
        noted = []
        actor._on_message = lambda ws, message: noted.append((words[0], words[1], actor.surroundings.mark.object))
        actor.kind.message_is_async, before = False, actor.kind.message_is_async
        gateway.message(101, "a")
        await settle()
        actor.kind.message_is_async = before
        assert noted == [(host.links[0].epoch, 2, actor)]
        assert words[1] == 0

    hosted(tmp_path, body)


def test_a_handler_that_waits_is_a_straggler_and_pins(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.message(101, "wait 1")
        gateway.message(101, "quick")
        await settle()
        assert gateway.done() == e.Done(3, (2,))
        assert "webSocketMessage running" in actor.pins.values()
        assert actor.running_events == {(host.links[0].epoch, 2)}
        assert actor.is_handling
        assert not actor.is_serving
        module["GATES"]["wait 1"].set_result(None)
        await settle()
        assert gateway.done() == e.Done(3, ())
        assert not actor.pins
        assert actor.running_events == set()
        assert not actor.is_handling

    hosted(tmp_path, body)


def test_what_goes_on_behind_a_handler_is_serving(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.message(101, "background")
        await settle()
        assert gateway.done() == e.Done(2, ())
        assert actor.is_serving
        assert not actor.is_handling

    hosted(tmp_path, body)


def test_a_handler_that_fails_is_done_and_the_object_stays(tmp_path, caplog):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.message(101, "fail")
        gateway.message(101, "behind")
        await settle()
        assert host.actors.get(REF) is actor
        assert gateway.done() == e.Done(3, ())
        assert "webSocketMessage failed" in caplog.text

    hosted(tmp_path, body)


def test_a_write_is_done_when_it_is_on_the_disk(tmp_path):
    async def body(host, gateway, module):
        await awake(host, gateway)
        gateway.message(101, "put")
        await until(lambda: any(isinstance(event, e.GroupEnd) for event in gateway.got))
        await settle()
        said = [type(event) for event in left(gateway)] + [
            type(event) for event in gateway.got if isinstance(event, e.GroupEnd)
        ]
        assert e.Send in said
        assert gateway.done() == e.Done(2, ())

    hosted(tmp_path, body)


def test_abort_in_a_handler_resets_and_tells_every_gateway(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.message(101, "abort")
        await settle()
        assert gateway.take(e.DropSockets) == [e.DropSockets(REF)]
        assert actor.phase is Phase.GONE
        assert actor.is_over
        assert host.actors.get(REF) is None
        assert actor.sockets == {}
        assert actor.instance is None
        assert gateway.done() == e.Done(2, ())
        actor.reset(ValueError("twice"))  # nothing more happens
        assert "on purpose" in str(actor.failure)
        gateway.waking_message(101, "again")
        await settle()
        assert len(module["LIVES"]) == 2

    hosted(tmp_path, body)


def test_abort_in_the_constructor(tmp_path):
    async def body(host, gateway, module):
        module["ABORT"].append(True)
        gateway.waking_message(101, "a")
        await settle()
        assert gateway.take(e.DropSockets) == [e.DropSockets(REF)]
        assert host.actors.get(REF) is None
        assert module["SEEN"] == []
        gateway.waking_message(102, "b")
        await settle()
        assert module["SEEN"] == ["b"]

    hosted(tmp_path, body)


def test_sleep_says_so_behind_everything_and_forgets(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        host.actors.forget(actor)
        actor.sleep()
        await settle()
        assert left(gateway)[-1] == e.Asleep(0, REF)
        assert actor.phase is Phase.GONE
        assert actor.is_over
        assert actor.sockets == {}
        assert actor.instance is None
        assert host.links[0].sockets == {}
        assert actor._waiting is not None  # what comes late finds it closed

    hosted(tmp_path, body)


def test_a_call_that_runs_when_its_object_is_reset_is_answered(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.link.send(e.Call(2, REF, "slow", b"\x91\x92\x90\x80", e.Chain()))
        await settle()
        assert actor.is_handling
        actor.reset(ValueError("lost"))
        await settle()
        (result,) = gateway.take(e.Result)
        assert result.request == 2
        assert "was reset: ValueError: lost" in result.fault.message

    hosted(tmp_path, body)


def test_a_request_that_runs_when_its_object_is_reset_ends(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.link.send(e.Request(6, "GET", "http://x/", [], b"", False, False, 0, "", REF))
        await settle()
        running = module["GATES"]["fetch"]
        actor.reset(ValueError("lost"))
        await settle()
        assert running.cancelled()
        assert [each.request for each in gateway.got if isinstance(each, e.Abort | e.Response)] == [6]

    hosted(tmp_path, body)


def test_an_object_that_aborts_in_its_constructor_is_not_awake(tmp_path):
    async def body(host, gateway, module):
        made = []
        add = host.actors.add
        host.actors.add = lambda actor: (made.append(actor), add(actor))
        module["ABORT"].append(True)
        gateway.waking_message(101, "a")
        await settle()
        (actor,) = made
        assert actor.phase is Phase.GONE
        assert not actor.built

    hosted(tmp_path, body)


def test_a_call_on_one_awake(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.link.send(e.Call(4, REF, "hello", b"\x91\x92\x90\x80", e.Chain()))
        await settle()
        assert gateway.take(e.Result) == [e.Result(4, b"\x91\xa5hello", None)]
        assert not actor.is_handling

    hosted(tmp_path, body)


@pytest.mark.parametrize(("first", "second_has"), [((101, 102), (50, 150)), ((101,), (50,)), ((), (50, 60))])
def test_sockets_of_two_gateways_are_in_the_order_in_which_they_connected(tmp_path, first, second_has):
    async def body(host, gateway, module):
        ours, theirs = memory_pair(asyncio.get_running_loop())
        second = Gateway(theirs)
        host.add_gateway(ours)
        await settle()
        gateway.link.send(e.Welcome(76, 0))
        second.link.send(e.Welcome(77, 0))
        await settle()
        gateway.message(101, "a")
        await settle()
        gateway.roster(entries=entries(first))
        await settle()
        assert second.take(e.RosterRequest) == [e.RosterRequest(0, REF)]
        assert host.actors.get(REF).phase is Phase.WAKING
        second.roster(actor=5, entries=entries(second_has))
        await until(lambda: host.actors.get(REF) is not None and host.actors.get(REF).phase is Phase.AWAKE)
        order = [socket.socket_number for socket in host.actors.get(REF).sockets]
        assert order == sorted((*first, *second_has))

    hosted(tmp_path, body, gateways=2)


@pytest.mark.parametrize("how", ["reset", "sleep"])
def test_an_end_leaves_no_descriptor_and_no_task(tmp_path, how):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.message(101, "put")
        await until(lambda: any(isinstance(event, e.GroupEnd) for event in gateway.got))
        await settle()
        assert host.disk.open_files == 1
        host.actors.forget(actor)
        actor.sleep() if how == "sleep" else actor.reset(ValueError("x"))
        await until(lambda: host.disk.open_files == 0)

    hosted(tmp_path, body)


def test_sleep_cancels_what_goes_on(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        gateway.message(101, "background")
        await settle()
        (task,) = actor._waited_for
        timer = host.loop.call_later(1000, print)
        actor._timers = {1: timer}
        host.actors.forget(actor)
        actor.sleep()
        await settle()
        assert task.cancelled()
        assert timer.cancelled()

    hosted(tmp_path, body)


def test_an_actor_that_sleeps_is_freed_without_the_collector(tmp_path):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        host.actors.forget(actor)
        actor.sleep()
        actor.surroundings.mark.object = None  # what ran last: one object
        gone = weakref.ref(actor)
        gc.disable()
        try:
            del actor
            await settle()
            assert gone() is None
        finally:
            gc.enable()

    hosted(tmp_path, body)


def test_how_one_begins_and_that_its_constructor_is_named_if_it_fails(tmp_path, caplog):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        assert not actor.alarm_running
        assert actor.pre_shutdown_at < 0
        assert actor.failure is None
        host.actors.forget(actor)
        actor.sleep()

        def fails(ctx, env):
            raise ValueError("not today")

        actor.kind.build = fails
        gateway.waking_message(101, "again")
        await settle()
        assert "constructor failed" in caplog.text
        assert "not today" in caplog.text
        assert gateway.done() == e.Done(2, ())

    hosted(tmp_path, body)


def test_a_message_that_an_earlier_life_has_finished_is_done_without_being_run(tmp_path, monkeypatch):
    async def body(host, gateway, module):
        actor = await awake(host, gateway)
        link = host.links[0]
        link.redelivery_upto = 5
        monkeypatch.setattr(type(actor), "_was_finished", lambda actor, number, link: number == 2)
        gateway.message(101, "was finished")
        gateway.message(101, "was not")
        await settle()
        assert module["SEEN"] == ["first", "was not"]
        assert gateway.done() == e.Done(3, ())

    hosted(tmp_path, body)


@pytest.mark.parametrize("how", ["to its end", "until the caller gives up"])
def test_a_body_that_streams_pins(tmp_path, how):
    async def body(host, gateway, module):
        gateway.answers_rosters = True
        gateway.link.send(e.Request(6, "GET", "http://x/", [], b"", False, False, 0, "", REF))
        await until(lambda: module["GATES"])
        actor = host.actors.get(REF)
        assert list(actor.pins.values()) == ["fetch GET running"]
        host.sleeping.put_to_sleep(host.loop.time() + 3600, 0)
        assert host.actors.get(REF) is actor, "it may not sleep while somebody reads of it"
        if how == "to its end":
            module["GATES"][0].set_result(None)
            await until(lambda: any(each.last for each in gateway.got if type(each) is e.BodyData))
        else:
            gateway.link.send(e.Abort(6, "The client has gone."))
        await until(lambda: not actor.pins)
        host.sleeping.put_to_sleep(host.loop.time() + 3600, 0)
        assert host.actors.get(REF) is None

    hosted(tmp_path, body, STREAMS)
