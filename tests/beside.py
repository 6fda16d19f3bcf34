"""workerd and Roost side by side, each with the worker of one folder: `worker.js` and `worker.py`."""

import contextlib
import os
import socket
import subprocess
from pathlib import Path

from roost.testing import running, wait_for
from roost.testing.rawws import http_get

NPM = Path(os.environ.get("ROOST_NPM", Path.home() / ".cache/roost-npm"))
WORKERD = sorted(NPM.glob("node_modules/@cloudflare/workerd-*/bin/workerd"))


@contextlib.contextmanager
def workerd(config, *arguments, port, path="/"):
    """Serve a configuration while the block runs; `path` is answered with 200 on `port` once it does."""
    process = subprocess.Popen(
        [WORKERD[-1], "serve", config, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers():
        try:
            return http_get(port, path)[0] == 200
        except (OSError, ValueError, IndexError):
            return False

    try:
        wait_for(answers, "workerd does not start")
        yield
    finally:
        process.kill()
        process.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def side_by_side(folder, path):
    """The ports of both, by name."""
    port = free_port()
    there = workerd(folder / "config.capnp", "--socket-addr", f"http=127.0.0.1:{port}", port=port, path=path)
    with there, running(folder) as node:
        yield {"workerd": port, "roost": node.port}
