"""Whether the kernel has ended a process of this node because memory ran out. Linux; elsewhere it is never known.

Source: Linux documentation, "Control Group v2" (`memory.events`, `oom_kill`) and "Memory Resource Controller" (version 1,
`memory.oom_control`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_KILLS: Final = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class KernelKills:
    """Counts how many processes of the node's group the kernel has killed; each explains one death."""

    def __init__(self, files: list[Path] | None = None) -> None:
        self._files = _files_of_the_group() if files is None else files
        self._before = self._count()

    def happened(self) -> bool:
        """Whether there was one that was not asked for before."""
        if self._count() <= self._before:
            return False
        self._before += 1
        return True

    def _count(self) -> int:
        found = 0
        for file in self._files:
            try:
                found += sum(map(int, _KILLS.findall(file.read_bytes())))
            except OSError:
                pass
        return found


def _files_of_the_group() -> list[Path]:
    """Where the kernel counts: the node's own group, by both versions' names, and as it is seen from inside a container."""
    files: list[list[Path]] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            files.append([root / group.lstrip("/") / "memory.events", root / "memory.events"])
        elif "memory" in controllers.split(","):
            root_v1 = root / "memory"
            files.append([root_v1 / group.lstrip("/") / "memory.oom_control", root_v1 / "memory.oom_control"])
    found = [next((name for name in names if name.exists()), None) for names in files]
    return [file for file in found if file is not None]
