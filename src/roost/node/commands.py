"""What the control socket and the admin address are asked: one table of commands."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from roost.errors import ConfigError, RoostError, WorkerError
from roost.ids import is_object_id, slot_of
from roost.node.heartbeat import mute
from roost.node.orders import Evict, Restore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from roost.node.children import Children
    from roost.node.inline import Inline
    from roost.node.keeper import Keeper
    from roost.node.quarantine import Suspects
    from roost.node.releases import Releases

_log = logging.getLogger("roost.node")

_RESTORE_S: Final = 40.0

Answer = dict[str, Any]


class Node(Protocol):
    """Of which it is asked: a `supervisor.Node`."""

    children: Children
    suspects: Suspects
    releases: Releases
    keeper: Keeper
    inline: Inline | None

    async def upgrade(self) -> Answer: ...


async def answer(node: Node, request: dict[str, Any]) -> Answer:
    """Raises ConfigError for a command that there is not, or that cannot be."""
    command = str(request.get("command"))
    if command in _CHANGES:
        return await _change(node, command, request)
    handler = _COMMANDS.get(command)
    if handler is None:
        raise ConfigError(f"the node does not know the command {command!r}.")
    return await handler(node, request)


async def _status(node: Node, request: dict[str, Any]) -> Answer:
    pids = {"node": os.getpid()}
    if node.inline is not None:
        return {**node.inline.report(), "pids": pids}
    children = node.children
    gateways = [child for child in children.gateways if child]
    hosts = [child for child in children.hosts if child]
    return {
        "gateways": await asyncio.gather(*(child.report() for child in gateways)),
        "hosts": await asyncio.gather(*(child.report() for child in hosts)),
        "quarantined": node.suspects.report(),
        "mute": mute([*children.gateways, *children.hosts]),
        "breakers": {str(index): reason for index, reason in node.keeper.breakers.items()},
        "pids": pids | {child.name: child.process.pid for child in (*gateways, *hosts)},
    }


async def _versions(node: Node, request: dict[str, Any]) -> Answer:
    return {"versions": msgspec.to_builtins(node.releases.versions.all())}


async def _release(node: Node, request: dict[str, Any]) -> Answer:
    return {"released": node.suspects.release(request.get("object"))}


async def _evict(node: Node, request: dict[str, Any]) -> Answer:
    wanted, cut = request.get("object"), bool(request.get("cut"))
    if node.inline is not None:
        return {"evicted": await node.inline.evict(wanted, cut=cut)}
    order = partial(Evict, object=wanted, cut=cut)
    answers = await asyncio.gather(*(child.ask(order) for child in node.children.hosts if child))
    return {"evicted": sum(each["evicted"] for each in answers if each)}


async def _restore(node: Node, request: dict[str, Any]) -> Answer:
    """A file was made for an object: its host puts it in place."""
    if not is_object_id(str(request.get("id"))):
        raise ConfigError("restore needs an object's id.")
    if missing := [key for key in ("class", "name", "alarm_ms") if key not in request]:
        raise ConfigError(f"restore needs {', '.join(missing)}, too.")
    what = str(request["class"]), str(request["id"]), request["name"], request["alarm_ms"]
    if node.inline is not None:
        return await node.inline.restore(*what)
    hosts = node.children.hosts
    host = hosts[slot_of(request["id"], len(hosts))]
    answered = None if host is None else await host.ask(lambda number: Restore(number, *what), timeout_s=_RESTORE_S)
    if answered is None:
        raise WorkerError("the object's host does not answer; try again.")
    return dict(answered)


_COMMANDS: Final[dict[str, Callable[[Node, dict[str, Any]], Awaitable[Answer]]]] = {
    "status": _status,
    "versions": _versions,
    "release": _release,
    "evict": _evict,
    "restore": _restore,
}
_CHANGES: Final = frozenset({"deploy", "rollback", "upgrade"})


async def _change(node: Node, command: str, request: dict[str, Any]) -> Answer:
    """Other code, or another Roost. What fails leaves what ran, and is an answer, too."""
    if node.inline is not None:
        raise ConfigError("a node with --inline is one process: restart it to run other code.")
    try:
        if command == "deploy":
            return await node.releases.deploy(request)
        if command == "rollback":
            return await node.releases.rollback(request)
        return await node.upgrade()
    except Exception as error:
        _log.error("node: %s failed, and what ran goes on: %s", command, error)
        if not isinstance(error, RoostError | OSError):
            raise
        return {"error": str(error), "traceback": "\n".join(getattr(error, "__notes__", []))}
