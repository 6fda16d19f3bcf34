"""What is fuzzed: functions of one input of bytes, which raise if something is wrong. Used by atheris and by hypothesis."""

import contextlib
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pyjson5

from roost.api.forms import parse_form
from roost.errors import ConfigError, JsException, RemoteProtocolError
from roost.node.config import read_app
from roost.node.settings import parse_settings
from roost.protocol import compression
from roost.protocol.compression import inflate
from roost.protocol.deflate import agree
from roost.protocol.envelope import Splitter
from roost.protocol.envelope import encode as encode_event
from roost.protocol.http import HeadLimits, RequestParser, ResponseParser
from roost.protocol.websocket import Decoder, decode_messages, decode_short_text
from roost.values import decode, encode

MAX_MESSAGE_BYTES = 65536


def frames(data):
    """The codec: every split of the same bytes gives the same events, within the limit."""
    whole = Decoder(MAX_MESSAGE_BYTES, masked=True, deflate=True)
    expected = whole.feed(data)
    split = Decoder(MAX_MESSAGE_BYTES, masked=True, deflate=True)
    step = data[0] % 13 + 1 if data else 1
    events = [event for start in range(0, len(data), step) for event in split.feed(data[start : start + step])]
    assert events == expected
    for event in expected:
        if isinstance(event, str | bytes):
            size = len(event.encode() if isinstance(event, str) else event)
            assert size <= MAX_MESSAGE_BYTES
    assert whole.buffered_bytes <= max(4096, 4 * len(data))
    messages, end = decode_messages(data, MAX_MESSAGE_BYTES)
    assert messages == expected[: len(messages)]
    assert end <= len(data)
    text = decode_short_text(data, MAX_MESSAGE_BYTES)
    assert text is None or [text] == expected


@contextlib.contextmanager
def compressing_by(library):
    """zlib (None) or isal, whatever the size."""
    before = compression.fast, compression._ISAL_FROM_BYTES, compression._ISAL_INFLATES_FROM_BYTES
    compression.fast, compression._ISAL_FROM_BYTES, compression._ISAL_INFLATES_FROM_BYTES = library, 1, 1
    try:
        yield
    finally:
        compression.fast, compression._ISAL_FROM_BYTES, compression._ISAL_INFLATES_FROM_BYTES = before


def inflated_by(library, data):
    """The payload, None if it is too large, False if it is damaged."""
    with compressing_by(library):
        try:
            return inflate(data, MAX_MESSAGE_BYTES)
        except ValueError:
            return False


def deflated(data):
    """Damaged and hostile compressed messages: what zlib understands isal understands alike (it passes some codes that zlib
    refuses); and what is said about compression."""
    by_zlib, by_isal = (inflated_by(library, data) for library in (None, compression.fast))
    assert by_zlib is False or by_isal == by_zlib
    for found in (by_zlib, by_isal):
        assert not isinstance(found, bytes) or len(found) <= MAX_MESSAGE_BYTES
    for library in (None, compression.fast):
        with compressing_by(library):
            smaller = compression.deflate(data, 9 + len(data) % 7, 1 + len(data) % 9)
        if smaller is not None:
            assert len(smaller) < len(data)
            assert inflated_by(None, smaller) == inflated_by(compression.fast, smaller) == data
    bits, header = agree(data[:2000].decode("latin-1"))
    assert (bits == 0) == (header == "")


def head(data):
    """Requests and responses, whole and in pieces."""
    step = data[0] % 29 + 1 if data else 1
    seen = []
    for size in (max(len(data), 1), step):
        parser = RequestParser(HeadLimits(4096, 50))
        try:
            for start in range(0, len(data), size):
                parser.feed(data[start : start + size])
        except RemoteProtocolError:
            pass
        seen.append([type(event).__name__ for event in parser.events if type(event).__name__ == "RequestHead"])
        parser.close()
    assert seen[0][:1] == seen[1][:1] or not seen[0] or not seen[1]
    parser = ResponseParser()
    try:
        parser.feed(data)
    except RemoteProtocolError:
        pass


def envelope(data):
    """The link's envelopes: what is understood says the same again."""
    try:
        events = Splitter(1 << 20).feed(data)
    except (RemoteProtocolError, UnicodeDecodeError):
        return
    for event in events:
        assert Splitter(1 << 20).feed(encode_event(event)) == [event]


def values(data):
    """The value codec: what decodes encodes again, to something that decodes."""
    for raw in (data, b"\x01" + data, b"\x91" + data):
        try:
            value = decode(raw)
        except ValueError:
            continue
        try:
            again = encode(value)
        except JsException:
            continue  # deeper than what is made here
        decode(again)


def configuration(data):
    """wrangler's and Roost's own: an error is a ConfigError, whatever the file holds."""
    text = data.decode("utf-8", "replace")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        try:
            raw = pyjson5.decode(text)
        except (pyjson5.Json5Exception, RecursionError, ValueError):
            raw = None
    if isinstance(raw, dict):
        try:
            parse_settings(raw, "fuzz")
        except (ConfigError, msgspec.ValidationError):
            pass
    with TemporaryDirectory() as folder:
        for name in ("wrangler.toml", "wrangler.jsonc"):
            path = Path(folder) / name
            path.write_bytes(data)
            (Path(folder) / "worker.py").touch()
            try:
                read_app(Path(folder), config=path)
            except ConfigError:
                pass


def forms(data):
    """Bodies of forms."""
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", data[:60].decode("latin-1")):
        try:
            parse_form(data, kind)
        except JsException:
            pass


TARGETS = {
    "frames": frames,
    "deflated": deflated,
    "head": head,
    "envelope": envelope,
    "values": values,
    "configuration": configuration,
    "forms": forms,
}
