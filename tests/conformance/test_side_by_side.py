"""One worker in JavaScript on workerd, the same in Python on Roost, one raw client: what differs is known, and why.

Each scenario is a list of steps of a client that sends bytes and writes down everything it sees; the program's own log is
read at the end. `DIFFERENCES` names the scenarios that differ; docs/reference/compatibility.md has each with its reason.
"""

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beside import WORKERD, side_by_side
from roost.protocol.websocket import CloseFrame, Decoder, Failure, Ping, Pong, encode_message, mask_frame
from roost.testing.rawws import http_get

HERE = Path(__file__).parent / "side_by_side"
COMPATIBILITY = Path(__file__).parents[2] / "docs/reference/compatibility.md"
MASK = b"\x11\x22\x33\x44"

pytestmark = [
    pytest.mark.skipif(not WORKERD and not os.environ.get("CI"), reason="no workerd: tests/conformance/install_npm.sh"),
    pytest.mark.timeout(300),
]

UPGRADE = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
QUIET_S = 0.4  # nothing more comes: how long a transcript waits to be sure


def text(message):
    return mask_frame(encode_message(message.encode(), True), MASK)


def binary(message):
    return mask_frame(encode_message(message, False), MASK)


def control(opcode, payload=b""):
    return mask_frame(bytes((0x80 | opcode, len(payload))) + payload, MASK)


def close(code, reason=""):
    return control(8, code.to_bytes(2, "big") + reason.encode())


def fragments(*pieces):
    frames = b""
    for nth, piece in enumerate(pieces):
        head = (1 if nth == 0 else 0) | (0x80 if nth == len(pieces) - 1 else 0)
        frames += mask_frame(bytes((head, len(piece))) + piece, MASK)
    return frames


