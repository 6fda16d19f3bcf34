"""The gates of a whole object, without network or time: the disk's sync ends when the test says so.

Numbers are those of the observed behaviour.
"""

import asyncio

import pytest

from hosted import REF, HeldDisk, left, run_hosted, settle, until
from roost import events as e
from roost.errors import JsException
from roost.storage.errors import StorageError

SOURCE = """
import asyncio
from js import WebSocket
from workers import DurableObject, Response, WorkerEntrypoint, fetch

SEEN, DO, GATES = [], {}, {}

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)

    async def webSocketMessage(self, ws, message):
        SEEN.append(message)
        if message in DO:
            await DO[message](self, ws)
        else:
            ws.send("did " + message)

    async def fetch(self, request):
        SEEN.append("fetch")
        return Response("ok")

    async def alarm(self):
        SEEN.append("alarm")

    async def call(self, what):
        SEEN.append(what)
        return what

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("ok")
"""


def gated(tmp_path, test, **options):
    async def body(host, gateway, module):
        gateway.answers_rosters = True
        gateway.message(101, "wake")
        await until(lambda: gateway.take(e.Send))
        actor = host.actors.get(REF)
        actor.instance.ctx.storage.kv.put("opened", 1)
        await actor.instance.ctx.storage.sync()
        disk = HeldDisk(actor)
        try:
            await test(host, gateway, module, actor, disk)
        finally:
            disk.let_go()

    run_hosted(tmp_path, SOURCE, body, data=tmp_path / "data", **options)


async def write(room, ws=None):
    room.ctx.storage.kv.put("n", (room.ctx.storage.kv.get("n") or 0) + 1)


def test_w25_sends_and_closes_wait_for_the_write_then_leave_in_order(tmp_path):
    async def body(host, gateway, module, actor, disk):
        async def act(room, ws):
            ws.send("before")
            await write(room)
            ws.send("one")
            ws.serializeAttachment({"a": 1})
            ws.close(1000, "bye")

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await settle()
        assert [event.payload for event in left(gateway)] == [b"before"]
        disk.let_go()
        await until(lambda: len(left(gateway)) == 4)
        assert [type(event) for event in left(gateway)] == [e.Send, e.Send, e.Attach, e.CloseSocket]

    gated(tmp_path, body)


def test_w25_the_event_is_not_done_before_the_write_is(tmp_path):
    async def body(host, gateway, module, actor, disk):
        module["DO"]["act"] = write
        gateway.message(101, "act")
        await settle()
        assert gateway.done().stragglers == (2,)
        disk.let_go()
        await until(lambda: any(isinstance(event, e.Done) and event.stragglers == () for event in gateway.got))

    gated(tmp_path, body)


def test_w26_an_auto_response_does_not_wait_for_the_gate(tmp_path):
    """The gateway answers by itself: nothing of it passes the object. (If a gated send is queued, the pong is first.)"""

    async def body(host, gateway, module, actor, disk):
        async def act(room, ws):
            from js import WebSocketRequestResponsePair

            room.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair("ping", "pong"))
            await write(room)
            ws.send("held")

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await settle()
        assert [type(event) for event in left(gateway)] == [e.SetAutoResponse]  # set before the write: left at once
        gateway.link.send(e.AutoAnswered(1, 102, 123))
        await settle()
        assert actor.gate.shut
        assert max(socket.auto_answered_ms for socket in actor.sockets) == 123

    gated(tmp_path, body)


def test_w47_a_failed_write_drops_what_waits_and_resets_the_object(tmp_path):
    async def body(host, gateway, module, actor, disk):
        async def act(room, ws):
            await write(room)
            ws.send("never")

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await settle()
        disk.let_go(StorageError("the disk is full"))
        await until(lambda: host.actors.get(REF) is None)
        await settle()
        assert left(gateway) == []
        with pytest.raises(StorageError):
            actor.instance_after = actor.store.get("n")
        gateway.message(101, "again")  # a new life, on what is on the disk
        await until(lambda: gateway.take(e.Send))
        assert host.actors.get(REF) is not actor

    gated(tmp_path, body)


def test_w48_writes_without_an_await_between_are_one_commit(tmp_path):
    async def body(host, gateway, module, actor, disk):
        disk.let_go()
        commits = []
        commit = actor.store._database.commit
        actor.store._database.commit = lambda: (commits.append(1), commit())[1]

        async def act(room, ws):
            for number in range(10):
                await room.ctx.storage.put(str(number), number)  # completes at once
            room.ctx.storage.sql.exec("CREATE TABLE t (x)")
            await asyncio.sleep(0)
            await room.ctx.storage.put("later", 1)

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await until(lambda: not actor.is_writing and actor.store.get("later"))
        assert len(commits) == 2

    gated(tmp_path, body)


def test_w51_an_unconfirmed_write_does_not_hold_output_but_its_failure_breaks_the_gate(tmp_path):
    async def body(host, gateway, module, actor, disk):
        async def act(room, ws):
            await room.ctx.storage.put("u", 1, allowUnconfirmed=True)
            ws.send("at once")

        async def mixed(room, ws):
            await room.ctx.storage.put("u", 2, allowUnconfirmed=True)
            await room.ctx.storage.put("c", 2)
            ws.send("held")

        module["DO"].update(act=act, mixed=mixed)
        gateway.message(101, "act")
        await settle()
        assert [event.payload for event in gateway.take(e.Send)] == [b"at once"]
        gateway.message(101, "mixed")
        await settle()
        assert gateway.take(e.Send) == []
        disk.let_go(StorageError("the disk is full"))
        await until(lambda: host.actors.get(REF) is None)
        assert gateway.take(e.Send) == []

    gated(tmp_path, body)


