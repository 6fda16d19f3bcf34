"""The numbered cases of workerd's own tests (behaviour.md 2) that are not tested, with their number, beside their subject.

W2, W3, W5, W6, W8-W11, W13, W15, W18, W22, W24-W26, W31, W34 and W39-W53 are there: `grep -ri w26 tests`.
"""

import json
import os
import threading

import pytest
from websockets.sync.server import serve as ws_serve

from conftest import write_app
from roost.api.runtime import Compat
from roost.api.websocket import check_close
from roost.errors import JsException
from roost.protocol.websocket import encode_message, mask_frame
from roost.testing import running, wait_for

SOURCE = """
import asyncio, json
from js import WebSocket, WebSocketPair, WebSocketRequestResponsePair, setInterval, setTimeout
from workers import DurableObject, Response, WorkerEntrypoint, fetch

lives = {}

class Lab(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        lives[str(ctx.id)] = self.life = lives.get(str(ctx.id), 0) + 1
        self.log = []
        self.client = None

    async def fetch(self, request):
        what = request.url.split("?")[1] if "?" in request.url else ""
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            if what in ("plain", "half-open"):
                server.accept(allowHalfOpen=what == "half-open")
                server.binaryType = "arraybuffer"
                def closed(event):
                    self.log.append(["close", event.code, event.reason, event.wasClean, server.readyState])
                    if what == "half-open":
                        server.close(3001, "from the listener")
                server.addEventListener("close", closed)
                server.addEventListener("error", lambda event: self.log.append(["error", event.message]))
                server.addEventListener("message", lambda event: server.send(event.data))
                self.client = server
            else:
                self.ctx.acceptWebSocket(server, [what] if what else [])
            return Response(None, status=101, web_socket=client)
        if what.startswith("dial="):
            upstream = (await fetch(what[5:], headers={"Upgrade": "websocket"})).web_socket
            upstream.accept()
            over = asyncio.Event()
            upstream.addEventListener("error", lambda event: self.log.append(["error", event.message]))
            def closed(event):
                self.log.append(["close", event.code])
                over.set()
            upstream.addEventListener("close", closed)
            await asyncio.wait_for(over.wait(), 10)
        elif what == "timer":
            setTimeout(lambda: self.log.append("timer"), 1500)
        elif what == "interval":
            setInterval(lambda: None, 50)
        elif what == "slow":
            await asyncio.sleep(0.5)
        elif what == "stored":
            await self.ctx.storage.put("n", (await self.ctx.storage.get("n") or 0) + 1)
        elif what == "set-auto":
            self.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair("ping", "pong " * 300))
        elif what == "new-auto":
            self.ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair("ping", "other"))
        elif what == "huge":
            try:
                self.ctx.storage.sql.exec(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)"
                    " SELECT zeroblob(2000000) FROM n").toArray()
            except Exception as error:
                return Response(f"{type(error).__name__}")
            return Response("no error")
        elif what.startswith("by-tag="):
            for ws in self.ctx.getWebSockets(what[7:]):
                ws.send("by tag " + what[7:])
        elif what == "abort":
            self.ctx.abort("on purpose")
        return Response.json({"life": self.life, "log": self.log, "n": await self.ctx.storage.get("n"),
                              "tags": [len(self.ctx.getWebSockets(tag)) for tag in ("a", "b")],
                              "sockets": len(self.ctx.getWebSockets())})

    async def webSocketMessage(self, ws, message):
        self.log.append(["message", message if isinstance(message, str) else len(message)])
        if message == "sends-around-auto":
            ws.send("before")
            await asyncio.sleep(0.2)
            ws.send("after")
        elif message == "send and close":
            ws.send("last words")
            ws.close(4001, "bye")
        elif message == "hold":
            await asyncio.sleep(1)
        else:
            ws.send(message)

    async def webSocketClose(self, ws, code, reason, clean):
        self.log.append(["close", code, reason, clean])

    async def webSocketError(self, ws, error):
        self.log.append(["error", str(error)])

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.LAB.getByName(request.url.split("/")[3].split("?")[0]).fetch(request)
"""
SETTINGS = """
[hibernation]
idle_s = 0.3
[limits]
max_message_bytes = 33554432
max_outbound_bytes = 67108864
max_queued_events = 4
max_host_memory_bytes = 0
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    app = write_app(tmp_path_factory.mktemp("cases") / "app", SOURCE, "Lab", settings=SETTINGS)
    with running(app) as node:
        yield node


@pytest.fixture
def lab(node, request):
    """The object of this test's own."""
    return request.node.name.split("[")[0]


def look(node, lab, what=""):
    return json.loads(node.get(f"/{lab}?{what}")[2])


def asleep(node, lab):
    wait_for(lambda: not any(entry["object"] == f"Lab({lab})" for entry in node.awake()))


