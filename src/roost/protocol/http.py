"""HTTP/1.1 heads and bodies: bytes ↔ events. Pure; the parsing itself is llhttp's.

What llhttp accepts and Roost refuses is here: several or no Host, HTTP/0.9, oversized heads. Requests are refused,
never repaired: what two parsers may read differently is how requests are smuggled (RFC 9112 §11.2).

Source: RFC 9112; RFC 9110.
"""

from __future__ import annotations

import ipaddress
import re
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import httptools
import msgspec

from roost.errors import RemoteProtocolError
from roost.events import Headers


class HeadLimits(msgspec.Struct, frozen=True):
    """How large a request head may be: bytes in all, and number of header fields."""

    max_head_bytes: int = 32 * 1024
    max_headers: int = 100


class RequestHead(msgspec.Struct, frozen=True):
    """A request line and its header fields. `upgrade` is whether bytes after the head are no longer HTTP. `fields` has the
    headers by their lower-case names, the values of a repeated one joined by commas (RFC 9110 §5.3)."""

    method: str
    target: str
    headers: Headers
    keep_alive: bool
    upgrade: bool
    version: str = "1.1"
    fields: dict[str, str] = {}


class Data(msgspec.Struct, frozen=True):
    """A piece of the body of the last head."""

    data: bytes


class EndOfMessage(msgspec.Struct, frozen=True):
    """The last head's body is complete."""


class ResponseHead(msgspec.Struct, frozen=True):
    """A status line and its header fields."""

    status: int
    reason: str
    headers: Headers


HttpEvent = RequestHead | Data | EndOfMessage


class RequestParser:
    """Requests of one connection, in order. `feed` raises RemoteProtocolError with the status to answer and close with.

    Events that were complete before the fault stay in `events`; the caller takes them first.
    """

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self.events: list[HttpEvent] = []
        self.leftover = b""
        self._url = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._in_head = True
        self.between = True  # no request has begun, or the last one is complete
        self._ended_here = False  # a request, in what is being parsed
        self._in_line = True  # the end of the request line has not come
        self._fault: RemoteProtocolError | None = None

    def close(self) -> None:
        """Let go of the parser, which refers back to this object: without it both would wait for the cycle collector."""
        del self._parser

    def feed(self, data: bytes) -> None:
        """Parse more bytes. After an upgrade, what follows the head is in `leftover`."""
        before = len(self.events)
        self._ended_here = False
        if self._in_line:
            if not data.isascii():
                data = self._in_ascii(data)
            elif b"\n" in data:
                self._in_line = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.leftover = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            raise self._fault or RemoteProtocolError(400, "The request cannot be parsed.") from error
        except httptools.HttpParserError as error:
            raise RemoteProtocolError(400, f"Malformed HTTP request: {error}.") from error
        if self._in_head:
            self._head_bytes = self._head_bytes + len(data) if len(self.events) == before else 0
            if self._head_bytes > self._limits.max_head_bytes:
                raise RemoteProtocolError(431, f"The request head exceeds {self._limits.max_head_bytes} bytes.")

    def _in_ascii(self, data: bytes) -> bytes:
        """With the request line percent-encoded: some clients write the target in UTF-8 (URL standard §4.3)."""
        end = data.find(b"\n")
        if end >= 0:
            self._in_line = False
        line = data[:end] if end >= 0 else data
        if line.isascii():
            return data
        return b"".join(b"%%%02X" % byte if byte > 127 else bytes((byte,)) for byte in line) + data[len(line) :]

    def _refuse(self, status: int, reason: str) -> None:
        self._fault = RemoteProtocolError(status, reason)
        raise self._fault

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self.between = False
        if self._ended_here:  # its line was read with what came before
            self._in_line = False
        self._url = b""
        self._headers = []
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # trailers (RFC 9112 §7.1.2): read and dropped, so they can neither smuggle nor grow
        headers = self._headers
        if len(headers) == self._limits.max_headers:
            self._refuse(431, f"More than {self._limits.max_headers} header fields.")
        headers.append((name.decode("latin-1"), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        version = parser.get_http_version()
        size = len(self._url)
        fields: dict[str, str] = {}
        for name, value in self._headers:
            size += len(name) + len(value) + 4
            lower = name.lower()
            if lower not in fields:
                fields[lower] = value
            elif lower == "host":
                self._refuse(400, "A request must have exactly one Host header.")
            elif lower == "cookie":
                fields[lower] += f"; {value}"  # RFC 6265 §5.4; some clients send one a line (RFC 9113 §8.2.3)
            else:
                fields[lower] += f", {value}"  # what a list is (RFC 9110 §5.3), and nothing valid where one is expected
        if ";" in fields.get("cookie", "") and sum(name.lower() == "cookie" for name, _ in self._headers) > 1:
            others = [field for field in self._headers if field[0].lower() != "cookie"]
            self._headers = [*others, ("Cookie", fields["cookie"])]
        if size > self._limits.max_head_bytes:
            self._refuse(431, f"The request head exceeds {self._limits.max_head_bytes} bytes.")
        if version not in ("1.1", "1.0"):
            self._refuse(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if version == "1.1" and "host" not in fields:
            self._refuse(400, "A request must have exactly one Host header.")
        if version == "1.0" and "transfer-encoding" in fields:
            self._refuse(400, "HTTP/1.0 has no Transfer-Encoding.")
        method = parser.get_method().decode("ascii")
        if method == "CONNECT":
            self._refuse(405, "CONNECT is not supported.")
        self._in_head = False
        self._head_bytes = 0
        self.events.append(
            RequestHead(
                method,
                self._url.decode("latin-1"),
                self._headers,
                parser.should_keep_alive() and version == "1.1",
                parser.should_upgrade(),
                version,
                fields,
            )
        )

    def on_body(self, data: bytes) -> None:
        self.events.append(Data(data))

    def on_message_complete(self) -> None:
        self.events.append(EndOfMessage())
        self._in_head = self.between = self._in_line = self._ended_here = True


_MAX_INTERIM: Final = 20


class ResponseParser:
    """One response to a request that Roost made (an outbound upgrade): its head, then `leftover` if it is a 101, else the
    beginning of its `body`. Interim responses (RFC 9110 §15.2) are passed over."""

    def __init__(self, max_head_bytes: int = 32 * 1024, max_body_bytes: int = 64 * 1024) -> None:
        self._buffer = bytearray()
        self._max = max_head_bytes
        self._max_body = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self.head: ResponseHead | None = None
        self.leftover = b""
        self.body = bytearray()
        self.complete = False  # nothing of the body is to come, or nothing that would be kept
        self._interim = 0
        self._reason = b""

    def feed(self, data: bytes) -> None:
        """More bytes; raises RemoteProtocolError if the response is malformed or its head too large."""
        if self.head is not None:
            self._feed_body(data)
            return
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[: end + 4])
            del self._buffer[: end + 4]
            self.head = self._parse_head(head)
            if self.head is not None:
                if self.head.status == 101:
                    self.leftover = bytes(self._buffer)
                else:
                    self._feed_body(bytes(self._buffer))
                return
        if len(self._buffer) > self._max:
            raise RemoteProtocolError(502, "The upstream's response head is too large.")

    def _parse_head(self, head: bytes) -> ResponseHead | None:
        """None for an interim one."""
        self._parse(head)
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise RemoteProtocolError(502, "The upstream sends interim responses without end.")
            self._parser, self._headers, self._reason, self.complete = httptools.HttpResponseParser(self), [], b"", False
            return None
        return ResponseHead(status, self._reason.decode("latin-1"), self._headers)

    def _feed_body(self, data: bytes) -> None:
        if data and not self.complete:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise RemoteProtocolError(502, f"The upstream's response is malformed: {error}.") from error

    def on_body(self, data: bytes) -> None:
        self.body += data[: self._max_body - len(self.body)]
        if len(self.body) >= self._max_body:
            self.complete = True

    def on_message_complete(self) -> None:
        self.complete = True

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))


