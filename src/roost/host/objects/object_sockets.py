"""An object's sockets: which it has, at which gateway, and what becomes one.

They are a cache of the gateways' tables: what an object knows of its sockets comes from rosters, and what it changes is
told to the gateway, behind the output gate.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from roost.api.socket_end import Accept, SocketEnd
from roost.api.websocket import WebSocket, WebSocketRequestResponsePair
from roost.errors import JsException
from roost.events import AutoResponse, Binding, KeepSocket, SetAutoResponse
from roost.host.objects.input_gate import Phase
from roost.host.objects.stored_object import StoredObject
from roost.host.worker.io_context import WorkContext
from roost.host.worker.pins import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from roost.events import Headers, Redial, Roster
    from roost.host.gateway_link import GatewayLink

_log = logging.getLogger("roost.worker")

PIN_LISTENER: Final = "listener on a hibernatable socket"

current_fetch: ContextVar[object | None] = ContextVar("roostcurrent_fetch", default=None)


class ObjectSockets(StoredObject):
    """An object as its sockets see it. `api.state.ObjectHost` for its `ctx`, as far as those go."""

    __slots__ = ("_auto", "_fetches", "_listening", "asked", "asked_at", "sockets", "unanswered")

    sockets: dict[SocketEnd, GatewayLink | None]  # oldest first; None until the 101 has left
    asked: dict[GatewayLink, None]  # gateways whose roster is awaited
    asked_at: float
    unanswered: dict[GatewayLink, None]  # those that were asked and are not waited for
    _auto: AutoResponse | None
    _fetches: dict[SocketEnd, object | None]  # in which fetch a socket was accepted that has no client yet
    _listening: int  # the pin of listeners on hibernatable sockets

    # rosters

    def ask(self, gateway: GatewayLink) -> None:
        """That gateway's roster is awaited."""
        if self.asked is NOTHING:
            self.asked = {}
            self.asked_at = self.surroundings.loop.time()
        self.asked[gateway] = None

    def do_not_await(self, gateway: GatewayLink) -> None:
        """That gateway's roster is taken when it comes."""
        if self.unanswered is NOTHING:
            self.unanswered = {}
        self.unanswered[gateway] = None

    def adopt(self, gateway: GatewayLink, roster: Roster, only: set[int] | None) -> None:
        """A gateway's sockets are the object's (`only` these, if given). Their events wait until it is awake."""
        self._auto = roster.auto_response or self._auto
        port = self.port_for(gateway)
        for entry in roster.sockets:
            if entry.socket not in gateway.sockets and (only is None or entry.socket in only):
                gateway.sockets[entry.socket] = socket = WebSocket.restored(entry, self, port)
                self.sockets[socket] = gateway

    # accepting

    def accept_hibernatable(self, socket: SocketEnd, tags: tuple[str, ...]) -> None:
        self._take_in(socket, tags, None)
        if self._fetches is NOTHING:
            self._fetches = {}
        self._fetches[socket] = current_fetch.get()
        socket.accept_with(self, Accept.HIBERNATABLE)

    def _drop_unbound(self, token: object, returned: SocketEnd | None) -> None:
        """Forget the sockets that this fetch accepted but whose other end it did not return: they never get a client."""
        for socket, fetch in list(self._fetches.items()):
            if fetch is token and (socket.other_end is None or socket.other_end is not returned):
                self.drop_unbound(socket)

    def drop_unbound(self, socket: SocketEnd) -> None:
        """Forget one accepted socket whose client will never come (unless its other end is used in this process)."""
        if self._fetches.pop(socket, self) is not self and (
            socket.other_end is None or socket.other_end.accepted_as == Accept.NONE
        ):
            self.sockets.pop(socket, None)
            self._listener_gone(socket)

    def bind(self, socket: SocketEnd, gateway: GatewayLink, number: int) -> Binding:
        """The 101 leaves: the gateway's socket `number` is the other side from now on."""
        self._fetches.pop(socket, None)
        self.sockets[socket] = gateway
        gateway.adopt(socket, number, self.port_for(gateway))
        return Binding(self.ref, socket.socket_tags, socket.raw_attachment, self._auto)

    def hibernatable(self) -> Iterable[Any]:
        return self.sockets

    def _check_room(self) -> None:
        limit = self.surroundings.limits.max_sockets_per_object
        if len(self.sockets) >= limit:
            self.surroundings.counters.sockets_refused += 1
            raise JsException(f"only {limit} websockets can be accepted on a single Durable Object instance")

    def _take_in(self, socket: SocketEnd, tags: tuple[str, ...], gateway: GatewayLink | None) -> None:
        self._check_room()
        socket.socket_tags = tags
        self.sockets[socket] = gateway
        if socket.has_listeners:
            self.listener_on_hibernatable(socket)
        elif not self.kind.has("webSocketMessage") and self.surroundings.warn_once("deaf", self.kind.name):
            _log.warning(
                "%s has no webSocketMessage: messages on its sockets are dropped; add"
                " `async def webSocketMessage(self, ws, message)`.",
                self.kind.name,
            )

    # upstreams

    def keep_outbound(self, socket: SocketEnd, tags: tuple[str, ...], redial: Redial | None) -> None:
        gateway = next(
            (gateway for gateway in self.surroundings.links.here if gateway.sockets.get(socket.socket_number) is socket),
            None,
        )
        if gateway is None or socket.has_failed or socket.io_context is not self:
            raise JsException("The upstream's WebSocket has ended, or was dialled by another object.")
        self._take_in(socket, tags, gateway)
        self.port_for(gateway).send(KeepSocket(socket.socket_number, self.ref, tags, socket.raw_attachment, redial))
        if self._auto is not None:
            self.port_for(gateway).send(SetAutoResponse(self.ref, self._auto))
        self.socket_ended(socket)  # it pins nothing any more
        socket.accept_with(self, Accept.HIBERNATABLE)
        socket.url = socket.dialled_url or None

    async def dial_kept(
        self,
        url: str,
        protocols: list[str],
        headers: Headers,
        tags: tuple[str, ...],
        attachment: bytes | None,
        redial: Redial,
    ) -> WebSocket:
        """A socket that is this object's at once; its gateway dials until it is open."""
        self._check_room()
        if self.gate.shut:
            await self.store.durable()
        socket = WebSocket()

        def kept(gateway: GatewayLink, number: int) -> None:
            """At once: what tells that it is open may be in the same batch."""
            socket.become_kept(url, attachment)
            if self.phase is not Phase.GONE:  # else it is in the roster of the next one
                self._take_in(socket, tags, gateway)
                socket.accept_with(self, Accept.HIBERNATABLE)
                gateway.adopt(socket, number, self.port_for(gateway))
                if self._auto is not None:
                    self.port_for(gateway).send(SetAutoResponse(self.ref, self._auto))

        keep = KeepSocket(0, self.ref, tags, attachment, redial)
        pinned = self.pin(f"dialling {url}")
        try:
            await self.surroundings.outside.dial_kept(url, protocols, headers, keep, kept)
        finally:
            self.unpin(pinned)
        return socket

    def dial(self, socket: SocketEnd, url: str, protocols: list[str]) -> None:
        self.gate.hold(lambda error: None if error else WorkContext.dial(self, socket, url, protocols))

    # auto-responses

    def set_auto_response(self, pair: WebSocketRequestResponsePair | None) -> None:
        self._auto = None if pair is None else AutoResponse(pair.request, pair.response)
        event = SetAutoResponse(self.ref, self._auto)
        for gateway in {gateway for gateway in self.sockets.values() if gateway is not None}:
            self.port_for(gateway).send(event)

    def get_auto_response(self) -> WebSocketRequestResponsePair | None:
        return None if self._auto is None else WebSocketRequestResponsePair(self._auto.request, self._auto.response)

    # listeners on hibernatable sockets (observed behaviour 3.4)

    def listener_on_hibernatable(self, socket: SocketEnd) -> None:
        has_handler = self.kind.has("webSocketMessage")
        if self.surroundings.warn_once("listener", self.kind.name):
            effect = (
                "it never fires, because the class has webSocketMessage"
                if has_handler
                else "it is called, but keeps the object awake, and is lost when the host restarts"
            )
            _log.warning(
                "%s: a listener on a hibernatable socket: %s; use webSocketMessage(self, ws, message) instead.",
                self.kind.name,
                effect,
            )
        if not has_handler and not self._listening:
            self._listening = self.pin(PIN_LISTENER)

    def _listener_gone(self, socket: SocketEnd) -> None:
        if self._listening and not any(other.has_listeners for other in self.sockets):
            self.unpin(self._listening)
            self._listening = 0

    @property
    def has_unbound(self) -> bool:
        """Whether a socket was accepted whose 101 has not left."""
        return None in self.sockets.values()