# What is sent after the handshake: bytes, "end" (our half of the stream), "reset", or "wait".
HANDSHAKES = {
    "a good upgrade": {},
    "no upgrade": {"Upgrade": None, "Connection": None},
    "Upgrade in capitals": {"Upgrade": "WebSocket"},
    "no Connection header": {"Connection": None},
    "no key": {"Sec-WebSocket-Key": None},
    "a short key": {"Sec-WebSocket-Key": "abcd"},
    "version 12": {"Sec-WebSocket-Version": "12"},
    "protocols offered and none chosen": {"Sec-WebSocket-Protocol": "a, b"},
    "compression offered": {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"},
    "an unknown extension": {"Sec-WebSocket-Extensions": "foo"},
    "another origin": {"Origin": "http://elsewhere.example"},
    "no Host": {"Host": None},
}
SCENARIOS = {
    "text": [text("hello")],
    "empty text": [text("")],
    "emoji and NUL": [text("\U0001f600\0é")],
    "binary": [binary(b"\x00\xff\x80")],
    "64 KiB": [text("x" * 65536)],
    "fragments with a ping between": [fragments(b"he", b"ll")[:-8], control(9, b"p"), fragments(b"x", b"lo")[7:]],
    "a ping": [control(9, b"payload")],
    "a ping of 125 bytes": [control(9, b"x" * 125)],
    "a pong nobody asked for": [control(10, b"x"), text("hello")],
    "200 messages at once": [b"".join(text(str(n)) for n in range(200))],
    "the client closes": [close(1000, "bye")],
    "the client closes without a code": [control(8)],
    "the client closes with 4999": [close(4999, "é" * 60)],
    "a close that the handler answers": [close(4000, "answer me")],
    "a close of code 999": [close(999)],
    "a close of code 1005": [close(1005)],
    "a close of one byte": [control(8, b"\x03")],
    "text and close at once": [text("hello") + close(1000)],
    "the program closes": [text("close 4001 bye"), close(4001, "bye")],
    "the program closes without a code": [text("close"), control(8)],
    "the program closes with 1001": [text("close 1001 going"), close(1001, "going")],
    "send after close": [text("after"), close(4000, "x")],
    "wrong close codes": [text("codes")],
    "a handler that throws": [text("throw"), text("hello")],
    "end of stream": ["end"],
    "readyState after a cut": ["end"],
    "reset": ["reset"],
    "end in the middle of a frame": [text("hello")[:4], "end"],
    "a reserved bit": [b"\xc1\x80" + MASK],
    "opcode 3": [b"\x83\x80" + MASK],
    "a stray continuation": [b"\x80\x80" + MASK],
    "a new message inside one": [fragments(b"a", b"b")[:7] + text("c")],
    "a fragmented ping": [b"\x09\x80" + MASK],
    "a ping of 126 bytes": [b"\x89\xfe\x00\x7e" + MASK + b"x" * 126],
    "an unmasked frame": [encode_message(b"hello", True)],
    "text that is not UTF-8": [mask_frame(encode_message(b"\xff\xfe", True), MASK)],
    "a length with the top bit set": [b"\x82\xff\x80\0\0\0\0\0\0\0" + MASK],
    "a length of more than 32 MiB": [b"\x82\xff" + (32 * 1024 * 1024 + 1).to_bytes(8, "big") + MASK],
}
ONLY_HIBERNATABLE = {
    "state, tags, attachment": [text("state")],
    "an auto-response": [text("auto"), text("ping"), text("ping "), text("state")],
}

# What differs, and the row of the compatibility table that says why (by its first cell).
_CLOSING, _PROTOCOL, _ENDS = "closing", "protocol:", "the connection after"
DIFFERENCES = {
    "no Connection header (hibernatable)": "handshake without",
    "a short key (hibernatable)": "handshake without",
    "the client closes (hibernatable)": _CLOSING,
    "the client closes without a code (hibernatable)": _CLOSING,
    "the client closes with 4999 (hibernatable)": _CLOSING,
    "text and close at once (hibernatable)": _CLOSING,
    "text and close at once (plain)": _CLOSING,
    "a close of code 999 (hibernatable)": _PROTOCOL,
    "a close of code 999 (plain)": _PROTOCOL,
    "a close of code 1005 (hibernatable)": _PROTOCOL,
    "a close of code 1005 (plain)": _PROTOCOL,
    "a close of one byte (hibernatable)": _PROTOCOL,
    "a close of one byte (plain)": _PROTOCOL,
    "a ping of 126 bytes (hibernatable)": _PROTOCOL,
    "a ping of 126 bytes (plain)": _PROTOCOL,
    "a reserved bit (plain)": _PROTOCOL,
    "an unmasked frame (hibernatable)": _PROTOCOL,
    "an unmasked frame (plain)": _PROTOCOL,
    "text that is not UTF-8 (hibernatable)": _PROTOCOL,
    "text that is not UTF-8 (plain)": _PROTOCOL,
    "a reserved bit (hibernatable)": _ENDS,
    "opcode 3 (hibernatable)": _ENDS,
    "a stray continuation (hibernatable)": _ENDS,
    "a new message inside one (hibernatable)": _ENDS,
    "a fragmented ping (hibernatable)": _ENDS,
    "a length with the top bit set (hibernatable)": _ENDS,
    "a length of more than 32 MiB (hibernatable)": _ENDS,
    "end of stream (hibernatable)": _ENDS,
    "end in the middle of a frame (hibernatable)": _ENDS,
    "a handler that throws (plain)": "a listener that raises",
    "readyState after a cut (hibernatable)": _ENDS,
    "readyState after a cut (plain)": "`readyState` in a close listener",
}


class Transcript:
    """Drive one connection and write down what it sees."""

    def __init__(self, port, path, headers):
        self.seen = []
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        fields = {**UPGRADE, **headers}
        request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields.items() if v is not None)
        self.sock.sendall(request.encode() + b"\r\n")
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                break
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        names = {line.split(":")[0].lower(): line.split(":", 1)[1].strip() for line in lines}
        self.status = int(first.split()[1]) if first else 0
        told = {name: names[name] for name in ("sec-websocket-accept", "sec-websocket-protocol") if name in names}
        told["compressed"] = "permessage-deflate" in names.get("sec-websocket-extensions", "")
        self.seen.append(["handshake", self.status, told])
        self._decoder = Decoder(64 * 1024 * 1024, masked=False)
        self._ended = False
        if self.status == 101:
            self._note(rest)

    def _note(self, data):
        for event in self._decoder.feed(data):
            if isinstance(event, str | bytes):
                self.seen.append(["message", event if len(event) < 100 else len(event)])
            elif isinstance(event, CloseFrame):
                self.seen.append(["close", event.code])  # reasons of the runtimes' own are worded as they like
            elif isinstance(event, Ping | Pong):
                self.seen.append([type(event).__name__.lower(), event.payload])
            elif isinstance(event, Failure):
                self.seen.append(["bad frame"])

    def listen(self):
        """Until nothing has come for a while, or the end."""
        self.sock.settimeout(QUIET_S)
        while not self._ended:
            try:
                data = self.sock.recv(262144)
            except TimeoutError:
                return
            except ConnectionError:
                data = b""
            if data:
                self._note(data)
            else:
                self._ended = True
                self.seen.append(["end"])

    def run(self, steps):
        for step in steps:
            try:
                if step == "end":
                    self.sock.shutdown(socket.SHUT_WR)
                elif step == "reset":
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    self.sock.close()
                    self.seen.append(["we are gone"])
                    return
                else:
                    self.sock.sendall(step)
            except OSError:
                pass  # it has ended already, which is in the transcript
            self.listen()


