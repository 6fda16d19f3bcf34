"""A node as a child process, as a user would start it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.node.control import ask
from roost.testing.rawws import RawWebSocket, http_get

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Sequence


class RunningNode:
    """A started `roost serve`. Its log lines collect in `log`; `stop` drains it and returns the exit code."""

    def __init__(self, process: subprocess.Popen[str], port: int, data: str, log: list[str]) -> None:
        self.process = process
        self.port = port
        self.data = data
        self.log = log
        self.tls: ssl.SSLContext | None = None  # what clients of a node with TLS trust

    def connect(self, path: str = "/", headers: dict[str, str] | None = None, timeout_s: float = 10.0) -> RawWebSocket:
        return RawWebSocket(self.port, path, headers, timeout_s, self.tls)

    def get(
        self, path: str = "/", headers: dict[str, str] | None = None, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        return http_get(self.port, path, headers, method, self.tls)

    def status(self) -> dict[str, Any]:
        """What `roost objects --json` shows."""
        return ask(self.data, {"command": "status"})

    def counter(self, name: str) -> int:
        """A gateway counter, summed over the gateways."""
        return sum(gateway["counters"][name] for gateway in self.status()["gateways"])

    def host_counter(self, name: str) -> int:
        """A host counter, summed over the hosts that answer."""
        return sum(host["counters"][name] for host in self.status()["hosts"] if host)

    def awake(self) -> list[dict[str, Any]]:
        """The objects in memory, with what pins each."""
        return [entry for host in self.status()["hosts"] if host for entry in host["awake"]]

    def pid(self, name: str) -> int:
        """Of "node", "gateway 0", "host 0"…"""
        return int(self.status()["pids"][name])

    def evict(self, label: str | None = None, *, cut: bool = False) -> int:
        """Put an object (or all) to sleep now, once nothing pins it; `cut` ends its sockets, too. How many did."""
        return int(ask(self.data, {"command": "evict", "object": label, "cut": cut})["evicted"])

    def logged(self, text: str) -> bool:
        return any(text in line for line in self.log)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Drain and end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout_s)


def wait_for(condition: Callable[[], Any], what: str = "", timeout_s: float = 30.0) -> Any:
    """Poll until `condition()` is true; its value. Raises AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(0.02)


@contextlib.contextmanager
def running(
    app: str | Path,
    *arguments: str,
    data: str | None = None,
    env: dict[str, str] | None = None,
    command: str = "serve",
    prefix: Sequence[str] = (),
    own_errors: bool = False,
    executable: str = sys.executable,
    cwd: Path | None = None,
) -> Iterator[RunningNode]:
    """Serve `app` on a free port of 127.0.0.1 while the block runs. Extra arguments go to `roost serve` (or `dev`);
    `prefix` is a command to run it by. An error of Roost's own in the log (a traceback through its files, an "internal
    error") is an AssertionError at the end, unless `own_errors` are expected."""
    with tempfile.TemporaryDirectory(prefix="roost-test-") as folder:
        data = data or folder
        process = subprocess.Popen(
            [*prefix, executable, "-m", "roost", command, str(app), "--port", "0", "--data", data, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONWARNINGS": "error", **(env or {})},
        )
        log: list[str] = []
        faults: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=_collect, args=(process.stderr, log, faults), daemon=True)
        reader.start()
        try:
            line = process.stdout.readline()
            ready = re.match(r"roost ready on https?://.*:(\d+)$", line.strip())
            if ready is None:
                process.wait(20)
                reader.join(5)
                raise RuntimeError(f"roost serve {app} did not start ({process.returncode}):\n" + "\n".join(log))
            yield RunningNode(process, int(ready[1]), data, log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            reader.join(5)
            process.stdout.close()
            process.stderr.close()
    if faults and not own_errors:
        raise AssertionError("errors of Roost's own in the log:\n" + "\n".join(faults[:_FAULTS_SHOWN]))


_FAULTS_SHOWN = 60
_OWN_FILES = f'File "{Path(__file__).resolve().parent.parent}{os.sep}'


def _collect(stream: Any, log: list[str], faults: list[str]) -> None:
    found = _Faults(faults)
    for line in stream:
        log.append(line.rstrip("\n"))
        del log[:-10_000]
        found.look(log[-1])


class _Faults:
    """Lines of a log that are an error of Roost's own, each with what follows it."""

    def __init__(self, found: list[str]) -> None:
        self._found = found
        self._rest = 0

    def look(self, line: str) -> None:
        if "internal error" in line or _OWN_FILES in line:
            self._rest = 15
        if self._rest and len(self._found) < _FAULTS_SHOWN:
            self._rest -= 1
            self._found.append(line)


def faults_in(log: Iterable[str]) -> list[str]:
    """The lines of a log that are an error of Roost's own (a traceback through its files, an "internal error"), each with
    the 14 behind it; at most 60."""
    found: list[str] = []
    look = _Faults(found).look
    for line in log:
        look(line)
    return found
