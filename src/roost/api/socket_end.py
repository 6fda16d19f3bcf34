"""`SocketEnd`: what the host needs of a `WebSocket`, and all that it may touch of one.

A socket's other side is either the other end of its pair in this process, or the network behind a `SocketPort`. The names
of the slots are long on purpose: worker code sets attributes of its own on sockets, and they must not meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from roost.events import RosterEntry


class Accept:
    """Who gets this end's events. Plain numbers, as each message compares with one: an enum's members are slow to reach."""

    NONE: Final = 0  # nobody yet: they are kept
    STANDARD: Final = 1  # listeners
    HIBERNATABLE: Final = 2  # the object's webSocket* handlers


class Item:
    """Something for one end of a socket: a message, a close or an error, on its way or waiting."""

    __slots__ = ("clean", "code", "data", "kind", "reason")

    def __init__(self, kind: str, data: str | bytes = "", code: int = 0, reason: str = "", clean: bool = True) -> None:
        self.kind = kind
        self.data = data
        self.code = code
        self.reason = reason
        self.clean = clean


class SocketPort(Protocol):
    """The network's side of a socket: a link to the gateway that holds it."""

    def send_message(self, number: int, payload: bytes, text: bool) -> None: ...

    def close_socket(self, number: int, code: int, reason: str) -> None: ...

    def attach(self, number: int, attachment: bytes | None) -> None: ...


class SocketContext(Protocol):
    """Where an accepted socket's events go."""

    def deliver(self, socket: Any, item: Item) -> None:
        """An event for an accepted socket that did not come over the network: hand it over in a later turn."""
        ...

    def deliver_pending(self, socket: Any) -> None:
        """Hand over, in a later turn, what waited for the socket to be accepted; what comes meanwhile stays behind it."""
        ...

    def socket_opened(self, socket: Any) -> None:
        """An accepted socket on the network lives in this context from now on."""
        ...


