"""A child process: one gateway or one host. `python -m roost.node.child FD`, FD its end of the control socket.

Orders and answers are JSON lines on that socket; its end of file means that the node is gone, and the child ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from roost.errors import ConfigError, InternalError, RemoteProtocolError, WorkerError
from roost.gateway.handover import descriptors, handover
from roost.gateway.handover.state import check
from roost.gateway.routing import journal
from roost.host.forking import Forks, die_with_parent
from roost.link.port import NO_CONTEXT
from roost.link.unix import UnixLink
from roost.node.assemble import (
    HostPlace,
    calm_collector,
    evict_objects,
    fault_of,
    gateway_report,
    host_report,
    load,
    make_gateway,
    make_host,
    probe,
    restore_object,
    start_apps,
    watch,
)
from roost.node.host_process import forget_allocator
from roost.node.spec import CONTROL_LINE_BYTES, ChildSpec, FromChild, ToChild
from roost.observe import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from roost.gateway.handover.tls_pump import TlsPump
    from roost.host.watchdog import Stuck
    from roost.host.worker.loader import Worker
    from roost.node.config import App

_log = logging.getLogger("roost.node")

_RETRY_S = 0.05
_HANDOVER_S = 20.0  # for all of a gateway's sockets to change hands


class Child:
    """The control side that both roles share."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.json.Decoder(ToChild)
        self._releasing: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        order = await self._next()
        if order is None or order.spec is None:
            return 1
        spec = order.spec
        logs.set_up(spec.log_format, debug=spec.debug)
        if spec.role == "host":
            die_with_parent()  # it may be stuck in the worker's code when the node is killed
            Forks(spec.data, int(sys.argv[1])).guard()
        try:
            role: Any = await (_Gateway if spec.role == "gateway" else _HostRole).start(spec)
        except (ConfigError, WorkerError) as error:
            fault, text, detail = fault_of(error)
            await self._tell(FromChild("failed", text, fault, detail))
            return 1
        if spec.hold:
            await self._tell(FromChild("loaded"))
            order = await self._next()
            if order is None or order.command != "connect":
                await role.drain(0)
                return 0
            role.know(order)
        try:
            await role.connect()
        except InternalError as error:
            await self._tell(FromChild("failed", str(error), "worker"))
            return 1
        calm_collector()
        await self._tell(FromChild("ready"))
        while (order := await self._next_order()) is not None:
            if order.command == "release":
                self._releasing = asyncio.get_running_loop().create_task(self._release(role, order))
            if order.command == "":  # everything has ended
                await role.drain(0)
                return 0
            if order.command == "came":
                role.came(order.objects)
            if order.command == "drain":
                await role.drain(order.timeout_s, order.text)
                return 0
            if order.command == "hand_over":
                fault = await role.hand_over(order.text, order.timeout_s)
                if not fault:
                    await self._tell(FromChild("left"))
                    return await self._pump(role)
                await self._report(order, {"error": fault})
            if order.command == "ping":
                await self._tell(FromChild("pong"))
            if order.command == "end_pumped":
                role.end_pumped(order.request)
            if order.command == "listen_again":
                role.listen_again()
            if order.command == "end_soon":
                role.end_soon()
            if order.command == "awake":
                await self._report(order, {"awake": role.awake()})
            if order.command == "report":
                await self._report(order, role.report())
            if order.command == "app" and order.app is not None:
                role.serve_app(order.app)
            if order.command == "classes":
                role.change_classes(order.renamed, order.deleted)
            if order.command == "breaker":
                role.open_breaker(order.slot, order.text)
            if order.command == "quarantine":
                role.know(order)
            if order.command == "restore":
                self._answer_later(order, role.restore(order.arguments))
            if order.command == "evict":
                self._answer_later(order, role.evict(order.arguments))
        await role.drain(0.5)
        return 1

    async def _next_order(self) -> ToChild | None:
        """The node's next order; an empty one when a host that was replaced has nothing more to do."""
        if self._releasing is None:
            return await self._next()
        reading = asyncio.ensure_future(self._next())
        await asyncio.wait({reading, self._releasing}, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        reading.cancel()
        self._releasing.result()
        return ToChild("")

    async def _release(self, role: Any, order: ToChild) -> None:
        """A successor takes the objects; what is no object's goes on here for a while."""
        began = time.monotonic()
        held = await role.release(order.timeout_s, order.text)
        await self._tell(FromChild("released", objects=held))
        async for key in role.held(order.timeout_s - (time.monotonic() - began)):
            await self._tell(FromChild("came", objects=[key]))
        await role.finish()

    async def _pump(self, role: Any) -> int:
        """The successor has everything but the TLS sessions: those go on here until they end."""
        orders = asyncio.create_task(self._next())
        ends_at = float("inf")
        while role.pumping and time.monotonic() < ends_at:
            await asyncio.wait({orders}, timeout=0.2)
            if orders.done():
                order = orders.result()
                if order is None:
                    break
                if order.command == "ping":
                    await self._tell(FromChild("pong"))
                if order.command == "drain":  # the successor says goodbye to those clients, too
                    ends_at = time.monotonic() + order.timeout_s
                elif order.request:
                    await self._report(order, {"error": "this gateway has been replaced"})
                orders = asyncio.create_task(self._next())
        orders.cancel()
        role.end_pumps()
        return 0

    def _answer_later(self, order: ToChild, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """What takes its time must not keep other orders waiting."""

        async def answer() -> None:
            await self._report(order, await work)

        task = asyncio.get_running_loop().create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _report(self, order: ToChild, report: dict[str, Any]) -> None:
        raw = msgspec.Raw(msgspec.json.encode(report))
        await self._tell(FromChild("report", request=order.request, report=raw))

    async def _next(self) -> ToChild | None:
        line = await self._reader.readline()
        return self._decoder.decode(line) if line else None

    async def _tell(self, message: FromChild) -> None:
        self._writer.write(msgspec.json.encode(message) + b"\n")
        await self._writer.drain()


class _Gateway:
    """A gateway that listens for clients and for hosts."""

    def __init__(self, spec: ChildSpec) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        journal_path = os.path.join(spec.run_folder, f"gateway-{spec.index}.journal")
        self._gateway = make_gateway(
            loop, spec.app, spec.settings, spec.slots, spec.ca_file, journal=journal_path, log_format=spec.log_format
        )
        self._spec = spec
        self._pumps: list[TlsPump] = []
        self._links = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._predecessor: socket.socket | None = None
        if spec.hold:  # another gateway runs: it comes here to hand over
            self._predecessor = _listen(spec.take_over)
        else:
            self._gateway.inherit(journal.read(journal_path))
            self._gateway.start()
            self._open_doors()

    def _open_doors(self) -> None:
        """To hosts and clients."""
        self._await_hosts()
        for fd in self._spec.listen_fds:
            self._gateway.listen(socket.socket(fileno=fd))

    def _await_hosts(self) -> None:
        self._links.close()
        self._links = _listen(self._spec.sockets[self._spec.index])
        self._links.setblocking(False)
        self._loop.add_reader(self._links.fileno(), self._host_arrives)

    def listen_again(self) -> None:
        """The folder of sockets and journals was removed and is there again."""
        self._loop.remove_reader(self._links.fileno())
        self._await_hosts()
        self._gateway.sockets.start_journal()

    @classmethod
    async def start(cls, spec: ChildSpec) -> _Gateway:
        return cls(spec)

    def _host_arrives(self) -> None:
        try:
            sock, _ = self._links.accept()
        except OSError as error:
            _log.warning("gateway: a host could not connect: %s", error)
            return
        self._gateway.add_host(UnixLink(sock, self._loop, hold_reading=False))

    async def connect(self) -> None:
        """It is hosts that connect; a successor takes over what the gateway before it has. Raises RoostError."""
        if self._predecessor is None:
            return
        with self._predecessor as listener:
            listener.settimeout(self._spec.settings.timeouts.deploy_grace_s + _HANDOVER_S)
            try:
                sock, _ = await asyncio.to_thread(listener.accept)
                with sock:
                    sock.settimeout(_HANDOVER_S)
                    state, placed = descriptors.receive(sock)
                    check(state, self._spec.slots)
                    handover.rebuild(self._gateway, state, placed)
                    sock.sendall(b"k")
                    if sock.recv(1) != b"g":  # it has gone on by itself
                        raise ConnectionError("the gateway before has not left")
            except (OSError, ValueError, RemoteProtocolError) as error:
                raise InternalError(f"the running gateway could not be taken over: {error}") from error
        handover.begin(self._gateway)
        self._open_doors()

    async def hand_over(self, path: str, timeout_s: float) -> str:
        """Give everything to the successor that waits at `path`; what went wrong, in which case nothing has changed."""
        gateway = self._gateway
        await handover.quiesce(gateway, timeout_s)
        self._loop.remove_reader(self._links.fileno())
        await gateway.stop_dialling()
        pumps: list[TlsPump] = []
        plain_ends: list[int] = []
        try:
            handover.freeze(gateway)
            state, fds = handover.describe(gateway, pumps, plain_ends)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(_HANDOVER_S)
                sock.connect(path)
                descriptors.send(sock, state, fds)
                if sock.recv(1) != b"k":
                    raise ConnectionError("the successor could not go on with it (see the server's log)")
                sock.sendall(b"g")
        except Exception as error:  # noqa: BLE001 - whatever it is, the clients stay here
            for pump in pumps:
                pump.forget()
            handover.thaw(gateway)
            self._loop.add_reader(self._links.fileno(), self._host_arrives)
            return f"{type(error).__name__}: {error}"
        finally:
            for fd in plain_ends:
                os.close(fd)
        self._links.close()
        gateway.handed_over()
        pumped = {pump.fd for pump in pumps}
        for fd in state.descriptors:
            if fd not in pumped:
                os.close(fd)  # the successor has its own
        self._pumps = pumps
        for pump in pumps:
            pump.start()
        return ""

    @property
    def pumping(self) -> bool:
        self._pumps = [pump for pump in self._pumps if pump.open]
        return bool(self._pumps)

    def end_pumps(self) -> None:
        for pump in self._pumps:
            pump.close()

    def end_pumped(self, pid: int) -> None:
        self._gateway.end_pumped(pid)

    def serve_app(self, app: App) -> None:
        self._gateway.turn.assets = None if app.assets is None else app.assets.files()

    def know(self, order: ToChild) -> None:
        """Only hosts need to know what has brought others down."""

    def change_classes(self, renamed: dict[str, str], deleted: list[str]) -> None:
        self._gateway.router.change_classes(renamed, deleted)

    def open_breaker(self, slot: int, reason: str) -> None:
        self._gateway.open_breaker(slot, reason)

    def report(self) -> dict[str, Any]:
        return gateway_report(self._gateway)

    async def drain(self, timeout_s: float, why: str = "") -> None:
        self._loop.remove_reader(self._links.fileno())
        self._links.close()
        await self._gateway.drain(timeout_s)


def _listen(path: str) -> socket.socket:
    """A unix socket that only this user can connect to."""
    if os.path.exists(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.listen(16)
    return sock


class _HostRole:
    """A host that keeps a link to every gateway."""

    def __init__(self, spec: ChildSpec, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._sockets = spec.sockets
        place = HostPlace(
            slot=spec.index,
            slots=spec.slots,
            gateways=len(spec.sockets),
            data=spec.data,
            mark=spec.mark,
            not_again=spec.not_again,
            quarantined=spec.quarantined,
            elsewhere=spec.elsewhere,
            first_names=spec.first_names,
            ca_file=spec.ca_file,
            dev=spec.dev,
        )
        self._host = make_host(loop, worker, spec.app, spec.settings, place)
        self._watchdog = watch(self._host, spec.app, spec.settings, _tell_stuck, _tell_debugged)
        self._connectors: list[asyncio.Task[None]] = []
        self._finish_s = spec.settings.timeouts.replaced_host_s

    @classmethod
    async def start(cls, spec: ChildSpec) -> _HostRole:
        logs.redirect_prints()
        worker = load(spec.app)
        await start_apps(spec.settings)
        if spec.hold:
            await probe(asyncio.get_running_loop(), worker, spec.app, spec.settings)
        return cls(spec, worker)

    async def connect(self) -> None:
        self._watchdog.start()  # before: the first event that a gateway gives again may be one that hangs
        self._connectors = [self._loop.create_task(self._keep_connected(path)) for path in self._sockets]
        while len(self._host.links) < len(self._sockets):
            await asyncio.sleep(0.002)

    async def _keep_connected(self, path: str) -> None:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await self._loop.sock_connect(sock, path)
            except OSError:
                sock.close()
                await asyncio.sleep(_RETRY_S)
                continue
            self._host.add_gateway(UnixLink(sock, self._loop, hold_reading=True))
            await self._host.links[-1].gone.wait()

    def end_soon(self) -> None:
        self._host.end_soon()

    def report(self) -> dict[str, Any]:
        return host_report(self._host)

    def awake(self) -> int:
        """How many objects are in memory."""
        return len(self._host.actors)

    def know(self, order: ToChild) -> None:
        """What has brought other hosts down."""
        self._host.quarantine(frozenset(order.quarantined))
        self._host.know(order.objects, frozenset(order.not_again))

    async def evict(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"evicted": await evict_objects(self._host, arguments)}

    async def restore(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return await restore_object(self._host, arguments)

    def came(self, objects: list[tuple[str, str]]) -> None:
        # In a turn of its own: handlers are driven in place, which a task must not be.
        self._loop.call_soon(self._host.waking.came, objects, context=NO_CONTEXT)

    async def release(self, timeout_s: float, why: str) -> list[tuple[str, str]]:
        for connector in self._connectors:
            connector.cancel()
        self._host.leave()
        held = await self._host.release(timeout_s, why or "codeUpdated")
        return [(ref.class_name, ref.id) for ref in held]

    async def held(self, timeout_s: float) -> AsyncIterator[tuple[str, str]]:
        async for ref in self._host.held(timeout_s):
            yield ref.class_name, ref.id

    async def finish(self) -> None:
        await self._host.finish(self._finish_s)

    async def drain(self, timeout_s: float, why: str = "") -> None:
        for connector in self._connectors:
            connector.cancel()
        self._host.leave()
        await self._host.close(timeout_s, why or "inactive")
        self._watchdog.stop()


def _tell_stuck(stuck: Stuck) -> None:
    """At the end of this process."""
    _tell_past_loop(FromChild("stuck", report=msgspec.Raw(msgspec.json.encode(stuck))))


def _tell_debugged() -> None:
    _tell_past_loop(FromChild("pong"))


def _tell_past_loop(message: FromChild) -> None:
    """From the watchdog's thread, while the loop hangs: straight to the node."""
    try:
        os.write(int(sys.argv[1]), msgspec.json.encode(message) + b"\n")
    except OSError as error:
        _log.error("node: could not be told: %s", error)


async def _main(fd: int) -> int:
    sock = socket.socket(fileno=fd)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=CONTROL_LINE_BYTES)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: None)  # the node decides; a terminal's Ctrl-C reaches every process
    try:
        return await Child(reader, writer).run()
    finally:
        writer.close()


if __name__ == "__main__":
    forget_allocator(os.environ)
    code = uvloop.run(_main(int(sys.argv[1])))
    logging.shutdown()
    os._exit(code)  # a worker's threads must not keep a drained host alive
