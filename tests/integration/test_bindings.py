"""`kv_namespaces`, `assets.binding`, secrets; and what is not there is said at start."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from conftest import write_app
from roost.api.rate_limits import MAX_KEYS, Window
from roost.testing import running

SOURCE = """
import json, time
from workers import DurableObject, Response, WorkerEntrypoint

class Box(DurableObject):
    async def fetch(self, request):
        self.ctx.storage.kv.put("n", 1)
        await self.env.KV.put("from an object", "yes")
        return Response(await self.env.KV.get("from an object"))

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        kv = self.env.KV
        path = "/" + request.url.split("/", 3)[3]
        if path == "/object":
            return await self.env.BOX.getByName("x").fetch(request)
        if path == "/values":
            await kv.put("text", "hello")
            await kv.put("json", json.dumps({"a": [1, 2]}), metadata={"by": "me"}, expirationTtl=3600)
            await kv.put("bytes", b"\\x00\\x01")
            value = await kv.get("json", "json")
            both = await kv.getWithMetadata("json", type="json")
            stream = b"".join([piece async for piece in await kv.get("bytes", {"type": "stream"})])
            several = await kv.get(["text", "missing"])
            await kv.delete("text")
            return Response.json([value.a, both.value["a"], both.metadata.by, list(stream), dict(several),
                                  await kv.get("text"), (await kv.get("bytes", type="arrayBuffer")).byteLength])
        if path == "/list":
            for n in range(25):
                await kv.put(f"k{n:02}", str(n), metadata=n)
            await kv.put("é", "x")
            first = await kv.list(prefix="k", limit=10)
            second = await kv.list({"prefix": "k", "cursor": first.cursor, "limit": 1000})
            return Response.json([[key.name for key in first["keys"]], first.list_complete, len(second["keys"]),
                                  second.list_complete, second["keys"][0].metadata])
        if path == "/wrong":
            found = []
            for attempt in (
                lambda: kv.put("", "x"), lambda: kv.put("x" * 513, "x"), lambda: kv.put("x", {"a": 1}),
                lambda: kv.put("x", "x", expirationTtl=5), lambda: kv.get("json", "yaml"), lambda: kv.list(limit=1001),
                lambda: kv.put("x", "x", metadata="m" * 1100), lambda: kv.list(cursor="no"),
                lambda: kv.get("bytes", "json"), lambda: kv.put("x", "x", expiration=int(time.time())),
                lambda: kv.get(["k"] * 101), lambda: kv.put("x", "x", ttl=5),
            ):
                try:
                    await attempt()
                    found.append("nothing")
                except Exception as error:
                    found.append(f"{type(error).__name__}: {error}")
            return Response.json(found)
        if path.startswith("/limit/"):
            key = path[7:]
            try:
                same, other = self.env.SAME.limit(key=key), await self.env.OTHER.limit({"key": key})
                limit = await self.env.LIMIT.limit({"key": key})
                return Response.json([limit.success, (await same).success, other.success])
            except TypeError as error:
                return Response(str(error))
        if path == "/unlimited":
            try:
                await self.env.LIMIT.limit({"keys": "x"})
            except TypeError as error:
                return Response(str(error))
        if path == "/version":
            version = self.env.VERSION
            return Response.json([version.id, version["tag"], version.timestamp])
        if path == "/secret":
            return Response(self.env.SECRET)
        return await self.env.ASSETS.fetch(request)
"""

CONFIG = """
[[kv_namespaces]]
binding = "KV"
id = "../../not/a/path"

[version_metadata]
binding = "VERSION"

[[ratelimits]]
name = "LIMIT"
namespace_id = "1001"
simple = { limit = 5, period = 60 }

[[ratelimits]]
name = "SAME"
namespace_id = 1001
simple = { limit = 3, period = 60 }

[[ratelimits]]
name = "OTHER"
namespace_id = "1002"
simple = { limit = 2, period = 60 }

