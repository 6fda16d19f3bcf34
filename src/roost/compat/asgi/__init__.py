"""`asgi`: FastAPI, Starlette and other ASGI apps as workers, and WebSocket endpoints that hibernate. Served to worker code
as `asgi` and `workers.asgi`.

`fetch`, `websocket` and `entrypoint` have the platform's signatures. Better on purpose: an upgrade is answered when the app
answers it, so subprotocols, headers, refusals and denial responses work, and the lifespan runs once a process, not once a
request. `DurableApp` is Roost's own (docs/guides/asgi.md).

Source: ASGI 3.0, its HTTP and WebSocket (2.5) and lifespan (2.0) specifications; reference 1.7.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from roost.api.entrypoint import WorkerEntrypoint
from roost.api.http import Request, Response
from roost.api.runtime import require_context
from roost.compat.asgi.durable import DurableApp
from roost.compat.asgi.http import fetch
from roost.compat.asgi.lifespan import (
    StartupError,
    end_lifespans,
    entrypoint_apps,
    keeps_sockets,
    serves,
    start_apps,
)
from roost.compat.asgi.scope import is_upgrade, make_scope
from roost.compat.asgi.sockets import websocket

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from roost.compat.asgi.scope import App, Scope

__all__ = [
    "DurableApp", "StartupError", "end_lifespans", "entrypoint", "fetch", "keeps_sockets", "request_to_scope",
    "run_in_background", "start_apps", "websocket",
]  # fmt: skip


def request_to_scope(req: Any, env: Any, ws: bool = False) -> Scope:
    """The ASGI scope of a request, as the platform's `asgi.request_to_scope` makes it."""
    request = req if isinstance(req, Request) else Request(req)
    return make_scope("websocket" if ws else "http", request, env, {})


def run_in_background(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
    """Let it go on after the response; its failure is logged."""
    task = asyncio.ensure_future(awaitable)
    require_context("run_in_background()").wait_until(task)
    return task


def entrypoint(app: App, *, options: Any = None) -> type[WorkerEntrypoint]:
    """A `Default` class that serves an app: `Default = asgi.entrypoint(app)`."""
    serves(app)
    entrypoint_apps.append(app)

    class Default(WorkerEntrypoint):
        async def fetch(self, request: Request) -> Response:
            if is_upgrade(request):
                return await websocket(app, request, self.env)
            return await fetch(app, request, self.env, self.ctx)

    return Default


def __getattr__(name: str) -> Any:
    """`asgi.env`: the worker's `env` as a FastAPI dependency, for HTTP and WebSocket endpoints."""
    if name != "env":
        raise AttributeError(f"asgi has no {name!r}; it has fetch, websocket, entrypoint, env and DurableApp.")
    from fastapi import Depends
    from starlette.requests import HTTPConnection

    def worker_env(connection: HTTPConnection) -> Any:
        return connection.scope["env"]

    # FastAPI reads the annotation at run time, where this module's are text.
    worker_env.__annotations__ = {"connection": HTTPConnection}
    return Depends(worker_env)
