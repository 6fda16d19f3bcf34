"""Outbound sockets that hibernate: the gateway keeps an upstream while its object sleeps, and can dial it again."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from websockets.sync.server import serve as ws_serve

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import json
from js import WebSocketPair, WebSocket
from workers import DurableObject, Response, WorkerEntrypoint, fetch

lives = 0

class Feed(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        global lives
        lives += 1

    async def fetch(self, request):
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server, ["client"])
            return Response(None, status=101, web_socket=client)
        upstreams = self.ctx.getWebSockets("upstream")
        return Response.json({
            "log": await self.ctx.storage.get("log") or [], "lives": lives,
            "upstreams": [[ws.url, ws.deserializeAttachment(), ws.readyState, self.ctx.getTags(ws)] for ws in upstreams],
        })

    async def note(self, *entry):
        log = await self.ctx.storage.get("log") or []
        await self.ctx.storage.put("log", [*log, list(entry)])

    async def webSocketMessage(self, ws, message):
        if "upstream" in self.ctx.getTags(ws):
            for client in self.ctx.getWebSockets("client"):
                client.send("feed: " + message)
            return
        verb, *rest = json.loads(message)
        if verb == "dial":
            answer = await fetch(rest[0], headers={"Upgrade": "websocket", "X-Key": "secret"})
            upstream = answer.web_socket
            upstream.serializeAttachment({"since": 1})
            self.ctx.acceptWebSocket(upstream, ["upstream"], reconnect=rest[1] if len(rest) > 1 else None)
            assert upstream.url == rest[0]                                    # at once, as after a sleep
            upstream.send("subscribe")
        elif verb == "keep":
            try:
                upstream = await self.ctx.dial(rest[0], ["upstream"], attachment={"since": 2}, **rest[1])
            except Exception as error:
                ws.send(str(error))
                return
            upstream.send("nobody hears this")
            about = [upstream.url, upstream.readyState, self.ctx.getTags(upstream), upstream.deserializeAttachment()]
            ws.send(json.dumps(about))
        elif verb == "say":
            for upstream in self.ctx.getWebSockets("upstream"):
                upstream.send(rest[0])
        elif verb == "close":
            for upstream in self.ctx.getWebSockets("upstream"):
                upstream.close(*rest)
        elif verb == "wrong":
            for attempt in (lambda: self.ctx.acceptWebSocket(WebSocket.new(rest[0])),
                            lambda: self.ctx.acceptWebSocket(WebSocketPair.new()[1], reconnect=True)):
                try:
                    attempt()
                except Exception as error:
                    ws.send(str(error))

    async def webSocketOpen(self, ws, info):
        ws.send("subscribe again")
        await self.note("open", info.attempts, ws.deserializeAttachment()["since"])

    async def webSocketClose(self, ws, code, reason, clean):
        if "upstream" in self.ctx.getTags(ws):
            await self.note("close", code, reason, clean)

    async def webSocketError(self, ws, error):
        await self.note("error", str(error))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.FEED.getByName("feed").fetch(request)
"""


class Upstream:
    """A WebSocket server on a port that stays the same, also while it is down."""

    def __init__(self, port=0):
        self.got, self.headers, self.connections = [], [], []
        self.server = ws_serve(self._serve, "127.0.0.1", port)
        self.port = self.server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/feed"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def _serve(self, connection):
        self.connections.append(connection)
        self.headers.append(dict(connection.request.headers.raw_items()))
        try:
            for message in connection:
                self.got.append(message)
        except Exception:
            pass

    def tell(self, text):
        self.connections[-1].send(text)

    def cut(self):
        """End without a Close frame."""
        self.connections[-1].socket.shutdown(2)

    def stop(self):
        self.server.shutdown()
        for connection in self.connections:
            connection.socket.close()
        self._thread.join()


@pytest.fixture
def upstream():
    server = Upstream()
    yield server
    server.stop()


