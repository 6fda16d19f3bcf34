"""`roost deploy`, `rollback`, `versions` and `upgrade`: other code on a running node, through its control socket."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from roost.cli.folders import data_of
from roost.errors import WorkerError
from roost.node.control import ask
from roost.node.versions import Versions

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 180.0 + 300.0  # a deferred deployment waits for objects to sleep


def run(parsed: Any) -> int:
    """Run the command; its exit code. Raises ConfigError, or WorkerError if the new code does not start."""
    data = data_of(parsed)
    if parsed.command == "versions":
        return _list(data)
    request: dict[str, Any] = {"command": parsed.command}
    if parsed.command == "upgrade":
        answer = ask(str(data), request, _TIMEOUT_S)
        if "error" in answer:
            raise WorkerError(f"{answer['error']}\nWhat was not replaced goes on; the sockets are where they were.")
        print(f"upgraded: gateways after {answer['gateways_s']:g} s, hosts after {answer['took_s']:g} s")
        return 0
    if parsed.command == "rollback":
        request["version"] = parsed.version
    else:
        config = None if parsed.config is None else os.path.abspath(parsed.config)
        request |= {"dir": os.path.abspath(parsed.dir), "config": config, "env": parsed.env, "variables": parsed.var}
        request |= {"message": parsed.message, "code_update_mode": parsed.code_update_mode}
    answer = ask(str(data), request, _TIMEOUT_S)
    if "error" in answer:
        error = WorkerError(f"{answer['error']}\nNothing has changed: the version that ran goes on.")
        if answer.get("traceback"):
            error.add_note(str(answer["traceback"]))
        raise error
    for line in answer.get("left_out", ()):
        print(f"roost: {line}", file=sys.stderr)
    print(f"version {answer['version']} runs (after {answer['took_s']:g} s)")
    return 0


def _list(data: Path) -> int:
    versions = Versions(data).all()
    if not versions:
        print(
            f"roost: {data} has no versions yet; `roost serve --data {data}` and `roost deploy` make them", file=sys.stderr
        )
    for version in versions:
        when = datetime.fromtimestamp(version.deployed_ms / 1000, UTC).isoformat(timespec="seconds")
        about = [
            version.source,
            *([version.commit] if version.commit else []),
            *([version.message] if version.message else []),
        ]
        print(f"{version.number}  {when}  {'active' if version.active else '      '}  {'  '.join(about)}")
    return 0
