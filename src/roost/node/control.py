"""The node's control socket, `control.sock` in the data folder: one JSON line asked, one answered. Mode 0600.

The path may be longer than a unix address allows, so it is reached through the folder's descriptor where that is needed.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from roost.errors import ConfigError, RoostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger("roost.node")

NAME = "control.sock"
_LONGEST_ADDRESS = 100


def lock_data_folder(data: str) -> int:
    """Take the folder for this node; the returned descriptor holds it. Raises ConfigError if another node has it."""
    fd = os.open(os.path.join(data, "node.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigError(
            f"another Roost node runs on the data folder {data}; stop it, or choose another --data."
        ) from error
    return fd


def _address(data: str) -> tuple[str, int]:
    """An address for the socket, and a descriptor to close after use (-1: none)."""
    path = os.path.join(data, NAME)
    if len(path) < _LONGEST_ADDRESS:
        return path, -1
    fd = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{fd}/{NAME}", fd


async def serve(data: str, answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> asyncio.Server:
    """Answer requests on the control socket until the server is closed."""
    path, folder = _address(data)
    try:
        if os.path.lexists(path):  # noqa: ASYNC240 - one look, at start
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        os.chmod(path, 0o600)
    finally:
        if folder >= 0:
            os.close(folder)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), 10))
            if not isinstance(request, dict):
                raise ValueError("a request is one JSON object on one line")
            reply = await answer(request)
        except (ValueError, RecursionError, TimeoutError, RoostError, OSError) as error:
            reply = {"error": str(error) or type(error).__name__}
        except Exception as error:  # noqa: BLE001 - ours: whoever asks is told all the same
            _log.exception("node: internal error in a control command; please report it")
            reply = {"error": f"internal error: {type(error).__name__}: {error}"}
        writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()

    return await asyncio.start_unix_server(handle, sock=sock)


def ask(data: str, request: dict[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
    """Ask the node that runs on a data folder. Raises ConfigError if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    folder = -1
    try:
        path, folder = _address(data)
        sock.connect(path)
        sock.sendall(json.dumps(request).encode() + b"\n")
        reply = json.loads(sock.makefile("rb").readline() or b'{"error": "the node closed the connection"}')
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Roost node answers on the data folder {data} ({error}); start one, or name another with --data."
        ) from error
    finally:
        sock.close()
        if folder >= 0:
            os.close(folder)
    if not isinstance(reply, dict):
        raise ConfigError("the node's answer is not understood")
    return reply