def test_w1_the_close_listener_of_a_plain_socket_may_close(node, lab):
    with node.connect(f"/{lab}?half-open") as ws:
        ws.close(4000, "mine")
        assert ws.recv_close() == (3001, "from the listener")
        assert look(node, lab)["log"] == [["close", 4000, "mine", True, 2]]


def test_w4_the_runtime_answers_a_close(node, lab):
    with node.connect(f"/{lab}?plain") as ws:
        ws.close(4000, "mine")
        assert ws.recv_close() == (4000, "mine")
        assert ws.at_end()
        assert look(node, lab)["log"] == [["close", 4000, "mine", True, 3]]


def test_w7_an_upstream_sends_more_than_32_mib(node, lab):
    def too_much(connection):
        connection.send(b"x" * (32 * 1024 * 1024 + 1))
        for _ in connection:
            pass

    with ws_serve(too_much, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        log = look(node, lab, f"dial=http://127.0.0.1:{server.socket.getsockname()[1]}/")["log"]
        server.shutdown()
        thread.join()
    assert [entry[0] for entry in log] == ["error", "close"]
    assert "1009" in log[0][1]
    assert "33554433 > 33554432" in log[0][1]
    assert log[1][1] == 1009


@pytest.mark.parametrize(
    ("code", "strict", "lax"),
    [(1000, True, True), (3000, True, True), (4999, True, True), (999, False, False), (1001, False, True),
     (1004, False, False), (1005, False, False), (1006, False, False), (1015, False, False), (2999, False, True),
     (5000, False, False)],
)  # fmt: skip
def test_w12_close_codes_under_the_strict_flag(code, strict, lax):
    for compat, allowed in ((Compat(strict_close_codes=True), strict), (Compat(), lax)):
        if allowed:
            assert check_close(code, "", compat) == (code, "")
        else:
            with pytest.raises(JsException) as raised:
                check_close(code, "", compat)
            assert raised.value.name == "InvalidAccessError"


def test_w14_one_dispatch_each(node, lab):
    with node.connect(f"/{lab}") as ws:
        for message in ("text", b"bytes"):
            ws.send(message)
            assert ws.recv() == message
        assert look(node, lab)["log"] == [["message", "text"], ["message", 5]]


def test_w16_an_overloaded_object(node, lab):
    """A message that cannot be dispatched ends its socket: one more dispatch, for the end, and it leaves the lists."""
    with node.connect(f"/{lab}?a") as ws:
        for _ in range(40):
            ws.send("hold")
        assert ws.recv_close()[0] == 1013
        ws.close(1013)
        wait_for(lambda: look(node, lab)["sockets"] == 0)
        seen = look(node, lab)
        assert seen["tags"] == [0, 0]
        assert len([entry for entry in seen["log"] if entry[0] == "close"]) == 1
        assert 0 < len([entry for entry in seen["log"] if entry[0] == "message"]) < 40


def test_w17_sends_by_tag(node, lab):
    with node.connect(f"/{lab}?a") as a, node.connect(f"/{lab}?b") as b:
        seen = look(node, lab, "by-tag=a")
        assert (seen["tags"], seen["sockets"]) == ([1, 1], 2)
        assert a.recv() == "by tag a"
        b.send("mine")
        assert b.recv() == "mine"  # and not what went to the other


def test_w19_an_auto_response_between_two_sends(node, lab):
    look(node, lab, "new-auto")
    with node.connect(f"/{lab}") as ws:
        ws.send("sends-around-auto")
        ws.send("ping")
        assert sorted(ws.recv() for _ in range(3)) == ["after", "before", "other"]


def test_w20_one_socket_over_several_requests(node, lab):
    with node.connect(f"/{lab}") as ws:
        slow = threading.Thread(target=look, args=(node, lab, "slow"))
        slow.start()
        for number in range(5):
            look(node, lab)
            ws.send(str(number))
            assert ws.recv() == str(number)
        slow.join()
        ws.send("still")
        assert ws.recv() == "still"


@pytest.mark.parametrize("how", ["idle", "evicted"])
def test_w21_w36_w37_asleep_and_back(node, lab, how):
    lab += how
    with node.connect(f"/{lab}") as ws:
        ws.send("before")
        assert ws.recv() == "before"
        look(node, lab, "stored")
        if how == "evicted":
            assert node.evict(f"Lab({lab})") == 1
            assert node.evict(f"Lab({lab})") == 0  # the second call is harmless
        asleep(node, lab)
        ws.send("after")
        assert ws.recv() == "after"
        seen = look(node, lab)
        assert (seen["life"], seen["n"], seen["sockets"]) == (2, 1, 1)


def test_w36_an_eviction_waits_for_the_request(node, lab):
    answers = []
    asked = threading.Thread(target=lambda: answers.append(look(node, lab, "slow")))
    asked.start()
    wait_for(lambda: any(entry["object"] == f"Lab({lab})" and entry["pins"] for entry in node.awake()))
    assert node.evict(f"Lab({lab})") == 1
    asked.join()
    assert answers[0]["life"] == 1
    assert look(node, lab)["life"] == 2


def test_w37_w38_evicted_with_its_sockets_cut(node, lab):
    with node.connect(f"/{lab}") as ws:
        look(node, lab, "stored")
        assert node.evict(f"Lab({lab})", cut=True) == 1
        assert ws.recv_close() == (1006, "")
        seen = look(node, lab)
        assert (seen["life"], seen["n"], seen["sockets"]) == (2, 1, 0)


def test_w23_a_send_and_a_close_outlive_the_instance(node, lab):
    """workerd loses both (EW-10817)."""
    with node.connect(f"/{lab}") as ws:
        ws.send("send and close")
        wait_for(lambda: node.evict(f"Lab({lab})") in (0, 1))
        assert ws.recv() == "last words"
        assert ws.recv_close() == (4001, "bye")


def test_w27_an_auto_response_that_is_changed_while_it_is_written(node, lab):
    look(node, lab, "set-auto")
    with node.connect(f"/{lab}") as ws:
        for _ in range(200):
            ws.send("ping")
        look(node, lab, "new-auto")
        ws.send("ping")
        answers = [ws.recv() for _ in range(201)]
        assert answers[-1] == "other"
        assert set(answers) == {"pong " * 300, "other"}  # each of them whole


def test_w28_idle_means_a_new_instance(node, lab):
    assert look(node, lab)["life"] == 1
    asleep(node, lab)
    assert look(node, lab)["life"] == 2


def test_w29_a_timer_keeps_it_awake_until_it_has_run(node, lab):
    look(node, lab, "timer")
    wait_for(lambda: look(node, lab)["log"] == ["timer"])
    assert look(node, lab)["life"] == 1
    asleep(node, lab)


def test_w29_an_interval_does_not_keep_it_for_ever(tmp_path):
    """The platform evicts it after about 70 s without clients; Roost when the pins of what may never end have run out."""
    settings = "[hibernation]\nidle_s = 0.2\nio_pin_s = 0.5\n"
    with running(write_app(tmp_path / "app", SOURCE, "Lab", settings=settings)) as node:
        assert look(node, "x", "interval")["life"] == 1
        wait_for(lambda: node.awake() == [])
        assert look(node, "x")["life"] == 2


def test_w30_an_accepted_socket_keeps_it_awake(node, lab):
    with node.connect(f"/{lab}?plain") as ws:
        assert look(node, f"{lab}-neighbour")["life"] == 1
        asleep(node, f"{lab}-neighbour")  # one that was idle as long has gone to sleep
        ws.send("there?")
        assert ws.recv() == "there?"
        assert look(node, lab)["life"] == 1


def test_w32_abort_cuts_a_sleeping_socket(node, lab):
    with node.connect(f"/{lab}") as ws:
        asleep(node, lab)
        assert node.get(f"/{lab}?abort")[0] == 500
        assert ws.recv_close() == (1006, "")


def test_w33_the_reason_of_a_1006(node, lab):
    with node.connect(f"/{lab}") as other:
        node.connect(f"/{lab}").abort()
        wait_for(lambda: look(node, lab)["log"])
        reason = "WebSocket disconnected without sending Close frame."
        assert look(node, lab)["log"] == [["close", 1006, reason, False]]
        other.send("alive")
        assert other.recv() == "alive"


def test_w35_a_message_of_33_mib(node, lab):
    with node.connect(f"/{lab}") as ws:
        frame = mask_frame(encode_message(b"x" * (33 << 20), False), b"\0\0\0\0")
        try:
            ws.send_bytes(frame)
        except OSError:
            pass  # it is refused by its head already
        try:
            assert ws.recv_close()[0] == 1009
        except ConnectionError:
            pass
        wait_for(lambda: look(node, lab)["log"])
        ((kind, text),) = look(node, lab)["log"]
        assert kind == "error"
        assert "1009" in text
        assert f"{33 << 20} > {32 << 20}" in text
    with node.connect(f"/{lab}") as ws:
        ws.send("next")
        assert ws.recv() == "next"


def test_w45_a_result_larger_than_memory(tmp_path):
    """With a limit on the process's memory, a result beyond it is an error that the program can catch."""
    app = write_app(tmp_path / "app", "import resource\n" + SOURCE.replace(
        "lives = {}", "lives = {}\nresource.setrlimit(resource.RLIMIT_AS, (1500 << 20, 1500 << 20))"), "Lab")  # fmt: skip
    with running(app) as node:
        assert node.get("/x?huge")[2] in (b"MemoryError", b"SqlError", b"NoMemError")
        assert node.get("/x?stored")[0] == 200
        assert os.path.exists(f"/proc/{node.pid('host 0')}")
