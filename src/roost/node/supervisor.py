"""The node: starts gateways and hosts, watches them, replaces what dies, and drains them at the end. No traffic."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from roost.errors import ConfigError, InternalError, RoostError, WorkerError
from roost.host.worker import mark
from roost.ids import is_object_id, slot_of
from roost.link.memory import memory_pair
from roost.node import control, orphans
from roost.node.admin import TOKEN_FILE, Admin, read_token
from roost.node.assemble import (
    HostPlace,
    calm_collector,
    describe_assets,
    evict_objects,
    gateway_report,
    host_report,
    load,
    make_gateway,
    make_host,
    restore_object,
    start_apps,
)
from roost.node.child_process import MUTE_S, ChildProcess, Health
from roost.node.class_config import CodeUpdate
from roost.node.config import read_app
from roost.node.heartbeat import Heartbeat, mute
from roost.node.host_process import has_glibc, host_environment, host_interpreter
from roost.node.out_of_memory import KernelKills
from roost.node.run_folder import RunFolder
from roost.node.spec import CONTROL_LINE_BYTES, ChildSpec, FromChild, ToChild
from roost.node.versions import Source, Version, Versions
from roost.observe import logs
from roost.storage import alarm_index
from roost.storage.migrations import Migrations, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from roost.node.config import App
    from roost.node.settings import Settings

_log = logging.getLogger("roost.node")

Added = tuple[Version, list[str]]  # and what was left out

_BACK_OFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
_STABLE_AFTER_S = 10.0
_HANGS_ALLOWED = 2
_BREAKER_DEATHS = 5  # of one host in a row, each before it was stable: then nobody is let wait for it
_LOADING_S = 60.0  # for new code
_MAX_HUNG = 10_000  # objects whose hangs are remembered


class Options(msgspec.Struct, frozen=True):
    """What the command line decided."""

    ip: str
    port: int
    data: str
    hosts: int
    gateways: int
    inline: bool
    log_format: str = "text"
    debug: bool = False
    ca_file: str | None = None
    admin: tuple[str, int] | None = None
    source: Source | None = None  # what versions are made of; None: the app is run as it is
    from_folder: bool = False  # run the folder, also if its code was rolled back from


class Node:
    """A running node. `run` serves until `stop` is called or SIGTERM or SIGINT comes, and returns the exit code."""

    def __init__(self, app: App, settings: Settings, options: Options) -> None:
        self._app = app
        self._settings = settings
        self._options = options
        self._stopping = asyncio.Event()
        self._gateways: list[ChildProcess | None] = [None] * options.gateways
        self._hosts: list[ChildProcess | None] = [None] * options.hosts
        self._keepers: list[asyncio.Task[None]] = []
        self._successors: dict[tuple[str, int], ChildProcess] = {}  # that are to take a place, by role and index
        self._left: list[ChildProcess] = []  # gateways whose successors have everything but the TLS sessions
        self._kernel_kills = KernelKills()
        self._changing = asyncio.Lock()  # one deployment at a time
        self._versions = Versions(Path(options.data), settings.storage.min_free_bytes)
        self._migrations = Migrations(Path(options.data))
        self._first_names: dict[str, str] = {}
        self._hosts_made = 0
        self._starting = 0  # hosts that are just being spawned
        self._may_start = asyncio.Event()  # cleared while objects move: no host may run
        self._may_start.set()
        self._not_again: deque[tuple[int, int]] = deque(maxlen=1000)  # events that a host hung in
        self._hung: dict[tuple[str, str], int] = {}  # how often an object brought its host down
        self._quarantined: dict[tuple[str, str], dict[str, str]] = {}
        self._breakers: dict[int, str] = {}  # by host: why nobody should wait for it
        self._listeners: list[socket.socket] = []
        self._run: RunFolder | None = None
        self._adding: asyncio.Task[Added] | None = None  # the copy that is being made of what was started
        self._keeping: asyncio.Task[None] | None = None  # a copy of what was started
        self._spawn_error = ""
        self._inline: Any = None  # (gateway, host) of --inline

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, ready: Callable[[str], None]) -> int:
        """Serve. `ready(url)` is called once clients can connect. Raises ConfigError or WorkerError before that."""
        asyncio.get_running_loop()
        lock = control.lock_data_folder(self._options.data)
        _data, _slots = Path(self._options.data), self._options.hosts
        await asyncio.to_thread(orphans.end_orphans, orphans.mark_of(self._options.data))  # of a node that was killed
        adding = self._adding = await self._choose_version()
        try:
            return await self._run_with_lock(ready, lock, adding)
        finally:
            if adding is not None and self._keeping is None:  # it has not started
                for added in await asyncio.gather(adding, return_exceptions=True):
                    if not isinstance(added, BaseException):
                        self._versions.discard(added[0])

    async def _run_with_lock(self, ready: Callable[[str], None], lock: int, adding: asyncio.Task[Added] | None) -> int:
        loop = asyncio.get_running_loop()
        data, slots = Path(self._options.data), self._options.hosts
        plan = self._migrations.plan(self._app.migrations, self._app.exports)
        await asyncio.to_thread(alarm_index.prepare, data, slots)
        await asyncio.to_thread(self._migrations.apply, plan, slots)
        self._first_names = plan.first_names
        if said := describe_assets(self._app):
            _log.info("node: %s", said)
        listeners = self._listeners = self._bind()
        run = self._run = RunFolder(data)
        admin = Admin(read_token(data), self._answer) if self._options.admin else None
        if admin is not None and self._options.admin is not None:
            await admin.start(*self._options.admin)
            _log.info("node: admin on http://%s:%d, its token in %s", *admin.address, data / TOKEN_FILE)
        server = await control.serve(self._options.data, self._answer)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        try:
            host, port = listeners[0].getsockname()[:2]
            scheme = "https" if self._settings.network.tls_cert else "http"
            url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

            def is_ready() -> None:
                ready(url)
                if adding is not None:
                    self._keeping = loop.create_task(self._keep_version(adding))

            if self._options.inline:
                await self._run_inline(listeners, is_ready)
            else:
                await self._run_processes(listeners, is_ready)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            server.close()
            if admin is not None:
                admin.close()
            if self._keeping is not None:
                await asyncio.gather(self._keeping, return_exceptions=True)
            run.close()
            for sock in listeners:
                sock.close()
            alarm_index.mark(data, slots, clean=True)  # every host has ended, or was killed: nothing is torn
            os.close(lock)
        return 0

    # versions at start

    async def _choose_version(self) -> asyncio.Task[Added] | None:
        """Decide whether the folder is run or the version that ran last. The folder is copied while the children start."""
        source = self._options.source
        if source is None:
            return None
        await asyncio.to_thread(self._versions.prune)
        choice = await asyncio.to_thread(self._versions.choose, source, from_folder=self._options.from_folder)
        if choice.line:
            _log.warning("node: %s", choice.line)
        if choice.app is not None:
            self._app = choice.app
        if not choice.new:
            return None
        return asyncio.create_task(asyncio.to_thread(self._versions.add, source, expected=choice.new))

    async def _keep_version(self, adding: asyncio.Task[Added]) -> None:
        """What was started is a version: hosts to come run its copy, and it can be rolled back to."""
        started = self._app
        async with self._changing:
            try:
                version, left_out = await adding
                if self._app is started:
                    self._versions.activate(version)
                else:  # other code was deployed meanwhile
                    self._versions.keep(version)
                for line in left_out:
                    _log.warning("node: %s", line)
                _log.info("node: %s is version %d", version.source, version.number)
                if self._app is started:
                    self._app = self._versions.app(version)
                    self._tell_gateways_app()
            except (ConfigError, OSError) as error:
                _log.warning("node: what runs cannot be rolled back to: %s", error)

    def _tell_gateways_app(self) -> None:
        for gateway in self._gateways:
            if gateway is not None:
                gateway.tell(ToChild("app", self._app))

    def _signalled(self) -> None:
        if self._stopping.is_set():
            os._exit(1)  # asked twice: now
        _log.info("node: draining (at most %g s)", self._settings.timeouts.drain_s)
        self._stopping.set()

    def _bind(self) -> list[socket.socket]:
        options = self._options
        listeners = []
        port = options.port

        def bound() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in options.ip else socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if options.gateways > 1:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((options.ip, port))
            except BaseException:
                sock.close()
                raise
            return sock

        for _ in range(options.gateways):
            try:
                sock = bound()
                if not port and options.gateways > 1:
                    # By its number: a socket that the kernel has given a port loses it when it stops listening for a while.
                    port = sock.getsockname()[1]
                    sock.close()
                    sock = bound()
                sock.listen(4096)
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise WorkerError(
                    f"cannot listen on {options.ip}:{port}: {reason}; choose another --ip or --port."
                ) from None
            port = sock.getsockname()[1]
            listeners.append(sock)
        return listeners

    # one process

    async def _run_inline(self, listeners: list[socket.socket], ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        stdout = sys.stdout
        logs.redirect_prints()
        try:
            worker = load(self._app)
            await start_apps(self._settings)
            options = self._options
            place = HostPlace(data=options.data, first_names=self._first_names, ca_file=options.ca_file)
            host = make_host(loop, worker, self._app, self._settings, place)
            gateway = make_gateway(
                loop, self._app, self._settings, 1, options.ca_file, epoch=0, log_format=options.log_format
            )
            host_end, gateway_end = memory_pair(loop)
            gateway.add_host(gateway_end)
            host.add_gateway(host_end)
            gateway.start()
            for sock in listeners:
                gateway.listen(sock.dup())
            self._inline = (gateway, host)
            calm_collector()
            ready()
            await self._stopping.wait()
            await gateway.drain(self._settings.timeouts.drain_s)
            await host.close(1.0)
        finally:
            sys.stdout = stdout

    # several processes

    async def _run_processes(self, listeners: list[socket.socket], ready: Callable[[], None]) -> None:
        self._keepers = [
            asyncio.create_task(self._keep("gateway", index, [sock.fileno()])) for index, sock in enumerate(listeners)
        ] + [asyncio.create_task(self._keep("host", index, [])) for index in range(self._options.hosts)]
        heart = asyncio.create_task(self._heartbeat(listeners).run())
        starting = asyncio.create_task(self._all_ready())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                ready()
                await stopping
        finally:
            heart.cancel()
            starting.cancel()
            stopping.cancel()
            self._stopping.set()
            drain_s = self._settings.timeouts.drain_s
            for child in self._hosts:
                if child is not None:
                    child.tell(ToChild("end_soon"))
            await asyncio.gather(*(child.stop(drain_s) for child in [*self._gateways, *self._left] if child))
            await asyncio.gather(*(child.stop(min(drain_s, 2.0)) for child in self._hosts if child))
            await asyncio.wait(self._keepers, timeout=1.0)
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)

    def _heartbeat(self, listeners: list[socket.socket]) -> Heartbeat:
        timeouts = self._settings.timeouts

        def host_silence_s() -> float:
            limits = self._settings.limits
            return max(self._app.cpu_ms or limits.cpu_ms, *limits.class_cpu_ms.values(), 0) / 1000 + timeouts.host_silence_s

        return Heartbeat(self._gateways, self._hosts, listeners, host_silence_s, timeouts.gateway_silence_s)

    async def _all_ready(self) -> None:
        """Wait until every child is ready; raise what made one fail."""
        while True:
            children = [*self._gateways, *self._hosts]
            if self._spawn_error:
                raise InternalError(self._spawn_error)
            for child in children:
                if child is not None and child.failure is not None:
                    raise _as_error(child.failure)
                if child is not None and child.health is Health.GONE:
                    raise InternalError(f"{child.name} ended while starting (exit code {child.process.returncode}).")
            if all(child is not None and child.health is Health.READY for child in children):
                return
            await asyncio.sleep(0.002)

    async def _keep(self, role: str, index: int, listen_fds: list[int]) -> None:
        """Keep one child running: a new one for one that died, after a pause that grows while they die young."""
        table = self._gateways if role == "gateway" else self._hosts
        deaths = 0
        while not self._stopping.is_set():
            try:
                if role == "host":
                    await self._may_start.wait()
                child = self._successors.pop((role, index), None)
                if child is not None and role == "host":
                    child.tell(
                        ToChild(
                            "connect",
                            quarantined=list(self._quarantined),
                            not_again=list(self._not_again),
                            objects=self._elsewhere(index),
                        )
                    )
                elif child is None:
                    self._starting += role == "host"
                    try:
                        child = await self._spawn(role, index, listen_fds)
                        table[index] = child
                    finally:
                        self._starting -= role == "host"
            except (OSError, subprocess.SubprocessError) as error:
                self._spawn_error = f"{role} {index} cannot be started: {error}"
                _log.error("node: %s", self._spawn_error)
                await asyncio.sleep(_BACK_OFF_S[-1])
                continue
            table[index] = child
            if role == "gateway":
                for slot in range(self._options.hosts):
                    child.tell(ToChild("breaker", slot=slot, text=self._breakers.get(slot, "")))
            elif index in self._breakers:
                asyncio.get_running_loop().call_later(_STABLE_AFTER_S, self._calm, index, child)
            if self._stopping.is_set():
                child.kill()
            await child.over.wait()
            if child.has_left:
                self._left = [each for each in self._left if each.health is not Health.GONE] + [child]
                continue
            if self._stopping.is_set():
                return
            ran_s = asyncio.get_running_loop().time() - child.started_at
            code = child.process.returncode or 0
            if child.replaced:
                deaths = 0
                if role == "host" and code not in (0, -signal.SIGKILL) and not child.told_stuck:
                    self._died_in_handler(child.name, child.mark)
                child.mark.unlink(missing_ok=True)
                continue
            deaths = 0 if ran_s > _STABLE_AFTER_S else deaths + 1
            if role == "host" and deaths >= _BREAKER_DEATHS:
                self._open_breaker(index, deaths)
            pause = min(_BACK_OFF_S[min(deaths, len(_BACK_OFF_S) - 1)], self._settings.timeouts.restart_pause_s)
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            if code == -signal.SIGKILL and self._kernel_kills.happened():
                doing = mark.read(child.mark) if role == "host" else None
                how += " by the kernel: memory ran out" + (f", in webSocketMessage of {doing['what']}" if doing else "")
            if child.failure is not None:
                _log.error("node: %s cannot start: %s", child.name, child.failure.text)
                if child.failure.traceback:
                    _log.error("%s", child.failure.traceback)
            else:
                _log.error("node: %s ended (%s) and is replaced%s", child.name, how, f" in {pause:g} s" if pause else "")
                if role == "host" and (code != -signal.SIGKILL or child.blamed) and not child.told_stuck:
                    self._died_in_handler(child.name, child.mark)
            if role == "host":
                child.mark.unlink(missing_ok=True)
            await asyncio.sleep(pause)

    async def _spawn(
        self,
        role: str,
        index: int,
        listen_fds: list[int],
        app: App | None = None,
        *,
        hold: bool = False,
        first_names: dict[str, str] | None = None,
        take_over: str = "",
    ) -> ChildProcess:
        app = app or self._app
        run, options = self._run, self._options
        assert run is not None
        if run.make_again():
            _log.warning("node: %s was removed, and is made anew", run.path)
            for gateway in self._gateways:
                if gateway is not None:
                    gateway.tell(ToChild("listen_again"))
        ours, theirs = socket.socketpair()
        interpreter, environment = sys.executable, dict(os.environ)
        if role == "host":
            interpreter, environment = host_interpreter(app.folder), host_environment(environment, glibc=has_glibc())
            self._hosts_made += 1
            environment[orphans.VARIABLE] = orphans.mark_of(options.data, self._hosts_made)
        process = await asyncio.create_subprocess_exec(
            interpreter, "-P", "-m", "roost.node.child", str(theirs.fileno()), env=environment,
            pass_fds=(theirs.fileno(), run.data_fd, *listen_fds), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=CONTROL_LINE_BYTES)
        child = ChildProcess(f"{role} {index}", process, writer, self._stuck)
        child.orphans = environment.get(orphans.VARIABLE, "") if role == "host" else ""
        child.mark = run.path / f"{process.pid}.mark"
        spec = ChildSpec(
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
            not_again=list(self._not_again),
            quarantined=list(self._quarantined),
            mark=str(child.mark) if role == "host" else None,
            hold=hold,
            first_names=self._first_names if first_names is None else first_names,
            take_over=take_over,
            elsewhere=self._elsewhere(index) if role == "host" and not hold else [],
        )
        if role == "host":
            child.came = partial(self._came, index)
        child.tell(ToChild("start", spec=spec))
        child.listening = asyncio.create_task(child.listen(reader))
        return child

    # what crashes again and again

    def _open_breaker(self, index: int, deaths: int) -> None:
        """Requests for that host are refused at once while it is not there. Sockets stay, and what they send waits."""
        reason = (
            f"{self._version_name()} has crashed {deaths} times in a row and is being restarted slowly (see the server's"
            " log). Try again later; a deployment of other code ends this."
        )
        if index not in self._breakers:
            _log.error("node: host %d: %s", index, reason)
        self._tell_breaker(index, reason)

    def _version_name(self) -> str:
        active = self._versions.active
        return "The worker" if active is None else f"Version {active.number} of the worker"

    def _calm(self, index: int, child: ChildProcess) -> None:
        if self._hosts[index] is child and child.is_ready:
            _log.info("node: host %d runs again", index)
            self._tell_breaker(index, "")

    def _tell_breaker(self, index: int, reason: str) -> None:
        if reason:
            self._breakers[index] = reason
        else:
            self._breakers.pop(index, None)
        for gateway in self._gateways:
            if gateway is not None:
                gateway.tell(ToChild("breaker", slot=index, text=reason))

    # what hangs

    def _stuck(self, stuck: dict[str, Any]) -> None:
        """A host ends because of this: its successor does not try that event again; an object's second time is its last."""
        if stuck["event"]:
            self._not_again.append((stuck["epoch"], stuck["event"]))
        if not stuck["id"]:
            return
        key = stuck["class_name"], stuck["id"]
        self._hung[key] = self._hung.pop(key, 0) + 1
        while len(self._hung) > _MAX_HUNG:
            del self._hung[next(iter(self._hung))]
        if self._hung[key] >= _HANGS_ALLOWED:
            self._quarantined[key] = {"object": stuck["what"], "stack": stuck["stack"]}
            _log.error(
                "node: %s has brought its host down %d times and is in quarantine: its sockets stay, it is not woken."
                " Mend it, then: roost objects release %s", stuck["what"], self._hung[key], stuck["id"],
            )  # fmt: skip
            self._tell_quarantine()

    def _died_in_handler(self, name: str, path: Path) -> None:
        """It ended by itself and could tell nobody: `os._exit`, a crash in C, a loop that held the interpreter's lock."""
        doing = mark.read(path)
        if doing is not None:
            _log.error("node: %s ended in webSocketMessage of %s; that message is not tried again", name, doing["what"])
            self._stuck(doing)

    def _tell_quarantine(self) -> None:
        for child in self._hosts:
            if child is not None:
                child.tell(ToChild("quarantine", quarantined=list(self._quarantined)))

    def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wake an object again, by its id or its label; without one, all of them."""
        wanted = request.get("object")
        found = [key for key, about in self._quarantined.items() if wanted is None or wanted in (key[1], about["object"])]
        if wanted is not None and not found:
            known = ", ".join(about["object"] for about in self._quarantined.values()) or "none"
            raise ConfigError(f"{wanted} is not in quarantine (in it are: {known}).")
        for key in found:
            del self._quarantined[key]
            self._hung.pop(key, None)
        self._tell_quarantine()
        return {"released": len(found)}

    # new code

    async def reload(self, app: App) -> None:
        """Run an app: new hosts load it and try its constructors; then one after the other takes the place of an old one,
        and the sockets stay. Raises ConfigError or WorkerError if it does not load: then nothing has changed."""
        async with self._changing:
            await self._reload(app)

    async def _reload(self, app: App, wait_s: float = 0.0) -> None:
        """`wait_s`: for how long the old code may go on until its objects sleep."""
        plan = self._migrations.plan(app.migrations, app.exports)
        loaded = await self._load(app, plan.first_names)
        before, self._app = self._app, app
        if plan.moves_objects:
            await self._move_objects(plan, loaded, before)
        else:
            try:
                await asyncio.to_thread(self._migrations.apply, plan, self._options.hosts)
            except BaseException:
                self._app = before
                for child in loaded:
                    child.kill()
                raise
        self._first_names = plan.first_names
        waiting = dict(enumerate(loaded))
        deadline = asyncio.get_running_loop().time() + (0.0 if plan.moves_objects else wait_s)
        while waiting:
            try:
                index = await self._next_asleep(waiting, deadline)
                await self._hand_over(index, waiting[index])
            except WorkerError as error:
                if len(waiting) == len(loaded) and not plan.moves_objects:  # nothing runs the new code: the old one goes on
                    self._app = before
                if len(waiting) == len(loaded) or self._stopping.is_set():
                    for child in waiting.values():
                        child.kill()
                    raise
                _log.error("node: host %d: %s It is started again, with the new code.", index, error)
                waiting[index].kill()
                current = self._hosts[index]
                if current is not None and current is not waiting[index] and not current.has_left:
                    await self._let_go(current, wholly=True)
            except BaseException:
                for child in waiting.values():
                    child.kill()
                raise
            del waiting[index]
        for index in list(self._breakers):
            self._tell_breaker(index, "")
        self._tell_gateways_app()

    async def _next_asleep(self, places: Iterable[int], deadline: float) -> int:
        """One of the places whose host has no object awake; after `deadline`, the first of them."""
        loop = asyncio.get_running_loop()
        while loop.time() < deadline and not self._stopping.is_set():
            for index in places:
                current = self._hosts[index]
                if current is None or current.health is Health.GONE:
                    return index
                answer = await current.ask("awake", timeout_s=MUTE_S)
                if answer is not None and not answer["awake"]:  # one that does not answer is busy
                    return index
            await asyncio.sleep(0.1)
        return min(places)

    async def _move_objects(self, plan: Plan, loaded: list[ChildProcess], before: App) -> None:
        """Class migrations: every old host ends, the objects get their new names, and then the new hosts begin. Raises
        ConfigError if they cannot be moved: then the old code goes on with what it has."""
        self._may_start.clear()
        try:
            while self._starting:  # a host that is just being started again: it is ended with the others
                await asyncio.sleep(0.01)
            ending = [child for child in (*self._hosts, *self._left) if child is not None and child.name.startswith("host")]
            await asyncio.gather(*(self._let_go(child, wholly=True) for child in ending))
            await asyncio.to_thread(self._migrations.apply, plan, self._options.hosts)
            for gateway in self._gateways:
                if gateway is not None:
                    gateway.tell(ToChild("classes", renamed=plan.renamed, deleted=plan.deleted))
            for index, successor in enumerate(loaded):
                self._successors["host", index] = successor
        except BaseException:
            self._app = before
            for child in loaded:
                child.kill()
            raise
        finally:
            self._may_start.set()

    def _elsewhere(self, index: int) -> list[tuple[str, str]]:
        """Objects of a place that hosts which were replaced there still have."""
        name = f"host {index}"
        return [key for child in self._left if child.name == name for key in child.held]

    def _came(self, index: int, objects: list[tuple[str, str]]) -> None:
        """A host that was replaced has let go of objects (or has ended)."""
        current = self._hosts[index]
        if current is not None and not current.replaced:
            current.tell(ToChild("came", objects=objects))

    async def _let_go(self, child: ChildProcess, *, wholly: bool = False) -> None:
        """An old host gives its objects to the successor; `wholly`: it ends."""
        child.replaced = True
        timeouts = self._settings.timeouts
        if wholly:
            await child.stop(timeouts.deploy_grace_s, "codeUpdated")
        else:
            await child.release(timeouts.deploy_grace_s, timeouts.replaced_host_s, "codeUpdated")

    async def _load(self, app: App, first_names: dict[str, str]) -> list[ChildProcess]:
        """A host for each place that has loaded the app and waits."""
        found: list[ChildProcess] = []
        try:
            for index in range(self._options.hosts):
                child = await self._spawn("host", index, [], app, hold=True, first_names=first_names)
                found.append(child)  # kept if the next one fails
            for child in found:
                try:
                    await asyncio.wait_for(child.settled.wait(), _LOADING_S)
                except TimeoutError:
                    raise WorkerError(f"the new code has not finished loading within {_LOADING_S:g} s.") from None
                if child.failure is not None:
                    raise _as_error(child.failure)
                if child.health is not Health.LOADED:
                    raise WorkerError(f"the new code's host ended while loading (exit code {child.process.returncode}).")
        except BaseException:
            for child in found:
                child.kill()
            raise
        return found

    async def _hand_over(self, index: int, successor: ChildProcess) -> None:
        """The old host finishes what it has begun; the new one gets what comes meanwhile. Raises WorkerError."""
        if successor.health not in (Health.LOADED, Health.READY):
            raise WorkerError(f"the new code's host has ended before its turn (exit code {successor.process.returncode}).")
        if self._hosts[index] is not successor:
            self._successors.setdefault(("host", index), successor)
        while not successor.connected.is_set():
            current = self._hosts[index]
            # Again, if the keeper had just begun to start another host.
            old = current is not None and current is not successor and current.health is not Health.GONE
            if current is not None and old and not current.has_left:
                await self._let_go(current)
            try:
                await asyncio.wait_for(successor.connected.wait(), 0.2)
            except TimeoutError:
                if self._stopping.is_set():
                    raise WorkerError("the node is shutting down.") from None
        if not successor.is_ready:
            raise WorkerError(f"the new code's host ended as it took over (exit code {successor.process.returncode}).")

    async def _upgrade(self) -> dict[str, Any]:
        """Replace each gateway, then each host, by processes of the Roost that is installed now. The node itself stays."""
        async with self._changing:
            loop = asyncio.get_running_loop()
            began = loop.time()
            for index in range(len(self._gateways)):
                await self._upgrade_gateway(index)
            gateways_s = loop.time() - began
            await self._reload(self._app)
            _log.info("node: upgraded: gateways after %.1f s, hosts after %.1f s", gateways_s, loop.time() - began)
            return {"gateways_s": round(gateways_s, 3), "took_s": round(loop.time() - began, 3)}

    async def _upgrade_gateway(self, index: int) -> None:
        """Raises WorkerError if the one that runs goes on."""
        current = self._gateways[index]
        if current is None or not current.is_ready:
            raise WorkerError(f"gateway {index} is not running at the moment; try again.")
        if await current.ask("report", timeout_s=MUTE_S) is None:
            raise WorkerError(f"gateway {index} does not answer: it was not replaced. If that lasts, it is ended.")
        assert self._run is not None
        path = self._run.address(f"take-over-{index}.sock")
        successor = await self._spawn("gateway", index, [self._listeners[index].fileno()], hold=True, take_over=path)
        try:
            await asyncio.wait_for(successor.settled.wait(), _LOADING_S)
            if successor.health is not Health.LOADED:
                raise WorkerError(_ended("the new gateway", successor))
            self._successors["gateway", index] = successor
            current.replaced = True
            successor.tell(ToChild("connect"))
            grace_s = self._settings.timeouts.deploy_grace_s
            fault = await current.hand_over(path, grace_s, grace_s + _LOADING_S)
            if fault:
                raise WorkerError(f"gateway {index} was not replaced and goes on: {fault}")
            await asyncio.wait_for(successor.connected.wait(), _LOADING_S)
            if not successor.is_ready:
                raise WorkerError(_ended("the new gateway", successor))
            self._bound_pumps(current.name, successor)
        except BaseException:
            if self._successors.get(("gateway", index)) is successor:
                del self._successors["gateway", index]
            if not current.has_left:
                current.replaced = False
                successor.kill()
            raise

    def _bound_pumps(self, name: str, gateway: ChildProcess) -> None:
        """Old processes of a gateway go on for their TLS sessions: the oldest one's clients are closed if there are too
        many."""
        pumps = [child for child in self._left if child.name == name and child.health is not Health.GONE]
        for child in pumps[: max(0, len(pumps) - self._settings.limits.max_tls_pumps)]:
            _log.warning("node: the clients of an old %s are closed: limits.max_tls_pumps", name)
            gateway.tell(ToChild("end_pumped", request=child.process.pid))

    async def _deploy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Copy a folder and run it; one at a time."""
        async with self._changing:
            return await self._deploy_alone(request)

    async def _deploy_alone(self, request: dict[str, Any]) -> dict[str, Any]:
        config, variables = request.get("config"), list(request.get("variables") or [])
        source = Source(Path(str(request.get("dir"))), config, request.get("env"), variables)
        read_app(source.folder, config=Path(config) if config else None, env=source.env, variables=variables)  # first
        message = str(request.get("message") or "")
        if self._adding is not None:
            await asyncio.wait({self._adding})  # one copy at a time
        version, left_out = await asyncio.to_thread(self._versions.add, source, message)
        before = self._app
        try:
            return {**await self._run_version(version, request.get("code_update_mode")), "left_out": left_out}
        except BaseException:
            if self._app is before:  # nothing runs from its folder
                self._versions.discard(version)
            raise

    async def _rollback(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._changing:
            return await self._run_version(self._versions.find(request.get("version")))

    async def _run_version(self, version: Version, mode: str | None = None) -> dict[str, Any]:
        app = self._versions.app(version)
        if app.name != self._app.name:
            raise ConfigError(
                f"the app is named {app.name!r}, but this node runs {self._app.name!r}: its objects would be others.",
                "name",
            )
        began = asyncio.get_running_loop().time()
        update = app.code_update
        if mode not in (None, update.mode):
            update = CodeUpdate(mode)
        await self._reload(app, update.max_delay_s if update.mode == "deferred" else 0.0)
        self._versions.activate(version)
        _log.info("node: version %d runs, from %s", version.number, version.source)
        return {"version": version.number, "took_s": round(asyncio.get_running_loop().time() - began, 3)}

    # control

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request.get("command")
        if command == "restore":
            return await self._restore(request)
        if command == "release":
            return self._release(request)
        if command == "evict":
            arguments = {"object": request.get("object"), "cut": int(bool(request.get("cut")))}
            if self._options.inline:
                return {"evicted": await evict_objects(self._inline[1], arguments)}
            answers = await asyncio.gather(*(child.ask("evict", arguments) for child in self._hosts if child))
            return {"evicted": sum(answer["evicted"] for answer in answers if answer)}
        if command == "versions":
            return {"versions": msgspec.to_builtins(self._versions.all())}
        if command in ("deploy", "rollback", "upgrade"):
            if self._options.inline:
                raise ConfigError("a node with --inline is one process: restart it to run other code.")
            try:
                if command == "deploy":
                    return await self._deploy(request)
                if command == "upgrade":
                    return await self._upgrade()
                return await self._rollback(request)
            except Exception as error:
                _log.error("node: %s failed, and what ran goes on: %s", command, error)
                if not isinstance(error, RoostError | OSError):
                    raise
                return {"error": str(error), "traceback": "\n".join(getattr(error, "__notes__", []))}
        if request.get("command") != "status":
            raise ConfigError(f"the node does not know the command {request.get('command')!r}.")
        if self._options.inline:
            gateway, host = self._inline
            return {"gateways": [gateway_report(gateway)], "hosts": [host_report(host)], "pids": {"node": os.getpid()}}
        gateways = [child for child in self._gateways if child]
        hosts = [child for child in self._hosts if child]
        return {
            "gateways": await asyncio.gather(*(child.report() for child in gateways)),
            "hosts": await asyncio.gather(*(child.report() for child in hosts)),
            "quarantined": [
                {"class": class_name, "id": object_id, **about}
                for (class_name, object_id), about in self._quarantined.items()
            ],
            "mute": mute([*self._gateways, *self._hosts]),
            "breakers": {str(index): reason for index, reason in self._breakers.items()},
            "pids": {"node": os.getpid(), **{child.name: child.process.pid for child in (*gateways, *hosts)}},
        }

    async def _restore(self, request: dict[str, Any]) -> dict[str, Any]:
        """A file was made for an object: its host puts it in place."""
        if not is_object_id(str(request.get("id"))):
            raise ConfigError("restore needs an object's id.")
        if missing := [key for key in ("class", "name", "alarm_ms") if key not in request]:
            raise ConfigError(f"restore needs {', '.join(missing)}, too.")
        if self._options.inline:
            return await restore_object(self._inline[1], request)
        host = self._hosts[slot_of(request["id"], len(self._hosts))]
        arguments = {key: request[key] for key in ("class", "id", "name", "alarm_ms")}
        answer = None if host is None else await host.ask("restore", arguments, timeout_s=40)
        if answer is None:
            raise WorkerError("the object's host does not answer; try again.")
        return dict(answer)


def _ended(what: str, child: ChildProcess) -> str:
    """Why a child that should have come is not there."""
    if child.failure is not None:
        return child.failure.text
    return f"{what} ended (exit code {child.process.returncode})."


def _as_error(failure: FromChild) -> Exception:
    error: Exception = ConfigError(failure.text) if failure.fault == "config" else WorkerError(failure.text)
    if failure.traceback:
        error.add_note(failure.traceback)
    return error
