"""Rude and unusual HTTP clients: what a gateway keeps for them, and what they get."""

import json
import socket
import ssl
import struct
import time
from array import array

import pytest

from conftest import make_certificate, write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    async def fetch(self, request):
        client, server = WebSocketPair.new()
        self.ctx.acceptWebSocket(server)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        if message == "slow":
            await asyncio.sleep(0.3)
        if message == "large":
            ws.send("x" * 900_000)
        await self.ctx.storage.put("n", message)
        ws.send("re: " + message)

    async def webSocketClose(self, ws, code, reason, clean):
        await self.ctx.storage.put("ended", [code, clean])
        ws.send("too late") if code == 1006 else None

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = "/" + request.url.split("/", 3)[3]
        if path.startswith("/room"):
            return await self.env.ROOM.getByName("x").fetch(request)
        if path == "/large":
            return Response("x" * 200_000)
        if path == "/slow":
            await asyncio.sleep(0.3)
            return Response("slow answer")
        if path == "/stream":
            async def pieces():
                for number in range(5):
                    yield b"%d" % number
                    await asyncio.sleep(0.05)
            return Response(pieces())
        if path.startswith("/reason/"):
            try:
                texts = {"crlf": "OK\\r\\nSet-Cookie: a=1", "nul": "a\\0", "wide": "\\u010c"}
                return Response("x", status_text=texts[path[8:]])
            except TypeError as error:
                return Response(f"TypeError {error}")
        if path == "/wide":
            try:
                return Response("x", headers={"X-A": "\\u010d"})
            except TypeError as error:
                return Response(f"TypeError {error}")
        if path == "/body":
            return Response(str(len(await request.text())))
        fields = request.headers
        return Response.json({"url": request.url, "host": fields.get("host"), "cookie": fields.get("cookie")})
"""

BIG = 20 * 1024 * 1024
MODES = [("--hosts", "1"), ("--inline",)]


def make(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, "Room", config='assets = { directory = "public" }')
    (app / "public").mkdir()
    (app / "public/small.txt").write_text("0123456789")
    numbers = array("I", range(BIG // 4))
    (app / "public/big.bin").write_bytes(numbers.tobytes())
    return app


@pytest.fixture(scope="module", params=MODES, ids=" ".join)
def node(request, tmp_path_factory):
    with running(make(tmp_path_factory.mktemp("edges")), *request.param) as node:
        yield node


def rss_mib(node):
    pids = node.status()["pids"]
    with open(f"/proc/{pids.get('gateway 0', pids['node'])}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def raw(node, data, *, half=False, timeout_s=10.0):
    """Send bytes, read until the end."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=timeout_s) as sock:
        sock.sendall(data)
        if half:
            sock.shutdown(socket.SHUT_WR)
        found = b""
        while piece := sock.recv(1 << 20):
            found += piece
        return found


def get(node, path, *lines, close=True):
    head = [f"GET {path} HTTP/1.1", "Host: a.example", *lines, *(["Connection: close"] if close else [])]
    head, _, body = raw(node, "\r\n".join([*head, "", ""]).encode("latin-1")).partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(field.lower().split(": ", 1) for field in fields), body


def worst_echo_s(node, while_true):
    """The longest echo of a client beside what happens."""
    worst = 0.0
    with node.connect("/room") as ws:
        while while_true():
            began = time.monotonic()
            ws.send("x")
            assert ws.recv() == "re: x"
            worst = max(worst, time.monotonic() - began)
    return worst


