"""Durable Objects and their sockets over real connections: reference 2 and 4, behaviour 3.5, split and inline."""

import json

import pytest

from conftest import write_app
from roost.testing import HandshakeRefused, running, wait_for

SOURCE = """
import asyncio
import json
from js import WebSocket, WebSocketPair, WebSocketRequestResponsePair, setTimeout
from workers import DurableObject, Response, WorkerEntrypoint

BUILT = []

class Probe(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        BUILT.append(str(ctx.id.name))
        self.seen = 0

    async def fetch(self, request):
        action = request.url.rsplit("/", 1)[1]
        if action == "throw":
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            raise ValueError("no socket today")
        if action == "count":
            return Response.json({"sockets": len(self.ctx.getWebSockets()), "built": BUILT.count(self.ctx.id.name)})
        if action == "wrong":
            return {"a": "dict"}
        client, server = WebSocketPair.new().object_values()
        tags = request.headers.get("X-Tags")
        self.ctx.acceptWebSocket(server, tags.split(",") if tags else None)
        server.serializeAttachment({"n": 1})
        if action == "auto":
            self.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair.new("ping", "pong"))
        server.send("before the 101")
        return Response(None, status=101, web_socket=client, headers={"Sec-WebSocket-Protocol": "probe", "X-Mine": "1"})

    async def webSocketMessage(self, ws, message):
        if isinstance(message, bytes):
            same = message.to_bytes() == bytes(message)
            ws.send(f"{type(message).__name__} {len(message)} {message.byteLength} {same}")
            return
        command, _, rest = message.partition(" ")
        self.seen += 1
        if command == "state":
            self.held = getattr(self, "held", ws)
            ws.send(json.dumps({
                "seen": self.seen, "ready": ws.readyState, "tags": self.ctx.getTags(ws),
                "built": BUILT.count(self.ctx.id.name),
                "attachment": ws.deserializeAttachment(), "sockets": len(self.ctx.getWebSockets()), "same": self.held is ws,
            }))
        elif command == "tag":
            for socket in self.ctx.get_websockets(rest):
                socket.send(f"for {rest}")
        elif command == "order":
            order = [s.deserializeAttachment()["n"] for s in self.ctx.getWebSockets()]
            ws.send(json.dumps([order, [s.deserializeAttachment()["n"] for s in self.ctx.getWebSockets("t")]]))
        elif command == "number":
            ws.serializeAttachment({"n": int(rest)})
            ws.send("ok")
        elif command == "close":
            code, _, reason = rest.partition(" ")
            ws.close(int(code), reason)
        elif command == "after":
            ws.close(1000)
            try:
                ws.send("x")
            except TypeError as error:
                print("refused:", error)
        elif command == "throw":
            raise ValueError("as asked")
        elif command == "slow":
            await asyncio.sleep(0.2)
            ws.send("slow")
        elif command == "timer":
            setTimeout(lambda: ws.send("timer"), 400)
            ws.send("set")
        elif command == "task":
            asyncio.get_running_loop().create_task(asyncio.sleep(0.4))
            ws.send("set")
        elif command == "stamp":
            stamp = self.ctx.getWebSocketAutoResponseTimestamp(ws)
            ws.send("none" if stamp is None else str(stamp.year))
        elif command == "late":
            self.ctx.waitUntil(self.later(ws))
        elif command == "timeout":
            try:
                async with asyncio.timeout(0.05):
                    await asyncio.sleep(5)
            except TimeoutError:
                ws.send("timed out")
        elif command == "group":
            async with asyncio.TaskGroup() as group:
                one = group.create_task(asyncio.sleep(0.01, "a"))
                two = group.create_task(asyncio.sleep(0.01, "b"))
            ws.send(one.result() + two.result())
        else:
            ws.send(message)

    async def later(self, ws):
        await asyncio.sleep(0.3)
        ws.send("late")

    async def webSocketClose(self, ws, code, reason, wasClean):
        print("closed", code, reason, wasClean, ws.readyState, len(self.ctx.getWebSockets()), ws.deserializeAttachment())
        if reason == "answer me":
            ws.send("last words")
            ws.close(4444, "answered")
        if reason == "throw":
            raise ValueError("in close")

    async def webSocketError(self, ws, error):
        print("error", error)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        name = request.url.split("/")[3]
        return await self.env.PROBE.getByName(name).fetch(request)
"""

