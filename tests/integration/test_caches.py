"""`caches`: what is kept and for how long, in one process and over two hosts; its bounds; a damaged file."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conftest import write_app
from roost.testing import running, wait_for

SOURCE = """
import json
from js import caches
from workers import DurableObject, Request, Response, WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        what = request.url.split("/")[3].split("?")[0]
        try:
            return await getattr(self, what)(request, request.url.partition("?")[2])
        except Exception as error:
            return Response(str(error), 599)

    async def put(self, request, key):
        options = json.loads(await request.text())
        body = "x" * options["size"] if "size" in options else options.get("body", "stored")
        response = Response(None if body is None else body, options.get("status", 200), headers=options.get("headers", {}))
        method = options.get("method", "GET")
        cache = await caches.open(options["cache"]) if "cache" in options else caches.default
        await cache.put(Request(f"http://x/{key}", method=method), response)
        return Response("put")

    async def match(self, request, key):
        cache = await caches.open(request.headers["x-cache"]) if "x-cache" in request.headers else caches.default
        names = ("range", "if-none-match", "if-modified-since")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        found = await cache.match(Request(f"http://x/{key}", headers=headers))
        return found or Response("none", 404)

    async def delete(self, request, key):
        return Response.json([await caches.default.delete(f"http://x/{key}") for _ in range(2)])

    async def proxied(self, request, key):
        cache = caches.default
        response = await cache.match(request)
        if response is None:
            async def pieces():
                for number in range(3):
                    yield str(number).encode()
            response = Response(pieces(), headers={"Cache-Control": "max-age=100"})
            self.ctx.waitUntil(cache.put(request, response.clone()))
        return response

    async def unawaited(self, request, key):
        caches.default.put(f"http://x/{key}", Response("quick"))
        return Response("")
