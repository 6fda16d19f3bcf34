"""ASGI where a client is gone, a startup fails, a close is wrong, and an app keeps its sockets in memory."""

import json
import socket
import struct
import subprocess
import sys
import time

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio, contextlib, time
import asgi
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from workers import Response, WorkerEntrypoint

log, tabs = [], set()

async def push(ws):
    await ws.accept()
    try:
        while True:
            await ws.send_text("tick")
            await asyncio.sleep(0.02)
    except BaseException as error:
        log.append([ws.query_params["id"], type(error).__name__])
        raise

async def close(ws):
    await ws.accept()
    await ws.receive_text()
    await ws.send({"type": "websocket.close", "code": int(ws.query_params["code"]), "reason": ws.query_params["reason"]})

async def racing(ws):
    await ws.accept()
    await ws.receive_text()
    await ws.close(1000)
    message = await ws._receive()
    log.append(["racing", message["type"], message.get("code")])

async def tab(ws):
    await ws.accept()
    tabs.add(ws)
    try:
        async for text in ws.iter_text():
            for each in list(tabs):
                await each.send_text(text)
    finally:
        tabs.discard(ws)

async def shout(request):
    for each in list(tabs):
        await each.send_text("shout")
    return JSONResponse(len(tabs))

async def late(request):
    async def pieces():
        yield b"one"
        raise ValueError("late")
    return StreamingResponse(pieces())

async def fail(request):
    raise ValueError("boom")

async def sync_stream(request):
    def pieces():
        try:
            for number in range(1000):
                yield f"{number}".encode()
                time.sleep(0.02)
        finally:
            log.append(["sync stream", "finally"])
    return StreamingResponse(pieces())

class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)

app = Starlette(routes=[
    WebSocketRoute("/push", push), WebSocketRoute("/close", close), WebSocketRoute("/racing", racing),
    WebSocketRoute("/tab", tab),
    Route("/log", lambda request: JSONResponse(log)), Route("/shout", shout), Route("/late", late), Route("/fail", fail),
    Mount("/m", routes=[Route("/late", late), Route("/sync-stream", sync_stream)], middleware=[Middleware(Passing)]),
])
Default = asgi.entrypoint(app)
"""
ONE = [("--hosts", "1"), ("--inline",)]


@pytest.fixture(scope="module", params=ONE, ids=" ".join)
def node(request, tmp_path_factory):
    with running(write_app(tmp_path_factory.mktemp("asgi") / "app", SOURCE), *request.param) as node:
        yield node


def logged(node):
    return json.loads(node.get("/log")[2])


def test_a_loop_that_sends_ends_when_its_client_has_gone(node):
    """OSError from `send` (ASGI 3.0), which Starlette makes WebSocketDisconnect; all three ways of going."""
    for who in ("vanished", "reset", "closed"):
        ws = node.connect(f"/push?id={who}")
        ws.recv()
        if who == "reset":
            ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if who == "closed":
            ws.close(1000)
            ws.recv_close()
        ws.sock.close()
        wait_for(lambda who=who: [who, "WebSocketDisconnect"] in logged(node), who, timeout_s=5)


@pytest.mark.parametrize(
    ("code", "reason", "heard"),
    [(4000, "bye", (4000, "bye")), (1005, "", (1011, "")), (5000, "", (1011, "")), (1008, "x" * 200, (1008, "x" * 123)),
     (1011, "é" * 70, (1011, "é" * 61))],
)  # fmt: skip
def test_a_close_ends_the_socket_whatever_is_wrong_with_it(node, code, reason, heard):
    from urllib.parse import quote

    with node.connect(f"/close?code={code}&reason={quote(reason)}") as ws:
        ws.send("go")
        assert ws.recv_close(5) == heard


def test_after_its_close_an_app_hears_of_the_end_only(node):
    with node.connect("/racing") as ws:
        ws.send("go")
        ws.send("late")
        assert ws.recv_close(5)[0] == 1000
        ws.close(1000)
        wait_for(lambda: ["racing", "websocket.disconnect", 1000] in logged(node))


@pytest.mark.parametrize("path", ["/late", "/m/late"])
def test_an_error_in_a_streamed_body_cuts_it(node, path):
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while piece := sock.recv(65536):
            got += piece
    assert b"one" in got
    assert not got.endswith(b"0\r\n\r\n")


def test_a_synchronous_body_ends_soon_after_its_client(node):
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
        sock.sendall(b"GET /m/sync-stream HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(1000)
    wait_for(lambda: ["sync stream", "finally"] in logged(node), timeout_s=5)


def test_a_failure_is_the_requests_with_the_frameworks_frames_folded(node):
    assert node.get("/fail")[0] == 500
    wait_for(lambda: node.logged("[GET /fail] fetch failed: ValueError: boom"))
    start = next(n for n, line in enumerate(node.log) if "[GET /fail] fetch failed" in line)
    shown = "\n".join(node.log[start : start + 12])
    assert "frames of starlette" in shown
    assert "worker.py" in shown
    assert shown.count("site-packages") == 0


FUNCTIONS = """
import asgi
from workers import Response, WorkerEntrypoint

