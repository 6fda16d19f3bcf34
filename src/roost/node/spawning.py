"""Starting a child process: what it runs on, what it inherits, and what it is told to be."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from roost.node import orphans
from roost.node.child_process import ChildProcess
from roost.node.host_process import has_glibc, host_environment, host_interpreter
from roost.node.orders import CONTROL_LINE_BYTES, ListenAgain, Start
from roost.node.spec import ChildSpec

if TYPE_CHECKING:
    from roost.node.children import Children
    from roost.node.config import App
    from roost.node.options import Options
    from roost.node.quarantine import Suspects
    from roost.node.run_folder import RunFolder
    from roost.node.settings import Settings

_log = logging.getLogger("roost.node")


class Spawner:
    """One node's. `app` and `first_names` are what a child gets that is started again."""

    run: RunFolder

    def __init__(self, app: App, settings: Settings, options: Options, children: Children, suspects: Suspects) -> None:
        self.app = app
        self.first_names: dict[str, str] = {}
        self._settings = settings
        self._options = options
        self._children = children
        self._suspects = suspects
        self._hosts_made = 0

    async def gateway(self, index: int, listen_fds: list[int], take_over: str = "") -> ChildProcess:
        """A gateway; with `take_over`, one that waits there for the present one to hand over. Raises OSError."""
        spec = self._spec("gateway", index, self.app, self.first_names, listen_fds, take_over=take_over)
        return await self._start(f"gateway {index}", spec, sys.executable, dict(os.environ), "")

    async def host(
        self, index: int, app: App | None = None, first_names: dict[str, str] | None = None, *, hold: bool = False
    ) -> ChildProcess:
        """A host. Raises OSError or subprocess.SubprocessError."""
        app = app or self.app
        self._hosts_made += 1
        mark = orphans.mark_of(self._options.data, self._hosts_made)
        environment = {**host_environment(os.environ, glibc=has_glibc()), orphans.VARIABLE: mark}
        spec = self._spec("host", index, app, self.first_names if first_names is None else first_names, [], hold=hold)
        child = await self._start(f"host {index}", spec, host_interpreter(app.folder), environment, mark)
        child.came = partial(self._children.came, index)
        return child

    def _spec(
        self,
        role: str,
        index: int,
        app: App,
        first_names: dict[str, str],
        listen_fds: list[int],
        *,
        hold: bool = False,
        take_over: str = "",
    ) -> ChildSpec:
        run, options = self.run, self._options
        return ChildSpec(
            role=role,
            index=index,
            slots=options.hosts,
            app=app,
            settings=self._settings,
            sockets=[run.address(f"gateway-{number}.sock") for number in range(options.gateways)],
            run_folder=str(run.path),
            listen_fds=listen_fds,
            data=options.data,
            log_format=options.log_format,
            debug=options.debug,
            dev=options.source is None,
            ca_file=options.ca_file,
            not_again=list(self._suspects.not_again),
            quarantined=list(self._suspects.quarantined),
            hold=hold or bool(take_over),
            first_names=first_names,
            take_over=take_over,
            elsewhere=self._children.elsewhere(index) if role == "host" and not hold else [],
        )

    async def _start(
        self, name: str, spec: ChildSpec, interpreter: str, environment: dict[str, str], mark: str
    ) -> ChildProcess:
        run = self.run
        if run.make_again():
            _log.warning("node: %s was removed, and is made anew", run.path)
            self._children.tell_gateways(ListenAgain())
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            interpreter, "-P", "-m", "roost.node.child", str(theirs.fileno()), env=environment,
            pass_fds=(theirs.fileno(), run.data_fd, *spec.listen_fds), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=CONTROL_LINE_BYTES)
        child = ChildProcess(name, process, writer, self._suspects.stuck)
        child.orphans = mark
        child.mark = run.path / f"{process.pid}.mark"
        spec = spec.marked(str(child.mark)) if mark else spec
        child.tell(Start(spec))
        child.listening = asyncio.create_task(child.listen(reader))
        return child
