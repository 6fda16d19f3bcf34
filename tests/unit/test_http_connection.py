"""gateway/io/http_connection.py: requests by the byte, answers, refusals and ends. No loop, real descriptors."""

import pytest

from roost.events import BODY_WINDOW_BYTES, Abort, BodyCredit, BodyData, Response
from roost.gateway.io.connection import Connection
from roost.gateway.io.http_answers import HttpAnswers
from roost.gateway.io.http_connection import HttpConnection, HttpState
from roost.gateway.io.owner import Owner
from roost.gateway.io.reactor import READ, WRITE
from roost.protocol.http_server import FOLLOWS, UNDER_WAY, Phase
from turns import flush, make_turn, pair, received

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\n"


MOVES = set()  # that were made


class Checked(HttpConnection):
    """Each of its moves is legal, and a request is under way where its phase says so."""

    __slots__ = ()

    @property
    def _phase(self):
        return HttpAnswers._phase.__get__(self)

    @_phase.setter
    def _phase(self, phase):
        try:
            before = self._phase
        except AttributeError:
            assert phase is Phase.IDLE
        else:
            assert phase in FOLLOWS[before], f"{before.name} -> {phase.name}"
            MOVES.add((before, phase))
        HttpAnswers._phase.__set__(self, phase)

    @property
    def _is_plain(self):
        return True


class Client:
    """A connection, its turn, and the client's end of it."""

    def __init__(self, **limits):
        self.turn = make_turn(**limits)
        fd, self.socket = pair()
        self.http = Checked(self.turn, fd, self.turn.new_number(fd), "192.0.2.7")
        self.turn.adopt(self.http)
        self.told = self.turn.told

    def says(self, data, *, by=None):
        """The client sends, `by` so many bytes at a time; a turn for each piece."""
        for start in range(0, len(data), by or len(data) or 1):
            self.socket.sendall(data[start : start + (by or len(data))])
            self.ready()

    def ready(self, mask=READ):
        if self.http.fd >= 0 and (self.http.wanted() & mask or mask == WRITE):
            self.http.ready(mask)
        flush(self.turn)

    def ends(self):
        """The client's half of the stream is over."""
        self.socket.shutdown(1)
        self.ready()

    def answer(self, status=200, body=b"hi", *, more=False, headers=(), request=None):
        number = self.told.requests[-1].request if request is None else request
        self.http.on_response(Response(number, status, "", list(headers), body, more))
        flush(self.turn)

    def hears(self):
        flush(self.turn)
        return received(self.socket)

    @property
    def phase(self):
        return self.http._phase


@pytest.fixture
def make():
    clients = []

    def made(**limits):
        clients.append(Client(**limits))
        return clients[-1]

    yield made
    for client in clients:
        client.socket.close()
        client.http.close_fd()
        assert (client.http._head is not None) == (client.phase in UNDER_WAY)


@pytest.fixture
def client(make):
    return make()


def body_of(data):
    return data.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("by", [1, 7, None])
def test_requests_by_the_byte(client, by):
    client.says(GET, by=by)
    (request,) = client.told.requests
    assert (request.method, request.url, request.body, request.more_body, request.upgrade) == (
        "GET",
        "http://x/a",
        b"",
        False,
        False,
    )
    assert request.peer == "192.0.2.7"
    assert client.phase is Phase.REQUEST
    client.answer()
    assert client.hears().startswith(OK)
    assert client.phase is Phase.IDLE
    assert client.told.over == [2]
    client.says(GET, by=by)
    client.answer(404, b"no")
    assert b"404 Not Found" in client.hears()
    assert client.turn.log == [("GET", "/a", 200), ("GET", "/a", 404)]
    assert client.turn.counters.requests == 2


@pytest.mark.parametrize("by", [1, 3, None])
def test_bodies_by_the_byte(client, by):
    client.says(POST + b"hello", by=by)
    (request,) = client.told.requests
    assert request.body + b"".join(event.data for event in client.told.followed) == b"hello"
    if request.more_body:
        assert client.told.followed[-1].last
    assert client.phase is Phase.REQUEST
    client.answer()
    assert client.phase is Phase.IDLE