IDLE = "[hibernation]\nidle_s = 0.15\n"
MODES = pytest.fixture(params=["split", "inline", "two hosts", "two gateways"], scope="module")
ARGUMENTS = {
    "split": (),
    "inline": ("--inline",),
    "two hosts": ("--hosts", "2"),
    "two gateways": ("--gateways", "2"),
}


@MODES
def node(request, tmp_path_factory):
    folder = write_app(tmp_path_factory.mktemp("probe"), SOURCE, "Probe", settings=IDLE)
    with running(folder, *ARGUMENTS[request.param]) as running_node:
        yield running_node


@pytest.fixture
def name(request):
    return request.node.name.replace("[", "-").replace("]", "").replace(" ", "-")


def opened(node, name, action="x", **headers):
    ws = node.connect(f"/{name}/{action}", headers)
    assert ws.recv() == "before the 101"
    return ws


def state(ws):
    ws.send("state")
    while not (answer := ws.recv()).startswith("{"):
        pass  # what an earlier command still had to say
    return json.loads(answer)


def asleep(node, name):
    wait_for(lambda: not any(entry["object"] == f"Probe({name})" for entry in node.awake()), f"{name} asleep")


def pins(node, name):
    return [pin for entry in node.awake() if entry["object"] == f"Probe({name})" for pin in entry["pins"]]


def test_accept_send_and_headers(node, name):
    with opened(node, name) as ws:
        assert ws.headers["sec-websocket-protocol"] == "probe"
        assert ws.headers["x-mine"] == "1"
        assert "date" not in ws.headers
        ws.send(b"\x00\x01\x02")
        assert ws.recv() == "ArrayBuffer 3 3 True"
        assert state(ws) == {
            "seen": 1, "ready": 1, "tags": [], "built": 1, "attachment": {"n": 1}, "sockets": 1, "same": True,
        }  # fmt: skip


def test_hibernation_keeps_sockets_tags_and_attachments(node, name):
    """W31: a new instance (counter 0), the socket still there, sends of the new instance arrive."""
    with opened(node, name, **{"X-Tags": "a,b,a"}) as ws, opened(node, name) as other:
        ws.send("number 42")
        assert ws.recv() == "ok"
        assert state(ws)["seen"] == 2
        asleep(node, name)
        after = state(ws)
        assert (after["seen"], after["sockets"], after["attachment"]) == (1, 2, {"n": 42})
        assert after["tags"] == ["a", "b"]
        assert after["built"] >= 2
        asleep(node, name)
        other.send("tag a")
        assert ws.recv() == "for a"


def test_sleep_then_http_request(node, name):
    with opened(node, name) as ws:
        asleep(node, name)
        assert json.loads(node.get(f"/{name}/count")[2])["sockets"] == 1
        assert state(ws)["sockets"] == 1


def test_orders(node, name):
    """Unfiltered newest first, by tag oldest first (workerd's containers)."""
    sockets = [opened(node, name, **{"X-Tags": "t"}) for _ in range(3)]
    for number, ws in enumerate(sockets):
        ws.send(f"number {number}")
        assert ws.recv() == "ok"
    for _ in range(2):
        sockets[0].send("order")
        unfiltered, tagged = json.loads(sockets[0].recv())
        assert unfiltered == tagged[::-1]
        assert sorted(tagged) == [0, 1, 2]
        asleep(node, name)
    for ws in sockets:
        ws.abort()


