"""Headers, URLs and calls that nobody awaits, in JavaScript on workerd and in Python on Roost: the answers are the same."""

import http.client
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from beside import WORKERD, side_by_side

HERE = Path(__file__).parent / "facts"

pytestmark = pytest.mark.skipif(
    not WORKERD and not os.environ.get("CI"), reason="no workerd: tests/conformance/install_npm.sh"
)

URLS = [
    "http://example.com", "HTTP://EXAMPLE.com:80/A/../b/./c?x#y", "https://user:pass@example.com:444/p?q=1#f",
    "http://example.com:0443/", "http://[::1]:8080/x", "http://[2001:DB8::0]/", "http://127.1/", "http://0x7f.1/",
    "http://192.168.0.257/", "http://münchen.example/ü?ü#ü", "http://example.com/a b", "http://example.com/%7Efoo/%zz",
    "http://example.com//a//b/", "http://example.com\\a\\b", "  http://example.com/  ", "http://example.com/\ta\nb",
    "http:example.com", "http:///x", "http://", "example.com", "/relative", "", "ftp://host/x", "data:text/plain,hi",
    "javascript:alert(1)", "ws://h:80/", "wss://h:443/p", "http://h/?a=1&a=2&b=%20+&=x&c", "http://h/?a=%F0%9F%98%80",
    "http://ex ample.com/", "http://example.com:99999/", "http://a%2eb/", "http://xn--mnchen-3ya.example/", "file:///C|/x",
    "http://example.com/..", "http://example.com/%2e%2E/x", "http://example.com?x=/../y", "http://example.com/'\"<>`{}|^",
    "http://user@/x", "http://h:/x", "http://h#", "http://h?", "http://H%41st/", "blob:https://a/b", "mailto:a@b",
]  # fmt: skip
RELATIVE = [
    ("x", "http://h/a/b"), ("../x", "http://h/a/b/c"), ("/x", "http://h/a"), ("//other/x", "https://h/a"), ("?q", "http://h/a"),
    ("#f", "http://h/a?q"), ("", "http://h/a?q#f"), (".", "http://h/a/b"), ("..", "http://h/a/b"), ("x", "mailto:a"),
    ("http:x", "http://h/a/b"), ("\\x", "http://h/a"), ("x", "nonsense"), ("./../../..", "http://h/a"), ("a:b", "http://h/"),
]  # fmt: skip
PARAMS = ["a=1&b=2&a=3", "?a=%20+x", "", "a", "=", "&&a=1&&", "b=ü&a=😀", "a=%zz", "z=1&y=2&z=0", "a=b=c"]


@pytest.fixture(scope="module")
def ports():
    with side_by_side(HERE, "/") as ports:
        yield ports


def ask(port, path, body=None, headers=None):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
        return json.loads(text) if answer.status == 200 else [answer.status]


def same(ports, path, body=None, headers=None):
    found = {name: ask(port, path, body, headers) for name, port in ports.items()}
    assert found["roost"] == found["workerd"], path
    return found["roost"]


def test_headers(ports):
    sent = {"X-B": "1", "x-a": "  spaced  ", "X-UPPER": "V", "X-Empty": "", "x-c": "a,  b"}
    same(ports, "/headers", headers=sent)
    same(ports, "/own-headers")


def test_urls(ports):
    asked = [*((text, None) for text in URLS), *RELATIVE]
    found = {name: ask(port, "/urls", json.dumps(asked)) for name, port in ports.items()}
    differ = [
        f"{text!r}:\n  workerd {theirs}\n  roost   {ours}"
        for text, theirs, ours in zip(asked, found["workerd"], found["roost"], strict=True)
        if theirs != ours
    ]
    assert not differ, "\n".join(differ)


def test_search_params(ports):
    same(ports, "/params", json.dumps(PARAMS))


def test_what_a_request_makes_of_its_url(ports):
    """`new Request(url)`. What comes over the network is written so, too, as the platform's edge does; workerd alone passes
    the target on as it came."""
    same(ports, "/requests", json.dumps([*URLS, "http://h/a|b^c", "http://h/%2e%2e/b", "http://h/a\\b?\"'#x y"]))


@pytest.mark.parametrize("what", ["puts", "all", "alarm", "many", "transaction", "throws"])
def test_what_nobody_awaits(ports, what):
    same(ports, f"/lab/{what}/{what}")
    same(ports, f"/lab/kept/{what}")
