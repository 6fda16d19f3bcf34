"""api/websocket.py: the send/close state matrix of reference 2.2, with a recording port and no loop."""

import contextvars

import pytest

from roost.api.buffers import ArrayBuffer
from roost.api.runtime import Compat, current_context
from roost.api.socket_checks import check_protocols, check_url
from roost.api.socket_end import Accept, Item, SocketEnd
from roost.api.websocket import WebSocket, WebSocketPair
from roost.errors import JsException, JsTypeError
from roost.events import RosterEntry, Send
from roost.protocol.envelope import Splitter, encode
from roost.protocol.websocket import encode_message


class Port:
    def __init__(self):
        self.said = []

    def send_message(self, number, payload, text):
        self.said.append(("send", number, payload, text))

    def close_socket(self, number, code, reason):
        self.said.append(("close", number, code, reason))

    def attach(self, number, attachment):
        self.said.append(("attach", number))


class Context:
    compat = Compat()

    def __init__(self):
        self.errors = []

    def deliver(self, socket, item):
        socket.dispatch_item(item)

    def deliver_pending(self, socket):
        while socket.kept_items:
            socket.dispatch_item(socket.kept_items.pop(0))

    def socket_opened(self, socket):
        pass

    def run_callback(self, function, *args, what):
        try:
            function(*args)
        except Exception as error:
            self.errors.append(error)


@pytest.fixture
def context():
    token = current_context.set(Context())
    yield current_context.get()
    current_context.reset(token)


@pytest.fixture
def pair(context):
    return WebSocketPair.new().object_values()


def connected(server):
    port = Port()
    server.connect_to(port, 7)
    return port


def test_pair_protocol():
    pair = WebSocketPair.new()
    client, server = pair
    assert (client, server) == pair.object_values() == (pair[0], pair["1"])
    assert pair.object_keys() == ("0", "1")
    assert len(pair) == 2
    assert client.readyState == WebSocket.OPEN == 1  # before accept, too
    assert client.url is None
    assert client.protocol == client.extensions == ""


def test_unaccepted_send_and_close_throw(pair):
    for call in (lambda: pair[1].send("x"), lambda: pair[1].close()):
        with pytest.raises(TypeError, match="You must call one of accept"):
            call()


def test_what_is_sent_before_the_other_side_is_there_waits_in_order(pair):
    client, server = pair
    server.accept()
    server.send("one")
    server.send(b"two")
    server.close(4000, "done")
    assert [(item.kind, item.data, item.code) for item in client.kept_items] == [
        ("message", "one", 0),
        ("message", b"two", 0),
        ("close", "", 4000),
    ]


def test_messages_before_accept_are_delivered_at_accept(pair):
    client, server = pair
    client.accept()
    client.send("early")
    heard = []
    server.addEventListener("message", lambda event: heard.append(event.data))
    assert heard == []
    server.accept()
    assert heard == ["early"]
    server.accept()  # silently ignored


def test_send_after_own_close_throws_and_names_the_fix(pair):
    server = pair[1]
    server.accept()
    port = connected(server)
    server.close(1000, "bye")
    with pytest.raises(TypeError, match=r"Can't call WebSocket send\(\) after close\(\).*not connected.*readyState"):
        server.send("x")
    server.close()  # second close: ignored
    assert port.said == [("close", 7, 1000, "bye")]
    assert server.readyState == WebSocket.CLOSING


def test_close_from_the_peer_is_answered_by_the_runtime(pair):
    server = pair[1]
    server.accept()
    port = connected(server)
    seen = []
    server.addEventListener("close", lambda e: seen.append((e.code, e.reason, e.wasClean, server.readyState)))
    server.dispatch_item(Item("close", code=4001, reason="r"))
    assert port.said == [("close", 7, 4001, "r")]
    assert seen == [(4001, "r", True, WebSocket.CLOSED)]
    server.close(1000)  # W5: ignored, never throws
    assert len(port.said) == 1


def test_half_open(pair):
    """W6."""
    server = pair[1]
    server.accept(allowHalfOpen=True)
    port = connected(server)
    server.dispatch_item(Item("close", code=1000))
    assert server.readyState == WebSocket.CLOSING
    server.send("last words")
    server.close(1000)
    assert port.said == [("send", 7, b"last words", True), ("close", 7, 1000, "")]
    assert server.readyState == WebSocket.CLOSED


def test_send_after_abrupt_loss_is_silent(pair):
    server = pair[1]
    server.accept()
    port = connected(server)
    server.dispatch_item(Item("close", code=1006, reason="gone", clean=False))
    server.send("x")
    server.close()
    assert port.said == []
    assert server.readyState == WebSocket.CLOSED


@pytest.mark.parametrize("value", [{"a": 1}, [1], 5, None, object()])
def test_send_of_an_object_names_json_dumps(pair, value):
    pair[1].accept()
    with pytest.raises(TypeError, match=r"Serialization error.*json\.dumps"):
        pair[1].send(value)


def test_surrogates_become_replacement_characters(pair):
    """W11."""
    server = pair[1]
    server.accept()
    port = connected(server)
    server.send("a\ud800b")
    assert port.said == [("send", 7, "a\ufffdb".encode(), True)]
    server.close(1000, "x\udc00")
    assert port.said[-1] == ("close", 7, 1000, "x\ufffd")


def test_buffers_are_copied_at_the_call(pair):
    server = pair[1]
    server.accept()
    port = connected(server)
    buffer = bytearray(b"abc")
    server.send(buffer)
    buffer[0] = 0
    assert port.said == [("send", 7, b"abc", False)]