def test_auto_response_does_not_wake(node, name):
    """W18, W26: answered awake and asleep, exact text only, its time readable later."""
    with opened(node, name, "auto") as ws:
        ws.send("stamp")
        assert ws.recv() == "none"
        ws.send("ping")
        assert ws.recv() == "pong"
        asleep(node, name)
        built = None
        for _ in range(3):
            ws.send("ping")
            assert ws.recv() == "pong"
        assert not any(entry["object"] == f"Probe({name})" for entry in node.awake())
        ws.send(b"ping")
        assert ws.recv().startswith("ArrayBuffer")
        built = state(ws)["built"]
        assert built == 2
        ws.send("ping ")
        assert ws.recv() == "ping "
        ws.send("stamp")
        assert ws.recv().startswith("20")


def test_timestamp_while_awake(node, name):
    with opened(node, name, "auto") as ws:
        ws.send("timer")
        assert ws.recv() == "set"
        ws.send("ping")
        assert ws.recv() == "pong"
        ws.send("stamp")
        assert ws.recv().startswith("20")


def test_close_by_the_client(node, name):
    """A clean close is answered with the same code and reason, and told once."""
    with opened(node, name) as ws:
        ws.close(4001, "bye")
        assert ws.recv_close() == (4001, "bye")
        assert ws.at_end()
    wait_for(lambda: node.logged(f"[Probe({name})] closed 4001 bye True 2 1"))
    assert json.loads(node.get(f"/{name}/count")[2])["sockets"] == 0


def test_close_without_a_code(node, name):
    with opened(node, name) as ws:
        ws.close(1005)
        assert ws.recv_close() == (1005, "")
    wait_for(lambda: node.logged(f"[Probe({name})] closed 1005"))


def test_close_in_the_close_handler_reaches_the_client(node, name):
    """W2."""
    with opened(node, name) as ws:
        ws.close(1000, "answer me")
        assert ws.recv() == "last words"
        assert ws.recv_close() == (4444, "answered")


def test_close_handler_that_throws_still_answers(node, name):
    with opened(node, name) as ws:
        ws.close(1000, "throw")
        assert ws.recv_close() == (1000, "throw")
    wait_for(lambda: node.logged(f"[Probe({name})] webSocketClose failed: ValueError: in close"))


def test_close_by_the_object(node, name):
    """W15; readyState 3 when we began."""
    with opened(node, name) as ws:
        ws.send("close 4002 enough")
        assert ws.recv_close() == (4002, "enough")
        ws.close(4002, "enough")
        assert ws.at_end()
    wait_for(lambda: node.logged(f"[Probe({name})] closed 4002 enough True 3"))


def test_abrupt_end_wakes_for_a_1006(node, name):
    """Section 9, 4: a disconnect is a close, not an error; a sleeping object is built to hear of it."""
    with opened(node, name) as ws:
        ws.send("number 7")
        ws.recv()
        asleep(node, name)
        ws.abort()
        text = "closed 1006 WebSocket disconnected without sending Close frame. False 3 1 {'n': 7}"
        wait_for(lambda: node.logged(f"[Probe({name})] {text}"))
    wait_for(lambda: json.loads(node.get(f"/{name}/count")[2])["sockets"] == 0)


def test_protocol_error_is_an_error_and_no_close(node, name):
    with opened(node, name) as ws:
        ws.send_bytes(b"\x83\x80\x00\x00\x00\x00")
        assert ws.recv_close()[0] == 1002
        assert ws.at_end()
    wait_for(lambda: node.logged(f"[Probe({name})] error Error: Opcode 3 is reserved."))
    assert not node.logged(f"[Probe({name})] closed")
    assert json.loads(node.get(f"/{name}/count")[2])["sockets"] == 0


