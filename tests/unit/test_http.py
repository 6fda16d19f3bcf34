"""protocol/http.py: malformed heads are refused, never repaired; splits do not matter."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.errors import RemoteProtocolError
from roost.protocol.handshake import accept_key, check_handshake, wants_websocket
from roost.protocol.http import (
    Data,
    EndOfMessage,
    HeadLimits,
    RequestHead,
    RequestParser,
    ResponseParser,
    encode_head,
    encode_request,
    has_token,
    simple_response,
)


def parse(data: bytes, limits: HeadLimits | None = None) -> list:
    parser = RequestParser(limits or HeadLimits())
    parser.feed(data)
    return parser.events


HOST = b"Host: a\r\n"

MALFORMED = {
    "CL and TE": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "TE and CL": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "two different CL": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "two equal CL": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "CL list": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
    "CL with sign": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
    "two Host": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF in a header": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "blank before colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    "control in a name": b"GET / HTTP/1.1\r\nHost: a\r\nf\x01o: x\r\n\r\n",
    "empty name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n",
    "TE not chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "TE chunked not last": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    "TE in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunk size negative": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "chunk size huge": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "chunk with bare LF": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "leading blank": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_is_refused(name):
    with pytest.raises(RemoteProtocolError) as caught:
        parse(MALFORMED[name])
    assert caught.value.code in (400, 405, 505)
    assert caught.value.reason


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_byte_by_byte_is_refused_too(name):
    parser = RequestParser(HeadLimits())
    with pytest.raises(RemoteProtocolError):
        for index in range(len(MALFORMED[name])):
            parser.feed(MALFORMED[name][index : index + 1])


def test_limits_of_a_head():
    many = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n"
    with pytest.raises(RemoteProtocolError, match="header fields") as caught:
        parse(many)
    assert caught.value.code == 431
    with pytest.raises(RemoteProtocolError) as caught:
        parse(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000)
    assert caught.value.code == 431
    with pytest.raises(RemoteProtocolError) as caught:
        parse(b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert caught.value.code == 431


def test_endless_trailers_are_dropped():
    """Class of aiohttp's CVE-2026-22815: trailers are read and not kept."""
    parser = RequestParser(HeadLimits())
    parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    head = parser.events[0]
    for _ in range(1000):
        parser.feed(b"X: y\r\n")
    parser.feed(b"\r\n")
    assert parser.events == [head, EndOfMessage()]
    assert len(head.headers) == 2


@given(
    st.lists(st.tuples(st.sampled_from(["GET", "POST"]), st.binary(max_size=60), st.booleans()), min_size=1, max_size=4),
    st.lists(st.integers(0, 600), max_size=6),
)
def test_any_split_of_pipelined_requests_gives_the_same_events(requests, cuts):
    data = b""
    for method, body, chunked in requests:
        data += f"{method} /x?y=1 HTTP/1.1\r\nHost: a\r\nA: b\r\n".encode()
        if method == "GET":
            data += b"\r\n"
        elif chunked:
            data += b"Transfer-Encoding: chunked\r\n\r\n"
            data += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        else:
            data += b"Content-Length: %d\r\n\r\n" % len(body) + body
    parser = RequestParser(HeadLimits())
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        parser.feed(data[start:end])
    found: list = []
    for event in parser.events:  # pieces of one body may be cut anywhere
        if isinstance(event, Data) and found and isinstance(found[-1], Data):
            found[-1] = Data(found[-1].data + event.data)
        else:
            found.append(event)
    expected = []
    for method, body, chunked in requests:
        framing = (
            []
            if method == "GET"
            else [("Transfer-Encoding", "chunked")]
            if chunked
            else [("Content-Length", str(len(body)))]
        )
        headers = [("Host", "a"), ("A", "b"), *framing]
        fields = {name.lower(): value for name, value in headers}
        expected.append(RequestHead(method, "/x?y=1", headers, True, False, "1.1", fields))
        if method == "POST" and body:
            expected.append(Data(body))
        expected.append(EndOfMessage())
    assert found == expected


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_fields_by_name():
    """Repeated fields are a list (RFC 9110 §5.3), which is nothing valid where one value is expected."""
    parser = RequestParser(HeadLimits())
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    parser.feed(UPGRADE.replace(key, b"X-A: 1\r\nx-a: 2\r\n" + key + key))
    head = parser.events[0]
    assert head.fields["x-a"] == "1, 2"
    assert [field for field in head.headers if field[0].lower() == "x-a"] == [("X-A", "1"), ("x-a", "2")]
    with pytest.raises(RemoteProtocolError, match="Sec-WebSocket-Key"):
        check_handshake(head)


def test_handshake():
    parser = RequestParser(HeadLimits())
    parser.feed(UPGRADE + b"frames")
    head = parser.events[0]
    assert wants_websocket(head)
    assert parser.leftover == b"frames"
    assert accept_key(check_handshake(head)) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3


