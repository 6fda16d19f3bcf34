"""What a process that a worker forks may touch: nothing of its host.

`os.fork` and multiprocessing's "fork" copy everything: links to the gateways, the control socket, the objects' files, and
a loop that is about to go on with the next event. In the child all of those descriptors become `/dev/null`; a child that
comes back from the worker's code into the loop ends there; and it ends with its host.

Source: `os.register_at_fork`, prctl(2) PR_SET_PDEATHSIG, pidfd_open(2).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

_PR_SET_PDEATHSIG: Final = 1
_OURS: Final = str(Path(__file__).resolve().parent.parent)
_LIBRARY: Final = str(Path(threading.__file__).resolve().parent)
RETURNED: Final = 76  # exit code of a child that came back into the loop


def die_with_parent() -> None:
    """The kernel ends this process when the thread that made it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Forks:
    """A host's guard over the children that its worker forks."""

    def __init__(self, data: str, control_fd: int) -> None:
        self._data = data
        self._control_fd = control_fd
        self._pid = os.getpid()
        self._loop_thread = threading.get_ident()
        self._by_loop = False
        self._library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

    def guard(self) -> None:
        """For the rest of this process' life."""
        os.register_at_fork(before=self._before, after_in_child=self._in_child)

    def _before(self) -> None:
        self._by_loop = threading.get_ident() == self._loop_thread

    def _in_child(self) -> None:
        parent, self._pid = self._pid, os.getpid()
        if self._library is not None and self._by_loop:
            self._library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _let_go(_descriptors(), self._data, self._control_fd)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(RETURNED)
        if not self._by_loop:  # its end would be that of a thread: watch the process instead
            threading.Thread(target=_end_with, args=(parent,), name="roost parent", daemon=True).start()
        _end_on_return(sys._getframe())


def _descriptors() -> Iterable[int]:
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        return [int(name) for name in os.listdir(folder)]
    except OSError:
        return range(3, 256)


def _is_connected(fd: int) -> bool:
    """Whether a socket leads out of this process and the child's: to a gateway, or to another machine. Not a pair of
    sockets, which is how uvloop and the worker's own code speak to a child."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.family != socket.AF_UNIX or bool(sock.getpeername())


def _let_go(descriptors: Iterable[int], data: str, control_fd: int) -> None:
    """Put `/dev/null` in the place of sockets and of files in the data folder: closing them would free their numbers, which
    libraries of the parent still believe to be theirs."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in descriptors:
        if fd <= 2 or fd == null:
            continue
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode) and (fd == control_fd or _is_connected(fd))
            if is_socket or os.readlink(f"/proc/self/fd/{fd}").startswith((data, "anon_inode:[eventpoll]")):
                os.dup2(null, fd, inheritable=False)
        except OSError:
            continue
    os.close(null)


def _end_with(parent: int) -> None:
    """Wait for a process, and end with it."""
    try:
        fd = os.pidfd_open(parent)
    except (OSError, AttributeError):
        return
    select.select([fd], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def _is_the_workers(file: str) -> bool:
    """Whether code is the worker's, or that of a package it uses: not Roost's, the loop's or the standard library's."""
    if file.startswith((_OURS, "<frozen")) or "/uvloop/" in file:
        return False
    return not file.startswith(_LIBRARY) or "site-packages" in file


def _end_on_return(frame: FrameType | None) -> None:
    """End the process once the worker's code returns (or yields, or raises) into what called it."""
    outermost = None
    while frame is not None:
        if _is_the_workers(frame.f_code.co_filename):
            outermost = frame
        frame = frame.f_back
    if outermost is None:
        return

    def traced(where: FrameType, event: str, argument: object) -> Any:
        if event == "return":
            os.write(2, b"roost: a forked process came back from the worker's code and ends; end it with os._exit().\n")
            os._exit(RETURNED)
        return traced

    outermost.f_trace = traced
    outermost.f_trace_lines = False
    sys.settrace(lambda where, event, argument: None)
    if "multiprocessing.util" in sys.modules:  # such a child ends by itself, and should run at full speed
        from multiprocessing import util

        util.register_after_fork(traced, lambda _: sys.settrace(None))