@pytest.mark.parametrize("path", ["/big.bin", "/small.txt", "/large"])
def test_a_client_that_pipelines_and_does_not_read(node, path):
    before = rss_mib(node)
    with socket.create_connection(("127.0.0.1", node.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        requests = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 1500
        sock.settimeout(0.5)
        try:
            sock.sendall(requests)
        except TimeoutError:
            pass  # it is not read any more: right
        until = time.monotonic() + 1.0
        worst = worst_echo_s(node, lambda: time.monotonic() < until)
        grew = rss_mib(node) - before
    assert grew < 64, f"{grew:.0f} MiB"
    assert worst < 0.25, f"{worst * 1000:.0f} ms"


def test_forty_readers_of_a_large_file_that_do_not_read(node):
    before = rss_mib(node)
    readers = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(40)]
    try:
        for sock in readers:
            sock.sendall(b"GET /big.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        until = time.monotonic() + 1.0
        worst = worst_echo_s(node, lambda: time.monotonic() < until)
        grew = rss_mib(node) - before
        assert grew < 64, f"{grew:.0f} MiB"
        assert worst < 0.25, f"{worst * 1000:.0f} ms"
        found = b""
        while len(found) < BIG:  # one of them reads after all, and gets the whole
            found += readers[0].recv(1 << 20)
            if b"\r\n\r\n" in found[:1000] and not found.startswith(b"\x00"):
                found = found.partition(b"\r\n\r\n")[2]
        assert struct.unpack("<I", found[-4:])[0] == BIG // 4 - 1
    finally:
        for sock in readers:
            sock.close()


def test_pipelined_requests_are_all_answered_in_order(node):
    wanted = ["/small.txt", "/body", "/large", "/stream", "/small.txt", "/big.bin", "/slow"]
    lines = [
        f"GET {path} HTTP/1.1\r\nHost: a\r\n{'Connection: close' if path == '/slow' else 'X: y'}\r\n\r\n" for path in wanted
    ]
    found = raw(node, "".join(lines).encode(), timeout_s=30)
    assert found.count(b"HTTP/1.1 200 OK\r\n") == len(wanted)
    assert found.endswith(b"slow answer")
    assert found.index(b"0123456789") < found.index(b"xxxxx") < found.rindex(b"0123456789")


RANGES = [
    ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
    ("bytes=7-", 206, b"789", "bytes 7-9/10"),
    ("bytes=-2", 206, b"89", "bytes 8-9/10"),
    ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
    ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
    ("bytes=10-", 416, b"", "bytes */10"),
    ("bytes=-0", 416, b"", "bytes */10"),
    ("bytes=4-2", 200, b"0123456789", None),
    ("bytes=0-1,4-5", 200, b"0123456789", None),
    ("lines=0-1", 200, b"0123456789", None),
    ("bytes=", 200, b"0123456789", None),
    ("bytes=" + "9" * 30 + "-", 200, b"0123456789", None),
]


@pytest.mark.parametrize(("wanted", "status", "body", "said"), RANGES)
def test_ranges(node, wanted, status, body, said):
    got, fields, content = get(node, "/small.txt", f"Range: {wanted}")
    assert (got, content, fields.get("content-range")) == (status, body, said)
    assert fields["content-length"] == str(len(body))


def test_ranges_of_a_large_file_and_if_range(node):
    _, fields, _ = get(node, "/small.txt")
    assert fields["accept-ranges"] == "bytes"
    status, fields, content = get(node, "/big.bin", "Range: bytes=4000000-5000003")
    assert (status, fields["content-range"]) == (206, f"bytes 4000000-5000003/{BIG}")
    assert struct.unpack(f"<{len(content) // 4}I", content) == tuple(range(1_000_000, 1_250_001))
    tag = fields["etag"]
    assert get(node, "/big.bin", "Range: bytes=0-3", f"If-Range: {tag}")[0] == 206
    for other in ('"other"', f"W/{tag}", "Sat, 28 Nov 2026 12:00:00 GMT"):
        status, fields, content = get(node, "/big.bin", "Range: bytes=0-3", f"If-Range: {other}")
        assert (status, len(content)) == (200, BIG)
    for match in ("*", tag, f"W/{tag}", f'"a", {tag}', f'W/"b",W/{tag} , "c"'):
        status, fields, content = get(node, "/big.bin", f"If-None-Match: {match}")
        assert (status, content) == (304, b""), match
    assert get(node, "/small.txt", 'If-None-Match: "a", W/"b"')[0] == 200


def test_a_large_file_over_tls_and_while_others_speak(tmp_path):
    cert, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=cert)
    with running(make(tmp_path), "--tls-cert", str(cert), "--tls-key", str(key)) as node:

        def connected():
            return trust.wrap_socket(socket.create_connection(("127.0.0.1", node.port)), server_hostname="localhost")

        with connected() as sock:
            sock.sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            found = b"".join(iter(lambda: sock.recv(1 << 20), b""))
        assert len(found.partition(b"\r\n\r\n")[2]) == BIG
        before = rss_mib(node)
        with connected() as sock:
            sock.sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert rss_mib(node) - before < 64


@pytest.mark.parametrize("path", ["/small.txt", "/large", "/slow", "/stream", "/big.bin"])
def test_half_closed_after_a_request(node, path):
    found = raw(node, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), half=True)
    assert found.startswith(b"HTTP/1.1 200")
    ends = {"/small.txt": b"0123456789", "/large": b"x" * 100, "/slow": b"slow answer", "/stream": b"4\r\n0\r\n\r\n"}
    assert found.endswith(ends.get(path, struct.pack("<I", BIG // 4 - 1)))


def test_half_closed_after_two_requests_and_in_the_middle_of_one(node):
    two = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n"
    found = raw(node, two, half=True)
    assert found.count(b"HTTP/1.1 200") == 2
    assert found.endswith(b"0123456789")
    raw(node, b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345", half=True)  # ends
    before = node.counter("connections")
    sock = socket.create_connection(("127.0.0.1", node.port))
    sock.sendall(b"GET /sm")
    wait_for(lambda: node.counter("connections") == before + 1)
    sock.shutdown(socket.SHUT_WR)  # and it stays open on this side
    wait_for(lambda: node.counter("connections") == before, "half-closed without a request", 5)
    sock.close()


HANDSHAKE = (
    b"GET /room HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def handshake(node, sock):
    sock.sendall(HANDSHAKE)
    found = b""
    while b"\r\n\r\n" not in found:
        found += sock.recv(4096)
    assert b" 101 " in found
    return found.partition(b"\r\n\r\n")[2]


def frame(opcode, payload):
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


@pytest.mark.parametrize("message", [b"hello", b"slow"])
@pytest.mark.parametrize("close", [True, False], ids=["after Close", "without Close"])
def test_half_closed_websocket(node, message, close):
    """What was sent before is handled and answered; a Close frame is answered; then the connection ends."""
    before = node.counter("sockets")
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        found = handshake(node, sock)
        sock.sendall(frame(1, message) + (frame(8, struct.pack(">H", 1000)) if close else b""))
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(4096):
            found += piece
    answer = b"\x81" + bytes([len(message) + 4]) + b"re: " + message
    if message == b"hello":  # the handler of the end does not wait for the slow one
        assert answer in found
    if close:
        assert struct.pack(">BBH", 0x88, 2, 1000) in found
    else:
        assert b"\x88" not in found
    wait_for(lambda: node.counter("sockets") == before)


def test_half_closed_before_the_handshake_is_answered(node):
    before = node.counter("sockets")
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        sock.sendall(HANDSHAKE)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        while piece := sock.recv(4096):
            found += piece
        assert b" 101 " in found
        wait_for(lambda: node.counter("sockets") == before, "it never ends", 10)


def test_a_large_answer_behind_which_the_client_half_closes(node):
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        handshake(node, sock)
        sock.sendall(frame(1, b"large") + frame(8, struct.pack(">H", 1000)))
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)  # the answer is on its way, and does not fit
        size = 0
        last = b""
        while piece := sock.recv(1 << 16):
            size += len(piece)
            last = (last + piece)[-4:]
        assert size > 900_000
        assert last == struct.pack(">BBH", 0x88, 2, 1000)


@pytest.mark.parametrize("what", ["reason/crlf", "reason/nul", "reason/wide", "wide"])
def test_nothing_splits_a_response(node, what):
    status, fields, body = get(node, f"/{what}")
    assert status == 200
    assert body.startswith(b"TypeError ")
    assert "set-cookie" not in fields


TARGETS = [
    ("http://b.example/x?y=1", 200, "http://b.example/x?y=1"),
    ("https://b.example:8443/x", 200, "http://b.example:8443/x"),
    ("HTTP://b.example", 200, "http://b.example/"),
    ("http://b.example?q", 200, "http://b.example/?q"),
    ("http://[::1]:80/x", 200, "http://[::1]/x"),
    ("http://user:pw@b.example/", 400, None),
    ("http://b.example:99999/", 400, None),
    ("http://[zz]/", 400, None),
    ("ftp://b.example/", 400, None),
    ("x", 400, None),
]


@pytest.mark.parametrize(("target", "status", "url"), TARGETS)
def test_absolute_targets(node, target, status, url):
    got, _, body = get(node, target)
    assert got == status
    if url is not None:
        answer = json.loads(body)
        assert answer["url"] == url
        assert answer["host"] == target.split("/")[2].split("?")[0]


def test_absolute_targets_find_files_too(node):
    assert get(node, "https://b.example/small.txt")[2] == b"0123456789"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("a.example", 200), ("a.example:80", 200), ("a.example:", 200), ("[::1]", 200), ("[::1]:1", 200),
        ("127.0.0.1:65535", 200), ("a.example:65536", 400), ("a.example:x", 400), ("[::1", 400), ("[...]", 400),
        ("[]", 400), ("a:²", 400), ("a" + ":" * 1000, 400),
        ("a b", 400), ("a/b", 400), ("a@b", 400), ("a:1:2", 400), ("[::1]x", 400),
    ],
)  # fmt: skip
def test_hosts(node, host, status):
    request = f"GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")
    assert int(raw(node, request).split()[1]) == status
    found = raw(node, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" + request)  # also as a pipelined one
    assert [int(part.split()[0]) for part in found.split(b"HTTP/1.1 ")[1:]] == [200, status]


SMALL = [
    (b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", (400, 413)),
    (b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 18 + b"\r\n\r\n", (413,)),
    (b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", (501, 400)),
    (b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", (501, 400)),
    (b"GET /room HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
     b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 3\r\n\r\nabc", (400,)),
    (b"GET /room HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
     b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
]  # fmt: skip


@pytest.mark.parametrize(("request_bytes", "statuses"), SMALL)
def test_what_is_refused(node, request_bytes, statuses):
    seen = len(node.log)
    found = raw(node, request_bytes, half=True)
    assert int(found.split()[1]) in statuses
    assert not any("Traceback" in line for line in node.log[seen:])


def test_cookies_of_several_lines_are_one_list(node):
    assert json.loads(get(node, "/x", "Cookie: a=1", "Cookie: b=2")[2])["cookie"] == "a=1; b=2"


def test_a_broken_chunk_is_no_fault_of_the_worker(node):
    seen = len(node.log)
    raw(node, b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nZZ\r\n")
    wait_for(lambda: len(node.log) > seen)
    time.sleep(0.2)
    assert not any("Traceback" in line or "File " in line for line in node.log[seen:]), node.log[seen:]
