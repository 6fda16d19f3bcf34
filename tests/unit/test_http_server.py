"""protocol/http_server.py: decisions about requests and answers, without a byte moved."""

import itertools

import pytest

from roost.errors import RemoteProtocolError
from roost.protocol.http import RequestHead
from roost.protocol.http_server import (
    BODY_IDLE_S,
    FOLLOWS,
    UNDER_WAY,
    Framing,
    Phase,
    Times,
    Waiting,
    check_body,
    chunk,
    due,
    frame_body,
    half_closed_s,
    has_no_body,
    only_websocket,
    with_path,
)


def head(target="/", method="GET", version="1.1", **fields):
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return RequestHead(
        method, target, [(name.title(), value) for name, value in named.items()], True, False, version, named
    )


def test_the_table_has_every_phase_and_only_gone_is_final():
    assert set(FOLLOWS) == set(Phase)
    for phase in Phase:
        assert Phase.GONE in FOLLOWS[phase]
    assert FOLLOWS[Phase.GONE] == {Phase.GONE}
    assert {phase for phase in Phase if Phase.REQUEST in FOLLOWS[phase]} == {Phase.IDLE}  # one request at a time
    assert {phase for phase in Phase if Phase.UPGRADING in FOLLOWS[phase]} == {Phase.REQUEST}
    assert Phase.IDLE not in FOLLOWS[Phase.CLOSING]  # nothing after a refusal is read as HTTP
    assert {Phase.REQUEST, Phase.UPGRADING, Phase.RESPONDING} == UNDER_WAY


@pytest.mark.parametrize(
    ("fields", "upgrade", "code"),
    [
        ({}, False, 0),
        ({}, True, 0),
        ({"content_length": "0"}, True, 0),
        ({"content_length": "10"}, False, 0),
        ({"content_length": "11"}, False, 413),
        ({"content_length": "10"}, True, 400),
        ({"content_length": "ten"}, False, 400),
        ({"content_length": "-1"}, False, 400),
        ({"content_length": "1, 1"}, False, 400),
        ({"content_length": "0" * 18}, False, 0),
        ({"content_length": "0" * 19}, False, 400),
        ({"transfer_encoding": "Chunked"}, False, 0),
        ({"transfer_encoding": "chunked"}, True, 400),
        ({"transfer_encoding": "gzip, chunked"}, False, 501),
        ({"transfer_encoding": "identity"}, False, 501),
    ],
)
def test_which_bodies_may_be(fields, upgrade, code):
    if not code:
        check_body(head(**fields), 10, upgrade=upgrade)
        return
    with pytest.raises(RemoteProtocolError) as refused:
        check_body(head(**fields), 10, upgrade=upgrade)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("target", "host", "url", "path"),
    [
        ("/a?b", "x", "http://x/a?b", "/a?b"),
        ("*", "x", "http://x/*", "*"),
        ("/a", None, "http://localhost/a", "/a"),
        ("https://y:81/a?b", "x", "http://y:81/a?b", "/a?b"),  # the scheme is the connection's
        ("ws://y", "x", "http://y/", "/"),
        ("HTTP://y?q", "x", "http://y/?q", "/?q"),
        ("/a", "[::1]:80", "http://[::1]:80/a", "/a"),
    ],
)
def test_urls(target, host, url, path):
    fields = {} if host is None else {"host": host}
    found, found_url = with_path(head(target, **fields), "http")
    assert (found_url, found.target) == (url, path)
    if "://" in target:
        assert found.fields["host"] == url.split("/")[2]
        assert dict(found.headers)["Host"] == found.fields["host"]


@pytest.mark.parametrize(
    ("target", "host"),
    [("a", "x"), ("", "x"), ("ftp://y/", "x"), ("/a", "x y"), ("/a", "x:99999"), ("http://a b/", "x"), ("/", "[x]")],
)
def test_what_is_no_target_or_no_host(target, host):
    with pytest.raises(RemoteProtocolError) as refused:
        with_path(head(target, host=host), "http")
    assert refused.value.code == 400


def framed(status=200, size=None, method="GET", version="1.1", fields=()):
    fields = list(fields)
    bodiless = has_no_body(method, status)
    framing = frame_body(head(method=method, version=version), status, size, fields, bodiless=bodiless)
    return framing, fields


