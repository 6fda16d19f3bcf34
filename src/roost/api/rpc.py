"""Calling methods of objects and entrypoints: what a stub gives for a name, and what an exception becomes on its way.

Arguments and results are cloned by `roost.values`, so neither side ever shares a Python object with the other. Source:
reference 4.1 (exceptions with `.remote`), 4.4; Cloudflare's documentation, "Remote-procedure call (RPC)".
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol

from roost.api.aliases import snake_cases
from roost.api.promises import Failed
from roost.api.rpc_values import decode_rpc, encode_rpc
from roost.api.runtime import require_context
from roost.errors import JsException, JsRangeError
from roost.events import Fault
from roost.values import DataCloneError, is_unicode, to_unicode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from roost.api.runtime import IoContext

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
        return begun(self, *encoded_arguments(self._name, args, kwargs))

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._caller.call(self._name, b"").__await__()

    def __getattr__(self, name: str) -> Pipelined:
        return pipelined(self, name)

    def __repr__(self) -> str:
        return f"<RPC {self._name}>"


def begun(member: RpcMember, arguments: bytes, exported: list[Any]) -> Awaitable[Any]:
    """A call of encoded arguments. What was exported for it ends if it does not leave."""
    try:
        answered = member._caller.call(member._name, arguments)
    except BaseException:
        withdraw(exported)
        raise
    if type(answered) is Failed:
        withdraw(exported)
    return answered


def withdraw(exported: list[Any], context: IoContext | None = None) -> None:
    """Those were not passed on. `context`: whose they are, if not the running code's."""
    if exported:
        (context or require_context("RPC")).withdraw_rpc(exported)


class Callee:
    """What can be called itself: a stub of a function."""

    __slots__ = ()

    def _member(self) -> RpcMember:
        raise NotImplementedError


class Pipelined:
    """A member of what a call or a property will give (`stub.open().write(…)`): call it, or await it to read it.

    Source: platform documentation, "Remote-procedure call (RPC)", "Promise pipelining". Here the second call leaves once
    the first is answered.
    """

    __slots__ = ("_name", "_source")

    def __init__(self, source: Awaitable[Any], name: str) -> None:
        self._source = source
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        name = self._name
        arguments = encoded_arguments(name, args, kwargs)
        return PipelinedCall(require_context(f"{name}()").promise(self._call(*arguments), f"{name}()"))

    async def _call(self, arguments: bytes, exported: list[Any]) -> Any:
        try:
            found = await self._found()
            if isinstance(found, Callee):  # a function's stub, in an object that was given
                found = found._member()
            if not isinstance(found, RpcMember):
                raise JsException(f'"{self._name}" is not a function.', "TypeError")
        except BaseException:
            withdraw(exported)
            raise
        return await begun(found, arguments, exported)

    async def _found(self) -> Any:
        given = await self._source
        if isinstance(given, dict):
            return given.get(self._name)
        found = getattr(given, self._name, None)
        return found if isinstance(found, RpcMember) else None

    async def _read(self) -> Any:
        found = await self._found()
        return await found if isinstance(found, RpcMember) else found

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._read().__await__()

    def __getattr__(self, name: str) -> Pipelined:
        return pipelined(self, name)

    def __repr__(self) -> str:
        return f"<RPC …{self._name}>"


class PipelinedCall:
    """The outcome of a pipelined call, which can be pipelined itself."""

    __slots__ = ("_promise",)

    def __init__(self, promise: Awaitable[Any]) -> None:
        self._promise = promise

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._promise.__await__()

    def __getattr__(self, name: str) -> Pipelined:
        return pipelined(self._promise, name)


def pipelined(source: Awaitable[Any], name: str) -> Pipelined:
    """The member `name` of what `source` will give. Raises AttributeError for what is private."""
    if name.startswith("_"):
        raise AttributeError(name)
    return Pipelined(source, name)


def member(caller: MethodCaller, name: str) -> RpcMember:
    """What a stub's attribute is. Raises AttributeError for what is private or a handler."""
    if name.startswith("_") or not is_unicode(name):
        raise AttributeError(to_unicode(name))
    if name in RESERVED:
        raise AttributeError(f"{name} is a handler that the runtime calls; it cannot be called through a stub.")
    return RpcMember(caller, name)


def _encoded(value: Any, what: str, context: IoContext | None = None) -> tuple[bytes, list[Any]]:
    """What travels, and what was exported for it: nothing if it cannot travel."""
    exported: list[Any] = []
    data = encode_rpc(value, context, exported)
    if len(data) > MAX_CALL_BYTES:
        withdraw(exported, context)
        raise JsRangeError(f"{what}(): {len(data)} bytes are too large for a call; at most {MAX_CALL_BYTES} (32 MiB).")
    return data, exported


def encoded_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[Any]]:
    """The arguments of a call as they travel, and what was exported for them. Raises DataCloneError, RangeError."""
    try:
        return _encoded([list(args), kwargs], name)
    except DataCloneError as error:
        raise DataCloneError(f"{name or 'stub'}(): of its [arguments, named], {error.message}") from None


def decoded_arguments(arguments: bytes, received: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments by position and by name, with the stubs in them put into `received`. Raises ValueError for damage."""
    args, kwargs = decode_rpc(arguments, error_of, None, received)
    return args, kwargs


def call_function(target: Any, arguments: bytes, received: list[Any]) -> Any:
    """The awaitable or value of a call of `target` itself, with the stubs in its arguments in `received`."""
    if not arguments:
        raise JsException("A function's stub has no properties to be read.", "TypeError")
    if not callable(target):
        raise JsException("The RPC receiver is not a function: call one of its methods.", "TypeError")
    args, kwargs = decoded_arguments(arguments, received)
    return target(*args, **kwargs)


def find_method(target: Any, method: str, arguments: bytes, base: type, received: list[Any]) -> Any:
    """The awaitable or value of a call on `target`. Only what its own classes define is public, nothing of `base`. The
    stubs in its arguments are put into `received`.

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
    args, kwargs = decoded_arguments(arguments, received)
    return getattr(target, method)(*args, **kwargs)


def encode_result(value: Any, method: str, context: IoContext) -> bytes:
    """The bytes of a result that leaves `context`. Raises DataCloneError with the path to what cannot be cloned."""
    try:
        return _encoded(value, method, context)[0]
    except DataCloneError as error:
        raise DataCloneError(f"the result of {method}(): {error.message}") from None


GONE: Final = "\0gone"  # the name of the fault of a stub that can no longer be used


class BrokenStubError(JsException):
    """What a stub stood for is gone: it was released, or its owner sleeps, has ended or was deployed anew."""


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


def decode_result(data: bytes, context: IoContext | None) -> Any:
    """What `encode_result` was given, for the context that has called. Raises ValueError for damage."""
    return decode_rpc(data, error_of, context)


def error_of(fault: Fault, cause: BaseException | None = None) -> JsException:
    """An exception as its caller sees it. `cause`: the one it was, where it is at hand: its traceback helps."""
    if fault.name == GONE:
        return BrokenStubError(fault.message)
    error = _CLASSES.get(fault.name, RemoteError)(fault.message, fault.name)
    error.__cause__ = cause
    return error
