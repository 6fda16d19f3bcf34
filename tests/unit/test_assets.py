"""Static files: what a path stands for, `_headers`, `_redirects`, `.assetsignore`, types, tags. Platform documentation,
Static Assets."""

import os
import time

import pytest

from roost.storage.asset_rules import HeaderRules, PathPatterns, RedirectRules
from roost.storage.assets import HTML_HANDLING, Assets, part_of, tag_matches
from roost.storage.content_types import content_type_of

FILES = [
    "index.html", "about.html", "docs/index.html", "docs/intro.html", "both.html", "both/index.html", "plain/index",
    "404.html", "docs/404.html", "style.css", "ä/index.html", "with space.txt",
]  # fmt: skip
# path: what each of auto, force, drop and none makes of it (a file, `-> path`, or None)
HANDLING = {
    "/": ["index.html", "index.html", "index.html", None],
    "/index": ["-> /", "-> /", "-> /", None],
    "/index.html": ["-> /", "-> /", "-> /", "index.html"],
    "/about": ["about.html", "-> /about/", "about.html", None],
    "/about/": ["-> /about", "about.html", "-> /about", None],
    "/about.html": ["-> /about", "-> /about/", "-> /about", "about.html"],
    "/about/index": ["-> /about", "-> /about/", "-> /about", None],
    "/about/index.html": ["-> /about", "-> /about/", "-> /about", None],
    "/docs": ["-> /docs/", "-> /docs/", "docs/index.html", None],
    "/docs/": ["docs/index.html", "docs/index.html", "-> /docs", None],
    "/docs/index": ["-> /docs/", "-> /docs/", "-> /docs", None],
    "/docs/index.html": ["-> /docs/", "-> /docs/", "-> /docs", "docs/index.html"],
    "/docs.html": ["-> /docs/", "-> /docs/", "-> /docs", None],
    "/docs/intro": ["docs/intro.html", "-> /docs/intro/", "docs/intro.html", None],
    "/both": ["both.html", "-> /both/", "both.html", None],
    "/both/": ["both/index.html", "both/index.html", "-> /both", None],
    "/plain/index": ["plain/index"] * 4,
    "/style.css": ["style.css"] * 4,
    "/%C3%A4": ["-> /%C3%A4/", "-> /%C3%A4/", "ä/index.html", None],
    "/with%20space.txt": ["with space.txt"] * 4,
    "/nothing": [None] * 4,
    "/../about.html": [None] * 4,
}


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def look(assets, target, method="GET", **fields):
    found = assets.look_up(method, target, {name.replace("_", "-"): value for name, value in fields.items()})
    if found is None:
        return None
    headers = dict(found.headers)
    return f"-> {headers['Location']}" if "Location" in headers else found.body.decode()


@pytest.mark.parametrize("target", HANDLING)
def test_html_handling(folder, target):
    found = [look(Assets(folder, html_handling=handling), target) for handling in HTML_HANDLING]
    assert found == HANDLING[target]


def test_redirects_keep_the_query(folder):
    assert look(Assets(folder), "/about.html?x=1&y=2") == "-> /about?x=1&y=2"


def test_not_found(folder):
    navigation = {"sec_fetch_mode": "navigate"}
    for fields, is_page in (
        (navigation, True), ({}, True), ({"accept": "text/html,*/*"}, True), ({"accept": "*/*"}, False),
        ({"accept": "text/html", "sec_fetch_mode": "cors"}, False), ({"sec_fetch_mode": "websocket"}, False),
    ):  # fmt: skip
        pages = Assets(folder, "404-page")
        assert look(pages, "/docs/a/b", **fields) == ("docs/404.html" if is_page else None)
        assert look(pages, "/nothing", **fields) == ("404.html" if is_page else None)
        assert look(Assets(folder, "single-page-application"), "/a/b", **fields) == ("index.html" if is_page else None)
    assert Assets(folder, "404-page").look_up("GET", "/x", {}).status == 404
    assert Assets(folder, "404-page").find("GET", "/x", {"accept": "*/*"})[0] == 404  # asked by the worker itself
    assert Assets(folder, "none").find("GET", "/x", {}) == (404, [], b"")
    assert Assets(folder, "none").look_up("GET", "/x", {}) is None


def test_worker_first_patterns(folder):
    assets = Assets(folder, worker_first=["/api/*", "!/api/docs/*", "/exact"])
    assert [assets.before_worker(path) for path in ("/api/x", "/api/docs/a?x", "/exact", "/exact/more", "/style.css")] == [
        False, True, False, True, True,
    ]  # fmt: skip
    assert not Assets(folder, worker_first=True).before_worker("/style.css")
    assert PathPatterns(["/a*c"]).match("/abc")


