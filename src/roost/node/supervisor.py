"""The node: starts gateways and hosts, watches them, replaces what dies, and drains them at the end. No traffic."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.node import commands, control, orphans
from roost.node.admin import TOKEN_FILE, Admin, read_token
from roost.node.assemble import describe_assets
from roost.node.children import Children
from roost.node.deployment import Deployment
from roost.node.heartbeat import Heartbeat
from roost.node.inline import Inline
from roost.node.keeper import Keeper
from roost.node.listening import bind, url_of
from roost.node.orders import EndSoon
from roost.node.quarantine import Suspects
from roost.node.releases import Releases
from roost.node.run_folder import RunFolder
from roost.node.spawning import Spawner
from roost.storage import alarm_index
from roost.storage.migrations import Migrations

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from roost.node.config import App
    from roost.node.options import Options
    from roost.node.settings import Settings

_log = logging.getLogger("roost.node")

_HOST_DRAIN_S = 2.0  # at most, once the gateways have ended


class Node:
    """A running node. `run` serves until `stop` is called or SIGTERM or SIGINT comes, and returns the exit code."""

    def __init__(self, app: App, settings: Settings, options: Options) -> None:
        self._settings = settings
        self._options = options
        self._stopping = asyncio.Event()
        self._migrations = Migrations(Path(options.data))
        self.children = Children(options.gateways, options.hosts)
        self.suspects = Suspects(self.children)
        self._spawner = Spawner(app, settings, options, self.children, self.suspects)
        self.releases = Releases(options, settings, self._spawner)
        self.keeper = Keeper(self.children, self._spawner, self.suspects, settings, self._stopping, self.releases.name)
        self.releases.deployment = Deployment(
            self.children, self._spawner, self.keeper, self._migrations, settings, self._stopping
        )
        self.inline = Inline() if options.inline else None
        self._listeners: list[socket.socket] = []

    def stop(self) -> None:
        self._stopping.set()

    async def reload(self, app: App) -> None:
        """Run other code (`roost dev`). Raises ConfigError or WorkerError if it does not load: then nothing has changed."""
        await self.releases.reload(app)

    async def upgrade(self) -> dict[str, Any]:
        """New processes of the Roost that is installed now."""
        return await self.releases.upgrade(self._listeners, self._spawner.run)

    async def run(self, ready: Callable[[str], None]) -> int:
        """Serve. `ready(url)` is called once clients can connect. Raises ConfigError or WorkerError before that."""
        lock = control.lock_data_folder(self._options.data)
        try:
            await asyncio.to_thread(orphans.end_orphans, orphans.mark_of(self._options.data))  # of a node that was killed
            await self.releases.choose()
            await self._prepare()
            await self._serve(ready)
        finally:
            await self.releases.end()
            os.close(lock)
        return 0

    async def _prepare(self) -> None:
        """The objects' files are as the code to come calls their classes."""
        data, slots, app = Path(self._options.data), self._options.hosts, self._spawner.app
        plan = self._migrations.plan(app.migrations, app.exports)
        await asyncio.to_thread(alarm_index.prepare, data, slots)
        await asyncio.to_thread(self._migrations.apply, plan, slots)
        self._spawner.first_names = plan.first_names
        if said := describe_assets(app):
            _log.info("node: %s", said)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        options, data = self._options, Path(self._options.data)
        listeners = self._listeners = bind(options)
        run = self._spawner.run = RunFolder(data)
        admin = Admin(read_token(data), self._answer) if options.admin else None
        if admin is not None and options.admin is not None:
            await admin.start(*options.admin)
            _log.info("node: admin on http://%s:%d, its token in %s", *admin.address, data / TOKEN_FILE)
        server = await control.serve(options.data, self._answer)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)

        def is_ready() -> None:
            ready(url_of(listeners[0], tls=bool(self._settings.network.tls_cert)))
            self.releases.started()

        try:
            if self.inline is not None:
                app, names = self._spawner.app, self._spawner.first_names
                await self.inline.run(app, self._settings, options, names, listeners, is_ready, self._stopping)
            else:
                await self._run_processes(is_ready)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            server.close()
            if admin is not None:
                admin.close()
            await self.releases.end()
            run.close()
            for sock in listeners:
                sock.close()
            alarm_index.mark(data, options.hosts, clean=True)  # every host has ended, or was killed: nothing is torn

    def _signalled(self) -> None:
        if self._stopping.is_set():
            os._exit(1)  # asked twice: now
        _log.info("node: draining (at most %g s)", self._settings.timeouts.drain_s)
        self._stopping.set()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return await commands.answer(self, request)

    async def _run_processes(self, ready: Callable[[], None]) -> None:
        keepers = [
            asyncio.create_task(self.keeper.keep("gateway", index, [sock.fileno()]))
            for index, sock in enumerate(self._listeners)
        ] + [asyncio.create_task(self.keeper.keep("host", index, [])) for index in range(self._options.hosts)]
        heart = asyncio.create_task(self._heartbeat().run())
        starting = asyncio.create_task(self.keeper.all_ready())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                ready()
                await stopping
        finally:
            for task in (heart, starting, stopping):
                task.cancel()
            self._stopping.set()
            await self._drain(keepers)

    async def _drain(self, keepers: list[asyncio.Task[None]]) -> None:
        """Gateways first, as what they still have to say to hosts is heard."""
        children, drain_s = self.children, self._settings.timeouts.drain_s
        children.tell_hosts(EndSoon())
        await asyncio.gather(*(child.stop(drain_s) for child in [*children.gateways, *children.left] if child))
        await asyncio.gather(*(child.stop(min(drain_s, _HOST_DRAIN_S)) for child in children.hosts if child))
        await asyncio.wait(keepers, timeout=1.0)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def _heartbeat(self) -> Heartbeat:
        timeouts, limits = self._settings.timeouts, self._settings.limits

        def host_silence_s() -> float:
            cpu_ms = self._spawner.app.cpu_ms or limits.cpu_ms
            return max(cpu_ms, *limits.class_cpu_ms.values(), 0) / 1000 + timeouts.host_silence_s

        children = self.children
        return Heartbeat(children.gateways, children.hosts, self._listeners, host_silence_s, timeouts.gateway_silence_s)
