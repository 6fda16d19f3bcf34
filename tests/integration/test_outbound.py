"""What workers dial: ws and wss, an upgraded fetch, an unaccepted upstream passed on, HTTP by fetch."""

import http.server
import json
import ssl
import threading

import pytest
from websockets.sync.server import serve as websocket_server

from conftest import make_certificate
from roost.testing import running, wait_for

SOURCE = """
import asyncio, json
from js import WebSocket, WebSocketPair
from workers import DurableObject, Request, Response, WorkerEntrypoint, fetch

class Room(DurableObject):
    async def fetch(self, request):
        self.up = (await fetch(self.env.HTTP_URL, headers={"Upgrade": "websocket"})).webSocket
        self.up.accept()
        self.up.addEventListener("message", lambda event: print("room heard", event.data))
        return Response("listening")

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3]
        env = self.env
        if path == "constructor":
            client, server = WebSocketPair.new()
            server.accept()
            up = WebSocket.new(env.WS_URL, ["chat", "other"])
            print("state", up.readyState)
            up.addEventListener("open", lambda e: server.send(f"open {up.protocol} {up.readyState}"))
            up.addEventListener("message", lambda e: server.send(e.data))
            up.addEventListener("close", lambda e: server.close(4000 if e.code == 1005 else e.code, e.reason))
            server.addEventListener("message", lambda e: up.send(e.data))
            server.addEventListener("close", lambda e: up.close(e.code))
            return Response(None, status=101, web_socket=client)
        if path == "refused":
            up = WebSocket.new(env.BAD_URL)
            heard = asyncio.get_running_loop().create_future()
            events = []
            up.onerror = lambda e: events.append(["error", e.message])
            def closed(e):
                events.append(["close", e.code, e.reason, e.wasClean, up.readyState])
                heard.set_result(None)
            up.onclose = closed
            await heard
            return Response.json(events)
        if path == "upgrade":
            answer = await fetch(env.HTTP_URL, headers={"Upgrade": "websocket", "X-Mine": "1"})
            up = answer.webSocket
            up.accept()
            heard = asyncio.get_running_loop().create_future()
            up.addEventListener("message", lambda e: heard.set_result(e.data))
            up.send("over fetch")
            text = await heard
            up.close(1000, "done")
            return Response.json([answer.status, text])
        if path == "not-an-upgrade":
            answer = await fetch(env.PLAIN_URL, headers={"Upgrade": "websocket"})
            return Response.json([answer.status, answer.webSocket is None, await answer.text()])
        if path == "refusal":
            return await fetch(env.PLAIN_URL + "x", headers={"Upgrade": "websocket"})
        if path == "pass-through":
            return await fetch(env.HTTP_URL, headers={"Upgrade": "websocket"})
        if path == "get":
            answer = await fetch(env.PLAIN_URL + "x?y=1", method="POST", body="ping", headers={"X-A": "b"})
            return Response.json([answer.status, answer.ok, await answer.json()])
        if path == "proxy":
            return await fetch(env.PLAIN_URL + "x")
        if path == "room":
            return await env.ROOM.getByName("r").fetch(request)
        if path == "bad-scheme":
            try:
                await fetch("ftp://a/")
            except TypeError as error:
                return Response(str(error))
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=["ws", "wss"])
def upstream(request, certificate):
    heard = []

    def arrives(ws, _):
        heard.append(ws)  # here, and not in `handle`: a client hears of the handshake before that runs

    def handle(ws):
        for message in ws:
            if message == "bye":
                ws.close(4321, "upstream says bye")
            elif message == "flood":
                for number in range(1000):
                    ws.send(f"{number} " + "x" * 1000)
            else:
                ws.send(message)

    def choose(connection, offered):
        return "chat" if "chat" in offered else None

    context = None
    if request.param == "wss":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    server = websocket_server(
        handle, "127.0.0.1", 0, ssl=context, select_subprotocol=choose, compression=None, process_request=arrives
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.socket.getsockname()[1]
    yield request.param, f"localhost:{port}/", heard
    server.shutdown()
    thread.join()


class Plain(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        text = json.dumps([self.command, self.path, body, self.headers.get("X-A")]).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def plain():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module", params=["split", "inline"])
def node(request, upstream, plain, certificate, tmp_path_factory):
    scheme, address, _ = upstream
    folder = tmp_path_factory.mktemp("outbound")
    (folder / "worker.py").write_text(SOURCE)
    (folder / "wrangler.toml").write_text(
        'name = "o"\nmain = "worker.py"\ncompatibility_date = "2026-01-01"\n'
        '[[durable_objects.bindings]]\nname = "ROOM"\nclass_name = "Room"\n'
    )
    (folder / "roost.toml").write_text("[hibernation]\nidle_s = 0.1\n")
    variables = {
        "WS_URL": f"{scheme}://{address}",
        "HTTP_URL": f"{'https' if scheme == 'wss' else 'http'}://{address}",
        "BAD_URL": "ws://127.0.0.1:1/",
        "PLAIN_URL": plain,
    }
    arguments = [word for key, value in variables.items() for word in ("--var", f"{key}:{value}")]
    arguments += ["--ca-file", str(certificate[0])] + (["--inline"] if request.param == "inline" else [])
    with running(folder, *arguments) as running_node:
        yield running_node


def test_constructor(node):
    with node.connect("/constructor") as ws:
        assert ws.recv() == "open chat 1"
        ws.send("there")
        assert ws.recv() == "there"
        ws.send(b"\x00\x01")
        assert ws.recv() == b"\x00\x01"
        ws.send("x" * 300_000)
        assert ws.recv() == "x" * 300_000
        ws.send("flood")
        for number in range(1000):
            assert ws.recv().startswith(f"{number} ")
        ws.send("bye")
        assert ws.recv_close() == (4321, "upstream says bye")
        ws.close(4321)
    wait_for(lambda: node.logged("state 0"))


def test_client_close_reaches_the_upstream(node, upstream):
    with node.connect("/constructor") as ws:
        ws.recv()
        mine = upstream[2][-1]
        ws.close(4002)
        assert ws.recv_close()[0] == 4002
    wait_for(lambda: mine.close_code == 4002)
    wait_for(lambda: node.counter("sockets") == 0)


def test_refused(node):
    events = json.loads(node.get("/refused")[2])
    assert events[0][0] == "error"
    assert "cannot connect to 127.0.0.1:1" in events[0][1]
    assert events[1] == ["close", 1006, "Failed to establish websocket connection", False, 3]


def test_upgraded_fetch(node, upstream):
    assert json.loads(node.get("/upgrade")[2]) == [101, "over fetch"]
    assert upstream[2][-1].request.headers["X-Mine"] == "1"
    wait_for(lambda: upstream[2][-1].close_code == 1000)


def test_refused_upgrade(node):
    """Its body says why, to the worker and to whom it is passed on."""
    why = '["GET", "/", "", null]'
    assert json.loads(node.get("/not-an-upgrade")[2]) == [202, True, why]
    status, headers, body = node.get("/refusal")
    assert (status, headers["content-length"], json.loads(body)[:2]) == (202, str(len(body)), ["GET", "/x"])


def test_pass_through(node, upstream):
    """An upstream that the worker returns unaccepted: messages go straight from gateway to gateway."""
    with node.connect("/pass-through") as ws:
        for message in ("text", b"\xff\x00", "x" * 100_000):
            ws.send(message)
            assert ws.recv() == message
        mine = upstream[2][-1]
        ws.close(4003, "through")
        assert ws.recv_close() == (4003, "through")
        wait_for(lambda: mine.close_code == 4003)
    with node.connect("/pass-through") as ws:
        ws.send("bye")
        assert ws.recv_close() == (4321, "upstream says bye")
        ws.close(4321)
    wait_for(lambda: node.counter("sockets") == 0)


def test_plain_fetch(node):
    status, ok, answer = json.loads(node.get("/get")[2])
    assert (status, ok) == (202, True)
    assert answer == ["POST", "/x?y=1", "ping", "b"]
    assert json.loads(node.get("/proxy")[2])[:2] == ["GET", "/x"]
    assert b"ftp://a/" in node.get("/bad-scheme")[2]


def test_an_open_upstream_pins_its_object(node, upstream):
    assert node.get("/room")[2] == b"listening"
    pins = wait_for(lambda: [pin for entry in node.awake() for pin in entry["pins"] if "WebSocket" in pin])
    assert pins
    upstream[2][-1].send("news")
    wait_for(lambda: node.logged("[Room(r)] room heard news"))
    upstream[2][-1].close()
    wait_for(lambda: node.awake() == [])
