"""Putting gateways and hosts together: the one place that knows both, for child processes and for `--inline`."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from roost import memory
from roost.bindings import KINDS
from roost.bindings.assets import AssetsConfig
from roost.clock import SystemClock
from roost.errors import ConfigError, RoostError, WorkerError
from roost.events import ObjectRef
from roost.observe import logs

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from roost.gateway.gateway import Gateway
    from roost.host.host import Host
    from roost.host.spec import HostSpec
    from roost.host.watchdog import Stuck, Watchdog
    from roost.host.worker.loader import Worker
    from roost.node.config import App
    from roost.node.settings import Settings


_log = logging.getLogger("roost.node")

_PROBE_S = 10.0


def make_gateway(
    loop: asyncio.AbstractEventLoop,
    app: App,
    settings: Settings,
    slots: int,
    ca_file: str | None = None,
    epoch: int | None = None,
    journal: str | None = None,
    log_format: str = "text",
) -> Gateway:
    """A gateway for the app, not yet listening. `epoch` 0: its host is in the same process."""
    # Here, so that a host's process and the node's never import what only gateways need.
    from roost.gateway.gateway import Gateway
    from roost.gateway.io.tls import ServerTls

    network = settings.network
    gateway = Gateway(
        loop,
        SystemClock(),
        slots=slots,
        limits=settings.gateway_limits(),
        request_log=logs.request_lines(log_format),
        ca_file=ca_file,
        epoch=epoch,
        journal=journal,
        tls=ServerTls(network.tls_cert, network.tls_key) if network.tls_cert else None,
    )
    gateway.turn.assets = None if app.assets is None else app.assets.files()
    return gateway


def describe_assets(app: App) -> str:
    """How static files are answered, where that is not the platform's default; empty if it is."""
    assets = app.assets
    if assets is None:
        return ""
    chosen = {
        "html_handling": assets.html_handling, "not_found_handling": assets.not_found_handling,
        "run_worker_first": assets.run_worker_first,
    }  # fmt: skip
    defaults = AssetsConfig("")
    said = [f"{key} {value}" for key, value in chosen.items() if value != getattr(defaults, key)]
    return f"assets: {', '.join(said)}" if said else ""


def load(app: App) -> Worker:
    """The app's worker. Raises WorkerError or ConfigError."""
    # Here, so that a gateway's process never imports what only hosts need.
    from roost.api.entrypoint import Env
    from roost.host.worker.loader import load_worker

    others = [name for configs in app.others.values() for name in configs]
    env = Env(dict(app.variables), [*app.bindings, *others])
    return load_worker(Path(app.main), list(app.bindings.values()), app.compat(), Path(app.folder), env)


class HostPlace(msgspec.Struct, frozen=True, kw_only=True):
    """What a host must know of the node that it is a part of. See `host.spec.HostSpec`."""

    slot: int = 0
    slots: int = 1
    gateways: int = 1
    data: str | None = None
    mark: str | None = None
    not_again: list[tuple[int, int]] = []
    quarantined: list[tuple[str, str]] = []
    elsewhere: list[tuple[str, str]] = []
    first_names: dict[str, str] = {}
    ca_file: str | None = None
    dev: bool = False


def make_host(loop: asyncio.AbstractEventLoop, worker: Worker, app: App, settings: Settings, place: HostPlace) -> Host:
    """A host with the worker. Without a data folder it keeps its files for its own life."""
    from roost.host.host import Host

    bindings = [kind(app.others[kind.KEY], app.version) for kind in KINDS if app.others.get(kind.KEY)]
    host = Host(loop, worker, host_spec(app, settings, place), bindings)
    loop.set_task_factory(host.surroundings.new_task)
    return host


