"""Small things that people paste: `env` while the module loads, header names, `run_worker_first`, KV and SQL values."""

import json

import pytest

from conftest import write_app
from roost.testing import running

SOURCE = """
import json
from js import Date
from workers import DurableObject, Response, WorkerEntrypoint, env

GREETING = env.GREETING
SECRET = env["SECRET"]
ROOMS, STORE, SELF = env.ROOM, env.KV, env.SELF
try:
    env.ROOM.getByName("early")
    EARLY = "worked"
except Exception as error:
    EARLY = str(error)

class Room(DurableObject):
    async def hello(self):
        return f"hello from {self.ctx.id.name}"

    async def buffer(self, value):
        await self.ctx.storage.put("b", value)
        got = await self.ctx.storage.get("b")
        kind = type(value).__name__
        return [kind, value.tobytes().decode(), value.nbytes, value.tolist(), got.byteLength, got.to_py().nbytes]

    async def sql(self):
        run = self.ctx.storage.sql.exec
        run("CREATE TABLE t (a, b)")
        found = {}
        values = {"none": None, "true": True, "big": 2**53 + 1, "float": 1.5, "nan": float("nan"), "text": "a\\0b",
                  "bytes": b"\\x00", "view": memoryview(b"x")}
        for name, value in values.items():
            found[name] = repr(run("SELECT ? AS v, typeof(?) AS t", value, value).one().to_py())
        for name, value in {"over": 2**63, "list": [], "surrogate": "\\ud800"}.items():
            try:
                run("SELECT ?", value)
                found[name] = "accepted"
            except Exception as error:
                found[name] = type(error).__name__
        found["cursor"] = run("SELECT 1 AS a UNION SELECT 2").toArray().to_py()
        found["length"] = run("SELECT 1 AS a UNION SELECT 2").toArray().length
        return found

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3].split("?")[0]
        if path == "import":
            hello = await ROOMS.getByName("r").hello()
            return Response.json([GREETING, SECRET, EARLY, hello, await STORE.get("k"), repr(ROOMS)])
        if path == "headers":
            fields = {"X-Abc": 1, "x-abc": True, "Content-Type": "text/x", "X-None": None, "X-List": [1, 2]}
            mine, made = request.headers, Response("", headers=fields).headers
            first = list(request.js_object.headers.entries())[0][0]
            return Response.json([list(mine), dict(mine)["x-d"], mine["X-D"], made.items(), first])
        if path == "buffer":
            return Response.json(await ROOMS.getByName("r").buffer(b"ab"))
        if path == "sql":
            return Response.json(await ROOMS.getByName("s").sql())
        if path == "kv":
            kv = self.env.KV
            await kv.put("b", b"\\x00\\xff")
            value = await kv.get("b", "arrayBuffer")
            stream = await kv.get("b", "stream")
            out = [value.tobytes().hex(), bytes(b"".join([piece async for piece in stream])).hex()]
            for bad in (lambda: kv.put("k", 5), lambda: kv.put("", "x"), lambda: kv.get("b", "jsn"),
                        lambda: kv.put("x" * 513, "y")):
                try:
                    await bad()
                except Exception as error:
                    out.append(type(error).__name__)
            return Response.json(out)
        return Response("worker")
"""
CONFIG = """
[vars]
GREETING = "hi"
[[kv_namespaces]]
binding = "KV"
id = "k"
[[services]]
binding = "SELF"
service = "test-app"
[assets]
directory = "public"
run_worker_first = ["/api/*", "!/api/docs/*"]
"""


@pytest.fixture(scope="module", params=["--hosts=2", "--inline"])
def node(request, tmp_path_factory):
    app = write_app(tmp_path_factory.mktemp("pasted") / "app", SOURCE, "Room")
    (app / "wrangler.toml").write_text((app / "wrangler.toml").read_text() + CONFIG)
    (app / ".dev.vars").write_text('SECRET="s"\n')
    for name in ("index.html", "api/x.txt", "api/docs/x.txt"):
        (app / "public" / name).parent.mkdir(parents=True, exist_ok=True)
        (app / "public" / name).write_text("page")
    with running(app, request.param) as node:
        yield node


def ask(node, path, **headers):
    status, _, body = node.get(path, headers)
    assert status == 200, node.log[-10:]
    return json.loads(body)


def test_env_while_the_module_loads(node):
    greeting, secret, early, hello, stored, shown = ask(node, "/import")
    assert (greeting, secret, hello, stored, shown) == ("hi", "s", "hello from r", None, "<env.ROOM>")
    assert "env.ROOM cannot be used at module level" in early


def test_names_and_values_of_headers(node):
    names, mapped, direct, items, first = ask(node, "/headers", **{"X-D": "1", "B": "2"})
    assert names == sorted(names) == [name.lower() for name in names]
    assert (mapped, direct, first) == ("1", "1", names[0])
    assert items == [["content-type", "text/x"], ["x-abc", "1, true"], ["x-list", "1,2"], ["x-none", "undefined"]]


def test_binary_values_have_the_names_of_buffers(node):
    assert ask(node, "/buffer") == ["ArrayBuffer", "ab", 2, [97, 98], 2, 2]


def test_sql_values(node):
    found = ask(node, "/sql")
    assert found["big"] == "{'v': 9007199254740993, 't': 'integer'}"
    assert found["true"] == "{'v': 1, 't': 'integer'}"
    assert found["nan"] == "{'v': None, 't': 'null'}"
    assert found["view"] == "{'v': b'x', 't': 'blob'}"
    assert (found["over"], found["list"], found["surrogate"]) == ("JsRangeError", "JsTypeError", "UnicodeEncodeError")
    assert (found["cursor"], found["length"]) == ([{"a": 1}, {"a": 2}], 2)


def test_kv_values(node):
    assert ask(node, "/kv") == ["00ff", "00ff", "JsTypeError", "JsTypeError", "JsTypeError", "JsRangeError"]


def test_patterns_of_run_worker_first(node):
    assert [node.get(path)[2] for path in ("/", "/api/x.txt", "/api/docs/x.txt", "/other")] == [
        b"page", b"worker", b"page", b"worker",
    ]  # fmt: skip
