"""How much memory this process has and may have; giving some back to the system, where the C library can."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)'s M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_KEPT_BYTES: Final = 16 * 1024 * 1024
_MAPPED_FROM_BYTES: Final = 8 * 1024 * 1024


def keep_large_blocks() -> None:
    """Have glibc use again what a large message took, instead of giving it back and getting it page by page: half of the
    time of an echo of 1 MiB. At most 16 MiB that are free stay at the end of its heap, until `trim`. Elsewhere nothing."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
    except AttributeError:
        pass  # musl


def trim() -> None:
    """Have glibc return its free pages; elsewhere nothing. Measured: a few milliseconds, so only when all is quiet."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        pass  # musl has no malloc_trim, and no need of one


def resident_bytes() -> int:
    """What of the process is in memory; 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def what_failed() -> str:
    """Beside a MemoryError, which says nothing."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    may = "" if limit == resource.RLIM_INFINITY else f" of the {limit >> 20} MiB of addresses it may have (ulimit -v)"
    return f"out of memory: this host has {resident_bytes() >> 20} MiB in memory{may}"