def test_too_large_is_1009(node, name):
    with opened(node, name) as ws:
        ws.send_bytes(b"\x82\xff" + (1 << 21).to_bytes(8, "big"))
        code, reason = ws.recv_close()
        assert code == 1009
        assert "2097152 > 1048576" in reason
    wait_for(lambda: node.logged("protocolError.statusCode = 1009"))


def test_handler_that_throws_keeps_the_socket(node, name):
    with opened(node, name) as ws:
        ws.send("throw")
        ws.send("still here")
        assert ws.recv() == "still here"
    wait_for(lambda: node.logged(f"[Probe({name})] webSocketMessage failed: ValueError: as asked"))


def test_send_after_close_names_the_fix(node, name):
    with opened(node, name) as ws:
        ws.send("after")
        assert ws.recv_close()[0] == 1000
    wait_for(lambda: node.logged("refused: TypeError: Can't call WebSocket send() after close()."))


def test_handlers_interleave_and_starts_keep_order(node, name):
    """Section 9, 8: the next message starts while an earlier handler awaits; 200 at once without await keep order."""
    with opened(node, name) as ws:
        ws.send("slow")
        ws.send("fast")
        assert [ws.recv(), ws.recv()] == ["fast", "slow"]
        for number in range(200):
            ws.send(f"{number}")
        assert [ws.recv() for _ in range(200)] == [str(number) for number in range(200)]


def test_order_is_kept_while_waking(node, name):
    with opened(node, name) as ws:
        asleep(node, name)
        for number in range(200):
            ws.send(f"{number}")
        assert [ws.recv() for _ in range(200)] == [str(number) for number in range(200)]


@pytest.mark.parametrize(
    ("command", "pin"),
    [("timer", "setTimeout"), ("task", "task sleep"), ("late", "waitUntil"), ("slow", "webSocketMessage running")],
)
def test_what_is_pending_pins_by_name(node, name, command, pin):
    """Section 9, 9: timers, tasks, waitUntil and running handlers, each alone, each named; then it sleeps."""
    with opened(node, name) as ws:
        ws.send(command)
        wait_for(lambda: pin in pins(node, name), pin)
        asleep(node, name)
        assert state(ws)["seen"] == 1


def test_asyncio_works_inside_handlers(node, name):
    with opened(node, name) as ws:
        for command, answer in (("timeout", "timed out"), ("group", "ab")) * 3:
            ws.send(command)
            assert ws.recv() == answer


def test_fetch_that_throws_leaves_no_socket(node, name):
    """W3."""
    with pytest.raises(HandshakeRefused, match="Internal Server Error") as caught:
        node.connect(f"/{name}/throw")
    assert caught.value.status == 500
    assert json.loads(node.get(f"/{name}/count")[2])["sockets"] == 0
    wait_for(lambda: node.logged("no socket today"))


def test_a_socket_for_a_plain_request_is_refused(node, name):
    """Section 9, 15: 500 with the platform's text in the log, 426 is never automatic."""
    assert node.get(f"/{name}/x")[0] == 500
    wait_for(lambda: node.logged('did not contain the header "Upgrade: websocket"'))


def test_wrong_result_is_named(node, name):
    assert node.get(f"/{name}/wrong")[0] == 500
    wait_for(lambda: node.logged("Probe.fetch returned dict, not a Response; return Response.json(value)."))


def test_ping_is_answered_without_waking(node, name):
    with opened(node, name) as ws:
        asleep(node, name)
        ws.ping(b"are you there")
        assert ws.event().payload == b"are you there"
        assert not any(entry["object"] == f"Probe({name})" for entry in node.awake())


def test_fragments_with_a_ping_between(node, name):
    with opened(node, name) as ws:
        from roost.protocol.websocket import mask_frame

        for frame in (b"\x01\x02he", b"\x89\x01p", b"\x80\x03llo"):
            ws.send_bytes(mask_frame(frame, b"abcd"))
        assert ws.event().payload == b"p"
        assert ws.recv() == "hello"
