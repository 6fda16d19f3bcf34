"""Streams as the platform has them: readers, sources with a controller, transforms, pipes, tee, clone, and their ends."""

import json
import socket

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import asyncio, json
import js
from js import CompressionStream, DecompressionStream, FixedLengthStream, ReadableStream, TextDecoderStream
from js import TextEncoderStream, TransformStream, WritableStream
from workers import Request, Response, WorkerEntrypoint

log = []

async def text_of(stream):
    reader, text = stream.getReader(), b""
    while True:
        result = await reader.read()
        if result.done:
            return text.decode()
        text += result.value if isinstance(result.value, bytes) else result.value.encode()

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        what = request.url.split("/")[3].split("?")[0]
        try:
            return await getattr(self, what)(request)
        except Exception as error:
            return Response(f"{type(error).__name__}: {error}", 599)

    async def log(self, request):
        return Response.json(log)

    async def start(self, request):
        async def start(controller):
            for number in range(3):
                controller.enqueue(f"{number},".encode())
                await asyncio.sleep(0.01)
            controller.close()
        return Response(ReadableStream.new(start=start))

    async def pull(self, request):
        left = [3]
        def pull(controller):
            left[0] -= 1
            controller.enqueue(b"x")
            if not left[0]:
                controller.close()
        return Response(ReadableStream.new({"pull": pull}))

    async def source_object(self, request):
        class Source:
            def start(self, controller):
                controller.enqueue(b"from an object")
                controller.close()
        return Response(ReadableStream.new(Source()))

    async def errors(self, request):
        def start(controller):
            controller.enqueue(b"one")
            controller.error(ValueError("broken"))
        stream = ReadableStream.new(start=start)
        reader = stream.getReader()
        seen = [bytes((await reader.read()).value).decode()]
        try:
            await reader.read()
        except ValueError as error:
            seen.append(str(error))
        return Response.json(seen)

    async def too_much(self, request):
        def start(controller):
            for _ in range(40):
                controller.enqueue(b"x" * 1_000_000)
        ReadableStream.new(start=start)

    async def cancelled(self, request):
        def pull(controller):
            controller.enqueue(b"x")
        stream = ReadableStream.new(pull=pull, cancel=lambda reason: log.append(["cancelled", reason]))
        reader = stream.getReader()
        await reader.read()
        locked = stream.locked
        await reader.cancel("enough")
        return Response.json([locked, (await reader.read()).done])

    async def locks(self, request):
        stream = ReadableStream.new([b"a", b"b"])
        reader = stream.getReader()
        said = []
        for use in (stream.getReader, stream.tee, lambda: [*stream]):
            try:
                use()
            except TypeError as error:
                said.append("locked" in str(error) or "iterable" in str(error))
        first = bytes((await reader.read()).value)
        reader.releaseLock()
        return Response.json([said, first.decode(), await text_of(stream)])

    async def transform(self, request):
        def upper(chunk, controller):
            controller.enqueue(bytes(chunk).upper())
        async def flush(controller):
            controller.enqueue(b"!")
        stream = TransformStream.new({"transform": upper, "flush": flush})
        return Response(request.body.pipeThrough(stream))

    async def unawaited(self, request):
        stream = TransformStream.new()
        writer = stream.writable.getWriter()
        writer.write(b"a")
        writer.write(b"b")
        writer.close()
        return Response(stream.readable)

    async def sink(self, request):
        seen = []
        def write(chunk, controller):
            seen.append(bytes(chunk).decode())
        sink = WritableStream.new(write=write, close=lambda: seen.append("closed"))
        await ReadableStream.new([b"1", b"2"]).pipeTo(sink)
        return Response.json(seen)

    async def broken_sink(self, request):
        def write(chunk, controller):
            raise ValueError("sink is broken")
        def cancel(reason):
            log.append(["source", str(reason)])
        source = ReadableStream.new(pull=lambda c: c.enqueue(b"x"), cancel=cancel)
        await source.pipeTo(WritableStream.new(write=write))

    async def tee(self, request):
        one, two = request.body.tee()
        return Response.json([len(await text_of(two)), len(await text_of(one))])

    async def tee_too_much(self, request):
        async def pieces():
            for _ in range(40):
                yield b"x" * 1_000_000
        one, two = ReadableStream.new(pieces()).tee()
        await text_of(one)

    async def clone(self, request):
        copy = request.clone()
        return Response.json([len(await request.text()), len(await copy.text())])

    async def both(self, request):
        answer = Response(request.body)
        again = answer.clone()
        return Response.json([await answer.text(), await again.text()])

    async def coded(self, request):
        squeezed = request.body.pipeThrough(CompressionStream("gzip")).pipeThrough(DecompressionStream("gzip"))
        text = squeezed.pipeThrough(TextDecoderStream()).pipeThrough(TextEncoderStream())
        return Response(text)

    async def one_branch_cancelled(self, request):
        one, two = request.body.tee()
        await one.cancel()
        return Response.json([len(await text_of(two))])

    async def read_again(self, request):
        async def pieces():
            yield b"a"
            await asyncio.sleep(60)
        reader = ReadableStream.new(pieces()).getReader()
        first = bytes((await reader.read()).value).decode()
        try:
            await asyncio.wait_for(reader.read(), 0.05)
        except TimeoutError:
            pass
        try:
            again = await asyncio.wait_for(reader.read(), 0.05)
            return Response.json([first, bool(again.done)])
        except Exception as error:
            return Response.json([first, type(error).__name__])

    async def write_cancelled(self, request):
        seen = []
        async def write(chunk, controller):
            await asyncio.sleep(0.02)
            seen.append(bytes(chunk).decode())
        writer = WritableStream.new(write=write).getWriter()
        try:
            await asyncio.wait_for(writer.write(b"a"), 0.001)
        except TimeoutError:
            pass
        writer.write(b"b")
        await writer.write(b"c")
        await writer.close()
        return Response.json(seen)

    async def large(self, request):
        plain = b"abcdefgh" * (33 * 1024 * 128)
        stream = ReadableStream.new([plain]).pipeThrough(CompressionStream("deflate-raw"))
        stream = stream.pipeThrough(DecompressionStream("deflate-raw"))
        size = 0
        async for piece in stream:
            size += len(piece)
        return Response.json([size == len(plain)])

    async def zeros(self, request):
        stream = ReadableStream.new([bytes(262_165)]).pipeThrough(CompressionStream("deflate-raw"))
        return Response.json([len(await text_of(stream.pipeThrough(DecompressionStream("deflate-raw"))))])

    async def response_of_response(self, request):
        made = Response.new("body", Response("other", status=203, headers={"x-a": "1"}))
        return Response.json([await made.text(), made.status, made.headers["x-a"]])

    async def post_as_get(self, request):
        from js import Request
        for make in (lambda: Request.new(request, {"method": "GET"}), lambda: Request("http://a/", method="GET", body="x")):
            try:
                made = make()
            except TypeError as error:
                log.append(str(error))
            else:
                return Response.json([made.method])
        return Response.json(["refused"])

    async def fixed(self, request):
        stream = FixedLengthStream(3)
        writer = stream.writable.getWriter()
        async def feed():
            await writer.write(b"ab")
            await writer.close()
        feeding = asyncio.ensure_future(feed())
        try:
            return Response(await text_of(stream.readable))
        finally:
            await asyncio.gather(feeding, return_exceptions=True)

    async def endless(self, request):
        stream = TransformStream.new()
        writer = stream.writable.getWriter()
        async def feed():
            try:
                while True:
                    await writer.write(b"x" * 1000)
                    await asyncio.sleep(0.01)
            except Exception as error:
                log.append(["writer", type(error).__name__])
        self.ctx.waitUntil(feed())
        return Response(stream.readable)

    async def silent(self, request):
        async def idle():
            try:
                yield b"hi"
                await asyncio.sleep(60)
            finally:
                log.append(["idle", "ended"])
        return Response(idle())

    async def cancel_body(self, request):
        await request.body.cancel()
        return Response.json([request.body_used])
