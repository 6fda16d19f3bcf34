"""`roost dev`: reload when a file of the app changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import watchfiles

from roost.errors import RoostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from roost.node.supervisor import Node

_log = logging.getLogger("roost.node")

_LEFT_OUT = (".roost", ".git", ".venv", "__pycache__", "node_modules")


class _Filter(watchfiles.DefaultFilter):
    """Everything of the app but what it does not consist of."""

    def __call__(self, change: watchfiles.Change, path: str) -> bool:
        return super().__call__(change, path) and not any(f"/{name}" in path for name in _LEFT_OUT)


@contextlib.asynccontextmanager
async def watched(node: Node, folder: Path, app_now: Callable[[], Any]) -> AsyncIterator[None]:
    """Reload `node` while the block runs, on every change below `folder`."""
    stop = asyncio.Event()

    async def watch() -> None:
        async for changes in watchfiles.awatch(folder, watch_filter=_Filter(), stop_event=stop, step=50, debounce=200):
            _log.info("dev: %d files changed; reloading", len(changes))
            try:
                await node.reload(app_now())
            except RoostError as error:
                _log.error("dev: %s", error)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        stop.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
