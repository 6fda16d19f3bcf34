"""`fetch()` to other HTTP servers: what is sent, what is followed, what is kept (nothing), and bodies nobody reads."""

import gzip
import http.client
import http.server
import json
import ssl
import threading
import zlib

import pytest

from conftest import make_certificate, write_app
from roost.testing import running

SOURCE = """
import asyncio
import js
from workers import Request, Response, WorkerEntrypoint, fetch

KEPT = []

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        what, _, rest = request.url.split("/", 3)[3].partition("/")
        up = self.env.UP
        try:
            return await getattr(self, what)(request, up + rest)
        except Exception as error:
            return Response(f"{type(error).__name__}: {error}", 599)

    async def get(self, request, url):
        return await fetch(url)

    async def text(self, request, url):
        answer = await fetch(url)
        return Response.json([answer.status, answer.url, answer.redirected, await answer.text(), dict(answer.headers)])

    async def same(self, request, url):
        return await fetch(url, method=request.method, headers=request.headers, body=request.body)

    async def new(self, request, url):
        return await fetch(Request.new(url, request))

    async def second(self, request, url):
        return await fetch(url, request)

    async def stream(self, request, url):
        async def pieces():
            yield b"one,"
            yield "two"
        return await fetch(url, method="POST", body=pieces(), headers={"Content-Length": "99"})

    async def redirect(self, request, url):
        mode = request.headers.get("x-mode")
        answer = await fetch(url, method=request.method, body=await request.bytes() or None, redirect=mode,
                             headers={"Authorization": "secret", "Cookie": "c=1", "X-Mine": "1", "Content-Type": "text/x"})
        return Response.json([answer.status, answer.url, answer.headers.get("location"), await answer.text()])

    async def head(self, request, url):
        answer = await fetch(url, method="HEAD")
        return Response(None, headers={"X-Length": answer.headers.get("content-length")})

    async def unread(self, request, url):
        for _ in range(60):
            await fetch(url)
        return Response("all")

    async def cancelled(self, request, url):
        for _ in range(60):
            answer = await fetch(url)
            KEPT.append(answer)
            await answer.body.cancel()
        return Response("all")

    async def kept(self, request, url):
        "Kept beyond the handler, which is no way to keep one alive."
        KEPT.append([await fetch(url) for _ in range(9)])
        return Response("kept")

    async def held(self, request, url):
        held = [await fetch(url) for _ in range(10)]
        try:
            await fetch(url)
        finally:
            del held

    async def partly(self, request, url):
        for _ in range(60):
            async for piece in (await fetch(url)).body:
                break
        return Response("all")

    async def tee(self, request, url):
        answer = await fetch(url)
        copy = answer.clone()
        one, two = answer.body.tee()
        texts = []
        for stream in (two, one, copy.body):
            reader, text = stream.getReader(), b""
            while not (chunk := await reader.read()).done:
                text += chunk.value
            texts.append(len(text))
        return Response.json(texts)

    async def reused(self, request, url):
        "Answers without a body, or with one that has come whole, are not read by anybody."
        ports = set()
        for path, method in (("port", "HEAD"), ("port/204", "GET"), ("port/303", "GET"), ("port", "GET")) * 3:
            ports.add((await fetch(url + path, method=method, redirect="manual")).headers["x-port"])
            await asyncio.sleep(0.01)
        return Response.json([len(ports)])

    async def sse(self, request, url):
        answer = await fetch(url)
        reader = answer.body.get_reader()
        return Response(bytes((await reader.read()).value))
"""


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    go_on = threading.Event()

    def answer(self):
        length = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Transfer-Encoding"):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        path = self.path.strip("/").split("/")
        match path[0]:
            case "cookie":
                self.reply(b"set", headers=[("Set-Cookie", "sid=alice; Path=/"), ("Set-Cookie", "b=2")])
            case "see" | "moved" | "same":
                status = {"see": 303, "moved": 302, "same": 307}[path[0]]
                self.reply(b"", status, [("Location", "/landed")])
            case "away":
                self.reply(b"", 302, [("Location", f"http://localhost:{self.server.server_address[1]}/landed")])
            case "loop":
                self.reply(b"", 302, [("Location", "/loop")])
            case "ftp":
                self.reply(b"", 302, [("Location", "ftp://a/b")])
            case "gzip":
                self.reply(gzip.compress(b"hello" * 50_000), headers=[("Content-Encoding", "gzip")])
            case "deflate":
                self.reply(zlib.compress(b"deflated"), headers=[("Content-Encoding", "deflate")])
            case "raw-deflate":
                deflater = zlib.compressobj(wbits=-15)
                self.reply(deflater.compress(b"deflated") + deflater.flush(), headers=[("Content-Encoding", "deflate")])
            case "large":
                self.reply(b"x" * 200_000)
            case "port":
                status = int(path[1]) if path[1:] else 200
                body = b"" if status == 204 else b"x" * 100
                self.reply(body, status, [("X-Port", str(self.client_address[1])), ("Location", "/landed")])
            case "empty":
                self.reply(b"")
            case "sse":
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"7\r\ndata: 1\r\n")
                self.wfile.flush()
                self.go_on.wait(10)
                self.close_connection = True
            case _:
                text = json.dumps(
                    [self.command, self.path, [[n.lower(), v] for n, v in self.headers.items()], body.decode()]
                )
                self.reply(text.encode(), headers=[("X-Up", "1")])

    def reply(self, body, status=200, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = do_PUT = answer

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that left."""


def serve(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def end():
        Upstream.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()

    return end


@pytest.fixture(scope="module")
def upstream():
    server = Server(("127.0.0.1", 0), Upstream)
    end = serve(server)
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    end()


@pytest.fixture(scope="module", params=["--hosts=1", "--inline"])
def node(request, upstream, tmp_path_factory):
    app = write_app(tmp_path_factory.mktemp("fetch") / "app", SOURCE, settings="[limits]\nmax_fetch_connections = 10\n")
    with running(app, "--var", f"UP:{upstream}", request.param) as node:
        yield node


def ask(node, path, method="GET", body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def seen(node, path, **more):
    status, _, body = ask(node, path, **more)
    assert status == 200, body
    method, target, headers, sent = json.loads(body)
    return method, target, headers, sent


def test_no_cookie_is_kept(node):
    assert ask(node, "/get/cookie")[2] == b"set"
    headers = dict(seen(node, "/get/echo")[2])
    assert "cookie" not in headers


def test_what_is_sent_by_itself(node, upstream):
    assert seen(node, "/get/echo?x=1") == (
        "GET", "/echo?x=1", [["host", upstream[7:-1]], ["accept-encoding", "gzip, deflate"]], "",
    )  # fmt: skip


@pytest.mark.parametrize("how", ["same", "new", "second"])
def test_a_request_is_passed_on(node, upstream, how):
    """With the URL's Host, without what belongs to the client's connection, header bytes as they came."""
    sent = {
        "X-Mine": "grün".encode().decode("latin-1"), "Keep-Alive": "300", "Connection": "close, X-Hop",
        "X-Hop": "1", "TE": "trailers", "Accept-Encoding": "br, gzip;q=0.5, zstd", "User-Agent": "a browser",
    }  # fmt: skip
    method, _, headers, body = seen(node, f"/{how}/echo", method="PUT", body=b"hello", headers=sent)
    assert (method, body) == ("PUT", "hello")
    names = [name for name, _ in headers]
    assert dict(headers)["host"] == upstream[7:-1]
    assert not {"keep-alive", "connection", "x-hop", "te", "transfer-encoding"} & set(names)
    assert dict(headers)["content-length"] == "5"
    assert names.count("content-length") == names.count("host") == 1
    assert dict(headers)["x-mine"].encode("latin-1").decode() == "grün"
    assert dict(headers)["accept-encoding"] == "gzip;q=0.5"  # what can be decoded
    assert dict(headers)["user-agent"] == "a browser"


def test_a_large_body_is_passed_on_with_its_length(node):
    method, _, headers, body = seen(node, "/new/echo", method="POST", body=b"x" * 700_000)
    assert (method, len(body)) == ("POST", 700_000)
    assert dict(headers)["content-length"] == "700000"


def test_a_stream_has_no_length(node):
    method, _, headers, body = seen(node, "/stream/echo")
    assert (method, body) == ("POST", "one,two")
    assert dict(headers)["transfer-encoding"] == "chunked"
    assert "content-length" not in dict(headers)


def redirected(node, where, mode, **more):
    status, _, body = ask(node, f"/redirect/{where}", headers={"X-Mode": mode}, **more)
    return json.loads(body) if status == 200 else body.decode()


def test_redirects(node, upstream):
    for where, method, kept in (
        ("see", "POST", False),
        ("moved", "POST", False),
        ("same", "POST", True),
        ("moved", "PUT", True),
    ):
        status, url, _, text = redirected(node, where, "follow", method=method, body=b"payload")
        seen_method, _, headers, body = json.loads(text)
        assert (status, url) == (200, f"{upstream}landed")
        assert (seen_method, body) == ((method, "payload") if kept else ("GET", ""))
        assert ("content-type" in dict(headers)) is kept
        assert dict(headers)["authorization"] == "secret"
    headers = dict(json.loads(redirected(node, "away", "follow")[3])[2])
    assert headers["x-mine"] == "1"
    assert not {"authorization", "cookie"} & set(headers)  # another origin
    assert redirected(node, "see", "manual")[:3] == [303, f"{upstream}see", "/landed"]
    assert "Unexpected redirect" in redirected(node, "see", "error")
    assert "Too many redirects" in redirected(node, "loop", "follow")
    assert "not http:// or https://" in redirected(node, "ftp", "follow")
    assert "Invalid redirect value" in redirected(node, "see", "never")


def test_head_keeps_the_length(node):
    assert ask(node, "/head/large")[1]["X-Length"] == "200000"


def test_an_answer_is_passed_on(node):
    status, headers, body = ask(node, "/get/large")
    assert (status, len(body), headers["Content-Length"]) == (200, 200_000, "200000")
    assert "Transfer-Encoding" not in headers
    status, headers, body = ask(node, "/get/gzip")
    assert (status, body) == (200, b"hello" * 50_000)
    assert "Content-Encoding" not in headers


@pytest.mark.parametrize(
    ("coding", "text"), [("gzip", "hello" * 50_000), ("deflate", "deflated"), ("raw-deflate", "deflated")]
)
def test_compressed_bodies_are_decoded(node, coding, text):
    assert json.loads(ask(node, f"/text/{coding}")[2])[3] == text


@pytest.mark.parametrize("how", ["unread", "cancelled", "partly"])
@pytest.mark.parametrize("what", ["large", "empty", "sse"])
def test_a_body_that_nobody_reads_frees_its_connection(node, how, what):
    if (how, what) == ("partly", "empty"):
        pytest.skip("there is nothing to read")
    Upstream.go_on.clear()
    assert ask(node, f"/{how}/{what}")[2] == b"all"
    Upstream.go_on.set()


def test_answers_that_nobody_reads_let_their_connection_be_used_again(node):
    assert ask(node, "/reused/")[2] == b"[1]"


def test_what_a_handler_leaves_ends_with_it(node):
    for _ in range(5):
        assert ask(node, "/kept/large")[2] == b"kept"
    assert ask(node, "/get/large")[0] == 200


def test_too_many_at_once_are_told(node):
    status, _, body = ask(node, "/held/large")
    assert status == 599
    assert b"all 10 connections of this host are in use (limits.max_fetch_connections)" in body
    assert node.host_counter("fetches_refused") == 1
    assert ask(node, "/get/large")[0] == 200


def test_a_stream_is_read_as_it_comes(node):
    Upstream.go_on.clear()
    assert ask(node, "/sse/sse")[2] == b"data: 1"
    Upstream.go_on.set()


def test_tee_and_clone(node):
    assert json.loads(ask(node, "/tee/large")[2]) == [200_000] * 3


def test_certificates(tmp_path):
    """A private authority is refused by a line that says what to do, and trusted by --ca-file or SSL_CERT_FILE."""
    cert, key = make_certificate(tmp_path)
    server = Server(("127.0.0.1", 0), Upstream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    end = serve(server)
    try:
        app = write_app(tmp_path / "app", SOURCE)
        up = ("--var", f"UP:https://localhost:{server.server_address[1]}/")
        with running(app, *up) as node:
            status, _, body = ask(node, "/get/echo")
            assert status == 599
            assert b"the certificate of localhost is not trusted: self-signed certificate; trust its authority by" in body
        empty = tmp_path / "empty"
        empty.mkdir()
        with running(app, *up, env={"SSL_CERT_FILE": str(empty / "none"), "SSL_CERT_DIR": str(empty)}) as node:
            assert (
                b"this machine has no certificate store: install the package ca-certificates" in ask(node, "/get/echo")[2]
            )
        with running(app, *up, "--ca-file", str(cert)) as node:
            assert seen(node, "/get/echo")[0] == "GET"
        with running(app, *up, env={"SSL_CERT_FILE": str(cert)}) as node:
            assert seen(node, "/get/echo")[0] == "GET"
    finally:
        end()


def test_the_environments_proxy(tmp_path, upstream):
    app = write_app(tmp_path / "app", SOURCE)
    proxy = {"http_proxy": upstream, "no_proxy": ""}
    with running(app, "--var", "UP:http://nowhere.test/", env=proxy) as node:
        assert seen(node, "/get/echo")[1] == "http://nowhere.test/echo"  # as a proxy is asked
    with running(
        app, "--var", f"UP:{upstream}", env={**proxy, "http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}
    ) as node:
        assert seen(node, "/get/echo")[1] == "/echo"