def test_a_buffer_that_cannot_change_is_not_copied(pair):
    server = pair[1]
    server.accept()
    port = connected(server)
    buffer = ArrayBuffer(b"what came")
    server.send(buffer)
    assert port.said[0][2] is buffer
    event = Send([7], buffer, False)
    assert Splitter(1000).feed(encode(event)) == [Send([7], b"what came", False)]
    assert type(encode_message(buffer, False)) is bytes


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 3000, 4999])
def test_close_codes_allowed(pair, code):
    pair[1].accept()
    pair[1].close(code)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000, "1000"])
def test_close_codes_refused_before_any_state_check(pair, code):
    with pytest.raises(JsException) as caught:
        pair[1].close(code)
    assert caught.value.name == "InvalidAccessError"


@pytest.mark.parametrize(("reason", "fits"), [("x" * 123, True), ("x" * 124, False), ("é" * 61, True), ("é" * 62, False)])
def test_close_reason_length(pair, reason, fits):
    """W10."""
    pair[1].accept()
    if fits:
        pair[1].close(1000, reason)
    else:
        with pytest.raises(JsException) as caught:
            pair[1].close(1000, reason)
        assert caught.value.name == "SyntaxError"


def test_reason_without_code(pair):
    with pytest.raises(JsException) as caught:
        pair[1].close(None, "why")
    assert caught.value.name == "InvalidAccessError"


def test_accept_outside_of_a_handler_names_the_fix():
    server = contextvars.Context().run(lambda: WebSocketPair.new()[1])
    with pytest.raises(JsTypeError, match=r"Cannot accept a WebSocket in this context.*inside the fetch handler"):
        contextvars.Context().run(server.accept)


def test_binary_type(pair):
    """W13."""
    server = pair[1]
    server.accept()
    heard = []
    server.addEventListener("message", lambda event: heard.append(event.data))
    assert server.binaryType == "blob"
    server.binaryType = "nonsense"
    assert server.binaryType == "blob"
    server.dispatch_item(Item("message", b"one"))
    server.binaryType = "arraybuffer"
    server.dispatch_item(Item("message", b"two"))
    assert heard[0].raw == b"one"
    assert heard[1] == b"two"
    assert heard[1].byteLength == 3


def test_listeners(pair, context):
    server = pair[1]
    server.accept()
    heard = []

    def each(event):
        heard.append(("each", event.data))

    server.addEventListener("message", each)
    server.addEventListener("message", lambda event: heard.append(("once", event.data)), {"once": True})
    server.onmessage = lambda event: heard.append(("on", event.data))
    server.dispatch_item(Item("message", "1"))
    server.removeEventListener("message", each)
    server.onmessage = None
    server.dispatch_item(Item("message", "2"))
    assert heard == [("each", "1"), ("once", "1"), ("on", "1")]
    server.addEventListener("message", lambda event: 1 / 0)
    server.dispatch_item(Item("message", "3"))
    assert isinstance(context.errors[0], ZeroDivisionError)
    server.send("still up")
    with pytest.raises(TypeError, match="needs a function"):
        server.addEventListener("message", "no")


def test_attachments(pair):
    server = pair[1]
    assert server.deserializeAttachment() is None
    value = {"a": [1]}
    server.serializeAttachment(value)
    value["a"].append(2)
    assert server.deserializeAttachment() == {"a": [1]}
    server.serializeAttachment(b"x" * (16_384 - 4))
    with pytest.raises(JsException, match="16384 bytes"):
        server.serializeAttachment("x" * 16_384)
    with pytest.raises(JsException) as caught:
        server.serializeAttachment({"f": print})
    assert caught.value.name == "DataCloneError"


def test_attachment_reaches_the_port_of_a_hibernatable_socket(pair, context):
    server = pair[1]
    server.accept_with(context, Accept.HIBERNATABLE)
    port = connected(server)
    server.serializeAttachment(1)
    assert port.said == [("attach", 7)]
    with pytest.raises(TypeError, match="after enabling hibernation"):
        server.accept()


@pytest.mark.parametrize("url", ["http://a/", "ws://", "ws://a/#f", "nonsense", "ws://a:99999/", "ws://[::1/"])
def test_bad_urls(url):
    with pytest.raises(JsException) as caught:
        check_url(url)
    assert caught.value.name == "SyntaxError"


def test_good_urls():
    assert check_url("wss://user:pw@a:8443/x?y=1") == "wss://a:8443/x?y=1"
    assert check_url("ws://[::1]/") == "ws://[::1]/"


def test_protocols():
    """W8, W9."""
    assert check_protocols(None) == check_protocols([]) == []
    assert check_protocols("chat") == ["chat"]
    for bad in ("a b", ["x", "x"], [""]):
        with pytest.raises(JsException) as caught:
            check_protocols(bad)
        assert caught.value.name == "SyntaxError"


def test_a_restored_socket_lacks_nothing_that_a_new_one_has():
    entry = RosterEntry(7, ("a",), None, 0, "", "chat", close_sent=False)
    restored = WebSocket.restored(entry, Context(), Port())
    new = WebSocket()
    names = (*SocketEnd.__slots__, "__dict__")
    differ = {name for name in names if getattr(restored, name) != getattr(new, name)}
    assert differ == {"accepted_as", "io_context", "may_send", "protocol", "socket_number", "socket_port", "socket_tags"}


def test_attributes_of_worker_code_do_not_meet_those_of_the_host():
    """People write `ws.tags = …`, `ws.number = …`; what the host keeps on a socket has longer names."""
    likely = {
        "accepted", "attachment", "channel", "client", "closed", "connect", "context", "data", "failed", "id", "keep",
        "kept", "name", "number", "peer", "pending", "player", "port", "ready", "room",
        "session", "state", "tags", "used", "user",
    }  # fmt: skip
    taken = {name for name in dir(WebSocket) if not name.startswith("_")}
    assert not likely & taken
