"""`roost serve` and `roost dev`: an app, the node's settings and the command line, and the node that they make."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.cli.parser import DEFAULT_IP, DEFAULT_PORT
from roost.config_values import nearest
from roost.errors import ConfigError
from roost.node.admin import parse_address
from roost.node.config import data_folder, read_app
from roost.node.files import raise_file_limit
from roost.node.options import Options
from roost.node.settings import read_settings, with_tls
from roost.node.supervisor import Node
from roost.node.versions import Source
from roost.observe import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.node.config import App
    from roost.node.settings import Settings


def run(parsed: Any) -> int:
    """Serve until a signal; the exit code. Raises ConfigError."""
    logs.set_up(parsed.log_format, debug=parsed.debug)
    folder = Path(parsed.dir)
    config = Path(parsed.config) if parsed.config else None
    if config is not None and not config.is_file():
        raise ConfigError(f"--config: {config} does not exist.")
    app_now = partial(read_app, folder, config=config, env=parsed.env, variables=parsed.var)
    app = app_now()
    for warning in app.warnings:
        print(f"roost: warning: {warning}", file=sys.stderr)
    settings = with_tls(read_settings(folder), folder, parsed.tls_cert, parsed.tls_key)
    _check_classes(app, settings)
    options = _options(parsed, app, folder)
    raise_file_limit()
    os.umask(0o077)  # what objects store, tokens and logs are their owner's alone; also for the processes to come
    serving = _serve(Node(app, settings, options), folder if parsed.command == "dev" else None, app_now)
    if options.inline:
        import uvloop

        return uvloop.run(serving)
    return asyncio.run(serving)  # a parent without traffic needs no fast loop


async def _serve(node: Node, watch: Path | None, app_now: Callable[[], App]) -> int:
    out = sys.stdout

    def ready(url: str) -> None:
        print(f"roost ready on {url}", file=out, flush=True)

    if watch is None:
        return await node.run(ready)
    from roost.node.watch import watched

    async with watched(node, watch, app_now):
        return await node.run(ready)


def _check_classes(app: App, settings: Settings) -> None:
    classes = list(app.bindings.values())
    for name in settings.limits.class_cpu_ms:
        if name not in classes:
            raise ConfigError(f"limits.class_cpu_ms: the app binds no class {name!r}.{nearest(name, classes)}")


def _options(parsed: Any, app: App, folder: Path) -> Options:
    """The command line, checked. Raises ConfigError."""
    inline = parsed.inline
    if inline and parsed.command == "dev":
        print("roost: warning: dev reloads the worker in a process of its own; --inline is ignored", file=sys.stderr)
        inline = False
    if inline and (parsed.hosts not in (None, 1) or parsed.gateways != 1):
        raise ConfigError("--inline is one process; it cannot be used with --hosts or --gateways above 1.")
    hosts = parsed.hosts if parsed.hosts is not None else max(1, (os.cpu_count() or 2) - 1)
    if not 1 <= hosts <= 256 or not 1 <= parsed.gateways <= 256:
        raise ConfigError("--hosts and --gateways must be between 1 and 256.")
    port = parsed.port if parsed.port is not None else app.port if app.port is not None else DEFAULT_PORT
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is not between 0 and 65535.")
    return Options(
        ip=parsed.ip or app.ip or DEFAULT_IP,
        port=port,
        data=data_folder(app, parsed.data),
        hosts=1 if inline else hosts,
        gateways=parsed.gateways,
        inline=inline,
        log_format=parsed.log_format,
        debug=parsed.debug,
        ca_file=parsed.ca_file,
        admin=None if parsed.admin is None else parse_address(parsed.admin),
        source=None if parsed.command == "dev" else Source(folder, parsed.config, parsed.env, parsed.var),
        from_folder=parsed.command == "serve" and parsed.from_folder,
    )
