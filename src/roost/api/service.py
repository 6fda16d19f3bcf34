"""Service bindings: another entrypoint of the app as `env.NAME`. Source: reference 6.1, 4.4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from roost.api.http import Request, Response
from roost.api.promises import eager
from roost.api.rpc import MethodCaller, member

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.api.rpc import RpcMember

    AssetFinder = Callable[[str, str, dict[str, str]], tuple[int, list[tuple[str, str]], bytes] | None]


class ServiceCaller(MethodCaller, Protocol):
    """What carries calls to an entrypoint."""

    async def fetch(self, request: Request) -> Response: ...


class AssetsStub:
    """`env.ASSETS`: the worker's static files, by `await env.ASSETS.fetch(request)`."""

    def __init__(self, find: AssetFinder) -> None:
        self._find = find

    async def fetch(self, resource: Any, options: Any = None, **opts: Any) -> Response:
        """The file of the URL's path; 404 if there is none, 405 for other methods than GET and HEAD."""
        whole = isinstance(resource, Request) and not opts and options is None
        request = resource if whole else Request(resource, options, **opts)
        method = str(request.method)
        if method not in ("GET", "HEAD"):
            return Response("Method Not Allowed", 405, headers={"Allow": "GET, HEAD"})
        url = urlsplit(request.url)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        found = self._find(method, target, {**dict(request.headers.items()), "host": url.netloc})
        if found is None:
            return Response("Not Found", 404)
        status, headers, body = found
        bare = status in (301, 302, 303, 304, 307, 308) or method == "HEAD"
        return Response(None if bare else body, status, "", headers)

    def __repr__(self) -> str:
        return "<AssetsStub>"


class ServiceStub:
    """`env.NAME`: `await env.NAME.fetch(...)`, `await env.NAME.method(...)`. Each call has an instance of its own."""

    def __init__(self, caller: ServiceCaller) -> None:
        self._caller = caller

    @eager
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