"""

MODES = {"inline": ["--inline"], "split": ["--hosts", "2", "--gateways", "2"]}


@pytest.fixture(scope="module", params=MODES)
def node(request, tmp_path_factory):
    with running(write_app(tmp_path_factory.mktemp("caches") / "app", SOURCE), *MODES[request.param]) as node:
        yield node


def ask(node, path, headers=None, method="GET", body=None):
    import http.client

    with closing(http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def put(node, key, **options):
    status, _, body = ask(node, f"/put?{key}", method="POST", body=json.dumps(options))
    return body.decode() if status == 599 else status


def match(node, key, **headers):
    return ask(node, f"/match?{key}", {name.replace("_", "-"): value for name, value in headers.items()})


def test_what_was_put_is_there(node):
    assert match(node, "a")[0] == 404
    assert put(node, "a", headers={"Cache-Control": "max-age=60", "X-Own": "1", "ETag": '"tag"'}) == 200
    for _ in range(4):  # whichever host is asked
        status, headers, body = match(node, "a")
        assert (status, body, headers["cf-cache-status"], headers["x-own"]) == (200, b"stored", "HIT", "1")
        assert int(headers["age"]) < 10
    assert match(node, "a", x_cache="other")[0] == 404
    assert put(node, "a", cache="other", body="apart") == 200
    assert match(node, "a", x_cache="other")[2] == b"apart"
    assert put(node, "a", body="newer") == 200
    assert match(node, "a")[2] == b"newer"
    assert json.loads(ask(node, "/delete?a")[2]) == [True, False]
    assert match(node, "a")[0] == 404
    assert match(node, "a", x_cache="other")[0] == 200


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"status": 404}, True),
        ({"status": 500}, False),
        ({"status": 500, "headers": {"Cache-Control": "s-maxage=10, max-age=0"}}, True),
        ({"headers": {"Cache-Control": "no-store"}}, False),
        ({"headers": {"Cache-Control": "private, max-age=60"}}, False),
        ({"headers": {"Cache-Control": "max-age=0"}}, False),
        ({"headers": {"Cache-Control": "max-age=nonsense"}}, False),
        ({"headers": {"Expires": "Thu, 01 Jan 1970 00:00:00 GMT"}}, False),
        ({"headers": {"Expires": "Fri, 01 Jan 2100 00:00:00 GMT"}}, True),
        ({"headers": {"Expires": "0"}}, False),
        ({"headers": {"Set-Cookie": "a=b"}}, False),
        ({"headers": {"Set-Cookie": "a=b", "Cache-Control": "private=Set-Cookie, max-age=60"}}, True),
        ({"headers": {"Vary": "Accept"}}, True),
        ({"body": None, "status": 204, "headers": {"Cache-Control": "max-age=60"}}, True),
    ],
)
def test_what_is_kept(node, options, kept):
    key = f"kept-{json.dumps(options)}".encode().hex()
    assert put(node, key, **options) == 200
    status, headers, _ = match(node, key)
    assert (status == options.get("status", 200) and "cf-cache-status" in headers) is kept
    assert "set-cookie" not in headers


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "POST"}, "non-GET"),
        ({"status": 206}, "range request"),
        ({"headers": {"Vary": "*"}}, "Vary"),
        ({"size": 33 * 1024 * 1024}, "32 MiB"),
    ],
)
def test_what_is_refused(node, options, says):
    assert says in put(node, "refused", **options)


def test_conditions_and_ranges(node):
    fields = {"ETag": 'W/"v1"', "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT", "Content-Length": "10"}
    put(node, "c", body="0123456789", headers=fields)
    assert match(node, "c", if_none_match='"v0", "v1"')[::2] == (304, b"")
    assert match(node, "c", if_none_match='"v2"', if_modified_since="Tue, 03 Nov 2026 10:00:00 GMT")[0] == 200
    assert match(node, "c", if_modified_since="Tue, 03 Nov 2026 10:00:00 GMT")[0] == 304
    assert match(node, "c", if_modified_since="Sun, 01 Nov 2026 10:00:00 GMT")[0] == 200
    status, headers, body = match(node, "c", range="bytes=2-4")
    assert (status, headers["content-range"], headers["content-length"], body) == (206, "bytes 2-4/10", "3", b"234")
    assert match(node, "c", range="bytes=-2")[2] == b"89"
    assert match(node, "c", range="bytes=20-")[0] == 416
    assert match(node, "c", range="nonsense")[2] == b"0123456789"


def test_as_sources_use_it(node):
    first = ask(node, "/proxied")
    assert (first[2], "cf-cache-status" in first[1]) == (b"012", False)
    again = wait_for(lambda: (answer := ask(node, "/proxied")) and "cf-cache-status" in answer[1] and answer)
    assert again[2] == b"012"
    ask(node, "/unawaited?u")
    wait_for(lambda: match(node, "u")[2] == b"quick")


def test_it_is_bounded_and_outlives_a_restart(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, settings="[storage]\nmax_cache_bytes = 3000000")
    data = tmp_path / "data"
    with running(app, "--hosts", "2", data=str(data)) as node:
        for number in range(12):
            assert put(node, f"k{number}", size=500_000) == 200
        kept = [number for number in range(12) if match(node, f"k{number}")[0] == 200]
        assert kept == list(range(7, 12))
        assert node.host_counter("cache_evictions") == 7
        assert node.host_counter("cache_hits") == 5
    with running(app, data=str(data)) as node:
        assert match(node, "k11")[0] == 200
    file = data / "cache" / "http.sqlite"
    assert file.stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(file)) as connection:
        ((total,),) = connection.execute("SELECT bytes FROM totals")
        assert total == connection.execute("SELECT sum(size) FROM entries").fetchone()[0] <= 3_000_000
    assert sum(each.stat().st_size for each in Path(file.parent).iterdir()) < 12_000_000


def test_a_full_disk_keeps_its_rest_for_objects(tmp_path):
    app = write_app(tmp_path / "app", SOURCE, settings=f"[storage]\nmin_free_bytes = {1 << 60}")
    with running(app) as node:
        assert put(node, "a") == 200
        assert match(node, "a")[0] == 404
        assert node.host_counter("cache_failures") == 1
        assert node.logged("storage.min_free_bytes")


def test_a_damaged_file_begins_anew(tmp_path):
    app, data = write_app(tmp_path / "app", SOURCE), tmp_path / "data"
    (data / "cache").mkdir(parents=True)
    (data / "cache" / "http.sqlite").write_bytes(b"no database at all" * 1000)
    with running(app, data=str(data)) as node:
        assert match(node, "a")[0] == 404
        assert put(node, "a") == 200
        assert match(node, "a")[0] == 200
        assert node.logged("is damaged, and begins anew")