@pytest.mark.parametrize(
    ("old", "new", "status", "says"),
    [
        (b"GET", b"POST", 400, "GET"),
        (b"keep-alive, Upgrade", b"keep-alive", 400, "Connection: Upgrade"),
        (b"Version: 13", b"Version: 12", 426, "Sec-WebSocket-Version: 13"),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426, "Sec-WebSocket-Version: 13"),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"", 400, "Sec-WebSocket-Key"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=", 400, "Sec-WebSocket-Key"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", "héllo".encode(), 400, "Sec-WebSocket-Key"),
    ],
)
def test_handshake_faults_say_the_fix(old, new, status, says):
    parser = RequestParser(HeadLimits())
    parser.feed(UPGRADE.replace(old, new))
    with pytest.raises(RemoteProtocolError, match="WebSocket handshake failed") as caught:
        check_handshake(parser.events[0])
    assert caught.value.code == status
    assert says in caught.value.reason


def test_tokens():
    assert has_token("a, Upgrade", "upgrade")
    assert not has_token("notupgrade", "upgrade")
    assert not has_token("not, upgraded", "upgrade")
    assert not has_token(None, "upgrade")


@pytest.mark.parametrize("bad", ["a\r\nX: y", "a\nb", "a\0b"])
def test_response_splitting_is_refused(bad):
    with pytest.raises(ValueError, match="must not be in a header"):
        encode_head(200, "", [("X", bad)])
    with pytest.raises(ValueError, match="must not be in a header"):
        encode_request("GET", "/", [(bad, "x")])


def test_simple_response():
    assert simple_response(503, "busy", [("Retry-After", "1")], close=True) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain;charset=UTF-8\r\nContent-Length: 4\r\n"
        b"Retry-After: 1\r\nConnection: close\r\n\r\nbusy"
    )


def test_response_head():
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n")
    assert parser.head is None
    parser.feed(b"Connection: Upgrade\r\n\r\nrest")
    assert parser.head.status == 101
    assert parser.leftover == b"rest"
    with pytest.raises(RemoteProtocolError):
        ResponseParser().feed(b"garbage\r\n\r\n")
    with pytest.raises(RemoteProtocolError, match="too large"):
        ResponseParser(1000).feed(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2000)


class TestRefusals:
    """The answer to an upgrade that is none: interim ones are passed over, its body is read."""

    def parse(self, data, step=7, **limits):
        parser = ResponseParser(**limits)
        for start in range(0, len(data), step):
            parser.feed(data[start : start + step])
        return parser

    @pytest.mark.parametrize("step", [1, 7, 10_000])
    def test_interim_answers_before_a_101(self, step):
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        parser = self.parse(
            interim + b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi",
            step,
        )
        assert (parser.head.status, parser.head.headers) == (101, [("Upgrade", "websocket"), ("Connection", "Upgrade")])
        if step > 100:
            assert parser.leftover == b"\x81\x02hi"

    @pytest.mark.parametrize("step", [1, 7, 10_000])
    @pytest.mark.parametrize(
        "framing",
        [b"Content-Length: 9\r\n\r\nno key up", b"Transfer-Encoding: chunked\r\n\r\n3\r\nno \r\n6\r\nkey up\r\n0\r\n\r\n"],
    )
    def test_a_refusals_body(self, step, framing):
        parser = self.parse(b"HTTP/1.1 401 Unauthorized\r\nUpgrade: websocket\r\nConnection: upgrade\r\n" + framing, step)
        assert (parser.head.status, bytes(parser.body), parser.complete) == (401, b"no key up", True)

    def test_a_body_up_to_the_end_of_the_connection_and_one_that_is_too_large(self):
        parser = self.parse(b"HTTP/1.1 200 OK\r\n\r\nwhatever", 100)
        assert (bytes(parser.body), parser.complete) == (b"whatever", False)
        parser = self.parse(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, 1000, max_body_bytes=1000)
        assert (len(parser.body), parser.complete) == (1000, True)

    def test_interim_answers_without_end(self):
        with pytest.raises(RemoteProtocolError, match="without end"):
            self.parse(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)


@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_a_target_in_utf_8_is_percent_encoded(step):
    parser = RequestParser(HeadLimits())
    data = "GET /räum?n=ö HTTP/1.1\r\nHost: a\r\nX: ".encode() + b"\xff\r\n\r\n"
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
    head = parser.events[0]
    assert head.target == "/r%C3%A4um?n=%C3%B6"
    assert head.headers[1] == ("X", "\xff")  # fields stay as they are
    parser.feed(b"GET /a HTTP/1.1\r\nHost: a\r\nX: \xfe\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nX: \xfd")
    parser.feed(b"\xfc\r\n\r\n")
    heads = [event for event in parser.events if isinstance(event, RequestHead)]
    assert [each.target for each in heads] == ["/r%C3%A4um?n=%C3%B6", "/a", "/b"]
    assert [each.headers[1][1] for each in heads] == ["\xff", "\xfe", "\xfd\xfc"]
