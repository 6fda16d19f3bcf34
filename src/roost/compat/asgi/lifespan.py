"""An app's startup, once a process, and its shutdown with the host; and which apps there are. Source: ASGI lifespan 2.0."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from roost.compat.asgi.scope import App, Message, Scope

_log = logging.getLogger("roost.worker")

_MAX_APPS: Final = 100  # whose lifespans are kept


class StartupError(RuntimeError):
    """An app has said that it cannot start."""


class Lifespan:
    """An app's startup, once a process, and its shutdown with the host. An app without lifespan is left alone."""

    def __init__(self, app: App) -> None:
        self.app = app  # kept, so that its id() is not another's
        self.state: dict[str, Any] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        # Outside of whatever request is first: it belongs to none of them.
        self._task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._run())

    async def _run(self) -> None:
        events = iter([{"type": "lifespan.startup"}])

        async def receive() -> Message:
            for event in events:
                return event
            await self._end.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._settle(
                    StartupError(f"the ASGI app's startup failed: {message.get('message') or 'it does not say why'}")
                )
            else:  # complete; or it is an app that does not look at what it is asked
                self._settle(None)

        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self.app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - an app may not know of lifespans (ASGI, "Lifespan Protocol")
            _log.debug("asgi: no lifespan: %s", error)
        except BaseException as error:
            self._settle(StartupError(f"the ASGI app's startup ended: {error!r}"))
            raise
        self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if self._started.done():
            return
        if error is None:
            self._started.set_result(None)
        else:
            _lifespans.pop(id(self.app), None)  # the next request tries again
            self._started.set_exception(error)

    async def started(self) -> dict[str, Any]:
        await asyncio.shield(self._started)
        return self.state

    async def end(self, timeout_s: float) -> None:
        self._end.set()
        await asyncio.wait({self._task}, timeout=timeout_s)
        self._task.cancel()


_lifespans: dict[int, Lifespan] = {}


async def started(app: App) -> dict[str, Any]:
    lifespan = _lifespans.get(id(app))
    if lifespan is None:
        lifespan = Lifespan(app)
        if len(_lifespans) < _MAX_APPS:  # else it makes an app for each request
            _lifespans[id(app)] = lifespan
    return await lifespan.started()


_apps: list[Any] = []  # that are served, as far as is known before their first request


def serves(app: Any) -> None:
    if app is not None and not any(each is app for each in _apps) and len(_apps) < _MAX_APPS:
        _apps.append(app)


async def start_apps(timeout_s: float) -> None:
    """Run the startup of every app that the worker serves, before its first request. Raises StartupError if one cannot
    start, or has not within `timeout_s`."""
    for app in _apps:
        try:
            async with asyncio.timeout(timeout_s):
                await started(app)
        except TimeoutError:
            _lifespans.pop(id(app), None)
            raise StartupError(f"the ASGI app has not started within {timeout_s:g} s (asgi.startup_s).") from None


entrypoint_apps: list[Any] = []


def keeps_sockets() -> bool:
    """Whether an app of `entrypoint` may keep WebSockets in this process's memory, where another host's would miss them."""
    return any(_has_sockets(app) for app in entrypoint_apps)


def _has_sockets(app: Any) -> bool:
    try:
        from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
        from starlette.staticfiles import StaticFiles
    except ImportError:
        return True  # another framework: nobody knows
    routes = getattr(app, "routes", None)
    if not isinstance(routes, list) or not all(isinstance(route, BaseRoute) for route in routes):
        return not isinstance(app, StaticFiles)
    for route in routes:
        if isinstance(route, WebSocketRoute):
            return True
        if isinstance(route, Mount | Host):
            if _has_sockets(getattr(route, "_base_app", route.app)):
                return True
        elif not isinstance(route, Route | Router) and _has_sockets(route):
            return True
    return False


async def end_lifespans(timeout_s: float) -> None:
    """Run the shutdown of every app that has started; for the host's end."""
    await asyncio.gather(*(lifespan.end(timeout_s) for lifespan in list(_lifespans.values())))
    _lifespans.clear()
