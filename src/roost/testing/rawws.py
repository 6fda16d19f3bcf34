"""A blocking WebSocket client over a bare socket: it sends any bytes, and shows frames as they came."""

from __future__ import annotations

import base64
import os
import socket
from typing import TYPE_CHECKING, Self

from roost.protocol.websocket import (
    CloseFrame,
    Decoder,
    Failure,
    FrameEvent,
    Opcode,
    Ping,
    Pong,
    close_payload,
    encode_control,
    encode_message,
    mask_frame,
)

if TYPE_CHECKING:
    import ssl
    from types import TracebackType


def open_socket(port: int, timeout_s: float = 10.0, tls: ssl.SSLContext | None = None) -> socket.socket:
    """A TCP connection to a local port, with TLS to `localhost` if a context is given."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
    return sock if tls is None else tls.wrap_socket(sock, server_hostname="localhost")


def http_get(
    port: int,
    path: str = "/",
    headers: dict[str, str] | None = None,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers by lower-case name, body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    with open_socket(port, tls=tls) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    if fields.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return int(first.split()[1]), fields, body


def _unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return body


class HandshakeRefused(Exception):
    """The server did not answer 101. `status`, `headers` and `body` are what it said."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(f"{status}: {body[:200].decode('latin-1')}")
        self.status = status
        self.headers = headers
        self.body = body


class RawWebSocket:
    """An open WebSocket. Pings are answered only by `recv`; closing is the caller's."""

    def __init__(
        self,
        port: int,
        path: str = "/",
        headers: dict[str, str] | None = None,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.sock = open_socket(port, timeout_s, tls)
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
            **(headers or {}),
        }
        request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields.items()) + "\r\n"
        self.sock.sendall(request.encode())
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                break
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1]) if first else 0
        if status != 101:
            self.sock.settimeout(2)
            try:
                while piece := self.sock.recv(65536):
                    rest += piece
            except TimeoutError:
                pass
            self.sock.close()
            raise HandshakeRefused(status, self.headers, rest)
        compressed = "sec-websocket-extensions" in self.headers  # only what was offered can have been chosen
        self._decoder = Decoder(64 * 1024 * 1024, masked=False, deflate=compressed)
        self._events: list[FrameEvent] = self._decoder.feed(rest)

    def send(self, message: str | bytes) -> None:
        """A whole message, masked."""
        text = isinstance(message, str)
        payload = message.encode() if isinstance(message, str) else message
        self.send_bytes(mask_frame(encode_message(payload, text), os.urandom(4)))

    def send_bytes(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.sendall(data)

    def ping(self, payload: bytes = b"") -> None:
        self.send_bytes(mask_frame(encode_control(Opcode.PING, payload), os.urandom(4)))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a Close frame (1005: an empty one)."""
        self.send_bytes(mask_frame(encode_control(Opcode.CLOSE, close_payload(code, reason)), os.urandom(4)))

    def event(self, timeout_s: float | None = None) -> FrameEvent | None:
        """The next frame event; None at the end of the stream. Raises TimeoutError."""
        if timeout_s is not None:
            self.sock.settimeout(timeout_s)
        while not self._events:
            try:
                data = self.sock.recv(262144)
            except ConnectionError:
                return None
            if not data:
                return None
            self._events += self._decoder.feed(data)
        return self._events.pop(0)

    def recv(self, timeout_s: float | None = None) -> str | bytes:
        """The next message. Raises ConnectionError if the server closes instead, with the code in its text."""
        while True:
            event = self.event(timeout_s)
            if isinstance(event, str | bytes):
                return event
            if isinstance(event, Ping):
                self.send_bytes(mask_frame(encode_control(Opcode.PONG, event.payload), os.urandom(4)))
            elif isinstance(event, CloseFrame):
                raise ConnectionError(f"closed {event.code} {event.reason}")
            elif isinstance(event, Failure):
                raise AssertionError(f"the server sent bad frames: {event}")
            elif event is None:
                raise ConnectionError("closed 1006 end of stream")

    def recv_close(self, timeout_s: float | None = None) -> tuple[int, str]:
        """Skip to the Close frame: code and reason; (1006, "") at the end of the stream without one."""
        while True:
            event = self.event(timeout_s)
            if event is None:
                return 1006, ""
            if isinstance(event, CloseFrame):
                return event.code, event.reason

    def at_end(self, timeout_s: float = 5.0) -> bool:
        """Whether the server ends the stream within the time (what it still sends is skipped)."""
        try:
            while self.event(timeout_s) is not None:
                pass
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """End without a Close frame."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.sock.close()


__all__ = ["CloseFrame", "HandshakeRefused", "Ping", "Pong", "RawWebSocket", "http_get", "open_socket"]
