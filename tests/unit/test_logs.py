"""observe/logs.py: nothing that a worker or a client writes passes for a line of the server's, or moves the cursor."""

import logging
import re

from roost.observe.logs import TextFormatter, plain


def line(message, error=None):
    record = logging.LogRecord(
        "roost.worker", logging.ERROR, "x", 1, "%s", (message,), error and (type(error), error, None)
    )
    return TextFormatter(colour=False).format(record)


def test_controls_are_escaped_and_further_lines_indented():
    assert plain("häuser → 🎉") == "häuser → 🎉"
    assert plain("a\x1b[31mred\r\x08\x00\x9b\u2028b\x7f") == "a\\x1b[31mred\\x0d\\x08\\x00\\x9b\\u2028b\\x7f"
    assert plain("a\tb") == "a\tb"
    assert plain("one\n12:00:00 node: forged\n") == "one\n    12:00:00 node: forged"


def test_no_line_but_the_first_begins_as_one_of_the_servers():
    for text in (line("a\n12:00:01 error: forged"), line("x", ValueError("b\n12:00:01 error: forged\x1b]0;t\x07"))):
        first, *others = text.split("\n")
        assert re.match(r"\d\d:\d\d:\d\d error: ", first)
        assert others
        assert all(other.startswith("    ") for other in others)
        assert "\x1b" not in text


def test_request_lines():
    assert TextFormatter(colour=False).request(0, "GET /a\x1b[2J\n12:00 x 200").count("\n    ") == 1
