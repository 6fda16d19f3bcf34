"""`pyodide.ffi`: values need no proxies on CPython, so most of it hands back what it got. Source: reference 1.4."""

from __future__ import annotations

import asyncio
import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from roost.api.buffers import ArrayBuffer as JsBuffer
from roost.errors import JsException

if TYPE_CHECKING:
    from collections.abc import Callable

jsnull = None


class JsProxy:
    """Named in annotations and isinstance checks; no value here is one."""


def to_js(value: Any, *, dict_converter: Callable[[Any], Any] | None = None, **_: Any) -> Any:
    """The value itself; bytes-like values become `ArrayBuffer`."""
    if isinstance(value, bytes | bytearray | memoryview):
        return JsBuffer(value)
    if isinstance(value, dict) and dict_converter is not None:
        return dict_converter(list(value.items()))
    return value


class PyProxy:
    """A function that is handed to JavaScript: it may be called, and destroyed, which does nothing here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def destroy(self) -> None:
        """Nothing to destroy."""

    def copy(self) -> PyProxy:
        return self

    def unwrap(self) -> Callable[..., Any]:
        return self._function


def create_proxy(value: Any, **_: Any) -> Any:
    """The value itself, or a function with the names of a proxy."""
    return PyProxy(value) if callable(value) and not isinstance(value, PyProxy | type) else value


create_once_callable = create_proxy


def destroy_proxies(*_: Any) -> None:
    """Nothing to destroy."""


blocking_wait: ContextVar[Callable[[Any], Any]] = ContextVar("roost_blocking_wait")
"""How a thread of its own (`workers.wsgi`) waits for what goes on on the loop."""


def run_sync(awaitable: Any) -> Any:
    """Wait for an awaitable in a WSGI app, which has a thread of its own. Elsewhere that would stop every object of this
    host: RuntimeError."""
    wait = blocking_wait.get(None)
    if wait is None or asyncio._get_running_loop() is not None:
        raise RuntimeError("run_sync() is for WSGI apps in Roost; make the function async and await it.")
    return wait(awaitable)


__all__ = [
    "JsBuffer",
    "JsException",
    "JsProxy",
    "create_once_callable",
    "create_proxy",
    "destroy_proxies",
    "jsnull",
    "run_sync",
    "to_js",
]