[assets]
directory = "public"
binding = "ASSETS"
run_worker_first = true
"""


def make(folder):
    app = write_app(folder, SOURCE, "Box", config=CONFIG)
    (app / "public").mkdir()
    (app / "public" / "index.html").write_text("<h1>hello</h1>")
    (app / ".dev.vars").write_text('SECRET="from a file"\n')
    return app


@pytest.fixture
def app(tmp_path):
    return make(tmp_path / "app")


def test_key_values(app, tmp_path):
    data = str(tmp_path / "data")
    with running(app, "--hosts", "2", data=data) as node:
        values = json.loads(node.get("/values")[2])
        assert values == [[1, 2], [1, 2], "me", [0, 1], {"text": "hello", "missing": None}, None, 2]
        assert json.loads(node.get("/list")[2]) == [[f"k{n:02}" for n in range(10)], False, 15, True, 10]
        assert node.get("/object")[2] == b"yes"
        wrong = json.loads(node.get("/wrong")[2])
        says = [
            "must not be empty", "at most 512", "json.dumps", "at least 60", "'yaml' is unknown", "between 1 and 1000",
            "1024 bytes", "the cursor is not one", "not JSON", "in the future", "at most 100", "no option 'ttl'",
        ]  # fmt: skip
        for text, said in zip(wrong, says, strict=True):
            assert said in text, text
    files = [path.name for path in (tmp_path / "data" / "kv").iterdir()]
    assert len([name for name in files if name.endswith(".sqlite")]) == 1
    with running(app, data=data) as node:  # another life, another number of hosts
        assert json.loads(node.get("/list")[2])[2] == 15


def test_expiry(tmp_path):
    from roost.storage.key_values import KeyValues, Pair

    store = KeyValues(tmp_path / "kv" / "x.sqlite")
    store.put("a", Pair(b"1", None, 100), now_s=10)
    store.put("b", Pair(b"2", None, None), now_s=10)
    assert store.get(["a", "b"], 99) == [Pair(b"1", None, 100), Pair(b"2", None, None)]
    assert store.get(["a", "b"], 100) == [None, Pair(b"2", None, None)]
    assert [each.name for each in store.list("", "", 10, 100)] == ["b"]
    store.put("c", Pair(b"3", None, None), now_s=101)
    assert store._connection.execute("SELECT count(*) FROM pairs").fetchone() == (2,)
    store.close()


def test_rate_limits(app):
    with running(app) as node:
        found = [json.loads(node.get("/limit/a")[2]) for _ in range(4)]
        if found[0] != [True, True, True] or node.get("/limit/a")[2] == b"[true,true,true]":  # a minute began meanwhile
            found = [json.loads(node.get("/limit/b")[2]) for _ in range(4)]
        assert found == [[True, True, True], [True, True, True], [False, False, False], [False, False, False]]
        assert json.loads(node.get("/limit/c")[2]) == [True, True, True]
        assert node.get("/unlimited")[2] == b'TypeError: limit() takes {"key": str}.'


def test_periods_of_rate_limits():
    now, lost = [59.0], []
    window = Window(60, lambda: now[0], lambda: lost.append(1))
    assert [window.count("a") for _ in range(3)] == [1, 2, 3]
    assert [window.count("x" * 10_000), window.count("x" * 10_000), window.count("x" * 10_001)] == [1, 2, 1]
    assert max(map(len, window._counts)) == 64  # what a client sends is not kept at its length
    now[0] = 60.0
    assert window.count("a") == 1
    for number in range(MAX_KEYS):
        window.count(str(number))
    assert window.count("one more") == 0
    assert window.count("a") == 2
    assert len(lost) == 2
    now[0] = 0.0  # a clock that was set back begins a period, too
    assert window.count("one more") == 1


def test_version_metadata(app, tmp_path):
    data = str(tmp_path / "data")
    with running(app, data=data) as node:
        assert json.loads(node.get("/version")[2]) == ["", "", ""]
    with running(app, data=data) as node:
        number, tag, timestamp = json.loads(node.get("/version")[2])
        assert (number, tag) == ("1", "")
        assert abs(datetime.now(UTC) - datetime.fromisoformat(timestamp)) < timedelta(minutes=5)


def test_assets_and_secrets(app):
    with running(app) as node:
        status, headers, body = node.get("/")
        assert (status, body, headers["content-type"]) == (200, b"<h1>hello</h1>", "text/html; charset=utf-8")
        assert node.get("/", headers={"If-None-Match": headers["etag"]})[0] == 304
        assert node.get("/nothing")[0] == 404
        assert node.get("/", method="POST")[0] == 405
        assert node.get("/secret")[2] == b"from a file"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('r2_buckets = [{ binding = "B", bucket_name = "b" }]', "R2 buckets are not supported by Roost yet"),
        ('d1_databases = [{ binding = "D" }]', "D1 databases are not supported"),
        ('queues = { producers = [{ queue = "q", binding = "Q" }] }', "queues are not supported"),
        ('kv_namespaces = [{ id = "x" }]', "needs a binding"),
        ("kv_namespaces = 5", "must be a list"),
        ('ratelimits = [{ name = "L", simple = { limit = 5, period = 30 } }]', "period = 10 or 60"),
        ("ratelimits = [5]", "each of ratelimits needs a name"),
        ("version_metadata = { binding = 5 }", "version_metadata.binding"),
        ('vars = { V = "x" }\nversion_metadata = { binding = "V" }', "V is bound twice"),
        ('vars = { KV = "x" }\nkv_namespaces = [{ binding = "KV" }]', "KV is bound twice"),
    ],
)
def test_what_is_wrong_is_said_at_start(make_app, config, says):
    app = make_app("from workers import WorkerEntrypoint\nclass Default(WorkerEntrypoint): ...\n", config=config)
    with pytest.raises(RuntimeError, match=says), running(app):
        pass


def test_hosts_that_open_a_new_namespace_at_once(tmp_path):
    """SQLite's locks are waited for, also where it does not do so by itself."""
    import subprocess
    import sys

    source = (
        "import sys; from pathlib import Path; from roost.storage.key_values import KeyValues, Pair\n"
        "store = KeyValues(Path(sys.argv[1]))\n"
        "for n in range(20): store.put(f'{sys.argv[2]}-{n}', Pair(b'x', None, None), 0)\n"
    )
    for attempt in range(4):
        path = tmp_path / f"kv{attempt}" / "x.sqlite"
        several = [
            subprocess.Popen([sys.executable, "-c", source, path, str(n)], stderr=subprocess.PIPE, text=True)
            for n in range(4)
        ]
        for process in several:
            assert process.communicate(timeout=60)[1] == ""
            assert process.returncode == 0
