"""Stubs of functions and targets that a call has passed: what the other side holds instead of them.

A function, or an instance of a class that extends `RpcTarget`, stays where it is; who gets it in an argument or a result
gets a stub, and calls go back to where it came from. Source: platform documentation, "Remote-procedure call (RPC)",
"Lifecycle" and "Reserved methods".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from roost.api.promises import Failed
from roost.api.rpc import MethodCaller, RpcMember, member
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

    def when_broken(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(error)` once it can no longer be used."""


class RpcStub:
    """A function or an `RpcTarget` of somebody else: call it, or its methods. `RpcStub(target)` makes one here.

    It is good until it is disposed (`stub.dispose()`, `with stub:`, or when Python drops it), until the call ends that it
    was an argument of (keep a `stub.dup()` for longer), or until its holder or its owner sleeps, ends or is deployed anew.
    """

    __slots__ = ("__weakref__", "_disposed", "_handle")

    def __init__(self, target: Any) -> None:
        context = require_context("RpcStub")
        made = context.adopt_rpc(context.export_rpc(target))
        self._handle: RpcHandle = made._handle
        self._handle.hold()
        self._disposed = False

    @classmethod
    def of(cls, handle: RpcHandle) -> Self:
        """For the host."""
        stub = cls.__new__(cls)
        stub._handle = handle
        stub._disposed = False
        handle.hold()
        return stub

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        return self.itself()(*args, **kwargs)

    def itself(self) -> RpcMember:
        """What it stands for, to be called."""
        return RpcMember(self._caller(), "")

    def __getattr__(self, name: str) -> RpcMember:
        return member(self._caller(), name)

    def _caller(self) -> MethodCaller:
        return _Disposed() if self._disposed else self._handle

    def dup(self) -> RpcStub:
        """Another stub of the same, which has to be disposed by itself."""
        self.check()
        return RpcStub.of(self._handle)

    def dispose(self) -> None:
        """It is not needed any more. Calls that have begun go on."""
        if not self._disposed:
            self._disposed = True
            self._handle.let_go()

    def onRpcBroken(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(error)` once its calls can only fail, because what it stands for is gone."""
        self._handle.when_broken(callback)

    on_rpc_broken = onRpcBroken

    def check(self) -> None:
        """Raise Error (as JsException) if it was disposed."""
        if self._disposed:
            raise JsException(_AFTER_DISPOSAL)

    def __enter__(self) -> RpcStub:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def __del__(self) -> None:
        if not getattr(self, "_disposed", True):
            self._handle.let_go()

    def __repr__(self) -> str:
        return "<RpcStub, disposed>" if self._disposed else "<RpcStub>"


_AFTER_DISPOSAL = "RPC stub used after being disposed."


class _Disposed:
    """`MethodCaller` of a stub that was disposed."""

    def call(self, method: str, arguments: bytes) -> Awaitable[Any]:
        return Failed(JsException(_AFTER_DISPOSAL), f"{method or 'stub'}()")
