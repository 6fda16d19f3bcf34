"""Stubs of functions and targets that a call has passed: what the other side holds instead of them.

A function, or an instance of a class that extends `RpcTarget`, stays where it is; who gets it in an argument or a result
gets a stub, and calls go back to where it came from. Source: platform documentation, "Remote-procedure call (RPC)",
"Lifecycle" and "Reserved methods".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from roost.api.promises import Failed
from roost.api.rpc import Callee, MethodCaller, RpcMember, member
from roost.api.runtime import require_context
from roost.errors import JsException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class RpcHandle(MethodCaller, Protocol):
    """A holder's end of something that is elsewhere, shared by a stub and its `dup`s."""

    def hold(self) -> None:
        """One more stub has it."""

    def let_go(self) -> None:
        """One stub fewer has it; without any, what it stands for is released."""

    def let_go_later(self) -> None:
        """`let_go`, from whatever thread."""

    def when_broken(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(error)` once it can no longer be used."""


class RpcStub(Callee):
    """A function or an `RpcTarget` of somebody else: call it, or its methods. `RpcStub(target)` makes one here.

    It is good until it is disposed (`stub.dispose()`, `with stub:`, or when Python drops it), until the call ends that it
    was an argument of (keep a `stub.dup()` for longer), or until its holder or its owner sleeps, ends or is deployed anew.
    """

    __slots__ = ("__weakref__", "_disposed", "_handle")

    def __init__(self, target: Any) -> None:
        self._disposed = True  # until it is one
        context = require_context("RpcStub")
        made = context.adopt_rpc(context.export_rpc(target))
        self._handle: RpcHandle = made._handle
        self._handle.hold()
        self._disposed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        return self._member()(*args, **kwargs)

    def _member(self) -> RpcMember:
        return RpcMember(self._caller(), "")

    def __getattr__(self, name: str) -> RpcMember:
        if name.startswith("_"):
            raise AttributeError(name)
        return member(self._caller(), name)

    def _caller(self) -> MethodCaller:
        return _Disposed() if self._disposed else self._handle

    def dup(self) -> RpcStub:
        """Another stub of the same, which has to be disposed by itself."""
        if self._disposed:
            raise JsException(_AFTER_DISPOSAL)
        return stub_of(self._handle)

    def dispose(self) -> None:
        """It is not needed any more. Calls that have begun go on."""
        if not self._disposed:
            self._disposed = True
            self._handle.let_go()

    def onRpcBroken(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(error)` once its calls can only fail, because what it stands for is gone."""
        self._handle.when_broken(callback)

    on_rpc_broken = onRpcBroken

    def __enter__(self) -> RpcStub:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def __del__(self) -> None:
        if not self._disposed:
            self._handle.let_go_later()

    def __repr__(self) -> str:
        return "<RpcStub, disposed>" if self._disposed else "<RpcStub>"


def stub_of(handle: RpcHandle) -> RpcStub:
    """For the host: a stub of what it holds."""
    stub = RpcStub.__new__(RpcStub)
    stub._handle = handle
    stub._disposed = False
    handle.hold()
    return stub


def handle_of(stub: RpcStub) -> RpcHandle:
    """For the host: what it holds."""
    return stub._handle


def itself(stub: RpcStub) -> RpcMember:
    """What a stub stands for, to be called."""
    return stub._member()


_AFTER_DISPOSAL = "RPC stub used after being disposed."


class _Disposed:
    """`MethodCaller` of a stub that was disposed."""

    def call(self, method: str, arguments: bytes) -> Awaitable[Any]:
        return Failed(JsException(_AFTER_DISPOSAL), f"{method or 'stub'}()")