class SocketEnd:
    """One end of a WebSocket, as the host sees it. `api.websocket.WebSocket` is the whole of it."""

    __slots__ = (
        "_binary_type", "_half_open", "_listeners", "accepted_as", "auto_answered_ms", "close_received", "close_sent",
        "dialled_url", "extensions", "has_failed", "io_context", "is_connecting", "is_dialled", "is_used", "kept_items",
        "may_send", "other_end", "protocol", "raw_attachment", "socket_number", "socket_port", "socket_tags", "url",
    )  # fmt: skip

    def __init__(self) -> None:
        self.accepted_as: int = Accept.NONE
        self.may_send = False  # send() may go straight to the port: accepted, open, on the network
        self.socket_port: SocketPort | None = None
        self.socket_number = 0  # of the gateway's socket behind that port
        self.other_end: SocketEnd | None = None  # of a pair, until one of them is on the network
        self.is_dialled = False  # by the worker
        self.kept_items: list[Item] | tuple[()] = ()  # until somebody has accepted it
        self.io_context: Any = None  # a SocketContext; Any, as each message asks it for more than that
        self.close_received = self.close_sent = self.has_failed = self.is_used = self.is_connecting = False
        self.socket_tags: tuple[str, ...] = ()
        self.raw_attachment: bytes | None = None
        self.auto_answered_ms = 0
        self.url: str | None = None
        self.dialled_url = ""  # of an upgraded fetch
        self.protocol: str | None = ""
        self.extensions: str | None = ""
        # What only `WebSocket` knows; here, as a wake makes one call less for each socket.
        self._listeners: dict[str, list[tuple[Callable[..., Any], bool]]] | None = None
        self._half_open = False  # the program answers the peer's Close
        self._binary_type: str | None = None

    @classmethod
    def restored(cls, entry: RosterEntry, context: SocketContext, port: SocketPort) -> Self:
        """A hibernatable socket as its gateway has kept it. A wake makes one of each."""
        socket = cls()
        socket.accepted_as = Accept.HIBERNATABLE
        socket.io_context = context
        socket.socket_port = port
        socket.socket_number = entry.socket
        socket.socket_tags = entry.tags
        socket.raw_attachment = entry.attachment
        socket.auto_answered_ms = entry.auto_at_ms
        socket.close_sent = entry.close_sent
        socket.may_send = not entry.close_sent
        socket.url = entry.url or None
        socket.protocol = entry.protocol
        return socket

    # what becomes of it

    def accept_with(self, context: SocketContext, how: int) -> None:
        """Bind this end's events to a context. User code calls `accept` or `ctx.acceptWebSocket`."""
        self.accepted_as = how
        self.io_context = context
        self._update_may_send()
        if how == Accept.STANDARD and self.socket_port is not None:
            context.socket_opened(self)
        if self.kept_items:
            context.deliver_pending(self)

    def connect_to(self, port: SocketPort, number: int) -> None:
        """This end's other side is now the gateway's socket `number`."""
        self.socket_port = port
        self.socket_number = number
        self.other_end = None
        self.is_connecting = False
        self._update_may_send()

    def _update_may_send(self) -> None:
        self.may_send = (
            self.socket_port is not None and self.accepted_as != Accept.NONE and not self.close_sent and not self.has_failed
        )

    def upgrade_dialled(self, context: SocketContext, url: str) -> None:
        """An upgraded `fetch` of that URL has opened it; nobody has accepted it yet."""
        self.dialled_url = url
        self.io_context = context

    def become_kept(self, url: str, attachment: bytes | None) -> None:
        """An object keeps it, and its gateway dials that URL until it is open."""
        self.is_dialled = True
        self.url = url
        self.raw_attachment = attachment

    def handshake_agreed(self, protocol: str | None, extensions: str | None) -> None:
        """A server has answered its dial."""
        self.is_dialled = True
        self.protocol = protocol
        self.extensions = extensions

    def end_abnormally(self) -> None:
        """It has ended without a closing handshake."""
        self.has_failed = True
        self.may_send = False

    def close_out(self, code: int, reason: str) -> None:
        """Send our Close; for the host's automatic reply, too. 1005 is a Close without a code."""
        self.close_sent = True
        self.may_send = False
        if self.socket_port is not None:
            self.socket_port.close_socket(self.socket_number, code, reason)
        elif self.other_end is not None:
            self.other_end.receive_item(Item("close", code=code, reason=reason))

    # what comes for it

    def receive_item(self, item: Item) -> None:
        """Something came from the other end of a pair: keep it, pass it to the network, or hand it over."""
        if self.is_used:
            return
        if self.accepted_as == Accept.NONE or self.kept_items:
            self.keep_item(item)
        elif self.io_context is not None:
            self.io_context.deliver(self, item)

    def keep_item(self, item: Item) -> None:
        """Somebody will want it: it waits behind what waits already."""
        if self.kept_items:
            self.kept_items.append(item)
        else:
            self.kept_items = [item]  # most sockets never need one

    def take_kept(self) -> list[Item] | tuple[()]:
        """All that was kept, which is not any more."""
        items, self.kept_items = self.kept_items, ()
        return items

    def dispatch_item(self, item: Item) -> None:
        """Give an item to the listeners (of an accepted, not hibernating socket). Each runs in the socket's context."""
        raise NotImplementedError

    def dial_failed(self, reason: str) -> None:
        """The dial of `WebSocket.new(url)` came to nothing: an error event, then close 1006."""
        raise NotImplementedError

    @property
    def is_unaccepted_upstream(self) -> bool:
        """Whether an upgraded `fetch` has opened it and the program has not accepted it."""
        return self.socket_port is not None and self.accepted_as == Accept.NONE and self.other_end is None

    @property
    def has_listeners(self) -> bool:
        """Whether any listener is attached."""
        raise NotImplementedError
