"""The `roost` command. Exit codes: 0 drained, 1 failure, 2 usage or configuration.

Only argparse is imported before the command line is understood, so that `roost --help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost import __version__
from roost.errors import ConfigError, RoostError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_IP = "127.0.0.1"
DEFAULT_PORT = 8787


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roost", description="A self-hosted Workers runtime in Python.")
    parser.add_argument("--version", action="version", version=f"roost {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (("serve", "run an app"), ("dev", "run an app and reload it when its files change")):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("dir", nargs="?", default=".", metavar="DIR", help="the app's folder (default: here)")
        command.add_argument("--ip", help=f"address to listen on (default: {DEFAULT_IP})")
        command.add_argument("--port", type=int, help=f"port to listen on, 0 for a free one (default: {DEFAULT_PORT})")
        command.add_argument("--data", metavar="DIR", help="where state is kept (default: DIR/.roost/data)")
        command.add_argument("--hosts", type=int, help="processes that run the worker (default: cores - 1)")
        command.add_argument("--gateways", type=int, default=1, help="processes that hold the sockets (default: 1)")
        command.add_argument("--inline", action="store_true", help="one process for everything")
        command.add_argument(
            "--config", metavar="FILE", help="the configuration (default: DIR/wrangler.toml, .jsonc, .json)"
        )
        command.add_argument("--env", metavar="NAME", help="environment of the configuration")
        command.add_argument("--var", action="append", default=[], metavar="K:V", help="set a variable; may be repeated")
        command.add_argument(
            "--ca-file", metavar="FILE", help="more certificate authorities for fetch() and outbound WebSockets, as PEM"
        )
        command.add_argument("--admin", metavar="IP:PORT", help="serve the admin side there (see docs/guides/admin.md)")
        command.add_argument("--tls-cert", metavar="FILE", help="serve TLS with this certificate chain (PEM)")
        command.add_argument("--tls-key", metavar="FILE", help="the certificate's private key (PEM)")
        if name == "serve":
            command.add_argument(
                "--from-folder",
                action="store_true",
                help="run DIR, also if it was rolled back from (see docs/guides/deploy.md)",
            )
        command.add_argument("--log-format", choices=("text", "json"), default="text")
        command.add_argument("--debug", action="store_true", help="debug log lines, and tracebacks of Roost's own errors")
    objects = commands.add_parser("objects", help="list the objects that are awake, and why")
    objects.add_argument(
        "verb",
        nargs="?",
        choices=("list", "release", "evict"),
        default="list",
        help="list them; wake those in quarantine again; or put some to sleep now, once nothing pins them",
    )
    objects.add_argument("object", nargs="?", help="release or evict only this one, by id or label")
    objects.add_argument("--cut", action="store_true", help="evict: end their sockets, too")
    objects.add_argument("--dir", default=".", metavar="DIR", help="the app's folder (default: here)")
    objects.add_argument("--data", metavar="DIR", help="the running node's data folder (default: DIR/.roost/data)")
    objects.add_argument("--json", action="store_true", help="everything, as JSON")
    storage = commands.add_parser("storage", help="list, dump and restore what objects have stored")
    verbs = storage.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text in (
        ("list", "list the objects that have stored something"),
        ("dump", "write objects as JSON lines"),
        ("restore", "replace objects by those of a dump; a running node goes on"),
    ):
        command = verbs.add_parser(verb, help=text, description=text.capitalize() + ".")
        command.add_argument("dir", nargs="?", default=".", metavar="DIR", help="the app's folder (default: here)")
        command.add_argument("--data", metavar="DIR", help="the data folder (default: DIR/.roost/data)")
        if verb != "restore":
            command.add_argument("--class", dest="class_name", metavar="NAME", help="only objects of this class")
            command.add_argument("--name", help="only the object of this name")
            command.add_argument("--id", help="only the object with this id")
        if verb == "list":
            command.add_argument("--json", action="store_true", help="one JSON object a line")
        else:
            default = "standard output" if verb == "dump" else "standard input"
            command.add_argument("--file", metavar="FILE", help=f"the dump (default: {default})")
    deploy = commands.add_parser("deploy", help="run a folder's code on the running node, without a disconnect")
    deploy.add_argument("dir", nargs="?", default=".", metavar="DIR", help="the app's folder (default: here)")
    deploy.add_argument("--data", metavar="DIR", help="the node's data folder (default: DIR/.roost/data)")
    deploy.add_argument("--config", metavar="FILE", help="the configuration, in DIR")
    deploy.add_argument("--env", metavar="NAME", help="environment of the configuration")
    deploy.add_argument("--var", action="append", default=[], metavar="K:V", help="set a variable; may be repeated")
    deploy.add_argument("-m", "--message", default="", help="what is new, for `roost versions`")
    deploy.add_argument(
        "--durable-objects-code-update-mode",
        choices=("immediate", "deferred"),
        dest="code_update_mode",
        help="deferred: wait until objects sleep (default: the configuration's durable_objects.code_update_strategy)",
    )
    for name, text in (
        ("versions", "list the versions that were deployed to a data folder"),
        ("rollback", "run an earlier version again"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == "rollback":
            command.add_argument("version", nargs="?", type=int, help="its number (default: the one before)")
        command.add_argument("--dir", default=".", metavar="DIR", help="the app's folder (default: here)")
        command.add_argument("--data", metavar="DIR", help="the data folder (default: DIR/.roost/data)")
    upgrade = commands.add_parser(
        "upgrade", help="run the Roost that is installed now on the running node, without a disconnect"
    )
    upgrade.add_argument("--dir", default=".", metavar="DIR", help="the app's folder (default: here)")
    upgrade.add_argument("--data", metavar="DIR", help="the node's data folder (default: DIR/.roost/data)")
    check = commands.add_parser("check", help="verify the integrity of a data folder")
    check.add_argument("dir", nargs="?", default=".", metavar="DIR", help="the app's folder (default: here)")
    check.add_argument("--data", metavar="DIR", help="the data folder (default: DIR/.roost/data)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.command == "objects":
            return _objects(parsed)
        if parsed.command in ("deploy", "rollback", "versions", "upgrade"):
            from roost.cli import deploy

            return deploy.run(parsed)
        if parsed.command in ("storage", "check"):
            from roost.cli import storage

            return storage.run(parsed)
        return _serve(parsed)
    except ConfigError as error:
        return _complain(error, 2, parsed)
    except RoostError as error:
        return _complain(error, 1, parsed)
    except OSError as error:
        return _complain(error, 1, parsed)


def _complain(error: Exception, code: int, parsed: Any) -> int:
    print(f"roost: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr)
    if getattr(parsed, "debug", False):
        raise error
    return code


def _serve(parsed: Any) -> int:
    import asyncio

    from roost.config_values import nearest
    from roost.node.admin import parse_address
    from roost.node.config import data_folder, read_app
    from roost.node.files import raise_file_limit
    from roost.node.options import Options
    from roost.node.settings import read_settings, with_tls
    from roost.node.supervisor import Node
    from roost.node.versions import Source
    from roost.observe import logs

    logs.set_up(parsed.log_format, debug=parsed.debug)
    folder = Path(parsed.dir)
    config = Path(parsed.config) if parsed.config else None
    if config is not None and not config.is_file():
        raise ConfigError(f"--config: {config} does not exist.")

    def app_now() -> Any:
        return read_app(folder, config=config, env=parsed.env, variables=parsed.var)

    app = app_now()
    for warning in app.warnings:
        print(f"roost: warning: {warning}", file=sys.stderr)
    settings = with_tls(read_settings(folder), folder, parsed.tls_cert, parsed.tls_key)
    classes = list(app.bindings.values())
    for name in settings.limits.class_cpu_ms:
        if name not in classes:
            raise ConfigError(f"limits.class_cpu_ms: the app binds no class {name!r}.{nearest(name, classes)}")
    if parsed.inline and parsed.command == "dev":
        print("roost: warning: dev reloads the worker in a process of its own; --inline is ignored", file=sys.stderr)
        parsed.inline = False
    if parsed.inline and (parsed.hosts not in (None, 1) or parsed.gateways != 1):
        raise ConfigError("--inline is one process; it cannot be used with --hosts or --gateways above 1.")
    hosts = parsed.hosts if parsed.hosts is not None else max(1, (os.cpu_count() or 2) - 1)
    if not 1 <= hosts <= 256 or not 1 <= parsed.gateways <= 256:
        raise ConfigError("--hosts and --gateways must be between 1 and 256.")
    port = parsed.port if parsed.port is not None else app.port if app.port is not None else DEFAULT_PORT
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is not between 0 and 65535.")
    raise_file_limit()
    os.umask(0o077)  # what objects store, tokens and logs are their owner's alone; also for the processes to come
    options = Options(
        ip=parsed.ip or app.ip or DEFAULT_IP,
        port=port,
        data=data_folder(app, parsed.data),
        hosts=1 if parsed.inline else hosts,
        gateways=parsed.gateways,
        inline=parsed.inline,
        log_format=parsed.log_format,
        debug=parsed.debug,
        ca_file=parsed.ca_file,
        admin=None if parsed.admin is None else parse_address(parsed.admin),
        source=None if parsed.command == "dev" else Source(folder, parsed.config, parsed.env, parsed.var),
        from_folder=parsed.command == "serve" and parsed.from_folder,
    )
    out = sys.stdout

    async def run() -> int:
        node = Node(app, settings, options)
        if parsed.command == "dev":
            from roost.node.watch import watched

            async with watched(node, folder, app_now):
                return await node.run(lambda url: print(f"roost ready on {url}", file=out, flush=True))
        return await node.run(lambda url: print(f"roost ready on {url}", file=out, flush=True))

    if parsed.inline:
        import uvloop

        return uvloop.run(run())
    return asyncio.run(run())  # a parent without traffic needs no fast loop


def _objects(parsed: Any) -> int:
    import json

    from roost.node.control import ask

    data = parsed.data or os.path.join(parsed.dir, ".roost", "data")
    if parsed.verb == "release":
        answer = ask(os.path.abspath(data), {"command": "release", "object": parsed.object})
        if "error" in answer:
            raise ConfigError(str(answer["error"]))
        print(f"released: {answer['released']}")
        return 0
    if parsed.verb == "evict":
        answer = ask(os.path.abspath(data), {"command": "evict", "object": parsed.object, "cut": parsed.cut})
        if "error" in answer:
            raise ConfigError(str(answer["error"]))
        print(f"evicted: {answer['evicted']}")
        return 0
    status = ask(os.path.abspath(data), {"command": "status"})
    if "error" in status:
        raise ConfigError(str(status["error"]))
    if parsed.json:
        print(json.dumps(status, indent=2))
        return 0
    awake = [entry for host in status["hosts"] if host for entry in host["awake"]]
    sockets = sum(gateway["counters"]["hibernatable"] for gateway in status["gateways"] if gateway)
    print(f"objects awake: {len(awake)}; hibernatable sockets: {sockets}")
    for name, silent_s in status.get("mute", {}).items():
        print(f"  {name} has not answered for {silent_s:g} s: what it has is not listed")
    for entry in status.get("quarantined", []):
        print(f"  {entry['object']}  {entry['id']}  in quarantine: it has brought its host down twice")
    for entry in awake:
        why = "awake for: " + ", ".join(entry["pins"]) if entry["pins"] else "idle: sleeps soon, nothing pins it"
        print(f"  {entry['object']}  {entry['phase']}  sockets: {entry['sockets']}  {why}")
    return 0
