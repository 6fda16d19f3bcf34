"""js.URL and request.url: the parser's answers, and the shorter way for what it would not change."""

import ada_url
import hypothesis
import pytest
from hypothesis import strategies as st

from roost.api.urls import _NORMAL, normalised
from roost.compat.url import URL, URLSearchParams
from roost.errors import JsTypeError


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://Ex.test:443/a/../b?x=1#f", ["https://ex.test/b?x=1#f", "ex.test", "", "/b", "?x=1", "#f", "https://ex.test"]),
        ("http://[::1]:80/", ["http://[::1]/", "[::1]", "", "/", "", "", "http://[::1]"]),
        ("https://e.test/ö?q=ü x", ["https://e.test/%C3%B6?q=%C3%BC%20x", "e.test", "", "/%C3%B6", "?q=%C3%BC%20x", "", "https://e.test"]),
        ("HTTP://EX.TEST", ["http://ex.test/", "ex.test", "", "/", "", "", "http://ex.test"]),
        ("https://ä.test:8443/", ["https://xn--4ca.test:8443/", "xn--4ca.test:8443", "8443", "/", "", "", "https://xn--4ca.test:8443"]),
        ("http://0x7f.1/", ["http://127.0.0.1/", "127.0.0.1", "", "/", "", "", "http://127.0.0.1"]),
    ],
)  # fmt: skip
def test_parts(url, parts):
    found = URL.new(url)
    assert [found.href, found.host, found.port, found.pathname, found.search, found.hash, found.origin] == parts
    assert str(found) == found.toString() == found.toJSON() == parts[0]


def test_bases_and_refusals():
    assert URL.new("../x?y", "https://ex.test/a/b/c").href == "https://ex.test/a/x?y"
    assert URL.canParse("x", "https://ex.test/")
    assert not URL.canParse("x")
    assert URL.parse("nonsense") is None
    for bad in ("nonsense", "//x", "http://a b/", "https://ex.test:99999/"):
        with pytest.raises(JsTypeError, match="Invalid URL string"):
            URL.new(bad)


def test_parts_may_be_set_and_the_query_is_live():
    url = URL.new("https://a.test/x?a=1#h")
    url.hostname, url.pathname, url.port, url.hash = "B.test", "/ö", "8080", ""
    assert url.href == "https://b.test:8080/%C3%B6?a=1"
    url.searchParams.append("b", "c d")
    url.searchParams.set("a", "2")
    assert url.href == "https://b.test:8080/%C3%B6?a=2&b=c+d"
    url.search = "?z=9"
    assert url.searchParams.get("z") == "9"
    with pytest.raises(JsTypeError):
        url.href = "nonsense"


def test_search_params():
    params = URLSearchParams.new("?a=1&b=%C3%B6+x&a=2&c&=e&d=~*")
    assert params.entries() == [("a", "1"), ("b", "ö x"), ("a", "2"), ("c", ""), ("", "e"), ("d", "~*")]
    assert (params.getAll("a"), params.get("x"), params.has("c"), params.has("a", "2"), params.size) == (
        ["1", "2"],
        None,
        True,
        True,
        6,
    )
    assert str(params) == "a=1&b=%C3%B6+x&a=2&c=&=e&d=%7E*"
    params.delete("a", "1")
    params.sort()
    assert params.keys() == ["", "a", "b", "c", "d"]
    assert dict(URLSearchParams.new({"x": 1})) == {"x": "1"}


def test_requests_urls():
    for url, wanted in {
        "http://a.test/a/../b": "http://a.test/b",
        "http://a.test/a/./b": "http://a.test/a/b",
        'http://a.test/q?a="b"': "http://a.test/q?a=%22b%22",
        "http://a.test/a\\b": "http://a.test/a/b",
        "http://a.test/%2e%2e/b": "http://a.test/b",
        "http://EXAMPLE.test/": "http://example.test/",
        "http://a.test:80/": "http://a.test/",
        "http://127.0.0.1:8787/a//b?x=1": "http://127.0.0.1:8787/a//b?x=1",
        "http://a.test:59999/": "http://a.test:59999/",
        "http://a.test:65535/": "http://a.test:65535/",
        "http://a.test:65536/": None,
        "http:// no url": None,
    }.items():
        assert normalised(url) == wanted
    for usual in ("http://127.0.0.1:8787/a/b?x=1", "https://ex-1.test/%C3%A4/x.html", "http://localhost:8787/"):
        assert _NORMAL(usual) is not None


@hypothesis.given(
    st.from_regex(
        r"https?://[a-z0-9A-Z.-]{0,12}(:[0-9]{0,5})?/[a-z/.%2eE~\\ \"ä-]{0,12}(\?[a-z=&%'\"#?]{0,8})?", fullmatch=True
    )
)
def test_the_shorter_way_changes_nothing(url):
    if _NORMAL(url) is not None:
        assert ada_url.URL(url).href == url
