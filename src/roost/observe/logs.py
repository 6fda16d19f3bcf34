"""Log lines: for people in a terminal, or one JSON object a line (`--log-format json`). On stderr; stdout is the program's.

What the worker prints carries the name of the object or request that printed it. Query strings, header values and messages
are not logged: tokens travel there.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
import traceback
from typing import Any, Final, TextIO

from roost.api.runtime import current_context

_MAX_LINES = 512  # of requests that wait for the end of a turn
_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m", "DEBUG": "\033[2m"}


class _Label(logging.Filter):
    """Adds whose code was running when the line was written."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = current_context.get(None)
        record.__dict__["label"] = getattr(context, "label", "")
        return True


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029)
}


def plain(text: str) -> str:
    """A text that cannot pass for more than one line of the log, or write on the terminal: control characters are escaped,
    and what stands behind a line end is indented."""
    if text.isprintable():
        return text
    return text.rstrip("\n").translate(_CONTROLS).replace("\n", "\n    ")


class TextFormatter(logging.Formatter):
    """`12:00:01 [Room(lobby)] text`; tracebacks of the user's code below it."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour
        self._second, self._clock = -1, ""  # the text of the last second

    def clock(self, created: float) -> str:
        """The time of day, as a line begins."""
        second = int(created)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%H:%M:%S", time.localtime(second))
        return self._clock

    def request(self, created: float, message: str) -> str:
        """The line of a request, which has no object, no colour and no traceback."""
        return f"{self.clock(created)} {plain(message)}"

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "label", "")
        label = f"[{name}] " if name else ""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        line = f"{self.clock(record.created)} {level}{plain(label)}{plain(record.getMessage())}"
        if self._colour and record.levelname in _COLOURS:
            line = f"{_COLOURS[record.levelname]}{line}\033[0m"
        if record.exc_info and record.exc_info[1] is not None:
            line += plain("\n" + user_traceback(record.exc_info[1]))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ms), level, logger, object, message, traceback."""

    def request(self, created: float, message: str) -> str:
        """The line of a request."""
        entry = {"time_ms": int(created * 1000), "level": "info", "logger": "roost.request", "message": message}
        return json.dumps(entry, ensure_ascii=False)

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := getattr(record, "label", ""):
            entry["object"] = name
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = user_traceback(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False)


def user_traceback(error: BaseException) -> str:
    """A traceback without Roost's own frames and the interpreter's."""
    own = __file__.rsplit("/observe/", 1)[0]
    while getattr(error, "remote", False) and error.__cause__ is not None:
        error = error.__cause__  # what was raised, in the object that was called
    summary = traceback.TracebackException.from_exception(error)
    links: list[traceback.TracebackException | None] = [summary]
    while links:
        link = links.pop()
        if link is not None:
            kept = [frame for frame in link.stack if not frame.filename.startswith((own, "<frozen"))]
            link.stack = traceback.StackSummary.from_list(_folded(kept))
            links += [link.__cause__, link.__context__]
    return "".join(summary.format()).rstrip()


def _folded(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Several frames in a row of installed packages are one line with their number and names; the one that raised stays."""
    kept: list[traceback.FrameSummary] = []
    row: list[traceback.FrameSummary] = []
    for frame in [*frames, None]:
        package = "" if frame is None else _package_of(frame.filename)
        if frame is not None and package:
            row.append(frame)
            continue
        last = [row.pop()] if frame is None and row else []
        if len(row) > _FOLDED:
            names = ", ".join(dict.fromkeys(_package_of(each.filename) for each in row))
            row = [traceback.FrameSummary(f"({len(row)} frames of {names})", None, "…", line="")]
        kept += [*row, *last]
        row = []
        if frame is not None:
            kept.append(frame)
    return kept


_FOLDED = 2  # so many frames in a row are shown as they are


def _package_of(filename: str) -> str:
    """The installed package that a file belongs to; empty for the worker's own."""
    _, found, rest = filename.rpartition("/site-packages/")
    if found:
        return rest.split("/", 1)[0].removesuffix(".py")
    if filename.startswith((_STDLIB, _STDLIB.replace("/lib/", "/lib64/"))):
        return "the standard library"
    return ""


_STDLIB = os.path.dirname(os.__file__) + os.sep


class WorkerStream(io.TextIOBase):
    """What the worker prints, as log lines. At most `MAX_LINE` characters wait for their line's end."""

    MAX_LINE = 16 * 1024

    def __init__(self, level: int) -> None:
        self._level = level
        self._partial = ""
        self._log = logging.getLogger("roost.worker")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._log.log(self._level, "%s", line)
        if len(self._partial) > self.MAX_LINE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._partial:
            partial, self._partial = self._partial, ""
            self._log.log(self._level, "%s", partial)


def _formatter(log_format: str) -> TextFormatter | JsonFormatter:
    colour = sys.__stderr__ is not None and sys.__stderr__.isatty()
    return JsonFormatter() if log_format == "json" else TextFormatter(colour=colour)


def set_up(log_format: str, *, debug: bool) -> None:
    """Configure logging of this process, on stderr."""
    handler = logging.StreamHandler(sys.__stderr__)
    handler.addFilter(_Label())
    handler.setFormatter(_formatter(log_format))
    root = logging.getLogger("roost")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.INFO)


def redirect_prints() -> None:
    """Make the worker's `print` a log line. For a process that runs worker code."""
    sys.stdout = WorkerStream(logging.INFO)


class RequestLines:
    """A line for each request; the query string is left out. Past `logging`, whose record of a line takes longer to make
    than the request to parse. The lines of a turn are written together."""

    def __init__(self, stream: TextIO, formatter: TextFormatter | JsonFormatter) -> None:
        self._stream = stream
        self._formatter = formatter
        self._lines: list[str] = []

    def line(self, method: str, target: str, status: int) -> None:
        message = f"{method} {target.split('?', 1)[0][:200]} {status}"
        self._lines.append(self._formatter.request(time.time(), message))
        if len(self._lines) >= _MAX_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what the turn has added."""
        text = "\n".join([*self._lines, ""])
        self._lines.clear()
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # who read them is gone; so may be who reads this
            logging.getLogger("roost").debug("logs: the lines of requests cannot be written: %s", error)


def request_lines(log_format: str) -> RequestLines | None:
    """The lines of requests, in that format; None if there is no stderr."""
    stream = sys.__stderr__
    return None if stream is None else RequestLines(stream, _formatter(log_format))
