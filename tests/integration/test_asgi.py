"""FastAPI and Starlette apps as workers (reference 1.7, and where Roost does better), and endpoints that hibernate."""

import json

import pytest

from roost.testing import HandshakeRefused, running, wait_for

APP = """
import asyncio
from contextlib import asynccontextmanager
import asgi
from fastapi import Depends, FastAPI, File, Form, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.background import BackgroundTask

starts = []
done = []
endless_pieces = []

@asynccontextmanager
async def lifespan(app):
    starts.append(1)
    yield {"pool": "shared"}

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def root(request: Request, q: str = "none"):
    return {"q": q, "starts": len(starts), "pool": request.state.pool, "greeting": request.scope["env"].GREETING,
            "client": request.client.host, "url": str(request.url)}

@app.get("/sync")
def in_a_thread():
    import threading
    return threading.current_thread() is not threading.main_thread()

@app.get("/env")
async def environment(env=asgi.env):
    return env.GREETING

@app.post("/form")
async def form(name: str = Form(), upload: UploadFile = File()):
    return {"name": name, "file": upload.filename, "size": len(await upload.read())}

@app.get("/stream")
async def stream():
    async def pieces():
        for n in range(100):
            yield b"x" * 10000
    return StreamingResponse(pieces())

@app.get("/endless")
async def endless():
    async def pieces():
        while True:
            yield b"x" * 10000
            endless_pieces.append(1)
            await asyncio.sleep(0)
    return StreamingResponse(pieces())

@app.get("/background")
async def background():
    async def later():
        await asyncio.sleep(0.05)
        done.append("background")
    return PlainTextResponse("ok", background=BackgroundTask(later))

@app.get("/done")
async def what_is_done():
    return done

@app.get("/pieces")
async def how_many_pieces():
    return len(endless_pieces)

@app.get("/broken")
async def broken():
    raise ValueError("on purpose")

@app.websocket("/ws/{name}")
async def echo(websocket: WebSocket, name: str, env=asgi.env):
    if name == "nobody":
        await websocket.close(1008)
        return
    if name == "denied":
        await websocket.send_denial_response(JSONResponse({"why": "because"}, 418))
        return
    await websocket.accept(subprotocol="b" if "b" in websocket.scope["subprotocols"] else None,
                           headers=[(b"x-name", name.encode())])
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                done.append(["disconnect", message["code"], message["reason"]])
                return
            if message.get("text") == "bye":
                await websocket.close(4001, "said bye")
                return
            if message.get("text") == "raise":
                raise ValueError("on purpose")
            if message.get("text") == "return":
                return
            if message.get("text") is not None:
                await websocket.send_text(env.GREETING + " " + message["text"])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        pass

Default = asgi.entrypoint(app)
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    from conftest import write_app

    app = write_app(tmp_path_factory.mktemp("asgi") / "app", APP, config='vars = { GREETING = "hello" }')
    with running(app) as node:
        yield node


def test_requests(node):
    first = json.loads(node.get("/?q=x%20y")[2])
    assert first["q"] == "x y"
    assert first["pool"] == "shared"
    assert first["greeting"] == "hello"
    assert first["client"] == "127.0.0.1"
    assert first["url"].endswith("/?q=x%20y")
    assert json.loads(node.get("/")[2])["starts"] == 1  # once a process, not once a request
    assert json.loads(node.get("/sync")[2]) is True
    assert json.loads(node.get("/env")[2]) == "hello"
    assert node.get("/none")[0] == 404
    assert node.get("/", method="HEAD")[0] == 405
    assert node.get("/broken")[0] == 500
    wait_for(lambda: node.logged("on purpose"))


def test_form_with_a_file(node):
    import httpx2 as httpx

    answer = httpx.post(
        f"http://127.0.0.1:{node.port}/form", data={"name": "Ada"}, files={"upload": ("a.bin", b"x" * 300_000)}
    )
    assert answer.json() == {"name": "Ada", "file": "a.bin", "size": 300_000}


def test_streams_and_what_comes_after(node):
    status, _, body = node.get("/stream")
    assert (status, len(body)) == (200, 1_000_000)
    assert node.get("/background")[2] == b"ok"
    wait_for(lambda: "background" in json.loads(node.get("/done")[2]))
    import httpx2 as httpx

    with httpx.stream("GET", f"http://127.0.0.1:{node.port}/endless") as answer:
        assert len(next(answer.iter_bytes())) > 0
    wait_for(lambda: int(node.get("/pieces")[2]) == int(node.get("/pieces")[2]) > 0, "the stream goes on without a reader")


def test_websocket(node):
    with node.connect("/ws/ada", headers={"Sec-WebSocket-Protocol": "a, b"}) as ws:
        assert ws.headers["sec-websocket-protocol"] == "b"
        assert ws.headers["x-name"] == "ada"
        ws.send("there")
        assert ws.recv() == "hello there"
        ws.send(b"\x00\x01")
        assert ws.recv() == b"\x00\x01"
        ws.send("bye")
        assert ws.recv_close() == (4001, "said bye")
    with node.connect("/ws/ada") as ws:
        assert "sec-websocket-protocol" not in ws.headers
        ws.close(4002, "I go")
        assert ws.recv_close() == (4002, "I go")
    wait_for(lambda: ["disconnect", 4002, "I go"] in json.loads(node.get("/done")[2]))
    for message, code in (("raise", 1011), ("return", 1000)):
        with node.connect("/ws/ada") as ws:
            ws.send(message)
            assert ws.recv_close()[0] == code


def test_denial(node):
    with pytest.raises(HandshakeRefused) as refused:
        node.connect("/ws/nobody")
    assert refused.value.status == 403
    with pytest.raises(HandshakeRefused) as refused:
        node.connect("/ws/denied")
    assert (refused.value.status, json.loads(refused.value.body)) == (418, {"why": "because"})
    with pytest.raises(HandshakeRefused) as refused:
        node.connect("/nowhere")
    assert refused.value.status == 403


def test_a_client_that_floods_an_app_that_does_not_listen(make_app):
    """What waits for the app is bounded."""
    app = make_app(
        """
        import asyncio, asgi

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await asyncio.sleep(60)

        Default = asgi.entrypoint(app)
        """
    )
    with running(app) as node, node.connect() as ws:
        for _ in range(1500):
            ws.send("x")
        assert ws.recv_close(10)[0] == 1013


HIBERNATING = """
import asgi
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from workers import WorkerEntrypoint

