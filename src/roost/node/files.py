"""How many files a process may open: the ordinary soft limit (1,024) is a fraction of what the machine allows."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger("roost.node")

FEW = 4096


def raise_file_limit() -> None:
    """Raise this process' soft limit to the hard one; the processes that it starts inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.warning("node: the limit of open files stays at %d: %s", soft, error)
        return
    if hard != resource.RLIM_INFINITY and hard < FEW:
        _log.warning("node: each process may open %d files only: so many sockets a gateway. Raise `ulimit -Hn`.", hard)