def host_spec(app: App, settings: Settings, place: HostPlace) -> HostSpec:
    """What the host of an app is made of."""
    from roost.host.disk import LogBounds
    from roost.host.limits import HostLimits
    from roost.host.spec import HostSpec

    limits, storage = settings.limits, settings.storage
    return HostSpec(
        worker_name=app.name,
        variables=app.variables,
        classes=app.bindings,
        first_names=place.first_names,
        crons=app.crons,
        slot=place.slot,
        slots=place.slots,
        gateways=place.gateways,
        gateways_outlive=place.mark is not None,
        one_host=_one_host(settings, place.slots),
        data=None if place.data is None else Path(place.data),
        mark=None if place.mark is None else Path(place.mark),
        elsewhere=place.elsewhere,
        not_again=frozenset(place.not_again),
        quarantined=frozenset(place.quarantined),
        dev=place.dev,
        idle_s=settings.hibernation.idle_s,
        io_pin_s=settings.hibernation.io_pin_s,
        limits=HostLimits(**{name: getattr(limits, name) for name in HostLimits.__struct_fields__}),
        max_open_files=limits.max_open_databases,
        log_bounds=LogBounds(storage.max_log_bytes, storage.max_node_log_bytes // place.slots),
        cache_bounds=(storage.max_cache_bytes, storage.min_free_bytes),
        ca_file=place.ca_file,
    )


async def start_apps(settings: Settings) -> None:
    """Run the startup of the worker's ASGI apps. Raises WorkerError if one cannot start."""
    asgi = sys.modules.get("roost.compat.asgi")
    if asgi is None:
        return
    try:
        await asgi.start_apps(settings.asgi.startup_s)
    except asgi.StartupError as error:
        text = str(error).strip()
        if "\n" in text:
            _log.error("worker: %s", text)
            text = f"the ASGI app's startup failed: {text.splitlines()[-1]}"
        raise WorkerError(text) from error


def _one_host(settings: Settings, slots: int) -> bool:
    """Whether the worker keeps sockets in the memory of one process."""
    asgi = sys.modules.get("roost.compat.asgi")
    return slots > 1 and settings.asgi.hosts == "one" and asgi is not None and asgi.keeps_sockets()


def watch(
    host: Host, app: App, settings: Settings, tell: Callable[[Stuck], None], debugged: Callable[[], None]
) -> Watchdog:
    """A watchdog for the host, not started."""
    from roost.host.watchdog import Watchdog

    limits = settings.limits
    by_class = {name: cpu_ms / 1000 for name, cpu_ms in limits.class_cpu_ms.items()}
    return Watchdog(
        host.surroundings, (app.cpu_ms or limits.cpu_ms) / 1000, by_class, limits.max_host_memory_bytes, tell, debugged
    )


async def probe(loop: asyncio.AbstractEventLoop, worker: Worker, app: App, settings: Settings) -> None:
    """Build one new object of each class, away from the real ones. Raises WorkerError with what its constructor raised."""
    host = make_host(loop, worker, app, settings, HostPlace())
    try:
        for class_name in worker.classes:
            await host.probe(class_name, _PROBE_S)
    finally:
        await host.close(0)


def settle_memory() -> None:
    """Of a process that is about to serve: what is there for good need not be looked at again by the collector, a burst of
    values is no reason to run it, and large blocks are used again.

    An object that wakes makes about 55 things that stay: at 2,000 one wake in 36 waited 0.3 ms for it, which was the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()  # a child begins without it: what it imports is no garbage
    memory.keep_large_blocks()


def gateway_report(gateway: Gateway) -> dict[str, Any]:
    """Counters of a gateway, for the control socket."""
    return {
        "counters": msgspec.structs.asdict(gateway.turn.counters),
        "objects": len(gateway.sockets),
        "unfinished": sum(len(slot.unfinished) + len(slot.stragglers) for slot in gateway.slots),
    }


def host_report(host: Host) -> dict[str, Any]:
    """Counters of a host, and why each of its objects is awake."""
    return {
        "counters": msgspec.structs.asdict(host.counters),
        "awake": host.actors.report(),
        "open_databases": host.disk.open_files,
        "databases_parked": host.disk.parked,
        "log_bytes": host.disk.log_bytes,
        "logs_folded": host.disk.logs_folded,
        "log_folds_held": host.disk.folds_held + host.disk.alarms.folds_held,
        "log_folds_waited_for": host.disk.folds_waited_for,
        "alarm_log_bytes": host.disk.alarms.log_bytes,
        "alarms_set": host.disk.alarms.count(),
        "alarms_running": host.alarms.running,
        "links": len(host.links),
    }


async def restore_object(
    host: Host, class_name: str, object_id: str, name: str | None, alarm_ms: int | None
) -> dict[str, Any]:
    """Put a restored file in an object's place; what went wrong as `error`."""
    try:
        await host.replace_storage(ObjectRef(class_name, object_id, name), alarm_ms)
    except (RoostError, OSError, ValueError) as error:
        return {"error": str(error)}
    return {"restored": object_id}


def fault_of(error: BaseException) -> tuple[str, str, str]:
    """An error of loading as (whose fault, one line, the user's traceback if it helps)."""
    if isinstance(error, ConfigError):
        return "config", str(error), ""
    cause = error.__cause__ if isinstance(error, WorkerError) else error
    detail = "" if cause is None or isinstance(cause, SyntaxError) else logs.user_traceback(cause)
    if not isinstance(error, WorkerError):
        detail = "".join(traceback.format_exception(error))
    return "worker", str(error), detail
