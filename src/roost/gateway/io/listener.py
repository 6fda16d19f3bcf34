"""Accepting. A gateway that is full refuses (503); one that can open no file at all pauses, and goes on a second later."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from typing import TYPE_CHECKING, Final

from roost.gateway.io.admission import watch_over
from roost.gateway.io.reactor import READ

if TYPE_CHECKING:
    from roost.gateway.io.admission import Admission
    from roost.gateway.io.turn import Turn

_log = logging.getLogger("roost.gateway")

ACCEPTS_PER_TURN: Final = 128
_INHERIT: Final = sys.platform == "linux"  # what is accepted has the options of what accepts (tcp(7))
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """One listening socket, which it owns. `paused` while the process may open no more files."""

    def __init__(self, turn: Turn, admission: Admission, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._turn = turn
        self._admission = admission
        self._sock = sock
        self.paused = False
        self._open = True
        self._local = True
        if sock.family != socket.AF_UNIX:
            address = sock.getsockname()[0]
            self._local = address.startswith(_LOOPBACK)
            watch_over(sock, turn.limits, local=self._local)

    def start(self) -> None:
        self._turn.reactor.register(self._sock.fileno(), self)

    def ready(self, mask: int) -> None:
        admission = self._admission
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connected, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    self._pause()
                    return
                if error.errno == errno.EINVAL:
                    return  # the node has taken it out of the port's group, as we did not answer; it will listen again
                continue  # that client was gone before it was accepted
            peer = address[0] if address else ""
            local = not peer or peer.startswith(_LOOPBACK)
            if peer and (local is not self._local or not _INHERIT):
                watch_over(connected, self._turn.limits, local=local)
            admission.accepted(connected, peer)

    def _pause(self) -> None:
        if self.paused:
            return
        self.paused = True
        self._turn.counters.accept_paused += 1
        self._turn.reactor.watch(self._sock.fileno(), 0)
        _log.warning(
            "gateway: no more files may be opened (%d connections); new clients wait. Raise `ulimit -n` or --gateways.",
            self._admission.open_files,
        )
        self._admission.pauses(self)
        self._turn.loop.call_later(1.0, self.resume)

    def resume(self) -> None:
        """Accept again, if there is room."""
        if not self.paused or not self._open:
            return
        self.paused = False
        self._turn.reactor.watch(self._sock.fileno(), READ)

    def hold(self) -> None:
        """Accept nobody until `release`; who connects waits in the kernel."""
        self._turn.reactor.watch(self._sock.fileno(), 0)

    def release(self) -> None:
        self._turn.reactor.watch(self._sock.fileno(), 0 if self.paused else READ)

    def broken(self, error: Exception) -> None:
        """A bug in accepting must not end accepting."""

    def close(self) -> None:
        """Stop accepting."""
        if self._open:
            self._open = False
            self._turn.reactor.unregister(self._sock.fileno())
            self._sock.close()