class Stamp:
    def __init__(self, app):
        self.app = app
    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            scope.setdefault("state", {})["stamp"] = "by a middleware"
        await self.app(scope, receive, send)

class Chat(WebSocketEndpoint):
    encoding = "json"

    async def on_connect(self, websocket):
        if websocket.query_params.get("name") == "nobody":
            await websocket.close()
            return
        websocket.state.name = websocket.query_params["name"]
        websocket.state.count = 0
        await websocket.accept(subprotocol=(websocket.scope["subprotocols"] or [None])[0])
        await websocket.send_json({"room": websocket.path_params["room"], "welcome": websocket.state.name})

    async def on_receive(self, websocket, data):
        websocket.state.count += 1
        if data == "raise":
            raise ValueError("on purpose")
        if data == "all":
            for other in websocket.scope["ctx"].getWebSockets():
                other.send('"to all"')
            return
        if data == "close":
            await websocket.close(4000, "as you wish")
            return
        await websocket.send_json([websocket.state.name, websocket.state.count, data, websocket.state.stamp,
                                   websocket.path_params["room"], websocket.headers["x-mine"],
                                   id(websocket.scope["object"])])

    async def on_disconnect(self, websocket, close_code):
        storage = websocket.scope["ctx"].storage
        ended = await storage.get("ended") or []
        await storage.put("ended", [*ended, [websocket.state.name, websocket.state.count, close_code]])

async def report(request):
    import json
    return PlainTextResponse(json.dumps(await request.scope["ctx"].storage.get("ended") or []))

MAKE_APP

class Room(asgi.DurableApp):
    app = app

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return await self.env.ROOM.getByName(request.url.split("/")[4].split("?")[0]).fetch(request)
"""

APPS = {
    "starlette": """
app = Starlette(routes=[Mount("/rooms", routes=[WebSocketRoute("/{room}", Chat), Route("/{room}/ended", report)])],
                middleware=[Middleware(Stamp)])
""",
    "fastapi": """
