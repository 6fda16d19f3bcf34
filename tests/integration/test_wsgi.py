"""`workers.wsgi`: Flask, and bare WSGI apps that stream, fail, hang and are left."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest

from conftest import write_app
from roost.testing import running, wait_for

FLASK = """
import flask
from flask import Flask, request, stream_with_context
from pyodide.ffi import run_sync
from workers import DurableObject, Response, wsgi

app = Flask(__name__)

@app.route("/hello/<name>")
def hello(name):
    return {"hello": name, "query": request.args.get("q"), "var": request.environ["workers.env"].COLOUR}

@app.route("/upload", methods=["POST"])
def upload():
    return str(len(request.get_data()))

@app.route("/form", methods=["POST"])
def form():
    file = request.files["file"]
    return f"{request.form['a']} {file.filename} {len(file.read())}"

@app.route("/cookies")
def cookies():
    answer = flask.make_response("set", 201)
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    return answer

@app.route("/fails")
def fails():
    raise ValueError("on purpose")

@app.route("/stream")
def stream():
    def pieces():
        for number in range(100):
            yield f"{number},"
    return app.response_class(pieces())

@app.route("/kv")
def kv():
    kv = request.environ["workers.env"].KV
    kv.put("k", "from a thread")  # nobody waits
    one = run_sync(kv.get("k"))
    run_sync(kv.put("j", "again"))
    stub = request.environ["workers.env"].ROOM.getByName("a")
    answer = run_sync(stub.fetch("http://x/y"))
    return [one, run_sync(kv.get("j")), run_sync(stub.double(21)), answer.status, run_sync(answer.text())]

@app.route("/wrong")
def wrong():
    try:
        run_sync(request.environ["workers.env"].ROOM.getByName("a").fail())
    except ValueError as error:
        return str(error)

@app.route("/nested")
def nested():
    async def outer():
        inner()
    def inner():
        run_sync(request.environ["workers.env"].KV.get("k"))
    try:
        run_sync(outer())
    except RuntimeError as error:
        return str(error)

class Room(DurableObject):
    async def double(self, n):
        return n * 2
    async def fail(self):
        raise ValueError("not today")
    async def fetch(self, request):
        return Response(request.url, status=202)

@app.route("/headers")
def headers():
    return {name: value for name, value in request.environ.items() if name.startswith("HTTP_")}

Default = wsgi.entrypoint(app)
"""

BARE = """
import time, threading
from workers import Response, WorkerEntrypoint, wsgi

LOG = []

class Endless:
    def __iter__(self):
        return self
    def __next__(self):
        return b"x" * 10_000
    def close(self):
        LOG.append("closed")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/log":
        start_response("200 OK", [])
        return [repr(LOG).encode()]
    if path == "/endless":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Endless()
    if path == "/writes":
        write = start_response("200 OK", [])
        try:
            while True:
                write(b"x" * 10_000)
        finally:
            LOG.append("closed by write")
    if path == "/write":
        write = start_response("200 Fine", [("X-A", "1")])
        write(b"one,")
        return [b"two"]
    if path == "/slow":
        time.sleep(0.5)
        start_response("200 OK", [])
        return [str(threading.active_count()).encode()]
    if path == "/text":
        start_response("200 OK", [])
        return ["text"]
    if path == "/late":
        def pieces():
            yield b"first"
            raise ValueError("halfway")
        start_response("200 OK", [("Content-Length", "100")])
        return pieces()
    if path == "/silent":
        return []
    if path == "/hop":
        start_response("200 OK", [("Connection", "close")])
        return []
    if path == "/nothing":
        start_response("204 No Content", [])
        return []
    if path == "/lengths":
        start_response("200 OK", [])
        return [environ["CONTENT_LENGTH"].encode(), b" ", environ["wsgi.input"].readline()]
    start_response("200 OK", [])
    return [path.encode("latin-1")]

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        if request.url.endswith("/async"):
            return Response("not in a thread")
        if request.url.endswith("/alone"):
            return await wsgi.fetch(not_for_threads, request, self.env, serialize=True)
        return await wsgi.fetch(app, request, self.env)

RUNNING = [0, 0]

def not_for_threads(environ, start_response):
    RUNNING[0] += 1
    RUNNING[1] = max(RUNNING)
    time.sleep(0.05)
    RUNNING[0] -= 1
    start_response("200 OK", [])
    return [str(RUNNING[1]).encode()]