LENGTH = ("Content-Length", "5")


def test_where_a_body_ends():
    assert framed(size=3, fields=[LENGTH]) == (Framing(), [("Content-Length", "3")])  # what is there counts
    assert framed(size=0) == (Framing(), [("Content-Length", "0")])
    assert framed() == (Framing(chunked=True), [("Transfer-Encoding", "chunked")])
    assert framed(fields=[LENGTH]) == (Framing(left=5), [LENGTH])
    assert framed(fields=[("content-length", "five")]) == (Framing(chunked=True), [("Transfer-Encoding", "chunked")])
    assert framed(version="1.0") == (Framing(close_after=True), [])
    assert framed(version="1.0", fields=[LENGTH]) == (Framing(left=5), [LENGTH])


@pytest.mark.parametrize("status", [100, 199, 204, 304])
def test_answers_without_a_body_have_no_length(status):
    assert framed(status, 0, fields=[LENGTH]) == (Framing(), [])
    assert framed(status, None) == (Framing(), [])
    assert has_no_body("GET", status)


def test_what_head_is_told_is_what_get_would_be():
    assert framed(method="HEAD", fields=[LENGTH]) == (Framing(), [LENGTH])
    assert framed(method="HEAD", size=0, fields=[LENGTH]) == (Framing(), [LENGTH])
    assert framed(method="HEAD", size=0) == (Framing(), [("Content-Length", "0")])
    assert framed(method="HEAD") == (Framing(), [("Transfer-Encoding", "chunked")])  # said, and nothing follows
    assert not has_no_body("GET", 200)
    assert has_no_body("HEAD", 200)


def test_chunks():
    assert chunk(b"x" * 17, last=False) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert chunk(b"ab", last=True) == b"2\r\nab\r\n0\r\n\r\n"
    assert chunk(b"", last=True) == b"0\r\n\r\n"
    assert chunk(b"", last=False) == b""  # an empty chunk would be the end


def test_one_protocol_of_several():
    assert only_websocket([("Upgrade", "h2c, websocket"), ("A", "b")]) == [("Upgrade", "websocket"), ("A", "b")]


TIMES = Times(head_s=10, idle_s=75, close_s=5)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (Waiting(Phase.IDLE, 100, 0, ended=False, owed=False, reads_body=False), 175),
        (Waiting(Phase.IDLE, 100, 90, ended=False, owed=False, reads_body=False), 100),  # a head that takes its time
        (Waiting(Phase.REQUEST, 100, 0, ended=False, owed=False, reads_body=False), None),  # it is we who take it
        (Waiting(Phase.REQUEST, 100, 0, ended=False, owed=False, reads_body=True), 100 + BODY_IDLE_S),
        (Waiting(Phase.RESPONDING, 100, 0, ended=False, owed=True, reads_body=True), 175),  # a reader that has stalled
        (Waiting(Phase.CLOSING, 100, 0, ended=False, owed=False, reads_body=False), 105),
        (Waiting(Phase.CLOSING, 100, 0, ended=False, owed=True, reads_body=False), 175),
        (Waiting(Phase.REQUEST, 100, 0, ended=True, owed=False, reads_body=False), 105),
        (Waiting(Phase.RESPONDING, 100, 0, ended=True, owed=False, reads_body=False), 101),
        (Waiting(Phase.RESPONDING, 100, 0, ended=True, owed=True, reads_body=False), 175),
    ],
)
def test_until_when_a_client_may_take(waiting, expected):
    assert due(waiting, TIMES) == expected


def test_nobody_waits_for_ever_but_for_us():
    for phase, ended, owed, reads in itertools.product(Phase, *[(False, True)] * 3):
        waits_for_us = phase in (Phase.REQUEST, Phase.UPGRADING, Phase.RESPONDING, Phase.GONE) and not (
            ended or owed or reads
        )
        assert (due(Waiting(phase, 100, 0, ended, owed, reads), TIMES) is None) == waits_for_us


def test_a_silent_stream_is_not_waited_for_longer_than_a_closing_handshake():
    assert half_closed_s(Phase.RESPONDING, TIMES._replace(close_s=0.5), owed=False) == 0.5
