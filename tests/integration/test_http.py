"""HTTP through gateway and host: keep-alive, pipelining, bodies both ways, files, and what a broken worker does."""

import re
import socket

import pytest

from conftest import write_app
from roost.testing import open_socket, running, wait_for

SOURCE = """
import asyncio
from workers import Response, WorkerEntrypoint, wait_until

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = "/" + request.url.split("/", 3)[3].split("?")[0]
        if path == "/echo":
            return Response(await request.bytes())
        if path == "/length":
            total = 0
            async for piece in request.body:
                total += len(piece)
            return Response(str(total))
        if path == "/stream":
            async def pieces():
                for number in range(5):
                    yield f"{number},"
                    await asyncio.sleep(0.01)
            return Response(pieces())
        if path == "/huge":
            async def much():
                for _ in range(64):
                    yield b"x" * 65536
            return Response(much())
        if path == "/big":
            return Response(b"y" * 3_000_000)
        if path == "/endless":
            async def forever():
                try:
                    while True:
                        yield b"z" * 10_000
                        await asyncio.sleep(0)
                finally:
                    print("stream ended")
            return Response(forever())
        if path == "/breaks":
            async def breaks():
                yield b"some"
                raise ValueError("source broke")
            return Response(breaks())
        if path == "/short":
            async def short():
                yield b"abc"
            return Response(short(), headers={"Content-Length": "10"})
        if path == "/headers":
            return Response("ok", status=201, status_text="Made", headers=[
                ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Peer", request.headers.get("CF-Connecting-IP")),
                ("Transfer-Encoding", "chunked"), ("Connection", "close")])
        if path == "/split":
            response = Response("x")
            response.headers.pairs.append(("X", "a\\r\\nInjected: yes"))
            return response
        if path == "/204":
            return Response(None, status=204)
        if path == "/slow":
            await asyncio.sleep(0.3)
            return Response("slow")
        if path == "/ignore":
            return Response("ignored")
        if path == "/later":
            async def later():
                await asyncio.sleep(0.05)
                print("later done")
            wait_until(later())
            return Response("now")
        return Response(f"{request.method} {path}")
"""

NODE = pytest.fixture(params=["split", "inline"], scope="module")


def make(folder):
    """The app, with files of all kinds."""
    settings = "[limits]\nmax_body_bytes = 2000000\n"
    config = '[assets]\ndirectory = "public"'
    write_app(folder, SOURCE, config=config, settings=settings)
    public = folder / "public"
    (public / "sub").mkdir(parents=True)
    (public / "index.html").write_text("<h1>home</h1>")
    (public / "page.html").write_text("page")
    (public / "sub" / "index.html").write_text("sub")
    (public / "a b.css").write_text("css")
    (public / ".secret").write_text("hidden")
    (public / "link").symlink_to("/etc/passwd")
    return folder


@NODE
def node(request, tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("http"))
    with running(folder, *(["--inline"] if request.param == "inline" else [])) as running_node:
        yield running_node


class Client:
    """A keep-alive connection that reads responses by their framing."""

    def __init__(self, port):
        self.sock = open_socket(port)
        self.data = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def ask(self, method, path, *headers, body=b""):
        lines = [f"{method} {path} HTTP/1.1", "Host: a", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + body)

    def more(self):
        piece = self.sock.recv(65536)
        if not piece:
            raise EOFError(self.data[:100])
        self.data += piece

    def until(self, mark):
        while mark not in self.data:
            self.more()
        before, self.data = self.data.split(mark, 1)
        return before

    def exactly(self, size):
        while len(self.data) < size:
            self.more()
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def response(self, method="GET"):
        head = self.until(b"\r\n\r\n").decode()
        status = int(head.split()[1])
        fields = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in head.split("\r\n")[1:])]
        names = dict(fields)
        if method == "HEAD" or status in (204, 304) or status < 200:
            return status, fields, b""
        if names.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            assert self.exactly(2) == b"\r\n"
            return status, fields, body
        return status, fields, self.exactly(int(names["content-length"]))


@pytest.fixture
def client(node):
    with Client(node.port) as connection:
        yield connection


def test_keep_alive_and_methods(client):
    for method in ("GET", "DELETE", "OPTIONS", "HEAD", "GET"):
        client.ask(method, "/x?y=1")
        status, _, body = client.response(method)
        assert (status, body) == (200, b"" if method == "HEAD" else f"{method} /x".encode())


def test_pipelining_keeps_order(client):
    client.sock.sendall(
        b"".join(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in [b"slow", *(b"n%d" % n for n in range(2000))])
    )
    assert client.response()[2] == b"slow"
    for number in range(2000):
        assert client.response()[2] == f"GET /n{number}".encode()


@pytest.mark.parametrize("size", [1, 1000, 50_000, 100_000, 1_500_000])
def test_bodies_both_ways(client, size):
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    client.ask("POST", "/echo", body=body)
    assert client.response()[2] == body
    client.ask("POST", "/length", body=body)
    assert client.response()[2] == str(size).encode()


def test_chunked_upload(client):
    client.ask("POST", "/echo", "Transfer-Encoding: chunked")
    for piece in (b"abc", b"d" * 70_000, b"e"):
        client.sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    client.sock.sendall(b"0\r\n\r\n")
    assert client.response()[2] == b"abc" + b"d" * 70_000 + b"e"
    client.ask("GET", "/after")
    assert client.response()[2] == b"GET /after"


