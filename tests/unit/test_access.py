"""gateway/io/access.py: which pages may open WebSockets, and whose word about a client counts."""

import pytest

from roost.gateway.io.access import Access


def allowed(access, origin, host="rooms.example.com"):
    return access.origin_allowed({"host": host} | ({"origin": origin} if origin is not None else {}))


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (None, "a.example", True),
        ("http://a.example", "a.example", True),
        ("https://A.example", "a.example:443", True),
        ("http://a.example:80", "a.example", True),
        ("http://a.example:8787", "a.example:8787", True),
        ("http://a.example:8788", "a.example:8787", False),
        ("http://evil.example", "a.example", False),
        ("http://a.example.evil", "a.example", False),
        ("null", "a.example", False),
        ("", "a.example", False),
        ("http://a.example/path", "a.example", False),
        ("http://user@a.example", "a.example", False),
        ("http://[::1]:8787", "[::1]:8787", True),
        ("garbage", "garbage", False),
        ("http://[::1", "[::1", False),
    ],
)
def test_same_host(origin, host, expected):
    assert allowed(Access(), origin, host) is expected


def test_lists():
    access = Access(["https://a.example", "https://*.b.example", "null"])
    assert allowed(access, "https://a.example")
    assert allowed(access, "https://x.b.example")
    assert allowed(access, "null")
    assert not allowed(access, "http://a.example"), "another scheme is another origin"
    assert not allowed(access, "https://b.example")
    assert not allowed(access, "https://evilb.example")
    assert not allowed(access, "https://rooms.example.com"), "a list replaces the same host"
    assert allowed(Access(["*"]), "https://anybody.example")
    assert allowed(Access(["*"]), "null"), "everybody is everybody, by choice"


@pytest.mark.parametrize("wrong", ["example.com", "https://", "https://a.example/x", ""])
def test_what_is_no_origin(wrong):
    with pytest.raises(ValueError, match="not an origin"):
        Access([wrong])


def test_proxies():
    access = Access(trusted_proxies=["127.0.0.1", "10.0.0.0/8"])

    def client(peer, forwarded, proto=None):
        fields = {"x-forwarded-for": ", ".join(forwarded)} if forwarded else {}
        return access.client(peer, "http", fields | ({"x-forwarded-proto": proto} if proto else {}))

    assert client("192.0.2.1", ["198.51.100.7"], "https") == ("192.0.2.1", "http"), "anybody can write that"
    assert client("127.0.0.1", ["198.51.100.7"], "https") == ("198.51.100.7", "https")
    assert client("127.0.0.1", ["6.6.6.6, 198.51.100.7, 10.1.2.3"]) == ("198.51.100.7", "http")
    assert client("127.0.0.1", ["6.6.6.6", "198.51.100.7"]) == ("198.51.100.7", "http")
    assert client("127.0.0.1", []) == ("127.0.0.1", "http")
    assert client("127.0.0.1", ["10.1.2.3"]) == ("10.1.2.3", "http"), "nobody but proxies: the first of them"
    assert client("127.0.0.1", ["198.51.100.7, not an address"]) == ("127.0.0.1", "http")
    assert client("127.0.0.1", ["198.51.100.7"], "gopher") == ("198.51.100.7", "http")
    assert client("", ["198.51.100.7"]) == ("", "http")
    with pytest.raises(ValueError, match="network"):
        Access(trusted_proxies=["everybody"])
