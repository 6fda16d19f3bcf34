"""One host on the running loop, with the test as its gateway: no socket, no process."""

import asyncio
import textwrap
import threading
from pathlib import Path

from roost import events as e
from roost.api.runtime import Compat
from roost.host.host import Host
from roost.host.spec import HostSpec
from roost.host.worker.loader import load_worker
from roost.ids import id_from_name, namespace_key
from roost.link.memory import memory_pair

REF = e.ObjectRef("Room", id_from_name(namespace_key("t", "Room"), "x"), "x")
ENTRIES = [e.RosterEntry(n, ("t",), None, 0, "", "", close_sent=False) for n in (101, 102)]


class Gateway:
    """The test's end of the link."""

    def __init__(self, link):
        self.link = link
        self.got = []
        self.event = 0
        self.answers_rosters = False
        link.start(self)

    def on_events(self, events):
        self.got += events
        if self.answers_rosters:
            for event in events:
                if isinstance(event, e.RosterRequest):
                    self.roster(event.actor, event.object or REF, [] if event.object else ENTRIES)

    def on_closed(self, reason):
        pass

    def on_drained(self):
        pass

    def message(self, socket, data, actor=1):
        self.event += 1
        self.link.send(e.SocketMessage(self.event, actor, socket, data))

    def waking_message(self, socket, data):
        self.event += 1
        self.link.send(e.WakingMessage(self.event, socket, data, None, e.Roster(1, REF, ENTRIES, None)))

    def close(self, socket):
        self.event += 1
        self.link.send(e.SocketClose(self.event, 1, socket, 1000, "", clean=True))

    def roster(self, actor=1, ref=REF, entries=ENTRIES, piece=0, more=False):
        self.link.send(e.Roster(actor, ref, entries, None, piece, more))

    def take(self, kind):
        found = [event for event in self.got if type(event) is kind]
        self.got = [event for event in self.got if type(event) is not kind]
        return found

    def done(self):
        return self.take(e.Done)[-1]


def run_hosted(tmp_path: Path, source: str, test, *, classes=("Room",), compat=None, bindings=(), **options):
    """Run `test(host, gateway, module globals)` with a host that has loaded `source`; `options` are a `HostSpec`'s."""
    file = tmp_path / "worker_under_test.py"
    file.write_text(textwrap.dedent(source))

    async def main():
        loop = asyncio.get_running_loop()
        worker = load_worker(file, list(classes), compat or Compat())
        spec = HostSpec(worker_name="t", classes={name.upper(): name for name in classes}, **options)
        host = Host(loop, worker, spec, bindings)
        module = worker.classes[classes[0]].cls.__init__.__globals__
        ours, theirs = memory_pair(loop)
        gateway = Gateway(theirs)
        host.add_gateway(ours)
        await settle()
        assert gateway.take(e.Hello) == [e.Hello(e.ENVELOPE_VERSION, host.spec.slot, host.spec.slots, life=host.links.life)]
        try:
            await test(host, gateway, module)
        finally:
            await host.close(0)

    asyncio.run(main())


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def until(condition, timeout_s=5.0):
    """Wait until the disk's threads have brought about `condition()`."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


class HeldDisk:
    """The object's fsync waits until `let_go`; with an error it fails."""

    def __init__(self, actor):
        self._go = threading.Event()
        self._error = None
        database = actor.store._database
        sync = database.sync

        def held():
            self._go.wait(10)
            if self._error is not None:
                raise self._error
            sync()

        database.sync = held

    def let_go(self, error=None):
        self._error = error
        self._go.set()


def left(gateway):
    """What the gateway was told, without what it acknowledges."""
    return [event for event in gateway.got if not isinstance(event, e.Done | e.RosterRequest | e.GroupEnd)]
