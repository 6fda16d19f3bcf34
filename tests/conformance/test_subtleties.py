"""The fifteen subtleties that a re-implementation would most likely get wrong (workers-api.md, section 9), each by its
number and name, from a client's or a program's side. Details have tests of their own beside their subject."""

import json
import time

import pytest

from conftest import write_app
from hosted import REF, HeldDisk, left, run_hosted, settle, until
from roost import events as e
from roost.protocol.websocket import Pong
from roost.storage.errors import StorageError
from roost.testing import running, wait_for

SOURCE = """
import asyncio, json, time
from js import Date, JsException, WebSocketPair, WebSocketRequestResponsePair, setTimeout
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.log, self.seen = [], []

        @ctx.blockConcurrencyWhile
        async def load():
            await asyncio.sleep(0.05)
            self.log.append("loaded")

    async def fetch(self, request):
        what = request.url.split("?")[1] if "?" in request.url else ""
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new().object_values()
            if what == "early":
                self.log.append(server.readyState)
                server.accept()
                self.log.append(server.readyState)
                for name in ("open", "message"):
                    server.addEventListener(name, lambda event: self.log.append([event.type, getattr(event, "data", None)]))
                server.send("one")
                server.send("two")
            else:
                self.ctx.acceptWebSocket(server, what.split(",") if what else [])
            return Response(None, status=101, web_socket=client)
        return Response.json(await getattr(self, "do_" + what)())

    async def do_log(self):
        return self.log

    async def do_alarm(self):
        await self.ctx.storage.setAlarm(int(time.time() * 1000) - 5000)

    async def do_alarms(self):
        return await self.ctx.storage.get("alarms") or []

    async def alarm(self, info):
        inside = await self.ctx.storage.getAlarm()
        alarms = await self.ctx.storage.get("alarms") or []
        await self.ctx.storage.put("alarms", [*alarms, [inside, info.retryCount, info.isRetry, info.scheduledTime]])
        if len(alarms) == 0:
            await self.ctx.storage.setAlarm(int(time.time() * 1000) + 100)
        elif len(alarms) == 2:
            await self.ctx.storage.setAlarm(int(time.time() * 1000) + 60000)
            await self.ctx.storage.deleteAll()
            await self.ctx.storage.put("alarms", [*alarms, "deleted", await self.ctx.storage.getAlarm()])

    async def do_timer(self):
        setTimeout(lambda: self.log.append("timer"), 600)

    async def do_abort(self):
        self.ctx.storage.kv.put("uncommitted", 1)
        try:
            self.ctx.abort("on purpose")
        except Exception:
            self.log.append("caught")

    async def do_uncommitted(self):
        return self.ctx.storage.kv.get("uncommitted")

    async def do_rows(self):
        row = self.ctx.storage.sql.exec("SELECT 1 AS x").one()
        return [row["x"], row.x]

    async def do_wrong(self):
        found = []
        ws = self.ctx.getWebSockets()[0]
        too_large = "x" * 16385
        for attempt in (lambda: ws.close(1005), lambda: ws.close(1000, "x" * 124),
                        lambda: ws.serializeAttachment(too_large)):
            try:
                attempt()
            except JsException as error:
                found.append([error.name, isinstance(error, Exception)])
        return found

    async def do_tags(self):
        limits = []
        for tags in ([f"t{n}" for n in range(11)], ["é" * 129]):
            try:
                self.ctx.acceptWebSocket(WebSocketPair.new()[1], tags)
            except Exception as error:
                limits.append(error.message)
        every = [ws.deserializeAttachment() for ws in self.ctx.getWebSockets()]
        tagged = [ws.deserializeAttachment() for ws in self.ctx.getWebSockets("t")]
        self.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair("ping", "pong"))
        return [limits, every, tagged, self.ctx.getTags(self.ctx.getWebSockets()[0])]

    async def webSocketMessage(self, ws, message):
        if message == "slow":
            await asyncio.sleep(0.3)
        elif message == "late":
            await asyncio.sleep(0)
        elif message == "identity":
            self.seen.append(ws)
            same = len({id(each) for each in self.seen}) == 1 and self.ctx.getWebSockets() == [ws]
            state = ws.deserializeAttachment() or {"n": 0}
            ws.serializeAttachment({"n": state["n"] + 1})
            ws.send(json.dumps([len(self.seen), same, state["n"], ws.binaryType]))
            ws.binaryType = "arraybuffer"
            return
        elif message == "name":
            ws.serializeAttachment(len(self.ctx.getWebSockets()))
        elif message == "matrix":
            found = []
            ws.close(4000, "first")
            ws.close(4001, "second is silent")
            try:
                ws.send("x")
            except TypeError as error:
                found.append(error.message)
            self.log.append(found)
            return
        elif not isinstance(message, str):
            ws.send(json.dumps([type(message).__name__, len(message), message.byteLength, list(message.to_bytes())]))
            return
        self.log.append(message)
        ws.send(message)

    async def webSocketClose(self, ws, code, reason, clean):
        self.log.append(["close", code, reason, clean])
        if code == 4009:
            ws.send("a last word")

    async def webSocketError(self, ws, error):
        self.log.append(["error", str(error)])

class NoCtx(DurableObject):
    async def fetch(self):
        return Response("no argument wanted")

kept = []

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/")[3].split("?")[0]
        if path == "no-argument":
            return await self.env.NOCTX.getByName("x").fetch(request)
        if path == "bad-101":
            try:
                Response(None, status=101)
            except ValueError as error:
                return Response(type(error).__name__)
        if path == "socket-to-plain":
            client, server = WebSocketPair.new()
            return Response(None, status=101, web_socket=client)
        return await self.env.ROOM.getByName(path).fetch(request)
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    app = write_app(
        tmp_path_factory.mktemp("subtleties") / "app", SOURCE, "Room", "NoCtx", settings="[hibernation]\nidle_s = 0.3\n"
    )
    with running(app) as node:
        yield node


@pytest.fixture
def room(request):
    return request.node.name.split("[")[0]


def do(node, room, what):
    return json.loads(node.get(f"/{room}?{what}")[2])


def asleep(node, room):
    wait_for(lambda: not any(entry["object"] == f"Room({room})" for entry in node.awake()))


@pytest.mark.parametrize("fails", [False, True])
def test_01_output_gate_on_every_frame(tmp_path, fails):
    """send, close, and the answer of a fetch wait for the write before them, and vanish if it fails."""
    source = """
    from workers import DurableObject, Response, WorkerEntrypoint

    class Room(DurableObject):
        async def webSocketMessage(self, ws, message):
            if message == "write":
                self.ctx.storage.kv.put("n", 1)
                ws.send("one")
                ws.close(4000, "bye")
            else:
                ws.send("did " + message)

    class Default(WorkerEntrypoint):
        async def fetch(self, request):
            return Response("ok")
    """

    async def body(host, gateway, module):
        gateway.answers_rosters = True
        gateway.message(101, "wake")
        await until(lambda: gateway.take(e.Send))
        actor = host.actors.get(REF)
        actor.instance.ctx.storage.kv.put("opened", 1)
        await actor.instance.ctx.storage.sync()
        disk = HeldDisk(actor)
        gateway.got.clear()
        gateway.message(101, "write")
        await settle()
        assert left(gateway) == []
        disk.let_go(StorageError("on purpose") if fails else None)
        if fails:
            await until(lambda: host.actors.get(REF) is not actor)
            await settle()
            assert left(gateway) == []
        else:
            await until(lambda: len(left(gateway)) == 2)
            assert [type(event) for event in left(gateway)] == [e.Send, e.CloseSocket]

    run_hosted(tmp_path, source, body, data=tmp_path / "data")


def test_02_send_and_close_state_matrix(node, room):
    with node.connect(f"/{room}") as ws:
        ws.send("matrix")
        assert ws.recv_close() == (4000, "first")
        ws.close(4000)
        assert ws.at_end()
        ((first,), *_) = do(node, room, "log")[1:]
        assert first.startswith("Can't call WebSocket send() after close().")
    with node.connect(f"/{room}") as ws:  # after the peer's close a send still works
        ws.close(4009)
        assert ws.recv() == "a last word"
        assert ws.recv_close()[0] == 4009
        with node.connect(f"/{room}"):
            assert do(node, room, "wrong") == [["InvalidAccessError", True], ["SyntaxError", True], ["Error", True]]


def test_03_close_handshake_by_compatibility_date(tmp_path, node, room):
    """A client never sees 1006 after a clean close, on no date; who answers is the date's."""
    with node.connect(f"/{room}") as ws:
        ws.close(4005, "mine")
        assert ws.recv_close() == (4005, "mine")
    config = 'compatibility_flags = ["web_socket_manual_reply_to_close"]'
    settings = "[timeouts]\nclose_s = 0.5\n"
    with (
        running(write_app(tmp_path / "app", SOURCE, "Room", "NoCtx", config=config, settings=settings)) as old,
        old.connect("/x") as ws,
    ):
        ws.close(4005, "mine")
        assert ws.recv_close(5) == (1005, "")  # the gateway's, once the program has had its time
        assert ws.at_end()