from fastapi import APIRouter, FastAPI
router = APIRouter()
router.add_websocket_route("/{room}", Chat)
router.add_route("/{room}/ended", report)
app = FastAPI()
app.include_router(router, prefix="/rooms")
app.add_middleware(Stamp)
""",
}


@pytest.fixture(params=APPS)
def hibernating(request, make_app):
    source = HIBERNATING.replace("MAKE_APP", APPS[request.param])
    with running(make_app(source, "Room", settings="[hibernation]\nidle_s = 0.1\n")) as node:
        yield node


def asleep(node):
    wait_for(lambda: node.awake() == [])


def test_an_endpoint_that_hibernates(hibernating):
    node = hibernating
    with node.connect("/rooms/den?name=Ada", headers={"X-Mine": "header", "Sec-WebSocket-Protocol": "p"}) as ws:
        assert ws.headers["sec-websocket-protocol"] == "p"
        assert json.loads(ws.recv()) == {"room": "den", "welcome": "Ada"}
        objects = []
        for count in (1, 2, 3):
            asleep(node)  # and yet it knows how often it was spoken to
            ws.send(json.dumps("hi"))
            *answer, instance = json.loads(ws.recv())
            assert answer == ["Ada", count, "hi", "by a middleware", "den", "header"]
            objects.append(instance)
        with node.connect("/rooms/den?name=Bob", headers={"X-Mine": "other"}) as other:
            other.recv()
            other.send(json.dumps("all"))
            assert json.loads(other.recv()) == "to all"
            assert json.loads(ws.recv()) == "to all"
            other.send(json.dumps("close"))
            assert other.recv_close() == (4000, "as you wish")
            other.close(4000)
        asleep(node)
        ws.close(4003)
        assert ws.recv_close()[0] == 4003
    wait_for(lambda: len(json.loads(node.get("/rooms/den/ended")[2])) == 2)
    assert json.loads(node.get("/rooms/den/ended")[2]) == [["Bob", 2, 4000], ["Ada", 3, 4003]]


def test_ends_of_an_endpoint(hibernating):
    node = hibernating
    with pytest.raises(HandshakeRefused) as refused:
        node.connect("/rooms/den?name=nobody")
    assert refused.value.status == 403
    with node.connect("/rooms/a?name=Ada") as ws:
        ws.recv()
        ws.send(json.dumps("raise"))
        assert ws.recv_close()[0] == 1011
        ws.close(1011)
    wait_for(lambda: node.logged("on purpose"))
    with node.connect("/rooms/a?name=Eve") as ws:
        ws.recv()
        ws.send("not json")
        assert ws.recv_close()[0] in (1003, 1011)
        ws.close(1003)
    with node.connect("/rooms/a?name=Cut") as ws:
        ws.recv()
        ws.abort()
    wait_for(lambda: len(json.loads(node.get("/rooms/a/ended")[2])) == 3)
    ended = {name: code for name, _, code in json.loads(node.get("/rooms/a/ended")[2])}
    assert ended["Cut"] == 1006
    assert ended["Ada"] == 1011


def test_sockets_of_endpoints_outlive_their_host(hibernating):
    import os
    import signal

    node = hibernating
    with node.connect("/rooms/den?name=Ada", headers={"X-Mine": "h"}) as ws:
        ws.recv()
        ws.send(json.dumps("hi"))
        assert json.loads(ws.recv())[1] == 1
        os.kill(node.pid("host 0"), signal.SIGKILL)
        ws.send(json.dumps("hi"))
        assert json.loads(ws.recv(20))[1] == 2


BROKEN = """
import asyncio
import asgi
from workers import Response, WorkerEntrypoint

running = 0

async def app(scope, receive, send):
    global running
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/running":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": str(running).encode()})
        return
    running += 1
    try:
        await send({"type": "http.response.start", "status": 204 if scope["path"] == "/null" else 200})
        pieces = int(scope["query_string"] or b"0")
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
        if scope["path"] == "/raise":
            raise ValueError("in the middle")
        await send({"type": "http.response.body", "body": b"end"})
        if scope["path"] == "/waits":
            while (await receive())["type"] != "http.disconnect":
                pass
    finally:
        running -= 1

Default = asgi.entrypoint(app)
"""


def test_apps_that_break_or_are_not_read(make_app):
    """No app hangs because nobody reads its answer, and no answer looks whole that is not."""
    with running(make_app(BROKEN)) as node:
        assert node.get("/raise")[0] == 500  # before its body has begun
        for pieces in (1, 5, 16, 17, 40):
            with pytest.raises((ValueError, AssertionError)):  # cut: the last chunk is missing
                status, headers, body = node.get(f"/raise?{pieces}")
                assert not (status == 200 and headers.get("transfer-encoding") == "chunked")
                int(body, 16)
        assert node.get("/good?100")[2] == b"x" * 10000 + b"end"
        assert node.get("/good?100", method="HEAD")[0] == 200
        assert node.get("/null?100")[0] == 204
        assert node.get("/waits")[2] == b"end"
        wait_for(lambda: node.get("/running")[2] == b"0", "an app's task is left behind")
