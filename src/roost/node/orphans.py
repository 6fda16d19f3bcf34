"""What a host's worker has started and left: processes that bear the host's mark in their environment end with it.

A process that `os.fork` made ends by itself (`host/forking.py`); one that was made by `exec` (subprocess, multiprocessing's
"spawn") knows nothing of its host. Only Linux tells of others' environments; elsewhere nothing is done.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from typing import Final

_log = logging.getLogger("roost.node")

VARIABLE: Final = "ROOST_HOST"
_LOOKS: Final = 3  # what is just being forked is seen by the next look


def mark_of(data: str, number: int | None = None) -> str:
    """What the environment of a host says; without a number, how those of all hosts on a data folder begin."""
    folder = hashlib.sha256(os.fsencode(os.path.abspath(data))).hexdigest()[:16]
    return f"{folder}." if number is None else f"{folder}.{os.getpid()}.{number}."


def end_orphans(mark: str) -> int:
    """SIGKILL every process whose mark begins so, but this one; how many. For when their host is gone."""
    wanted = f"{VARIABLE}={mark}".encode()
    ended = 0
    for _ in range(_LOOKS):
        found = [pid for pid in _processes() if pid != os.getpid() and _bears(pid, wanted)]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
                ended += 1
            except ProcessLookupError:
                continue
        if not found:
            break
    if ended:
        _log.info("node: %d processes that a host's worker had started are ended with it", ended)
    return ended


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _bears(pid: int, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(wanted) for entry in file.read().split(b"\0"))
    except OSError:  # it is over, or somebody else's
        return False