def test_04_a_disconnect_is_a_close_and_not_an_error(node, room):
    node.connect(f"/{room}").abort()
    wait_for(lambda: len(do(node, room, "log")) > 1)
    assert do(node, room, "log")[1][:2] == ["close", 1006]
    with node.connect(f"/{room}") as ws:
        ws.send_bytes(b"\xf1\x80abcd")  # reserved bits
        assert ws.recv_close()[0] == 1002
    wait_for(lambda: len(do(node, room, "log")) > 2)
    assert [entry[0] for entry in do(node, room, "log")[1:]] == ["close", "error"]


def test_05_frames_and_calls_around_accept(node, room):
    with node.connect(f"/{room}?early") as ws:
        assert [ws.recv(), ws.recv()] == ["one", "two"]  # sent before the 101 left
        ws.send("hello")
        wait_for(lambda: do(node, room, "log")[1:] == [1, 1, ["message", "hello"]])  # OPEN at once, and no open event


def test_06_hibernation_identity(node, room):
    with node.connect(f"/{room}") as ws:
        for expected in ([1, True, 0, "blob"], [2, True, 1, "arraybuffer"]):
            ws.send("identity")
            assert json.loads(ws.recv()) == expected
        asleep(node, room)
        ws.send("identity")
        assert json.loads(ws.recv()) == [1, True, 2, "blob"]  # a new object; the attachment stayed, binaryType did not
        ws.send(b"\x01\x02")
        assert json.loads(ws.recv()) == ["ArrayBuffer", 2, 2, [1, 2]]