@pytest.fixture
def node(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Feed", settings="[hibernation]\nidle_s = 0.1\n")
    with running(app) as node:
        yield node


def asleep(node):
    wait_for(lambda: node.awake() == [])


def state(node):
    return json.loads(node.get("/")[2])


FAST = {"first_ms": 50, "max_ms": 200}


def test_it_is_kept_through_sleep_and_host_death(node, upstream):
    with node.connect() as ws:
        ws.send(json.dumps(["dial", upstream.url]))
        wait_for(lambda: upstream.got == ["subscribe"])
        assert upstream.headers[0]["X-Key"] == "secret"
        asleep(node)
        upstream.tell("one")
        assert ws.recv() == "feed: one"
        asleep(node)
        ws.send(json.dumps(["say", "hello"]))
        wait_for(lambda: upstream.got == ["subscribe", "hello"])
        seen = state(node)
        assert seen["upstreams"] == [[upstream.url, {"since": 1}, 1, ["upstream"]]]
        assert seen["lives"] >= 3
        os.kill(node.pid("host 0"), signal.SIGKILL)
        upstream.tell("two")
        assert ws.recv(20) == "feed: two"
        assert len(upstream.connections) == 1
        asleep(node)
        upstream.cut()
        wait_for(lambda: state(node)["log"])
        assert state(node)["log"] == [["close", 1006, "WebSocket disconnected without sending Close frame.", False]]
        assert state(node)["upstreams"] == []


def test_it_is_dialled_again(node, upstream):
    with node.connect() as ws:
        ws.send(json.dumps(["dial", upstream.url, FAST]))
        wait_for(lambda: upstream.got == ["subscribe"])
        asleep(node)
        upstream.cut()
        wait_for(lambda: upstream.got == ["subscribe", "subscribe again"])
        upstream.tell("back")
        assert ws.recv() == "feed: back"
        port = upstream.port
        upstream.stop()  # and now it is away for longer
        wait_for(lambda: node.counter("upstreams_lost") == 2)
        ws.send(json.dumps(["say", "nobody hears this"]))
        again = Upstream(port)
        try:
            wait_for(lambda: again.got == ["subscribe again"])
            again.tell("back again")
            assert ws.recv() == "feed: back again"
            again.connections[-1].close(4000, "an orderly end")  # that, too, is not our will
            wait_for(lambda: again.got == ["subscribe again", "subscribe again"])
            log = state(node)["log"]
            assert [entry[0] for entry in log] == ["open"] * 3
            assert [entry[2] for entry in log] == [1] * 3
            ws.send(json.dumps(["close", 4001, "enough"]))
            wait_for(lambda: len(state(node)["log"]) == 4)
            assert state(node)["log"][3][:2] == ["close", 4001]
            assert len(again.connections) == 2
        finally:
            again.stop()


def test_giving_up_and_closing_while_it_is_away(node, upstream):
    with node.connect() as ws:
        ws.send(json.dumps(["dial", upstream.url, {**FAST, "attempts": 2}]))
        wait_for(lambda: upstream.got == ["subscribe"])
        other = Upstream()
        ws.send(json.dumps(["dial", other.url, {"first_ms": 60000}]))
        wait_for(lambda: other.got == ["subscribe"])
        other.stop()
        upstream.stop()
        wait_for(lambda: state(node)["log"])
        (entry,) = state(node)["log"]
        assert entry[:2] == ["close", 1006]
        assert "cannot connect" in entry[2]
        assert len(state(node)["upstreams"]) == 1
        ws.send(json.dumps(["close", 1000]))
        wait_for(lambda: len(state(node)["log"]) == 2)
        assert "while it was reconnecting" in state(node)["log"][1][2]
        assert state(node)["upstreams"] == []


def test_through_an_upgrade(node, upstream):
    """A gateway's successor goes on with upstreams, also with one that is away."""

    def upgrade():
        subprocess.run(
            [sys.executable, "-m", "roost", "upgrade", "--data", node.data], check=True, capture_output=True, timeout=60
        )

    with node.connect() as ws:
        ws.send(json.dumps(["dial", upstream.url, {"first_ms": 300, "max_ms": 300}]))
        wait_for(lambda: upstream.got == ["subscribe"])
        upgrade()
        upstream.tell("one")
        assert ws.recv() == "feed: one"
        port = upstream.port
        upstream.stop()
        wait_for(lambda: node.counter("upstreams_lost") == 1)
        upgrade()
        again = Upstream(port)
        try:
            wait_for(lambda: again.got == ["subscribe again"])
            again.tell("two")
            assert ws.recv() == "feed: two"
        finally:
            again.stop()


def test_what_cannot_be_kept(node, upstream):
    with node.connect() as ws:
        ws.send(json.dumps(["wrong", upstream.url.replace("http", "ws")]))
        assert "made by its constructor" in ws.recv()
        assert "reconnect is for upstreams" in ws.recv()


def test_many_messages_keep_their_order(node, upstream):
    with node.connect() as ws:
        ws.send(json.dumps(["dial", upstream.url, FAST]))
        wait_for(lambda: upstream.got == ["subscribe"])
        for number in range(2000):
            upstream.tell(str(number))
        assert [ws.recv() for _ in range(2000)] == [f"feed: {number}" for number in range(2000)]


# ctx.dial


@pytest.fixture(params=["inline", "two of each"])
def any_node(request, tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Feed", settings="[hibernation]\nidle_s = 0.1\n")
    with running(app, *{"inline": ["--inline"], "two of each": ["--hosts", "2", "--gateways", "2"]}[request.param]) as node:
        yield node


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_first_dial_is_tried_again(any_node):
    """Nobody listens yet: the object has its socket, sleeps, and is told when it is open."""
    node, port = any_node, free_port()
    url = f"http://127.0.0.1:{port}/feed?key=secret"
    with node.connect() as ws:
        ws.send(json.dumps(["keep", url, {"reconnect": FAST, "headers": {"X-Key": "k"}, "protocols": ["a", "b"]}]))
        assert json.loads(ws.recv()) == [url.replace("http", "ws"), 1, ["upstream"], {"since": 2}]
        assert node.counter("sends_to_closed") == 1
        asleep(node)
        wait_for(lambda: node.logged("cannot be opened, and is dialled again: cannot connect"))
        assert [each[0] for each in state(node)["upstreams"]] == [url.replace("http", "ws")]
        asleep(node)
        late = Upstream(port)
        try:
            wait_for(lambda: late.got == ["subscribe again"])
            ((kind, attempts, since),) = wait_for(lambda: state(node)["log"])
            assert (kind, since) == ("open", 2)
            assert attempts > 1
            assert late.headers[0]["X-Key"] == "k"
            assert late.headers[0]["Sec-WebSocket-Protocol"] == "a, b"
            wait_for(lambda: node.logged("is back after"))
            asleep(node)
            late.tell("one")
            assert ws.recv() == "feed: one"
            ws.send(json.dumps(["say", "hello"]))
            wait_for(lambda: late.got[-1] == "hello")
            late.cut()
            wait_for(lambda: node.logged("is away, and is dialled again"))
            wait_for(lambda: len(state(node)["log"]) == 2)
            ws.send(json.dumps(["close", 4001]))
            wait_for(lambda: state(node)["upstreams"] == [])
        finally:
            late.stop()
    assert not node.logged("secret")


def test_dial_and_what_it_refuses(any_node, upstream):
    node = any_node
    with node.connect() as ws:
        ws.send(json.dumps(["keep", upstream.url, {}]))
        ws.recv()
        wait_for(lambda: upstream.got == ["subscribe again"])
        wait_for(lambda: state(node)["log"] == [["open", 1, 2]])
        ws.send(json.dumps(["keep", f"http://127.0.0.1:{free_port()}", {"reconnect": {**FAST, "attempts": 3}}]))
        ws.recv()
        wait_for(lambda: len(state(node)["log"]) == 2)
        assert state(node)["log"][1][:2] == ["close", 1006]
        assert node.logged("is given up after 3 dials: cannot connect")
        assert len(state(node)["upstreams"]) == 1
        for url, options, says in (
            ("ftp://a/", {}, "begins with ws:// or wss://"),
            ("ws://a/", {"reconnect": False}, "take the socket of a fetch()"),
            ("ws://a/", {"reconnect": {"often": 1}}, "reconnect must be True or a dict"),
            ("ws://a/", {"protocols": ["a", "a"]}, "protocol"),
        ):
            ws.send(json.dumps(["keep", url, options]))
            assert says in ws.recv()


def test_what_is_dialled_survives_its_host_and_an_upgrade(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Feed", settings="[hibernation]\nidle_s = 0.1\n")
    port = free_port()
    with running(app) as node, node.connect() as ws:
        ws.send(json.dumps(["keep", f"http://127.0.0.1:{port}/", {"reconnect": FAST}]))
        ws.recv()
        os.kill(node.pid("host 0"), signal.SIGKILL)
        subprocess.run(
            [sys.executable, "-m", "roost", "upgrade", "--data", node.data], check=True, capture_output=True, timeout=60
        )
        late = Upstream(port)
        try:
            wait_for(lambda: late.got == ["subscribe again"])
            late.tell("one")
            assert ws.recv(20) == "feed: one"
        finally:
            late.stop()
