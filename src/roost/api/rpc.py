"""Calling methods of objects and entrypoints: what a stub gives for a name, and what an exception becomes on its way.

Arguments and results are cloned by `roost.values`, so neither side ever shares a Python object with the other. Source:
reference 4.1 (exceptions with `.remote`), 4.4; Cloudflare's documentation, "Remote-procedure call (RPC)".
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol

from roost.api.aliases import snake_cases
from roost.api.rpc_values import decode_rpc, encode_rpc
from roost.errors import JsException, JsRangeError
from roost.events import Fault
from roost.values import DataCloneError, is_unicode, to_unicode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

MAX_CALL_BYTES: Final = 32 * 1024 * 1024
_HANDLERS: Final = (
    "fetch", "connect", "alarm", "scheduled", "queue", "tail", "trace", "email", "test", "preShutdown", "webSocketMessage",
    "webSocketClose", "webSocketError", "webSocketOpen",
)  # fmt: skip
RESERVED: Final = frozenset(
    {"constructor", "dup", *_HANDLERS}
    | {alias for name in _HANDLERS for alias in snake_cases(name)}
    | {f"on_{name}" for name in _HANDLERS}
)
"""Handlers of the platform: not methods that a stub can call."""


class MethodCaller(Protocol):
    """What carries calls to one object or entrypoint."""

    def call(self, method: str, arguments: bytes) -> Awaitable[Any]:
        """Begin the call now, after those begun before; its decoded result. Empty `arguments` read a property."""
        ...


class RpcMember:
    """`stub.name`: call it, or await it to read a property. The call begins at once, also if it is not awaited."""

    __slots__ = ("_caller", "_name")

    def __init__(self, caller: MethodCaller, name: str) -> None:
        self._caller = caller
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        try:
            arguments = encode_rpc([list(args), kwargs])
        except DataCloneError as error:
            raise DataCloneError(f"{self._name}(): of its [arguments, named], {error.message}") from None
        return self._caller.call(self._name, _checked(arguments, self._name))

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._caller.call(self._name, b"").__await__()

    def __repr__(self) -> str:
        return f"<RPC {self._name}>"


def member(caller: MethodCaller, name: str) -> RpcMember:
    """What a stub's attribute is. Raises AttributeError for what is private or a handler."""
    if name.startswith("_") or not is_unicode(name):
        raise AttributeError(to_unicode(name))
    if name in RESERVED:
        raise AttributeError(f"{name} is a handler that the runtime calls; it cannot be called through a stub.")
    return RpcMember(caller, name)


def _checked(payload: bytes, what: str) -> bytes:
    if len(payload) > MAX_CALL_BYTES:
        raise JsRangeError(f"{what}(): {len(payload)} bytes are too large for a call; at most {MAX_CALL_BYTES} (32 MiB).")
    return payload


def find_method(target: Any, method: str, arguments: bytes, base: type) -> Any:
    """The awaitable or value of a call on `target`. Only what its own classes define is public, nothing of `base`.

    Raises what the method raises, or TypeError (as JsException) if there is no such method.
    """
    hidden = method.startswith("_") or method in RESERVED
    found = None if hidden else inspect.getattr_static(type(target), method, None)
    if not isinstance(found, FunctionType | property) or inspect.getattr_static(base, method, None) is found:
        # Not a class attribute either, nor a static or class method: they are not on the platform's prototype.
        raise JsException(f'The RPC receiver does not implement the method "{method}".', "TypeError")
    if not arguments:
        if not isinstance(found, property):
            raise JsException(f"{method} is a method; call it: await stub.{method}(...)", "TypeError")
        return getattr(target, method)
    if isinstance(found, property):
        raise JsException(f'"{method}" is not a function; read it by: await stub.{method}', "TypeError")
    args, kwargs = decode_rpc(arguments, error_of)
    return getattr(target, method)(*args, **kwargs)


def encode_result(value: Any, method: str) -> bytes:
    """The bytes of a result. Raises DataCloneError with the path to what cannot be cloned."""
    try:
        return _checked(encode_rpc(value), method)
    except DataCloneError as error:
        raise DataCloneError(f"the result of {method}(): {error.message}") from None


class RemoteError(JsException):
    """An exception that an object or entrypoint raised in a call: its type's name, its message, `.remote` true.

    If it was one of Python's usual exceptions, it can be caught as that: `except ValueError`.
    """

    remote = True

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


_USUAL: Final = {
    kind.__name__: kind
    for kind in (
        ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, LookupError, NotImplementedError,
        OverflowError, PermissionError, RuntimeError, TimeoutError, TypeError, ValueError, ZeroDivisionError,
    )
}  # fmt: skip
_CLASSES: Final[dict[str, type[RemoteError]]] = {
    **{name: type(f"Remote{name}", (RemoteError, kind), {}) for name, kind in _USUAL.items()},
    "RangeError": type("RemoteRangeError", (RemoteError, ValueError), {}),
}


def fault_of(error: BaseException) -> Fault:
    """An exception as it travels."""
    if isinstance(error, JsException):
        return Fault(to_unicode(str(error.name)), to_unicode(str(error.message)))
    name = to_unicode(type(error).__name__)
    try:
        text = str(error.args[0]) if type(error) is KeyError and error.args else str(error)
    except Exception as failure:  # noqa: BLE001 - the user's __str__
        text = f"(its text cannot be made: {type(failure).__name__})"
    return Fault(name, to_unicode(text))


def decode_result(data: bytes) -> Any:
    """What `encode_result` was given. Raises ValueError for damage."""
    return decode_rpc(data, error_of)


def error_of(fault: Fault, cause: BaseException | None = None) -> RemoteError:
    """An exception as its caller sees it. `cause`: the one it was, where it is at hand: its traceback helps."""
    error = _CLASSES.get(fault.name, RemoteError)(fault.message, fault.name)
    error.__cause__ = cause
    return error