def test_07_input_gate(node, room):
    """Nothing comes between a storage operation and what follows it; other awaits let events in."""
    with node.connect(f"/{room}") as a, node.connect(f"/{room}") as b:
        a.send("slow")
        a.ping(b"?")
        assert a.event() == Pong(b"?")  # its gateway has passed on what came before
        b.send("quick")
        assert b.recv() == "quick"  # while the other waits
        assert a.recv() == "slow"


def test_08_dispatch_order_without_completion_order(node, room):
    with node.connect(f"/{room}") as ws:
        ws.send("slow")
        for number in range(50):
            ws.send(str(number))
        ws.send("late")
        assert [ws.recv() for _ in range(52)] == [*map(str, range(50)), "late", "slow"]


def test_09_what_prevents_hibernation(node, room):
    do(node, room, "timer")
    wait_for(lambda: do(node, room, "log") == ["loaded", "timer"])
    asleep(node, room)
    with node.connect(f"/{room}"):
        asleep(node, room)  # a hibernatable socket does not keep it awake
    with node.connect(f"/{room}?early"):
        wait_for(lambda: any("accepted WebSocket" in pin for entry in node.awake() for pin in entry["pins"]))


def test_10_block_concurrency_while_in_the_constructor(node, room):
    with node.connect(f"/{room}") as ws:
        asleep(node, room)
        for number in range(5):
            ws.send(str(number))
        assert [ws.recv() for _ in range(5)] == ["0", "1", "2", "3", "4"]
        assert do(node, room, "log") == ["loaded", "0", "1", "2", "3", "4"]


def test_11_abort_cannot_be_caught(node, room):
    with node.connect(f"/{room}") as ws:
        assert node.get(f"/{room}?abort")[0] == 500
        assert ws.recv_close() == (1006, "")  # hibernatable sockets are dropped
    assert do(node, room, "log") == ["loaded"]  # a new instance, and nobody has caught anything
    assert do(node, room, "uncommitted") is None


def test_12_alarm_semantics(node, room):
    before = time.time() * 1000
    do(node, room, "alarm")  # a past time is now
    wait_for(lambda: len(do(node, room, "alarms")) == 2)
    first, second = do(node, room, "alarms")
    assert first[:3] == [None, 0, False]  # getAlarm() is None inside, also if it is set again afterwards
    assert second[:3] == [None, 0, False]
    assert second[3] >= first[3] + 90
    assert first[3] >= before - 5001
    do(node, room, "alarm")
    wait_for(lambda: "deleted" in do(node, room, "alarms"))
    assert do(node, room, "alarms")[-1] is None  # deleteAll() takes the alarm with it


def test_13_python_calling_conventions(node, room):
    assert node.get("/no-argument")[2] == b"no argument wanted"
    assert do(node, room, "rows") == [1, 1]


def test_14_tags_limits_and_orders(node, room):
    with node.connect(f"/{room}?t") as a, node.connect(f"/{room}?t,t,u") as b:
        for ws in (a, b):
            ws.send("name")
            assert ws.recv() == "name"
        limits, every, tagged, tags = do(node, room, "tags")
        assert [text[:9] for text in limits] == ["A WebSock", "A WebSock"]
        assert len(every) == len(tagged) == 2
        assert tags == ["t", "u"]  # of the newest, which comes first; doubles merged
        asleep(node, room)
        a.send("ping")
        assert a.recv() == "pong"
        a.send("ping ")  # not exactly it
        assert a.recv() == "ping "


def test_15_scoping_rules(node):
    assert node.get("/bad-101")[2] == b"JsRangeError"
    status, _, body = node.get("/socket-to-plain")
    assert (status, body) == (500, b"Internal Server Error")  # and never 426 by itself
    assert node.logged("did not contain the header")
