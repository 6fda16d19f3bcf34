"""The same files served by Cloudflare's own asset worker on workerd, and by Roost's index: each path, in each handling.

The asset worker is npm's `@cloudflare/workers-shared`, which wrangler runs. Its manifest is sorted by the hashes of paths;
what a deployment would make of `_redirects` and `_headers` is written here by hand, beside the files that Roost reads.
"""

import hashlib
import http.client
import itertools
import json
from contextlib import closing
from pathlib import Path

import pytest

from beside import NPM, WORKERD, free_port, workerd
from roost.storage.assets import HTML_HANDLING, NOT_FOUND_HANDLING, Assets
from roost.storage.content_types import content_type_of

WORKER = NPM / "node_modules/@cloudflare/workers-shared/dist/asset-worker.mjs"

COMPATIBILITY = Path(__file__).parents[2] / "docs/reference/compatibility.md"

pytestmark = pytest.mark.skipif(
    not (WORKERD and WORKER.exists()), reason="no asset worker: tests/conformance/install_npm.sh"
)

FILES = {
    "/index.html": "home",
    "/404.html": "nothing at the top",
    "/about.html": "about",
    "/both.html": "both, a page",
    "/both/index.html": "both, a folder",
    "/blog/index.html": "blog",
    "/blog/404.html": "nothing in the blog",
    "/blog/post.html": "post",
    "/docs/a.b/index.html": "a dot in a folder",
    "/style.css": "css",
    "/deep/er/file.txt": "text",
    "/with space.txt": "space",
    "/ümlaut.html": "umlaut",
    "/a+b.txt": "plus",
    "/percent%25.txt": "percent",
    "/.well-known/x.json": "{}",
    "/folder.html/index.html": "a folder named like a page",
    "/no-extension": "nothing",
    "/headers/one.txt": "one",
    "/headers/two/three.txt": "three",
}
PATHS = [
    "/", "/index", "/index.html", "/index/", "//", "/about", "/about/", "/about.html", "/about/index.html", "/about/index",
    "/both", "/both/", "/both.html", "/both/index", "/both/index.html", "/blog", "/blog/", "/blog/index.html", "/blog/post",
    "/blog/post/", "/blog/post.html", "/blog/none", "/blog/none/deeper", "/docs/a.b", "/docs/a.b/", "/style.css", "/style",
    "/style.css/", "/deep/er/file.txt", "/deep/er", "/deep/er/", "/with%20space.txt", "/%C3%BCmlaut", "/%C3%BCmlaut.html",
    "/a+b.txt", "/a%2Bb.txt", "/percent%2525.txt", "/.well-known/x.json", "/folder.html", "/folder.html/", "/folder",
    "/no-extension", "/no-extension/", "/none", "/none/", "/none.html", "/blog//post", "/404", "/404.html",
    "/about?x=1&y=2", "/about.html?x=1", "/ABOUT", "/%61bout",
    "/headers/one.txt", "/headers/two/three.txt", "/old", "/old?q=1", "/gone/a/b",
    "/gone/a/b?q=1", "/elsewhere", "/rewritten", "/user/42/posts", "/user/42",
]  # fmt: skip
REDIRECTS = "/old /about 301\n/elsewhere https://example.com/x 302\n/rewritten /blog/post 200\n"
REDIRECTS += "/gone/* /new/:splat 308\n/user/:id/posts /u/:id 303\n"
HEADERS = "/headers/*\n  X-All: yes\n/headers/two/:name\n  X-Name: :name\n  ! X-All\n/about\n  X-About: 1\n  X-About: 2\n"
RULES = {
    "redirects": {
        "version": 1,
        "staticRules": {
            "/old": {"status": 301, "to": "/about", "lineNumber": 1},
            "/elsewhere": {"status": 302, "to": "https://example.com/x", "lineNumber": 2},
            "/rewritten": {"status": 200, "to": "/blog/post", "lineNumber": 3},
        },
        "rules": {
            "/gone/*": {"status": 308, "to": "/new/:splat"},
            "/user/:id/posts": {"status": 303, "to": "/u/:id"},
        },
    },
    "headers": {
        "version": 2,
        "rules": {
            "/headers/*": {"set": {"X-All": "yes"}},
            "/headers/two/:name": {"set": {"X-Name": ":name"}, "unset": ["X-All"]},
            "/about": {"set": {"X-About": "1, 2"}},
        },
    },
}
SHOWN = ("location", "content-type", "cache-control", "x-all", "x-name", "x-about")
DIFFERENCES = {"/%61bout": "rules see the decoded path", "/a+b.txt": "is answered at once"}  # by what the table says
HANDLINGS = [*itertools.product(HTML_HANDLING, NOT_FOUND_HANDLING)]

