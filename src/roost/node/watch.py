"""`roost dev`: reload when a file of the app changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import watchfiles

from roost.errors import RoostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from roost.node.supervisor import Node

_log = logging.getLogger("roost.node")

_LEFT_OUT = (".roost", ".git", ".venv", "__pycache__", "node_modules")
_WATCHED = frozenset({".py", ".toml", ".jsonc", ".html", ".css", ".js", ".env", ".vars"})
"""What an app is made of. Not `.json`, `.log`, `.sqlite`…: a worker that writes its own files must not reload itself."""


class _Filter(watchfiles.DefaultFilter):
    """Everything of the app but what it does not consist of."""

    def __call__(self, change: watchfiles.Change, path: str) -> bool:
        if not super().__call__(change, path) or any(f"/{name}/" in path for name in _LEFT_OUT):
            return False
        return os.path.splitext(path)[1] in _WATCHED or os.path.basename(path) in ("wrangler.json", ".env", ".dev.vars")


def _syntax_error(paths: list[str]) -> str:
    """What is wrong with the first Python file that cannot be compiled, or nothing."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                compile(file.read(), path, "exec")
        except FileNotFoundError:
            continue  # deleted, or in the middle of being replaced
        except SyntaxError as error:
            return f"{path}:{error.lineno}: syntax error: {error.msg}"
        except (OSError, ValueError) as error:
            return f"{path}: {error}"
    return ""


@contextlib.asynccontextmanager
async def watched(node: Node, folder: Path, app_now: Callable[[], Any]) -> AsyncIterator[None]:
    """Reload `node` while the block runs, on every change below `folder`."""
    stop = asyncio.Event()

    async def watch() -> None:
        async for changes in watchfiles.awatch(folder, watch_filter=_Filter(), stop_event=stop, step=50, debounce=200):
            paths = sorted({path for _, path in changes})
            wrong = _syntax_error([path for path in paths if path.endswith(".py")])
            if wrong:
                _log.error("dev: %s; the running version goes on", wrong)
                continue
            _log.info("dev: %s changed; reloading", ", ".join(map(os.path.basename, paths[:3])))
            try:
                await node.reload(app_now())
            except RoostError as error:
                _log.error("dev: %s; the running version goes on", error)
                for note in getattr(error, "__notes__", []):
                    _log.error("%s", note)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        stop.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
