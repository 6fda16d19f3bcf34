"""A stateless request: where its code runs, for as long as something of it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from roost.host.worker.current import received_sockets, request_gateway
from roost.host.worker.io_context import WorkContext
from roost.host.worker.rpc_table import PIN_EXPORTS

if TYPE_CHECKING:
    import contextvars

    from roost.api.runtime import Compat
    from roost.api.socket_end import SocketEnd
    from roost.host.gateway_link import GatewayLink
    from roost.host.worker.aborting import Abortable
    from roost.host.worker.surroundings import Surroundings

_WHILE_ANSWERING: Final = ("request", PIN_EXPORTS)  # pins that go with the request


class RequestContext(WorkContext):
    """A stateless request, and the sockets it accepted, for as long as one is open."""

    __slots__ = ("_answered", "_exports_stay", "_fetched", "_gateway", "received")

    def __init__(self, surroundings: Surroundings, label: str, compat: Compat, gateway: GatewayLink | None) -> None:
        super().__init__(surroundings, label, compat)
        self.received: list[SocketEnd] = []
        self._gateway = gateway
        self._fetched: WeakSet[Abortable] | None = None
        self._answered = False
        self._exports_stay = False

    def body_opened(self, body: Abortable) -> None:
        if self._fetched is None:
            self._fetched = WeakSet()
        self._fetched.add(body)

    def answered(self) -> None:
        """The handler has ended, and its response has left: what it has not read nobody will, unless something goes on."""
        if self._fetched is not None and all(what in _WHILE_ANSWERING for what in self.pins.values()):
            for body in list(self._fetched):
                body.let_go()
        self._answered = True
        if self._rpc is not None:
            self._look()

    def called(self) -> None:
        """Like `answered`, of a call: what its result passes on stays for as long as somebody holds it."""
        self._answered = self._exports_stay = True
        self._look()

    def unpin(self, number: int) -> None:
        super().unpin(number)
        if self._answered and self._rpc is not None:
            self._look()

    def _look(self) -> None:
        """Once nothing goes on here, stubs end that were made or are held here."""
        if self._rpc is None or (self._exports_stay and self._rpc.is_held):
            return
        if all(what in _WHILE_ANSWERING for what in self.pins.values()):
            self._rpc.close()

    def fresh_variables(self) -> contextvars.Context:
        variables = super().fresh_variables()
        variables.run(request_gateway.set, self._gateway)
        variables.run(received_sockets.set, self.received)
        return variables