KV = """
export default { fetch(request, env) {
  const found = env.FILES[decodeURIComponent(new URL(request.url).pathname.slice(1))];
  if (!found) return new Response("", { status: 404 });
  return new Response(found.body, { headers: { "CF-KV-Metadata": JSON.stringify({ contentType: found.type }) } });
} };
"""


def manifest():
    entries = []
    for path, body in FILES.items():
        content = hashlib.sha256(path.encode() + body.encode()).digest()[:16]
        entries.append((hashlib.sha256(path.encode()).digest()[:16], content))
    return bytes(20) + b"".join(path + content + bytes(8) for path, content in sorted(entries))


def stored():
    found = {}
    for path, body in FILES.items():
        tag = hashlib.sha256(path.encode() + body.encode()).digest()[:16].hex()
        found[tag] = {"body": body, "type": content_type_of(path)}  # a deployment decides them, and ours has its own table
    return found


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """The asset worker's port for each handling."""
    folder = tmp_path_factory.mktemp("workerd")
    (folder / "asset-worker.mjs").write_bytes(WORKER.read_bytes())
    (folder / "kv.js").write_text(KV)
    (folder / "manifest.bin").write_bytes(manifest())
    (folder / "files.json").write_text(json.dumps(stored()))
    ports, services, sockets = {}, [], []
    for number, (html, not_found) in enumerate(HANDLINGS):
        ports[html, not_found] = free_port()
        config = {"html_handling": html, "not_found_handling": not_found, "compatibility_date": "2026-07-01", **RULES}
        (folder / f"config{number}.json").write_text(json.dumps(config))
        services.append(
            f'(name = "assets{number}", worker = (modules = [(name = "w", esModule = embed "asset-worker.mjs")],'
            f' compatibilityDate = "2026-07-01", compatibilityFlags = ["nodejs_compat"], bindings = ['
            f'(name = "CONFIG", json = embed "config{number}.json"), (name = "ASSETS_MANIFEST", data ='
            f' embed "manifest.bin"), (name = "ASSETS_KV_NAMESPACE", kvNamespace = "kv")]))'
        )
        sockets.append(
            f'(name = "s{number}", address = "127.0.0.1:{ports[html, not_found]}", http = (), service = "assets{number}")'
        )
    services.append(
        '(name = "kv", worker = (modules = [(name = "kv", esModule = embed "kv.js")], compatibilityDate = "2026-07-01",'
        ' bindings = [(name = "FILES", json = embed "files.json")]))'
    )
    (folder / "config.capnp").write_text(
        'using Workerd = import "/workerd/workerd.capnp";\nconst config :Workerd.Config = (services = ['
        + ", ".join(services) + "], sockets = [" + ", ".join(sockets) + "]);\n"
    )  # fmt: skip
    with workerd(folder / "config.capnp", port=ports[HANDLINGS[-1]]):
        yield ports


def asked(port, path):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, {name: fields[name] for name in SHOWN if name in fields}, answer.read().decode()


def looked_up(assets, path):
    status, headers, body = assets.find("GET", path, {"host": "127.0.0.1"})
    fields = {}
    for name, value in headers:
        if name.lower() in SHOWN:
            fields[name.lower()] = f"{fields[name.lower()]}, {value}" if name.lower() in fields else value
    return status, fields, body.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for path, body in FILES.items():
        file = folder / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body)
    (folder / "_redirects").write_text(REDIRECTS)
    (folder / "_headers").write_text(HEADERS)
    return folder


@pytest.mark.parametrize(("html", "not_found"), HANDLINGS)
def test_assets(ports, folder, html, not_found):
    assets = Assets(folder, not_found, html)
    differ = []
    for path in PATHS:
        theirs, ours = asked(ports[html, not_found], path), looked_up(assets, path)
        if path in DIFFERENCES:
            assert theirs != ours, "it does not differ any more"
            assert DIFFERENCES[path] in COMPATIBILITY.read_text()
            continue
        if theirs != ours:
            differ.append(f"{path}:\n  workerd {theirs}\n  roost   {ours}")
    assert not differ, f"{len(differ)} of {len(PATHS)} differ:\n" + "\n".join(differ)