def test_w52_sync_waits_for_the_writes_before_it_and_passes_on_their_error(tmp_path):
    async def body(host, gateway, module, actor, disk):
        storage = actor.instance.ctx.storage
        await storage.put("a", 1)
        waiting = asyncio.ensure_future(storage.sync())
        await settle()
        assert not waiting.done()
        disk.let_go(StorageError("the disk is full"))
        with pytest.raises(StorageError, match="full"):
            await waiting

    gated(tmp_path, body)


def test_w53_handshakes_fetches_and_calls_wait_for_the_write(tmp_path):
    async def body(host, gateway, module, actor, disk):
        other = e.ObjectRef("Room", host.worker.env.ROOM.idFromName("other").ref.id, "other")

        async def act(room, ws):
            await write(room)
            from js import WebSocket

            WebSocket.new("ws://127.0.0.1:1/")
            room.env.ROOM.getByName("other").call("called")
            module["task"] = asyncio.ensure_future(room.env.ROOM.getByName("other").fetch("http://x/"))

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await settle()
        assert gateway.take(e.Dial) == []
        assert host.actors.get(other) is None
        assert module["SEEN"] == ["wake", "act"]
        disk.let_go()
        await until(lambda: len(module["SEEN"]) == 4)
        assert set(module["SEEN"][2:]) == {"called", "fetch"}
        assert len(gateway.take(e.Dial)) == 1

    gated(tmp_path, body)


def test_w42_sections_may_be_nested_64_deep(tmp_path):
    async def body(host, gateway, module, actor, disk):
        outcome = []

        async def act(room, ws):
            async def section(depth):
                if depth == 65:
                    outcome.append("too deep")
                try:
                    await room.ctx.blockConcurrencyWhile(lambda: section(depth + 1))
                except JsException as error:
                    outcome.append(f"the {depth + 1}th: {error}")

            await room.ctx.blockConcurrencyWhile(lambda: section(1))

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await until(lambda: outcome)
        assert outcome == ["the 65th: Error: blockConcurrencyWhile() may be nested at most 64 deep."]
        gateway.message(101, "still alive")
        await until(lambda: gateway.take(e.Send))
        assert host.actors.get(REF) is actor  # an error that is caught does not break the object

    gated(tmp_path, body)


def test_w46_events_of_every_kind_wait_for_a_section(tmp_path):
    async def body(host, gateway, module, actor, disk):
        disk.let_go()
        section_ends = asyncio.get_running_loop().create_future()

        async def act(room, ws):
            async def section():
                await section_ends
                module["SEEN"].append("section over")

            await room.ctx.blockConcurrencyWhile(section)

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await settle()
        gateway.message(102, "message")
        call = host.worker.env.ROOM.getByName("x").call("call")
        gateway.link.send(e.Request(2, "GET", "http://x/", [], b"", False, False, 0, "", REF))
        actor.instance.ctx.storage.kv.put("a", 1)
        await actor.instance.ctx.storage.setAlarm(1)
        await actor.instance.ctx.storage.sync()
        await settle()
        assert module["SEEN"] == ["wake", "act"]
        section_ends.set_result(None)
        assert await call == "call"
        await until(lambda: len(module["SEEN"]) == 7)
        assert module["SEEN"][2:4] == ["section over", "message"]
        assert set(module["SEEN"][4:]) == {"call", "fetch", "alarm"}

    gated(tmp_path, body)


def test_w46_nested_sections_in_order(tmp_path):
    async def body(host, gateway, module, actor, disk):
        async def act(room, ws):
            async def section(name, inner=None):
                module["SEEN"].append(f"{name} begins")
                if inner is not None:
                    await room.ctx.blockConcurrencyWhile(inner)
                await asyncio.sleep(0)
                module["SEEN"].append(f"{name} ends")

            await room.ctx.blockConcurrencyWhile(lambda: section("outer", lambda: section("inner")))

        module["DO"]["act"] = act
        gateway.message(101, "act")
        gateway.message(102, "after")
        await until(lambda: "after" in module["SEEN"])
        assert module["SEEN"][2:] == ["outer begins", "inner begins", "inner ends", "outer ends", "after"]

    gated(tmp_path, body)


def test_w46_a_failed_section_rejects_what_waited_and_the_object_starts_anew(tmp_path):
    async def body(host, gateway, module, actor, disk):
        ends = asyncio.get_running_loop().create_future()

        async def act(room, ws):
            async def section():
                await ends
                raise ValueError("broken")

            await room.ctx.blockConcurrencyWhile(section)

        module["DO"]["act"] = act
        gateway.message(101, "act")
        await settle()
        call = host.worker.env.ROOM.getByName("x").call("never")
        await settle()
        ends.set_result(None)
        with pytest.raises(Exception, match="was reset before"):
            await call
        assert "never" not in module["SEEN"]
        assert await host.worker.env.ROOM.getByName("x").call("anew") == "anew"
        assert host.actors.get(REF) is not actor

    gated(tmp_path, body)


def test_a_mutant_whose_gate_holds_nothing_is_seen(tmp_path, monkeypatch):
    """W25's checker is proven."""
    from roost.host.objects.output_gate import OutputGate

    async def body(host, gateway, module, actor, disk):
        async def act(room, ws):
            await write(room)
            ws.send("too early")

        module["DO"]["act"] = act
        monkeypatch.setattr(OutputGate, "begin", lambda gate: gate.last)
        gateway.message(101, "act")
        await settle()
        with pytest.raises(AssertionError):
            assert left(gateway) == []

    gated(tmp_path, body)