"""

MODES = {"inline": ["--inline"], "split": ["--hosts", "2", "--gateways", "2"]}


def node_of(source, mode, folder, *classes):
    config = '[vars]\nCOLOUR = "red"\n[[kv_namespaces]]\nbinding = "KV"\nid = "kv"\n'
    return running(write_app(folder, source, *classes, config=config), *MODES[mode])


@pytest.fixture(scope="module", params=MODES)
def flask_node(request, tmp_path_factory):
    with node_of(FLASK, request.param, tmp_path_factory.mktemp("flask") / "app", "Room") as node:
        yield node


@pytest.fixture(scope="module", params=MODES)
def node(request, tmp_path_factory):
    with node_of(BARE, request.param, tmp_path_factory.mktemp("wsgi") / "app") as node:
        yield node


def post(node, path, body, headers=()):
    return ask(node, "POST", path, body, dict(headers))


def ask(node, method, path, body=None, headers=None):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_flask(flask_node):
    node = flask_node
    status, headers, body = node.get("/hello/w%C3%B6rld?q=1%262")
    assert (status, json.loads(body)) == (200, {"hello": "wörld", "query": "1&2", "var": "red"})
    assert headers["content-length"] == str(len(body))
    for size in (0, 10, 3_000_000):
        assert post(node, "/upload", b"x" * size) == (200, str(size).encode())
    form = (
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--B\r\nContent-Disposition: form-data; name="file"; '
    )
    form += b'filename="f.txt"\r\n\r\n' + b"y" * 5000 + b"\r\n--B--\r\n"
    assert post(node, "/form", form, {"Content-Type": "multipart/form-data; boundary=B"}.items()) == (200, b"1 f.txt 5000")
    assert node.get("/stream")[2] == "".join(f"{number}," for number in range(100)).encode()
    assert json.loads(node.get("/kv")[2]) == ["from a thread", "again", 42, 202, "http://x/y"]
    assert node.get("/wrong")[2] == b"ValueError: not today"
    assert b"run_sync() is for WSGI apps" in node.get("/nested")[2]  # and not a loop that waits for itself
    assert node.get("/fails")[0] == 500
    assert node.get("/nowhere")[0] == 404
    assert node.get("/hello/x", method="HEAD")[2] == b""


def test_cookies_and_headers(flask_node):
    with socket.create_connection(("127.0.0.1", flask_node.port), timeout=10) as sock:
        sock.sendall(b"GET /cookies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.lower().count(b"set-cookie: ") == 2
    with socket.create_connection(("127.0.0.1", flask_node.port), timeout=10) as sock:
        sock.sendall(
            b"GET /headers HTTP/1.1\r\nHost: a\r\nX_Forged: 1\r\nX-Twice: 1\r\nX-Twice: 2\r\nProxy: evil\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (seen["HTTP_X_TWICE"], seen["HTTP_HOST"]) == ("1,2", "a")
    assert "HTTP_X_FORGED" not in seen
    assert "HTTP_PROXY" not in seen


def test_bare(node):
    assert node.get("/caf%C3%A9")[2].decode() == "/café"
    assert node.get("/write")[2] == b"one,two"
    assert node.get("/nothing")[:1] == (204,)
    assert post(node, "/lengths", b"line\nmore") == (200, b"9 line\n")
    for path in ("/text", "/silent", "/hop"):
        assert node.get(path)[0] == 500, path
    for says in ("must give bytes, not str", "has not called start_response", "may not set Connection"):
        wait_for(lambda says=says: node.logged(says), says)
    with pytest.raises(http.client.IncompleteRead):
        ask(node, "GET", "/late")


def test_a_client_that_leaves_ends_the_iteration(node):
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        sock.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1000)
    wait_for(lambda: any(b"closed" in node.get("/log")[2] for _ in range(4)), "the app's iterable is closed")


def test_a_client_that_leaves_ends_one_that_writes(node):
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        sock.sendall(b"GET /writes HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1000)
    wait_for(lambda: any(b"closed by write" in node.get("/log")[2] for _ in range(4)), "the app's write() has raised")


def test_one_at_a_time(node):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(node.get("/alone")[2])) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"1"] * 10


def test_slow_apps_run_beside_each_other_and_stop_nobody(node):
    began = time.monotonic()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(node.get("/slow")[0])) for _ in range(80)]
    for thread in threads:
        thread.start()
    quick = time.monotonic()
    assert node.get("/async")[2] == b"not in a thread"
    assert time.monotonic() - quick < 0.4
    for thread in threads:
        thread.join()
    assert answers == [200] * 80
    # 32 at a time on a host: three rounds of 0.5 s on one, two on two (and not 80 of them).
    assert 0.9 < time.monotonic() - began < 8
