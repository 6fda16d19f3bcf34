"""Which version of the app a node runs: chosen at its start, and changed by deploy, rollback, upgrade and reload.

One change at a time. What was started is copied while the children start, and is a version then, too.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.errors import ConfigError
from roost.node.class_config import CodeUpdate
from roost.node.config import read_app
from roost.node.versions import Source, Version, Versions

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from roost.node.config import App
    from roost.node.deployment import Deployment
    from roost.node.options import Options
    from roost.node.run_folder import RunFolder
    from roost.node.settings import Settings
    from roost.node.spawning import Spawner

_log = logging.getLogger("roost.node")

Added = tuple[Version, list[str]]  # and what was left out


class Releases:
    """One node's. `deployment` is there once the node has several processes."""

    deployment: Deployment

    def __init__(self, options: Options, settings: Settings, spawner: Spawner) -> None:
        self._options = options
        self._spawner = spawner
        self.versions = Versions(Path(options.data), settings.storage.min_free_bytes)
        self._changing = asyncio.Lock()
        self._adding: asyncio.Task[Added] | None = None  # the copy that is being made of what was started
        self._keeping: asyncio.Task[None] | None = None  # and its becoming a version

    def name(self) -> str:
        """What runs, for a sentence."""
        active = self.versions.active
        return "The worker" if active is None else f"Version {active.number} of the worker"

    # at the start

    async def choose(self) -> None:
        """Decide whether the folder is run or the version that ran last. The folder is copied while the children start."""
        source = self._options.source
        if source is None:
            return
        await asyncio.to_thread(self.versions.prune)
        choice = await asyncio.to_thread(self.versions.choose, source, from_folder=self._options.from_folder)
        if choice.line:
            _log.warning("node: %s", choice.line)
        if choice.app is not None:
            self._spawner.app = choice.app
        if choice.new:
            self._adding = asyncio.create_task(asyncio.to_thread(self.versions.add, source, expected=choice.new))

    def started(self) -> None:
        """What was started serves: it is kept as a version."""
        if self._adding is not None:
            self._keeping = asyncio.create_task(self._keep(self._adding))

    async def _keep(self, adding: asyncio.Task[Added]) -> None:
        """Hosts to come run the copy, and it can be rolled back to."""
        started = self._spawner.app
        async with self._changing:
            try:
                version, left_out = await adding
                is_active = self._spawner.app is started
                if is_active:
                    self.versions.activate(version)
                else:  # other code was deployed meanwhile
                    self.versions.keep(version)
                for line in left_out:
                    _log.warning("node: %s", line)
                _log.info("node: %s is version %d", version.source, version.number)
                if is_active:
                    self._spawner.app = self.versions.app(version)
                    if not self._options.inline:
                        self.deployment.tell_app()
            except (ConfigError, OSError) as error:
                _log.warning("node: what runs cannot be rolled back to: %s", error)

    async def end(self) -> None:
        """The node ends. A copy of what has never served is thrown away."""
        if self._keeping is not None:
            await asyncio.gather(self._keeping, return_exceptions=True)
        elif self._adding is not None:
            adding, self._adding = self._adding, None
            for added in await asyncio.gather(adding, return_exceptions=True):
                if not isinstance(added, BaseException):
                    self.versions.discard(added[0])

    # changes

    async def reload(self, app: App) -> None:
        """Run an app that is no version (`roost dev`). Raises ConfigError or WorkerError if it does not load."""
        async with self._changing:
            await self.deployment.reload(app)

    async def deploy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Copy a folder and run it."""
        async with self._changing:
            config, variables = request.get("config"), list(request.get("variables") or [])
            source = Source(Path(str(request.get("dir"))), config, request.get("env"), variables)
            read_app(source.folder, config=Path(config) if config else None, env=source.env, variables=variables)  # first
            message = str(request.get("message") or "")
            if self._adding is not None:
                await asyncio.wait({self._adding})  # one copy at a time
            version, left_out = await asyncio.to_thread(self.versions.add, source, message)
            before = self._spawner.app
            try:
                return {**await self._run_version(version, request.get("code_update_mode")), "left_out": left_out}
            except BaseException:
                if self._spawner.app is before:  # nothing runs from its folder
                    self.versions.discard(version)
                raise

    async def rollback(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run an earlier version."""
        async with self._changing:
            return await self._run_version(self.versions.find(request.get("version")))

    async def _run_version(self, version: Version, mode: str | None = None) -> dict[str, Any]:
        app, runs = self.versions.app(version), self._spawner.app
        if app.name != runs.name:
            raise ConfigError(
                f"the app is named {app.name!r}, but this node runs {runs.name!r}: its objects would be others.", "name"
            )
        began = asyncio.get_running_loop().time()
        update = app.code_update
        if mode not in (None, update.mode):
            update = CodeUpdate(mode)
        await self.deployment.reload(app, update.max_delay_s if update.mode == "deferred" else 0.0)
        self.versions.activate(version)
        _log.info("node: version %d runs, from %s", version.number, version.source)
        return {"version": version.number, "took_s": round(asyncio.get_running_loop().time() - began, 3)}

    async def upgrade(self, listeners: Sequence[socket.socket], run: RunFolder) -> dict[str, Any]:
        """Replace each gateway, then each host, by processes of the Roost that is installed now. The node itself stays."""
        async with self._changing:
            loop = asyncio.get_running_loop()
            began = loop.time()
            for index, listener in enumerate(listeners):
                await self.deployment.upgrade_gateway(index, listener, run.address(f"take-over-{index}.sock"))
            gateways_s = loop.time() - began
            await self.deployment.reload(self._spawner.app)
            _log.info("node: upgraded: gateways after %.1f s, hosts after %.1f s", gateways_s, loop.time() - began)
            return {"gateways_s": round(gateways_s, 3), "took_s": round(loop.time() - began, 3)}
