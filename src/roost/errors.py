"""Every error Roost raises on purpose; whose fault it is, is in the type.

RoostError
├── RemoteProtocolError   the peer's: bytes that break RFC 6455 or RFC 9112
├── WorkerError           the worker's: the user's exception is `__cause__`
│   ├── Superseded        an object's instance makes room for another
│   └── UnavailableError  not now: `retry_after_s` says when to try again
│       ├── QuarantineError   an object that is not woken any more
│       └── OverloadError     a queue or a table is full
├── ConfigError           the operator's: names the key or the file
└── InternalError         ours: a bug in Roost

JsException               what worker code sees where the platform throws a JavaScript error
├── JsTypeError           also a TypeError
└── JsRangeError          also a ValueError
"""

from __future__ import annotations


class RoostError(Exception):
    """The root of Roost's own errors. `str(error)` says what happened and what to do."""


class RemoteProtocolError(RoostError):
    """The peer broke the protocol.

    `code` is a WebSocket close code (RFC 6455 §7.4.1) or an HTTP status, by where it was raised.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class WorkerError(RoostError):
    """Worker code failed: at import, at class check, or in a handler. The user's exception is `__cause__`."""


class UnavailableError(WorkerError):
    """What was asked cannot be done now; a request gets 503 and Retry-After."""

    retry_after_s = 1


class QuarantineError(UnavailableError):
    """The object has twice brought its host down and is not woken any more, until `roost objects release`."""

    retry_after_s = 60


class OverloadError(UnavailableError):
    """A limit is reached: too many events wait for an object, or too many objects are busy."""


class Superseded(WorkerError):
    """The object makes room for another instance of it, which gets the events that wait."""


class ConfigError(RoostError):
    """A folder, file, key or flag is wrong. `key` names it where there is one."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class InternalError(RoostError):
    """Roost itself is wrong; please report it."""


class JsException(Exception):
    """A JavaScript error as Python Workers see it: `.name` and `.message`.

    Source: Pyodide's `pyodide.ffi.JsException`; DOMException names from Web IDL §2.8.1.
    """

    def __init__(self, message: str, name: str = "Error") -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class DurableObjectAbort(BaseException):
    """`ctx.abort(reason)` ends the object. A BaseException, so that `except Exception` cannot swallow it."""


class JsTypeError(JsException, TypeError):
    """A JavaScript TypeError; Python code may catch it as TypeError."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "TypeError")


class JsRangeError(JsException, ValueError):
    """A JavaScript RangeError; Python code may catch it as ValueError."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "RangeError")