def test_a_tag_is_of_the_content(folder, tmp_path):
    assets = Assets(folder)
    first = dict(assets.look_up("GET", "/style.css", {}).headers)["ETag"]
    path = folder / "style.css"
    about = path.stat()
    path.write_text("other.css")  # of the same length, and made to look as old
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    found = assets.look_up("GET", "/style.css", {"if-none-match": first})
    assert (found.status, found.body) == (200, b"other.css")
    path.write_text("style.css")
    assert dict(assets.look_up("GET", "/style.css", {}).headers)["ETag"] == first
    assert assets.look_up("GET", "/style.css", {"if-none-match": f'"x", W/{first}'}).status == 304
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "style.css").write_text("style.css")
    assert dict(Assets(copy).look_up("GET", "/style.css", {}).headers)["ETag"] == first
    (folder / "large").write_bytes(b"x" * 300_000)
    large = Assets(folder).look_up("GET", "/large", {})
    assert (large.body, large.size) == (b"", 300_000)
    assert len(dict(large.headers)["ETag"]) == 34


def test_what_is_not_served(folder):
    names = [
        "_headers", "_redirects", ".assetsignore", ".env", ".git/config", ".well-known/security.txt", "secret.txt",
        "keep/a.log", "keep/b.txt", "build/x.js",
    ]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret.txt\n*.log\nbuild/\n" if name == ".assetsignore" else "x")
    (folder / "link.txt").symlink_to("/etc/passwd")
    assets = Assets(folder)
    served = [name for name in (*names, "link.txt") if look(assets, f"/{name}") is not None]
    assert served == [".well-known/security.txt", "keep/b.txt"]


def test_headers(tmp_path, caplog):
    (tmp_path / "_headers").write_text(
        "# a comment\n  X-Lost: no path above\n/*\n  X-All: 1\n  Cache-Control: public, max-age=9\n"
        "/docs/*\n  X-Splat: :splat\n  ! X-All\n  no header\n"
        "/users/:id/:page\n  X-User: :id :page :other\nhttps://a.test/*\n  X-Host: a\n  X-All: 2\n"
    )
    rules = HeaderRules(tmp_path / "_headers")
    ours = [("ETag", '"x"'), ("Cache-Control", "public")]
    assert rules.apply("b", "/x", ours) == [("ETag", '"x"'), ("X-All", "1"), ("Cache-Control", "public, max-age=9")]
    assert dict(rules.apply("b", "/docs/a/b", ours)) == {
        "ETag": '"x"',
        "Cache-Control": "public, max-age=9",
        "X-Splat": "a/b",
    }
    assert dict(rules.apply("b", "/users/7/home", []))["X-User"] == "7 home :other"
    assert dict(rules.apply("A.test", "/x", []))["X-All"] == "1, 2"
    assert len(caplog.records) == 2
    (tmp_path / "style.css").write_text("x")
    assert ("X-All", "1") in Assets(tmp_path).look_up("GET", "/style.css", {}).headers


def test_redirects(tmp_path, caplog):
    (tmp_path / "_redirects").write_text(
        "/old /new 301\n/old /later\n/plain /to\n/own /to?mine=1 307\n/blog/* /posts/:splat 302\n/u/:id /users/:id 303\n"
        "/spa/* /index.html 200\n/away https://other.test/x 308\nbad line\n/x /y 404\n/out https://a.test 200\n"
    )
    (tmp_path / "index.html").write_text("app")
    rules = RedirectRules(tmp_path / "_redirects")
    found = {path: tuple(rules.find(path, query) or ()) for path, query in (
        ("/old", "q=1"), ("/plain", ""), ("/own", "q=1"), ("/blog/a/b", ""), ("/u/7", "x=1"),
        ("/spa/any", ""), ("/away", ""), ("/nothing", ""), ("/x", ""),
    )}  # fmt: skip
    assert found == {
        "/old": ("/new?q=1", 301), "/plain": ("/to", 302), "/own": ("/to?mine=1", 307), "/blog/a/b": ("/posts/a/b", 302),
        "/u/7": ("/users/7?x=1", 303), "/spa/any": ("/index.html", 200), "/away": ("https://other.test/x", 308),
        "/nothing": (), "/x": (),
    }  # fmt: skip
    assert len(caplog.records) == 3
    assets = Assets(tmp_path, html_handling="none")
    assert look(assets, "/old?a=b") == "-> /new?a=b"
    assert look(assets, "/spa/deep") == "app"