def test_pipelined_requests_are_asked_one_after_the_other(client):
    client.says(GET * 3)
    assert len(client.told.requests) == 1
    assert not client.http.wanted() & READ  # what has come is enough
    client.answer(body=b"1")
    assert len(client.told.requests) == 2
    client.answer(body=b"2")
    client.answer(body=b"3")
    assert client.http.wanted() & READ
    assert [part[-1:] for part in client.hears().split(b"HTTP/1.1")[1:]] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (UPGRADE.replace(b"13", b"8"), 426),
        (UPGRADE.replace(b"Key", b"Kee"), 400),
        (UPGRADE.replace(b"Host: x", b"Host: x\r\nOrigin: http://other"), 403),
        (b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 1\r\n\r\n1", 400),
        (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 40_000), 431),
    ],
)
def test_what_is_refused_is_not_asked_and_ends_the_connection(client, data, status):
    client.says(data)
    answer = client.hears()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in answer
    assert answer.endswith(b"<end>")  # half-closed, so that the client can read it
    assert not client.told.requests
    assert client.phase is Phase.CLOSING
    client.says(GET)
    assert not client.told.requests  # nothing behind it is read as HTTP
    if status == 426:
        assert b"Sec-WebSocket-Version: 13" in answer


def test_what_is_too_large_is_refused(make):
    client = make(max_body_bytes=4)
    client.says(POST + b"hello")
    assert client.hears().startswith(b"HTTP/1.1 413 ")
    assert client.turn.counters.refused_body == 1
    chunked = make(max_body_bytes=4)
    chunked.says(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert len(chunked.told.requests) == 1
    chunked.says(b"2\r\nde\r\n")
    assert chunked.hears().startswith(b"HTTP/1.1 413 ")
    assert isinstance(chunked.told.followed[-1], Abort)
    assert chunked.turn.counters.refused_body == 1


def test_what_a_refused_client_goes_on_sending_is_bounded(client):
    client.says(b"nonsense\r\n\r\n")
    for _ in range(200):
        if client.http.fd < 0:
            break
        client.says(b"x" * 65536)
    assert client.http.fd == -1
    assert client.phase is Phase.GONE


def test_a_body_is_held_to_its_window(client):
    client.says(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
    for _ in range(BODY_WINDOW_BYTES // 65536 + 2):
        if client.http.wanted() & READ:
            client.says(b"x" * 65536)
    assert not client.http.wanted() & READ
    client.http.on_credit(BodyCredit(2, BODY_WINDOW_BYTES))
    assert client.http.wanted() & READ


def test_a_response_in_pieces(client):
    client.says(GET)
    client.answer(body=b"", more=True)
    assert client.phase is Phase.RESPONDING
    for piece, last in ((b"one", False), (b"", False), (b"two", False), (b"", True)):
        client.http.on_body(BodyData(2, piece, last))
        flush(client.turn)
    answer = client.hears()
    assert b"Transfer-Encoding: chunked" in answer
    assert body_of(answer) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert sum(event.size for event in client.told.followed if isinstance(event, BodyCredit)) == 6
    assert client.phase is Phase.IDLE


def test_a_response_of_another_length_than_it_says_is_cut(client):
    client.says(GET)
    client.answer(body=b"", more=True, headers=[("Content-Length", "5")])
    client.http.on_body(BodyData(2, b"four", last=True))
    assert b"four" not in client.hears()
    assert client.http.fd == -1
    assert "not as long as its Content-Length" in client.turn.faults[0]


def test_nothing_follows_the_head_of_an_answer_without_a_body(client):
    client.says(GET.replace(b"GET", b"HEAD"))
    client.answer(body=b"hello")
    assert body_of(client.hears()) == b""
    client.says(GET)
    client.answer(204, b"", more=True)
    assert body_of(client.hears()) == b""
    assert isinstance(client.told.followed[-1], Abort)  # its stream is not wanted
    assert client.phase is Phase.IDLE


def test_an_answer_that_would_split_is_not_sent(client):
    client.says(GET)
    client.answer(headers=[("A", "b\r\nC: d")])
    assert client.hears().startswith(b"HTTP/1.1 500 ")
    assert client.turn.faults


def test_an_answer_before_the_body_was_read_is_the_last(client):
    client.says(POST + b"he")
    client.answer()
    answer = client.hears()
    assert b"Connection: close" in answer
    assert answer.endswith(b"<end>")
    assert client.phase is Phase.CLOSING
    client.says(b"llo")
    assert client.http.fd >= 0
    client.ends()
    assert client.http.fd == -1


def test_http_1_0_ends_with_its_answer(client):
    client.says(b"GET /a HTTP/1.0\r\n\r\n")
    client.answer(body=b"", more=True)
    client.http.on_body(BodyData(2, b"all", last=True))
    assert client.hears().endswith(b"\r\n\r\nall<end>")
    assert client.http.fd == -1


def test_continue_is_said_while_a_body_is_awaited(client):
    client.says(POST.replace(b"Host", b"Expect: 100-continue\r\nHost"))
    assert client.hears() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.told.requests[0].more_body


# becoming a WebSocket


def test_an_upgrade(client):
    client.says(UPGRADE)
    (request,) = client.told.requests
    assert request.upgrade
    assert request.socket == client.http.number
    assert client.phase is Phase.UPGRADING
    client.says(b"\x81\x80early")
    leftover = client.http.upgraded(Response(2, 101, "", [("Sec-WebSocket-Protocol", "chat")], b"", False))
    assert leftover == b"\x81\x80early"
    owner = Owner(None, 0)
    connection = client.http.websocket(client.http.number, owner)
    assert type(connection) is Connection
    assert connection.owner is owner
    assert connection.fd == client.http.fd
    client.turn.reactor.replace(connection.fd, connection)
    client.http.is_replaced()
    connection.flush()
    answer = client.hears()
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer  # RFC 6455 §1.3
    assert b"Sec-WebSocket-Protocol: chat" in answer
    assert client.phase is Phase.GONE
    connection.close_fd()


@pytest.mark.parametrize("compression", [True, False])
def test_compression_is_agreed_on_if_both_want_it(make, compression):
    client = make(compression=compression)
    client.says(UPGRADE.replace(b"Host", b"Sec-WebSocket-Extensions: permessage-deflate\r\nHost"))
    client.http.upgraded(Response(2, 101, "", [], b"", False))
    connection = client.http.websocket(client.http.number, Owner(None, 0))
    assert bool(connection.deflate) is compression
    assert (b"permessage-deflate" in client.hears()) is compression
    client.http.is_replaced()
    connection.close_fd()


def test_a_connection_whose_upgrade_was_refused_goes_on(client):
    client.says(UPGRADE)
    client.answer(403, b"no")
    assert b"403" in client.hears()
    assert client.phase is Phase.IDLE
    client.says(GET)
    assert len(client.told.requests) == 2
    client.answer()
    assert client.hears().startswith(OK)


def test_what_came_behind_a_refused_upgrade_is_not_read_as_http(client):
    client.says(UPGRADE)
    client.says(b"\x81\x80abcd")
    client.answer(403, b"no")
    answer = client.hears()
    assert b"Connection: close" in answer
    assert answer.endswith(b"<end>")
    assert client.http.fd == -1


def test_too_much_before_the_101(client):
    client.says(UPGRADE)
    client.says(b"x" * 65_000)
    assert client.phase is Phase.UPGRADING
    client.says(b"x" * 1_000)
    assert client.hears().startswith(b"HTTP/1.1 400 ")
    assert isinstance(client.told.followed[-1], Abort)


def test_one_protocol_of_those_offered_reaches_the_worker(client):
    client.says(UPGRADE.replace(b"websocket", b"h2c, websocket"))
    assert dict(client.told.requests[0].headers)["Upgrade"] == "websocket"


# ends


def test_a_host_that_gives_up(client):
    client.says(GET)
    client.http.on_abort(Abort(2, "The worker failed."))
    assert client.hears().startswith(b"HTTP/1.1 502 ")
    assert client.phase is Phase.CLOSING
    client.answer()  # too late
    assert client.hears() == b"<end>"


def test_a_host_that_gives_up_within_its_answer(client):
    client.says(GET)
    client.answer(body=b"some", more=True)
    client.http.on_abort(Abort(2, "The worker failed."))
    assert client.hears().endswith(b"4\r\nsome\r\n<end>")  # no last chunk: the client sees that it was cut


def test_a_client_that_leaves(client):
    client.says(POST)
    client.socket.close()
    client.ready()
    assert client.http.fd == -1
    assert client.told.followed == [Abort(2, "The client disconnected.")]
    assert client.told.over == [2]


def test_a_half_closed_client_gets_what_it_has_asked_for(client):
    client.says(GET)
    client.ends()
    assert client.http.is_half_closed
    assert not client.http.wanted() & READ
    assert client.turn.looked == [5.0]
    client.answer()
    assert client.hears().endswith(b"hi<end>")
    assert client.http.fd == -1


def test_a_half_closed_client_that_is_owed_nothing_is_let_go(client):
    client.ends()
    assert client.http.fd == -1


def test_a_client_that_does_not_read_stalls_its_own_requests(client):
    client.says(GET + GET)
    client.answer(body=b"x" * (8 << 20))
    assert client.http.wanted() & READ == 0
    assert client.turn.reactor.masks[client.http.fd] & WRITE
    assert len(client.told.requests) == 1
    for _ in range(200):
        received(client.socket)
        if not client.turn.reactor.masks[client.http.fd] & WRITE:
            break
        client.ready(WRITE)
    assert len(client.told.requests) == 2


@pytest.mark.parametrize(
    ("does", "after_s", "counted"),
    [(b"", 10, 1), (GET[:10], 10, 1), (GET, None, 0), (POST, 60, 0), (b"nonsense\r\n\r\n", 5, 0)],
)
def test_clients_that_take_too_long(client, does, after_s, counted):
    client.says(does)
    now = client.turn.loop.time()
    if after_s is None:
        assert client.http.expire(now + 1000) == now + 1010  # we are to answer; look again
        return
    assert client.http.expire(now + after_s - 0.1) == now + after_s
    assert client.http.fd >= 0
    assert client.http.expire(now + after_s) is None
    assert client.http.fd == -1
    assert client.turn.counters.closed_head_timeout == counted


def test_between_requests_a_client_may_be_idle(client):
    client.says(GET)
    client.answer()
    now = client.turn.loop.time()
    assert client.http.between_requests
    assert client.http.expire(now) == now + 75
    assert client.http.described() == HttpState(client.http.fd, "192.0.2.7", "http")
    client.turn.quiescing = True
    assert client.http.wanted() == 0  # another gateway is about to read


def test_draining_gives_each_client_its_last_answer(client):
    client.says(GET)
    client.turn.draining = True
    client.answer()
    answer = client.hears()
    assert b"Connection: close" in answer
    assert answer.endswith(b"<end>")


def test_cut(client):
    client.says(GET)
    client.http.cut("The server was upgraded.")
    assert client.hears().startswith(b"HTTP/1.1 502 ")
    assert client.http.fd == -1
    assert client.told.followed[0] == Abort(2, "The server was upgraded.")


def test_a_descriptor_that_breaks_while_it_is_answered(client):
    client.says(GET)
    client.socket.close()
    client.answer(body=b"x" * (4 << 20))
    client.answer(body=b"x")
    client.ready(WRITE)
    assert client.http.fd == -1
    assert client.phase is Phase.GONE
    assert client.turn.counters.connections == 0
    assert client.told.left_fds


def test_every_legal_move_was_made():
    """Behind all others: nothing in the table is unused, but for what stays where it is."""
    if len(MOVES) < 5:
        pytest.skip("it looks at what the other tests here have done")
    legal = {(before, after) for before, follows in FOLLOWS.items() for after in follows if before is not after}
    assert legal - MOVES <= {(Phase.REQUEST, Phase.IDLE)}, legal - MOVES
