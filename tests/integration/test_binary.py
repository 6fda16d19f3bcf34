"""Binary values of every kind through every edge, as plain bytes: between processes and inside one."""

import json
import urllib.request

import pytest

from conftest import write_app
from roost.testing import running

SOURCE = """
import js
from js import WebSocketPair
from pyodide.ffi import to_js
from workers import Blob, DurableObject, Request, Response, WorkerEntrypoint

async def made(kind):
    match kind:
        case "bytes": return b"abc"
        case "bytearray": return bytearray(b"abc")
        case "memoryview": return memoryview(b"abc")
        case "to_js": return to_js(b"abc")
        case "buffer": return to_js(b"abc").buffer
        case "slice": return to_js(b"xabcx").slice(1, 4)
        case "Uint8Array": return js.Uint8Array.new(to_js(b"abc"))
        case "TextEncoder": return js.TextEncoder.new().encode("abc")
        case "request": return await Request("http://a/", method="POST", body="abc").buffer()
        case "Blob": return await Blob([b"abc"]).arrayBuffer()

class Box(DurableObject):
    async def fetch(self, request):
        kind = request.url.split("/")[-1]
        if request.headers.get("Upgrade"):
            client, server = WebSocketPair.new()
            self.ctx.acceptWebSocket(server)
            server.serializeAttachment([await made(kind)])
            server.send(await made(kind))
            return Response(None, status=101, web_socket=client)
        return Response(await made(kind))

    async def webSocketMessage(self, ws, message):
        ws.send(message)                                # as it came
        ws.send(ws.deserializeAttachment()[0])

    async def give(self, kind):
        return await made(kind)

    async def take(self, value, kind):
        assert bytes(value) == b"abc", value
        await self.ctx.storage.put("k", await made(kind))
        self.ctx.storage.kv.put("sync", await made(kind))
        sql = self.ctx.storage.sql.exec
        sql("CREATE TABLE IF NOT EXISTS t (x BLOB)")
        sql("INSERT INTO t VALUES (?)", await made(kind))
        return [bytes(await self.ctx.storage.get("k")).decode(), bytes(self.ctx.storage.kv.get("sync")).decode(),
                bytes(sql("SELECT x FROM t").toArray()[-1].x).decode()]

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        where, kind = request.url.split("/")[-2:]
        box = self.env.BOX.getByName("a")
        if where == "object":
            return await box.fetch(request)
        if where == "body":
            return Response(await made(kind))
        if where == "js":
            return js.Response.new(await made(kind))
        if where == "echo":
            return Response(await request.buffer())
        if where == "stream":
            async def pieces():
                yield (await made(kind))[:1]
                yield (await made(kind))[1:]
            return Response(pieces())
        if where == "object-post":
            return await box.fetch(Request("http://a/bytes", method="POST", body=await made(kind)))
        if where == "give":
            return Response(await box.give(kind))
        if where == "take":
            return Response.json(await box.take(await made(kind), kind))
        if where == "kv":
            await self.env.KV.put("k", await made(kind))
            return Response(await self.env.KV.get("k", "arrayBuffer"))
        if where == "plain":
            client, server = WebSocketPair.new()
            server.accept()
            server.send(await made(kind))
            return Response(None, status=101, web_socket=client)
        return Response("no such edge", 404)
"""
KINDS = ["bytes", "bytearray", "memoryview", "to_js", "buffer", "slice", "Uint8Array", "TextEncoder", "request", "Blob"]
MODES = [("--hosts", "2", "--gateways", "2"), ("--inline",)]


@pytest.fixture(scope="module", params=MODES, ids=" ".join)
def node(request, tmp_path_factory):
    settings = '\n[[kv_namespaces]]\nbinding = "KV"\nid = "k"\n'
    app = write_app(tmp_path_factory.mktemp("binary"), SOURCE, "Box")
    (app / "wrangler.toml").write_text((app / "wrangler.toml").read_text() + settings)
    with running(app, *request.param) as node:
        yield node


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_at_every_edge(node, kind):
    for where in ("body", "js", "object", "stream", "object-post", "give", "kv"):
        status, _, body = node.get(f"/{where}/{kind}")
        assert (status, body) == (200, b"abc"), where
    assert json.loads(node.get(f"/take/{kind}")[2]) == ["abc", "abc", "abc"]
    with node.connect(f"/object/{kind}") as ws:
        assert ws.recv(5) == b"abc"
        ws.send(b"up")
        assert ws.recv(5) == b"up"
        assert ws.recv(5) == b"abc"
    with node.connect(f"/plain/{kind}") as ws:
        assert ws.recv(5) == b"abc"


def test_a_body_is_echoed(node):
    asked = urllib.request.Request(f"http://127.0.0.1:{node.port}/echo/x", b"\0\xffabc", method="POST")
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert answer.read() == b"\0\xffabc"