"""


@pytest.fixture(scope="module", params=["--hosts=1", "--inline"])
def node(request, tmp_path_factory):
    with running(write_app(tmp_path_factory.mktemp("streams") / "app", SOURCE), request.param) as node:
        yield node


def ask(node, path, body=None):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)
    try:
        connection.request("GET" if body is None else "POST", f"/{path}", body)
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("start", None, b"0,1,2,"), ("pull", None, b"xxx"), ("source_object", None, b"from an object"),
        ("errors", None, b'["one","broken"]'), ("cancelled", None, b"[true,true]"),
        ("locks", None, b'[[true,true,true],"a","b"]'), ("transform", b"hello", b"HELLO!"), ("unawaited", None, b"ab"),
        ("sink", None, b'["1","2","closed"]'), ("tee", b"x" * 300_000, b"[300000,300000]"),
        ("clone", b"x" * 300_000, b"[300000,300000]"), ("both", b"hello", b'["hello","hello"]'),
        ("coded", "grün☃".encode() * 10_000, "grün☃".encode() * 10_000), ("cancel_body", b"x" * 300_000, b"[true]"),
        ("one_branch_cancelled", b"x" * 300_000, b"[300000]"), ("read_again", None, b'["a","JsTypeError"]'),
        ("write_cancelled", None, b'["a","b","c"]'), ("large", None, b"[true]"), ("zeros", None, b"[262165]"),
        ("response_of_response", None, b'["body",203,"1"]'), ("post_as_get", b"x", b'["refused"]'),
        ("fixed", None, b"JsTypeError: TypeError: FixedLengthStream did not see all expected bytes before close()."),
        ("broken_sink", None, b"ValueError: sink is broken"),
    ],
)  # fmt: skip
def test_streams(node, path, body, answer):
    assert ask(node, path, body) == answer


def test_what_is_kept_for_a_slow_reader_is_bounded(node):
    assert b"bytes were written to a stream and not read" in ask(node, "too_much")
    assert b"tee() buffer limit exceeded" in ask(node, "tee_too_much")


def test_a_source_is_told_that_nobody_reads(node):
    ask(node, "cancelled")
    ask(node, "broken_sink")
    found = json.loads(ask(node, "log"))
    assert ["cancelled", "enough"] in found
    assert ["source", "sink is broken"] in found


def test_a_client_that_leaves_ends_what_makes_its_body(node):
    """Also where it is silent: the end of a client's half of the stream is all that is seen of it then."""
    for path, entry in (("endless", ["writer", "JsTypeError"]), ("silent", ["idle", "ended"])):
        with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
            sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert b"200" in sock.recv(2000)
        wait_for(lambda entry=entry: entry in json.loads(ask(node, "log")), path, timeout_s=5)