def test_rules_are_bounded(tmp_path):
    (tmp_path / "_redirects").write_text(
        "".join(f"/{n} /to\n" for n in range(3000)) + "".join(f"/d{n}/* /to\n" for n in range(300))
    )
    rules = RedirectRules(tmp_path / "_redirects")
    assert (rules.find("/1999", ""), rules.find("/2000", "")) == (("/to", 302), None)
    assert (rules.find("/d99/x", ""), rules.find("/d100/x", "")) == (("/to", 302), None)
    (tmp_path / "_headers").write_text("".join(f"/{n}\n  X: 1\n" for n in range(200)) + "/long\n  X: " + "y" * 3000)
    assert HeaderRules(tmp_path / "_headers").apply("", "/150", []) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.html", "text/html; charset=utf-8"), ("x.mjs", "text/javascript; charset=utf-8"),
        ("x.wasm", "application/wasm"), ("x.js.gz", "application/gzip"),
        ("x.wasm.br", "application/octet-stream"), ("x.tar.gz", "application/gzip"),
        ("d.ts", "video/mp2t"), ("README", "application/octet-stream"), ("a.b/README", "application/octet-stream"),
        ("x.JPG", "image/jpeg"), ("x.unknown", "application/octet-stream"), ("p.svg", "image/svg+xml; charset=utf-8"),
    ],
)  # fmt: skip
def test_content_types(name, kind):
    assert content_type_of(name) == kind


def test_ranges_and_tags():
    assert part_of("bytes=0-0", 10) == [0, 0]
    assert part_of("bytes=-3", 10) == [7, 9]
    assert part_of("bytes=20-", 10) == []
    assert part_of("bytes=1-2,4-5", 10) is None
    assert tag_matches("*", '"x"')
    assert not tag_matches('"y"', '"x"')


def test_what_clients_write_costs_little_time(folder):
    """Each of these took seconds while patterns were tried in every way in which they fit."""
    (folder / "_redirects").write_text("/blog/:year-:month-:day-:slug /b/:slug\n/s/*/x /y\n")
    assets = Assets(folder, "404-page", worker_first=["/*/a/*/b/*/c"])
    started = time.process_time()
    for path in ("/blog/" + "-" * 30_000 + "/", "/a/b" * 8000, "/s/" + "/x" * 15_000 + "/", "/" * 60_000):
        assets.before_worker(path)
        assets.look_up("GET", path, {})
    assert time.process_time() - started < 1
    assert look(assets, "/blog/2026-11-30-a-b") == "-> /b/a-b"


def test_globs():
    for pattern, path, fits in (
        ("/a/*", "/a/", True), ("/a/*", "/a", False), ("*", "", True), ("/a*a", "/a", False), ("/a*a", "/aa", True),
        ("/*/b/*", "/x/b/", True), ("/*b*b", "/b", False), ("/*.css", "/x/y.css", True), ("/a", "/a/", False),
    ):  # fmt: skip
        assert PathPatterns([pattern]).match(path) is fits, (pattern, path)


def test_what_a_client_sent_is_encoded_where_it_is_given_back(folder):
    (folder / "_redirects").write_text("/n/* /new/:splat\n/old/* /:splat\n/z /€\n", encoding="utf-8")
    (folder / "_headers").write_text("/*\n  X-P: :splat\n")
    assets = Assets(folder, "single-page-application")
    assert look(assets, "/n/%E2%82%AC") == "-> /new/%E2%82%AC"
    assert look(assets, "/n/a%0d%0aSet-Cookie:x") == "-> /new/a%0D%0ASet-Cookie:x"
    assert look(assets, "/n/a%20b%3Fq%23") == "-> /new/a%20b%3Fq%23"
    assert look(assets, "/old//evil.com/") == "-> /evil.com/"
    assert look(assets, "/z") == "-> /%E2%82%AC"
    assert dict(assets.look_up("GET", "/%E2%82%AC%0a b", {}).headers)["X-P"] == "%E2%82%AC%0A b"


def test_headers_of_a_rule_that_is_left_out_are_no_other_rules(folder, caplog):
    text = "/*\n  X-Frame-Options: DENY\n{}\n  Access-Control-Allow-Origin: *\n  ! X-Frame-Options\n/b\n  X-B: 1\n"
    for path in ("/api/*/pub/*", "/:a/:a", "https://[x/*", "/" + "a" * 3000):
        (folder / "_headers").write_text(text.format(path))
        headers = HeaderRules(folder / "_headers")
        assert headers.apply("", "/secret", []) == [("X-Frame-Options", "DENY")]
        assert headers.apply("", "/b", []) == [("X-Frame-Options", "DENY"), ("X-B", "1")]
    assert "no path" in caplog.text


def test_a_bad_line_is_left_out_alone(folder, caplog):
    (folder / "_redirects").write_text("/a/*/b/* /c\n/:a/:a /c\n/a/:splat/* /c\n/:a:b /c\n/q /c \u00b2\n/ok/* /c\n")
    (folder / "_headers").write_text("/*\n  X-\u20ac: 1\n  X: \u20ac\n  Y\n  Z: 1\n", encoding="utf-8")
    (folder / ".assetsignore").write_text("!\n\\\n*.css\n")
    assets = Assets(folder)
    assert look(assets, "/ok/x") == "-> /c"
    assert look(assets, "/style.css") is None
    found = assets.look_up("GET", "/", {}).headers
    assert ("Z", "1") in found
    assert not [name for name, _ in found if name in ("X", "Y", "X-\u20ac")]
    assert caplog.text.count("_redirects:") == 5
    assert caplog.text.count(".assetsignore:") == 2
