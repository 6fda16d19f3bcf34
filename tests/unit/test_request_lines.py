"""observe/logs.py: the lines of requests, written once a turn."""

import io
import json

import pytest

from roost.observe.logs import JsonFormatter, RequestLines, TextFormatter


class Stream(io.StringIO):
    def __init__(self):
        super().__init__()
        self.writes = 0

    def write(self, text):
        self.writes += 1
        return super().write(text)


def test_the_lines_of_a_turn_are_one_write():
    stream = Stream()
    lines = RequestLines(stream, TextFormatter(colour=True))
    lines.line("GET", "/a?token=secret", 200)
    lines.line("POST", "/" + "b" * 500, 404)
    assert stream.writes == 0
    lines.flush()
    assert stream.writes == 1
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" GET /a 200")
    assert second.endswith("b" * 199 + " 404")
    assert "secret" not in stream.getvalue()


def test_json():
    stream = Stream()
    lines = RequestLines(stream, JsonFormatter())
    lines.line("GET", "/ä", 200)
    lines.flush()
    entry = json.loads(stream.getvalue())
    assert entry.pop("time_ms") > 0
    assert entry == {"level": "info", "logger": "roost.request", "message": "GET /ä 200"}


def test_what_waits_is_bounded():
    stream = Stream()
    lines = RequestLines(stream, TextFormatter(colour=False))
    for _ in range(1300):
        lines.line("GET", "/", 200)
    assert stream.writes == 2
    lines.flush()
    assert len(stream.getvalue().splitlines()) == 1300


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed")])
def test_a_reader_that_is_gone_stops_nothing(error):
    class Gone(Stream):
        def write(self, text):
            raise error

    lines = RequestLines(Gone(), TextFormatter(colour=False))
    lines.line("GET", "/", 200)
    lines.flush()
    lines.flush()