async def plain(scope, receive, send): ...

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        scope = asgi.request_to_scope(request, self.env)
        async def later():
            print("in the background")
        asgi.run_in_background(later())
        return Response(f"{scope['type']} {scope['path']} {scope['query_string'].decode()}")
"""


def test_the_platforms_functions(tmp_path):
    with running(write_app(tmp_path / "app", FUNCTIONS)) as node:
        assert node.get("/a%20b?x=1")[2] == b"http /a b x=1"
        wait_for(lambda: node.logged("in the background"))


@pytest.mark.parametrize(("settings", "together"), [("", True), ('[asgi]\nhosts = "all"\n', False)])
def test_an_app_that_keeps_its_sockets_has_one_host(tmp_path, settings, together):
    """Four tabs at three hosts: each hears what one says, and what a request shouts; or it is said that they do not."""
    app = write_app(tmp_path / "app", SOURCE, settings=settings)
    with running(app, "--hosts", "3", "--gateways", "2") as node:
        sockets = [node.connect("/tab") for _ in range(6)]
        heard = json.loads(node.get("/shout")[2])
        for ws in sockets:
            ws.sock.close()
        assert (heard == 6) is together
        assert node.logged("all of its requests go to host 0") is together
        if together:  # also after the gateways were replaced
            done = subprocess.run(
                [sys.executable, "-m", "roost", "upgrade", "--data", node.data], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            sockets = [node.connect("/tab") for _ in range(6)]
            assert json.loads(node.get("/shout")[2]) == 6
            for ws in sockets:
                ws.sock.close()


LIFESPAN = """
import asyncio, contextlib
import asgi
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

@contextlib.asynccontextmanager
async def lifespan(app):
    WHAT
    yield

app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("served"))], lifespan=lifespan)
Default = asgi.entrypoint(app)
"""
HOW = {
    "raise ValueError('no database')": "the ASGI app's startup failed: ValueError: no database",
    "await asyncio.sleep(3600)": "the ASGI app has not started within 1 s (asgi.startup_s).",
}


@pytest.mark.parametrize("what", HOW)
@pytest.mark.parametrize("mode", ["--hosts=2", "--inline"])
def test_a_startup_that_fails_refuses_the_start(tmp_path, what, mode):
    app = write_app(tmp_path / "app", LIFESPAN.replace("WHAT", what), settings="[asgi]\nstartup_s = 1\n")
    with pytest.raises(RuntimeError) as refused, running(app, mode):
        pass
    assert HOW[what] in str(refused.value)


@pytest.mark.parametrize("what", HOW)
def test_a_startup_that_fails_refuses_a_deployment(tmp_path, what):
    settings = "[asgi]\nstartup_s = 1\n"
    app = write_app(tmp_path / "app", LIFESPAN.replace("WHAT", "print('up')"), settings=settings)
    with running(app, "--hosts", "2") as node:
        assert node.logged("up")  # before it was ready
        write_app(app, LIFESPAN.replace("WHAT", what), settings=settings)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "roost", "deploy", str(app), "--data", node.data],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert HOW[what] in done.stderr
        assert time.monotonic() - began < 10
        assert node.get("/")[2] == b"served"
