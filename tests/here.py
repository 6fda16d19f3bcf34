"""A node of one process in the test's own: as `roost serve --inline`, without a process to start. For unit tests of what
only a whole request shows; what must hold across processes is in the integration tests."""

import asyncio
import contextlib
import gc
import io
import logging
import sys
import tempfile
import threading
from pathlib import Path

from roost.cli.main import main
from roost.errors import ConfigError, WorkerError
from roost.node.config import read_app
from roost.node.control import ask
from roost.node.options import Options
from roost.node.settings import read_settings
from roost.node.supervisor import Node
from roost.observe import logs
from roost.testing import RunningNode
from roost.testing.node import faults_in


class Kept(logging.Handler):
    """Log lines in a list, as a process would write them."""

    def __init__(self):
        super().__init__()
        self.setFormatter(logs._formatter("text"))
        self.lines = []

    def emit(self, record):
        self.lines += self.format(record).split("\n")


class Here(RunningNode):
    """A `RunningNode` without a process; its log is what this process logs meanwhile."""

    def __init__(self, node, port, data, log):
        super().__init__(None, port, data, log)
        self.node = node

    def ask(self, command, **more):
        return ask(self.data, {"command": command, **more})


@contextlib.contextmanager
def running_here(app, data, *, variables=(), admin=None):
    """Serve `app` in a thread with a loop of its own while the block runs."""
    data.mkdir(exist_ok=True)
    thresholds = gc.get_threshold()
    ready, made, failed = threading.Event(), [], []

    async def serve():
        options = Options(
            ip="127.0.0.1", port=0, data=str(data), hosts=1, gateways=1, inline=True, admin=admin
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        loop.add_signal_handler = loop.remove_signal_handler = lambda *_: None  # which only a main thread has
        node = Node(read_app(app, variables=list(variables)), read_settings(app), options)

        def is_ready(url):
            made.append((node, int(url.rpartition(":")[2]), loop))
            ready.set()

        await node.run(is_ready)

    def run():
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    kept = Kept()
    logger = logging.getLogger("roost")
    level = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    thread = threading.Thread(target=run, name="node")
    thread.start()
    try:
        assert ready.wait(20)
        if failed:
            raise failed[0]
        node, port, loop = made[0]
        yield Here(node, port, str(data), kept.lines)
    finally:
        if made:
            loop.call_soon_threadsafe(node.stop)
        thread.join(30)
        logger.removeHandler(kept)
        logger.setLevel(level)
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert not thread.is_alive()
    assert not failed
    faults = faults_in(kept.lines)
    assert not faults, "errors of Roost's own in the log:\n" + "\n".join(faults)


@contextlib.contextmanager
def running_instead(app, *arguments, data=None, **_):
    """`roost.testing.running`, of one process in this one. Of the command line only `--var` and `--admin` are heeded."""
    words = list(arguments)
    variables = [words[at + 1] for at, word in enumerate(words) if word == "--var"]
    admin = ("127.0.0.1", 0) if "--admin" in words else None
    with tempfile.TemporaryDirectory(prefix="roost-test-") as folder:
        try:
            with running_here(Path(app), Path(data or folder), variables=variables, admin=admin) as node:
                yield node
        except (ConfigError, WorkerError) as error:
            raise RuntimeError(f"roost serve {app} did not start:\n{error}") from error


def command_instead(*arguments, stdin=None, code=0):
    """What a `roost` command writes; its exit code must be `code`."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin or "")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = main(list(arguments))
    finally:
        sys.stdin = before
    assert ended == code, (ended, out.getvalue(), err.getvalue())
    return out.getvalue() + err.getvalue()