def get_header(headers: Headers, name: str) -> str | None:
    """The first value of a field, by its lower-case name."""
    for field, value in headers:
        if field.lower() == name:
            return value
    return None


def has_token(value: str | None, token: str) -> bool:
    """Whether a comma-separated field's value holds `token`, without regard to case (RFC 9110 §5.6.1)."""
    if value is None:
        return False
    value = value.lower()
    return value == token or (token in value and token in [part.strip() for part in value.split(",")])


_HOST_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~%-]*))(?::([0-9]{0,5}))?\Z")


def is_host(text: str) -> bool:
    """Whether a Host header's value is a host and perhaps a port (RFC 9110 §7.2): a name, an IPv4 or a bracketed IPv6
    address, a port of at most 65535."""
    match = _HOST_PORT.match(text)
    if match is None or int(match[3] or 0) > 65535:
        return False
    if match[1] is None:
        return True
    try:
        ipaddress.IPv6Address(match[1])
    except ValueError:
        return False
    return True


_NOT_IN_NAME: Final = re.compile("[ \t\r\n:\0]").search
_NOT_IN_VALUE: Final = re.compile("[\r\n\0]").search


_USUAL: Final = frozenset({"Content-Type", "content-type", "Content-Length", "Date", "Cache-Control", "cache-control"})
_MAX_LINES: Final = 500
_lines: Final[dict[tuple[str, str], str]] = {}  # of usual fields, with values that were checked


def encode_head(status: int, reason: str, headers: Headers) -> bytes:
    """A response head. Raises ValueError if a name, value or the reason would end its line (response splitting), or cannot
    be sent as Latin-1."""
    if reason and _NOT_IN_VALUE(reason):
        raise ValueError("The status text has a character that would end its line.")
    lines = [f"HTTP/1.1 {status} {reason or reason_of(status)}"]
    lines += [_lines.get(field) or _line(field) for field in headers]
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError("A header or the status text has a character beyond Latin-1.") from error


def _line(field: tuple[str, str]) -> str:
    name, value = field
    if not name or _NOT_IN_NAME(name) or _NOT_IN_VALUE(value):
        raise ValueError(f"The header {name!r} has a character that must not be in a header.")
    line = f"{name}: {value}"
    if name in _USUAL:
        if len(_lines) >= _MAX_LINES:
            _lines.clear()
        _lines[field] = line
    return line


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


def reason_of(status: int) -> str:
    """The standard reason phrase of a status, or an empty one."""
    return _REASONS.get(status, "")


def http_date(seconds: float) -> str:
    """A Date header's value (RFC 9110 §5.6.7)."""
    return formatdate(seconds, usegmt=True)


def simple_response(status: int, text: str, headers: Headers | None = None, *, close: bool = False) -> bytes:
    """A whole response with a plain text body, as the gateway answers by itself."""
    body = text.encode()
    fields: Headers = [("Content-Type", "text/plain;charset=UTF-8"), ("Content-Length", str(len(body)))]
    fields += headers or []
    if close:
        fields.append(("Connection", "close"))
    return encode_head(status, "", fields) + body


def encode_request(method: str, target: str, headers: Headers) -> bytes:
    """A request head that Roost sends. Raises ValueError for a header that would end its line."""
    return encode_head(0, "", headers).replace(b"HTTP/1.1 0 ", f"{method} {target} HTTP/1.1".encode("latin-1"), 1)