def test_expect_100(client):
    client.ask("POST", "/echo", "Expect: 100-continue", "Content-Length: 3")
    assert client.response()[0] == 100
    client.sock.sendall(b"abc")
    assert client.response()[2] == b"abc"


def test_streams(client):
    client.ask("GET", "/stream")
    _, fields, body = client.response()
    assert ("transfer-encoding", "chunked") in fields
    assert body == b"0,1,2,3,4,"
    client.ask("GET", "/huge")
    assert len(client.response()[2]) == 64 * 65536
    client.ask("GET", "/big")
    assert client.response()[2] == b"y" * 3_000_000
    client.ask("HEAD", "/huge")
    assert client.response("HEAD")[0] == 200
    client.ask("GET", "/after")
    assert client.response()[2] == b"GET /after"


def test_http_1_0_ends_by_closing(node):
    with open_socket(node.port) as sock:
        sock.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == b"0,1,2,3,4,"


def test_endless_stream_stops_with_its_client(node, client):
    client.ask("GET", "/endless")
    client.until(b"\r\n\r\n")
    client.exactly(100_000)
    client.sock.close()
    wait_for(lambda: node.logged("stream ended"))


def test_broken_stream_is_cut(node, client):
    client.ask("GET", "/breaks")
    client.until(b"\r\n\r\n")
    with pytest.raises(EOFError):
        client.exactly(1000)
    wait_for(lambda: node.logged("source broke"))


def test_body_shorter_than_promised_is_cut(client):
    client.ask("GET", "/short")
    with pytest.raises(EOFError):
        client.response()


def test_headers(client):
    client.ask("GET", "/headers", "CF-Connecting-IP: 6.6.6.6")
    status, fields, body = client.response()
    assert status == 201
    assert [v for n, v in fields if n == "set-cookie"] == ["a=1", "b=2"]
    assert ("x-peer", "127.0.0.1") in fields
    assert not {"transfer-encoding", "connection"} & {n for n, _ in fields}
    assert "date" in dict(fields)
    assert body == b"ok"


def test_response_splitting_is_a_500(node, client):
    client.ask("GET", "/split")
    status, fields, _ = client.response()
    assert status == 500
    assert "injected" not in dict(fields)
    wait_for(lambda: node.logged("cannot be sent"))


def test_no_content(client):
    client.ask("GET", "/204")
    assert client.response()[0] == 204
    client.ask("GET", "/after")
    assert client.response()[2] == b"GET /after"


def test_body_limit(node, client):
    client.ask("POST", "/echo", "Content-Length: 3000000")
    status, fields, _ = client.response()
    assert (status, dict(fields)["connection"]) == (413, "close")
    assert node.counter("refused_body") >= 1


def test_an_ignored_body_does_not_deafen(client):
    client.ask("POST", "/ignore", body=b"x" * 300_000)
    assert client.response()[2] == b"ignored"
    try:
        client.ask("GET", "/after")
        assert client.response()[2] == b"GET /after"
    except (EOFError, ConnectionError):
        pass  # it may also be closed, if the answer came before the body's end


def test_wait_until(node, client):
    client.ask("GET", "/later")
    assert client.response()[2] == b"now"
    wait_for(lambda: node.logged("later done"))


def test_files(client):
    for path, body, kind in (
        ("/", b"<h1>home</h1>", "text/html"),
        ("/page", b"page", "text/html"),
        ("/sub/", b"sub", "text/html"),
        ("/a%20b.css", b"css", "text/css"),
    ):
        client.ask("GET", path)
        status, fields, got = client.response()
        assert (status, got) == (200, body), path
        assert dict(fields)["content-type"].startswith(kind)
    client.ask("GET", "/", f"If-None-Match: {dict(fields)['etag']}")
    assert client.response()[0] == 200
    client.ask("GET", "/")
    tag = dict(client.response()[1])["etag"]
    client.ask("GET", "/", f"If-None-Match: {tag}")
    assert client.response()[0] == 304
    client.ask("GET", "/page.html?x=1")
    status, fields, _ = client.response()
    assert (status, dict(fields)["location"]) == (307, "/page?x=1")
    client.ask("HEAD", "/page")
    assert client.response("HEAD")[0] == 200


@pytest.mark.parametrize(
    "path", ["/../worker.py", "/%2e%2e/worker.py", "/..%2fworker.py", "//etc/passwd", "/link", "/.secret", "/sub/%00"]
)
def test_no_name_leaves_the_folder(client, path):
    client.ask("GET", path)
    status, _, body = client.response()
    assert body.startswith(b"GET ") or status == 400  # the worker's answer, not a file
    assert b"root:" not in body
    assert b"hidden" not in body


def test_bad_hosts(node):
    for host in ("x/evil?y=", "a b", "a@b"):
        with open_socket(node.port) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nX-No-Asset: 1\r\n\r\n".encode().replace(b"GET /", b"GET /w"))
            assert re.match(rb"HTTP/1\.1 400 ", sock.recv(1000))


def test_half_closed_client_is_let_go(node):
    before = node.counter("connections")
    with open_socket(node.port) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for(lambda: node.counter("connections") == before + 1)
        sock.shutdown(socket.SHUT_WR)  # and this side stays open
        wait_for(lambda: node.counter("connections") == before, timeout_s=15)
