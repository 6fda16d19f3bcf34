"""Whose a socket is: a host's slot, another socket, or nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections import deque

    from roost.events import AutoResponse, SocketClose, SocketError, SocketMessage, SocketOpened
    from roost.link.port import Link


class Slot(Protocol):
    """A host's place, as the events of a socket see it: `routing.host_slot.HostSlot`."""

    index: int
    link: Link | None
    leaving: Link | None
    last_event: int
    unfinished: deque[Any]
    full: bool

    @property
    def current(self) -> Link | None: ...

    def next_event(self) -> int: ...

    def deliver(self, event: SocketClose | SocketError | SocketOpened) -> None: ...

    def count_large(self, message: SocketMessage, sign: int) -> bool: ...

    def update_full(self) -> None: ...


class Owner:
    """Whose a socket is. `slot` is the host that gets its events; `actor` is its number there, 0 for a plain socket."""

    __slots__ = ("actor", "auto", "awake", "slot")

    def __init__(self, slot: Slot | None, actor: int) -> None:
        self.slot = slot
        self.actor = actor
        self.auto: AutoResponse | None = None
        self.awake = True  # as far as we know: the host says `Asleep`


class Relay(Owner):
    """A socket whose messages go straight to another socket of this gateway: an upstream passed through to a client."""

    __slots__ = ("other",)

    def __init__(self, other: Relayed) -> None:
        super().__init__(None, 0)
        self.other = other


class Relayed(Protocol):
    """The other socket of a relay: an `io.connection.Connection`."""

    number: int

    def send_frame(self, frame: bytes) -> bool: ...

    def close(self, code: int, reason: str) -> None: ...
