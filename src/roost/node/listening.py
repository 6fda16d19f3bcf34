"""The sockets on which a node's gateways accept clients: one each, in one group of a port."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from roost.errors import WorkerError

if TYPE_CHECKING:
    from roost.node.options import Options

BACKLOG: Final = 4096


def bind(options: Options) -> list[socket.socket]:
    """Listen. Raises WorkerError if the address cannot be had."""
    listeners: list[socket.socket] = []
    port = options.port
    for _ in range(options.gateways):
        try:
            sock = _bound(options, port)
            if not port and options.gateways > 1:
                # By its number: a socket that the kernel has given a port loses it when it stops listening for a while.
                port = sock.getsockname()[1]
                sock.close()
                sock = _bound(options, port)
            sock.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            for each in listeners:
                each.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise WorkerError(f"cannot listen on {options.ip}:{port}: {reason}; choose another --ip or --port.") from None
        port = sock.getsockname()[1]
        listeners.append(sock)
    return listeners


def _bound(options: Options, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in options.ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.gateways > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((options.ip, port))
    except BaseException:
        sock.close()
        raise
    return sock


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
