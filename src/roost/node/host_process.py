"""What a host's process is started with: the interpreter that runs the worker, and the allocator of its memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

_log = logging.getLogger("roost.node")

_ALLOCATOR: Final = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=32"}
_OURS: Final = "ROOST_ALLOCATOR"


def host_interpreter(folder: str) -> str:
    """The Python that runs the worker: the app's own `.venv` if Roost is installed in it, else this one."""
    own = os.path.join(folder, ".venv", "bin", "python")
    if not os.path.exists(own) or os.path.realpath(sys.prefix) == os.path.realpath(os.path.join(folder, ".venv")):
        return sys.executable
    probe = subprocess.run([own, "-P", "-c", "import roost.node.child"], capture_output=True, timeout=30, check=False)
    if probe.returncode == 0:
        return own
    _log.warning(
        "node: %s has no Roost in it, so none of its packages are found; the worker runs on %s instead: `pip install roost`"
        " in that .venv, or remove it", own, sys.executable,
    )  # fmt: skip
    return sys.executable


def host_environment(environment: Mapping[str, str], *, glibc: bool) -> dict[str, str]:
    """A host has bursts of awake objects and returns what they took once they sleep. Python's own allocator gives back
    whole mebibytes only, each of which one number may hold on to: after 10,000 objects 1,360 bytes each stay, with glibc's
    290, at a cost of about 7 % of the echo with 8 messages in flight and none of the others (docs/design/performance.md).
    Who sets one of the variables has it as it is."""
    if not glibc or any(name in environment for name in _ALLOCATOR):
        return dict(environment)
    return {**environment, **_ALLOCATOR, _OURS: "1"}


def forget_allocator(environment: MutableMapping[str, str]) -> None:
    """In the host: what it starts itself has an environment as if nothing had been set."""
    if environment.pop(_OURS, None):
        for name in _ALLOCATOR:
            environment.pop(name, None)


def has_glibc() -> bool:
    """Whether the C library is glibc, whose allocator can be told to give back (`malloc_trim`)."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False
