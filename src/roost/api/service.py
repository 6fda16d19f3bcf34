"""Service bindings: another entrypoint of the app as `env.NAME`. Source: reference 6.1, 4.4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from roost.api.http import Request, Response
from roost.api.rpc import MethodCaller, member

if TYPE_CHECKING:
    from roost.api.rpc import RpcMember


class ServiceCaller(MethodCaller, Protocol):
    """What carries calls to an entrypoint."""

    async def fetch(self, request: Request) -> Response: ...


class ServiceStub:
    """`env.NAME`: `await env.NAME.fetch(...)`, `await env.NAME.method(...)`. Each call has an instance of its own."""

    def __init__(self, caller: ServiceCaller) -> None:
        self._caller = caller

    async def fetch(self, resource: Any, options: Any = None, **opts: Any) -> Response:
        """Call the entrypoint's `fetch`."""
        if isinstance(resource, Request) and not opts and options is None:
            return await self._caller.fetch(resource)
        return await self._caller.fetch(Request(resource, options, **opts))

    def __getattr__(self, name: str) -> RpcMember:
        if name.startswith("_"):
            raise AttributeError(name)
        return member(self._caller, name)

    def __repr__(self) -> str:
        return "<ServiceStub>"