def play(port, name, kind, headers, steps):
    room = f"{name.replace(' ', '-')}-{kind}"
    transcript = Transcript(port, f"/{room}/{kind}?tag=x", headers)
    if transcript.status == 101:
        transcript.run(steps)
    transcript.sock.close()
    if transcript.status != 101:
        return transcript.seen
    before = None
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # the program hears of the end a moment later
        log = json.loads(http_get(port, f"/{room}/log")[2])
        if log and log[-1][0] in ("close", "error") and log == before:
            break
        before = log
        time.sleep(0.05)
    return [*transcript.seen, ["the program saw", log]]


@pytest.fixture(scope="module")
def ports():
    with side_by_side(HERE, "/x/log") as ports:
        yield ports


def both(ports, name, kind, headers, steps):
    with ThreadPoolExecutor(2) as threads:
        playing = {server: threads.submit(play, port, name, kind, headers, steps) for server, port in ports.items()}
        return {server: played.result() for server, played in playing.items()}


def compare(seen, name, kind):
    differs = seen["roost"] != seen["workerd"]
    reason = DIFFERENCES.get(f"{name} ({kind})")
    if differs and reason is None:
        pytest.fail(f"{name} ({kind}):\n  workerd {seen['workerd']}\n  roost   {seen['roost']}")
    if reason is not None:
        assert differs, f"{name} ({kind}) does not differ any more: take it out of DIFFERENCES and the compatibility table"
        rows = [line.split("|")[1] for line in COMPATIBILITY.read_text().splitlines() if line.startswith("|")]
        assert any(reason in row for row in rows), f"the compatibility table has no row about {reason!r}"


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake(ports, name):
    compare(both(ports, name, "hibernatable", HANDSHAKES[name], []), name, "hibernatable")


@pytest.mark.parametrize("kind", ["hibernatable", "plain"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(ports, name, kind):
    compare(both(ports, name, kind, {}, SCENARIOS[name]), name, kind)


@pytest.mark.parametrize("name", ONLY_HIBERNATABLE)
def test_scenario_of_hibernatable_sockets(ports, name):
    compare(both(ports, name, "hibernatable", {}, ONLY_HIBERNATABLE[name]), name, "hibernatable")


def test_a_chosen_subprotocol(ports):
    offered = {"Sec-WebSocket-Protocol": "a, b"}
    transcripts = {server: Transcript(port, "/p/plain?protocol=b", offered) for server, port in ports.items()}
    for transcript in transcripts.values():
        transcript.sock.close()
    assert transcripts["roost"].seen == transcripts["workerd"].seen
    assert transcripts["roost"].seen[0][2]["sec-websocket-protocol"] == "b"
