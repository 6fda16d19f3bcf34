"""The command line of `roost`: its commands and their options. Only argparse is imported here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from roost import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_IP: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8787


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="roost", description="A self-hosted Workers runtime in Python.")
    whole.add_argument("--version", action="version", version=f"roost {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_serve, _add_objects, _add_storage, _add_deploy, _add_versions, _add_check):
        add(commands)
    return whole


def _add_serve(commands: Commands) -> None:
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


def _add_objects(commands: Commands) -> None:
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


def _add_storage(commands: Commands) -> None:
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


def _add_deploy(commands: Commands) -> None:
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


def _add_versions(commands: Commands) -> None:
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


def _add_check(commands: Commands) -> None:
    check = commands.add_parser("check", help="verify the integrity of a data folder")
    check.add_argument("dir", nargs="?", default=".", metavar="DIR", help="the app's folder (default: here)")
    check.add_argument("--data", metavar="DIR", help="the data folder (default: DIR/.roost/data)")
