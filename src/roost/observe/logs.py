"""Log lines: for people in a terminal, or one JSON object a line (`--log-format json`). On stderr; stdout is the program's.

What the worker prints carries the name of the object or request that printed it. Query strings, header values and messages
are not logged: tokens travel there.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import traceback
from typing import Any

from roost.api.runtime import current_context

_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m", "DEBUG": "\033[2m"}


class _Label(logging.Filter):
    """Adds whose code was running when the line was written."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = current_context.get(None)
        record.__dict__["label"] = getattr(context, "label", "")
        return True


class TextFormatter(logging.Formatter):
    """`12:00:01 [Room(lobby)] text`; tracebacks of the user's code below it."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour
        self._second, self._clock = -1, ""  # the text of the last second

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%H:%M:%S", time.localtime(second))
        name = getattr(record, "label", "")
        label = f"[{name}] " if name else ""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        line = f"{self._clock} {level}{label}{record.getMessage()}"
        if self._colour and record.levelname in _COLOURS:
            line = f"{_COLOURS[record.levelname]}{line}\033[0m"
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + user_traceback(record.exc_info[1])
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ms), level, logger, object, message, traceback."""

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
            link.stack = traceback.StackSummary.from_list(kept)
            links += [link.__cause__, link.__context__]
    return "".join(summary.format()).rstrip()


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


def set_up(log_format: str, *, debug: bool) -> None:
    """Configure logging of this process, on stderr."""
    handler = logging.StreamHandler(sys.__stderr__)
    handler.addFilter(_Label())
    colour = sys.__stderr__ is not None and sys.__stderr__.isatty()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(colour=colour))
    root = logging.getLogger("roost")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.INFO)


def lean_records() -> None:
    """For a process without worker code: records know no process and thread, which our formats do not show. Half of what
    the line of a request costs is looking these up (Python's logging HOWTO, "Optimization")."""
    logging.logProcesses = logging.logThreads = logging.logMultiprocessing = False


def redirect_prints() -> None:
    """Make the worker's `print` a log line. For a process that runs worker code."""
    sys.stdout = WorkerStream(logging.INFO)


def request_line(method: str, target: str, status: int) -> None:
    """One line a request; the query string is left out."""
    _requests.info("%s %s %d", method, target.split("?", 1)[0][:200], status)


_requests = logging.getLogger("roost.request")
