"""A gateway as a child process: it listens for clients and for hosts, and may be replaced by another while both stay."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from roost.errors import InternalError, RemoteProtocolError
from roost.gateway.handover import descriptors, handover
from roost.gateway.handover.state import check
from roost.gateway.routing import journal
from roost.link.unix import UnixLink
from roost.node.assemble import gateway_report, make_gateway
from roost.node.orders import (
    AskReport,
    Breaker,
    ChangeClasses,
    Drain,
    EndPumped,
    HandOver,
    Left,
    ListenAgain,
    Ping,
    Pong,
    ServeApp,
)

if TYPE_CHECKING:
    from roost.gateway.handover.tls_pump import TlsPump
    from roost.node.child_control import Control
    from roost.node.orders import Connect, ToChild
    from roost.node.spec import ChildSpec

_log = logging.getLogger("roost.node")

_HANDOVER_S: Final = 20.0  # for all of a gateway's sockets to change hands


class GatewayChild:
    """A `child_control.Role`."""

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

    # hosts and clients

    def _open_doors(self) -> None:
        self._await_hosts()
        for fd in self._spec.listen_fds:
            self._gateway.listen(socket.socket(fileno=fd))

    def _await_hosts(self) -> None:
        self._links.close()
        self._links = _listen(self._spec.sockets[self._spec.index])
        self._links.setblocking(False)
        self._loop.add_reader(self._links.fileno(), self._host_arrives)

    def _host_arrives(self) -> None:
        try:
            sock, _ = self._links.accept()
        except OSError as error:
            _log.warning("gateway: a host could not connect: %s", error)
            return
        self._gateway.add_host(UnixLink(sock, self._loop, hold_reading=False))

    def _listen_again(self) -> None:
        """The folder of sockets and journals was removed and is there again."""
        self._loop.remove_reader(self._links.fileno())
        self._await_hosts()
        self._gateway.sockets.start_journal()

    # orders

    async def obey(self, order: ToChild, control: Control) -> bool:
        gateway = self._gateway
        if isinstance(order, HandOver):
            fault = await self._hand_over(order.path, order.timeout_s)
            if not fault:
                await control.tell(Left())
                await self._pump(control)
                return True
            await control.report(order.request, {"error": fault})
        elif isinstance(order, ServeApp):
            gateway.turn.assets = None if order.app.assets is None else order.app.assets.files()
        elif isinstance(order, Breaker):
            gateway.open_breaker(order.slot, order.reason)
        elif isinstance(order, ChangeClasses):
            gateway.router.change_classes(order.renamed, order.deleted)
        elif isinstance(order, EndPumped):
            gateway.end_pumped(order.pid)
        elif isinstance(order, ListenAgain):
            self._listen_again()
        else:
            _log.error("gateway: the node gave an order that is not for gateways: %s", type(order).__name__)
        return False

    def report(self) -> dict[str, Any]:
        return gateway_report(self._gateway)

    async def drain(self, timeout_s: float, why: str = "") -> None:
        self._loop.remove_reader(self._links.fileno())
        self._links.close()
        await self._gateway.drain(timeout_s)

    # in the place of another

    async def connect(self, order: Connect | None) -> None:
        """It is hosts that connect; a successor takes over what the gateway before it has. Raises InternalError."""
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

    async def _hand_over(self, path: str, timeout_s: float) -> str:
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

    async def _pump(self, control: Control) -> None:
        """The successor has everything but the TLS sessions: those go on here until they end."""
        orders = asyncio.create_task(control.next())
        ends_at = float("inf")
        while any(pump.open for pump in self._pumps) and time.monotonic() < ends_at:
            await asyncio.wait({orders}, timeout=0.2)
            if not orders.done():
                continue
            order = orders.result()
            if order is None:
                break
            if isinstance(order, Ping):
                await control.tell(Pong())
            elif isinstance(order, Drain):  # the successor says goodbye to those clients, too
                ends_at = time.monotonic() + order.timeout_s
            elif isinstance(order, AskReport | HandOver):
                await control.report(order.request, {"error": "this gateway has been replaced"})
            orders = asyncio.create_task(control.next())
        orders.cancel()
        for pump in self._pumps:
            pump.close()


def _listen(path: str) -> socket.socket:
    """A unix socket that only this user can connect to."""
    if os.path.exists(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.listen(16)
    return sock
