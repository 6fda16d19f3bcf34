"""What a link is, to both of its ends: ordered, batched, lossless while it is up.

An end buffers what `send` is given and writes it once a loop turn, or at `flush`. It owns its transport and nothing
else; it must not know what events mean. The invariant: the receiver sees exactly the events sent, in order, until
`on_closed`, which is called once.
"""

from __future__ import annotations

import contextvars
import sys
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from roost.events import Done, Event, Send

if TYPE_CHECKING:
    from collections.abc import Sequence


NO_CONTEXT = contextvars.Context()
"""A link's turns run in this: it is often worker code that first sends, and the link must not go on in its name."""


class Batch:
    """What one end will write this turn. Equal payloads in a row become one `Send`, successive `Done`s one `Done`.

    So the plain loop over `getWebSockets()` costs one encode and one copy of the payload, whatever the link. Links are
    batches: each call between would cost every message.
    """

    __slots__ = ("_last_send", "_payload_bytes", "events", "rider")

    FULL_BYTES = sys.maxsize
    """So many bytes of payloads make a batch `_full`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._payload_bytes = 0
        self._last_send: Send | None = None
        self.rider: Event | None = None

    def send(self, event: Event) -> None:
        """See Link.send."""
        self._last_send = None
        events = self.events
        if not events:
            self._begun()
        elif type(event) is Done and type(events[-1]) is Done:
            events[-1] = event
            return
        events.append(event)

    def queue(self, event: Event) -> None:
        """See Link.queue."""
        self._last_send = None
        self.events.append(event)

    def send_to(self, socket: int, payload: bytes, text: bool) -> None:
        """See Link.send_to."""
        last = self._last_send
        if last is not None and last.payload == payload and last.text is text:
            last.sockets.append(socket)
            return
        self._last_send = last = Send([socket], payload, text)
        events = self.events
        if not events:
            self._begun()
        events.append(last)
        self._payload_bytes += len(payload)
        if self._payload_bytes > self.FULL_BYTES:
            self._full()

    def _begun(self) -> None:
        """The first event is about to be there: somebody must take the batch."""

    def _full(self) -> None:
        """Do not wait any longer with it."""

    def seal(self) -> None:
        """What is there is written down elsewhere: nothing may be joined to it any more."""
        self._last_send = None

    def take(self) -> list[Event]:
        """The batch, leaving an empty one."""
        events, self.events = self.events, []
        self._last_send = None
        self._payload_bytes = 0
        if self.rider is not None:
            events.append(self.rider)
            self.rider = None
        return events


class Receiver(Protocol):
    """What an end does with what arrives."""

    def on_events(self, events: Sequence[Event]) -> None:
        """A batch, in the order it was sent."""
        ...

    def on_closed(self, reason: str) -> None:
        """The other end is gone; nothing more arrives and what is sent is dropped."""
        ...

    def on_drained(self) -> None:
        """The end was congested and no longer is."""
        ...


class Link(Protocol):
    """One end of a link."""

    congested: bool
    """More is buffered than the high-water mark: the sender should stop taking work that it can hold back."""

    rider: Event | None
    """Leaves at the end of the next batch, and causes none: for what need not be said at once."""

    @property
    def unsent(self) -> bool:
        """Whether something that was flushed could not be written yet."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Begin delivery. Events that arrived before are delivered first."""
        ...

    def send(self, event: Event) -> None:
        """Queue one event; it is written at the end of this loop turn at the latest."""
        ...

    def queue(self, event: Event) -> None:
        """`send`, not of a `Done`, for one who flushes in this very turn."""
        ...

    def send_to(self, socket: int, payload: bytes, text: bool) -> None:
        """Queue a message to one socket; joined with the one before it if the payload is the same."""
        ...

    def flush(self) -> None:
        """Write what is queued now."""
        ...

    def read_rest(self) -> None:
        """The other end's process is over: deliver what it has still written, and its end."""
        ...

    def close(self) -> None:
        """Close this end; the other end's `on_closed` follows. Idempotent; this end's `on_closed` is not called."""
        ...


@runtime_checkable
class MovableLink(Link, Protocol):
    """A link that another process may go on with: `unread` and `backlog` are what it needs besides the descriptor."""

    def fileno(self) -> int: ...

    @property
    def unread(self) -> bytes:
        """What has arrived of an envelope that is not complete."""
        ...

    @property
    def backlog(self) -> bytes:
        """What was flushed and could not be written yet."""
        ...

    def pause(self) -> None:
        """Write what can be written, then neither read nor write until `resume`."""
        ...

    def resume(self) -> None: ...
