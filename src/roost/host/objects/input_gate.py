"""The input gate: an object's events begin in order, and none while a section of `blockConcurrencyWhile` runs.

What comes while the gate is shut waits here, bounded (`limits.max_queued_events`). Source: reference 4.2, observed
behaviour W40-W45; workerd's `io-gate`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from roost.closes import OBJECT_BUSY
from roost.errors import OverloadError, Superseded
from roost.events import SocketMessage
from roost.host.objects.blocking import block_while
from roost.host.worker.io_context import WorkContext
from roost.host.worker.pins import NOTHING
from roost.link.port import NO_CONTEXT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from roost.api.socket_end import SocketEnd
    from roost.events import ObjectRef, SocketEvent
    from roost.host.gateway_link import GatewayLink

NOBODY: Final = ()  # waits at a shut gate


class Phase(Enum):
    """WAKING → AWAKE → GONE; a constructor that fails goes from WAKING to GONE."""

    WAKING = "waking"
    AWAKE = "awake"
    GONE = "gone"


class InputGate(WorkContext):
    """An object as its events see it: open, or shut and then they wait. `Actor` is the whole of it, and sets all."""

    __slots__ = ("_blocks", "_running", "_waiting", "calls_in_block", "phase", "ref")

    ref: ObjectRef
    phase: Phase
    _waiting: deque[Any] | tuple[()] | None  # None: the gate is open
    _blocks: int  # sections that shut it
    _running: dict[tuple[int, int], int]  # pins of suspended message handlers, by gateway and event
    calls_in_block: dict[int, ObjectRef]  # that a blockConcurrencyWhile of this object waits for

    def not_run(self, error: BaseException) -> BaseException:
        """What one hears whose event has waited, if the object ends with that error."""
        raise NotImplementedError

    def reset(self, error: BaseException, *, without_alarm: bool = False) -> None:
        """Forget the object, undoing what it has not committed. Its sockets stay; the next event builds it anew."""
        raise NotImplementedError

    def _open_gate(self) -> None:
        """Let the events go that waited, in order, unless the gate was shut again."""
        if self._blocks or self.phase is not Phase.AWAKE or self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        while waiting:
            entry = waiting.popleft()
            entry(None)
            shut_again: deque[Any] | tuple[()] | None = getattr(self, "_waiting")  # noqa: B009 - the entry may have changed it
            if shut_again is not None and self.phase is Phase.AWAKE:
                waiting.extend(shut_again)
                self._waiting = waiting
                return
            if type(entry) is Opening:  # it begins in the next turn: those behind it later than that
                self._waiting = waiting
                self.surroundings.loop.call_soon(self._open_gate, context=NO_CONTEXT)
                return

    def block(self) -> Callable[[], None]:
        """Start no new event until the returned function is called."""
        self._blocks += 1
        if self._waiting is None:
            self._waiting = NOBODY
        pinned = self.pin("blockConcurrencyWhile or a transaction")
        blocking = True

        def unblock() -> None:
            nonlocal blocking
            if blocking:
                blocking = False
                self._blocks -= 1
                self.unpin(pinned)
                self.surroundings.loop.call_soon(self._open_gate, context=NO_CONTEXT)

        return unblock

    @property
    def blocked(self) -> bool:
        """Whether a section of `blockConcurrencyWhile` (or a transaction) holds events back."""
        return self._blocks > 0

    def called_in_block(self, number: int, ref: ObjectRef) -> None:
        """A section of `blockConcurrencyWhile` waits for a call of another object."""
        if self.calls_in_block is NOTHING:
            self.calls_in_block = {}
        self.calls_in_block[number] = ref

    def block_while(self, callback: Callable[[], Any]) -> asyncio.Future[Any]:
        return block_while(self, callback)

    # who waits

    def hold(self, gateway: GatewayLink, event: SocketEvent) -> None:
        """Keep an event until the gate opens; its socket may only be made known by the roster."""
        assert self._waiting is not None
        # What was given before has waited once already; how a socket ended is one event a socket.
        if type(event) is SocketMessage and event.event > gateway.redelivery_upto and self._is_full():
            self._shed(gateway, event)
        else:
            self._keep(lambda: self.surroundings.objects.socket_event(gateway, event), gateway, event.event)

    def _is_full(self) -> bool:
        return len(self._waiting or ()) + len(self._running) >= self.surroundings.limits.max_queued_events

    def _shed(self, gateway: GatewayLink, event: SocketMessage) -> None:
        self.surroundings.objects.shed(gateway, event, OBJECT_BUSY.reason)
        gateway.running.discard(event.event)

    def _wait(self, entry: Any) -> None:
        """Keep a request or a call until the gate opens. Raises OverloadError if too many wait."""
        if self._is_full():
            self.surroundings.counters.events_shed += 1
            raise OverloadError(f"Too many events wait for {self.label} (limits.max_queued_events); try again later.")
        self._queue(entry)

    def _queue(self, entry: Any) -> None:
        assert self._waiting is not None
        if self._waiting:
            self._waiting.append(entry)
        else:
            self._waiting = deque((entry,))

    def _not_now(self, socket: SocketEnd, event: Any, gateway: GatewayLink) -> None:
        """Keep an event until the gate opens; one for an actor that is gone goes to its successor."""
        if self.phase is Phase.GONE:
            gateway.forget(socket)
            self.surroundings.objects.socket_event(gateway, event)
        else:
            self.hold(gateway, event)

    def _keep(self, begin: Callable[[], None], gateway: GatewayLink, event: int) -> None:
        """Hold an event until the gate opens; it is not done before."""

        def entry(error: BaseException | None) -> None:
            gateway.running.discard(event)
            if error is None or type(error) is Superseded:
                begin()
            gateway.send_done()

        gateway.running.add(event)
        self._queue(entry)

    async def _opened(self) -> None:
        """Return when the gate opens (it may be shut again by then). Raises WorkerError if the object cannot be built."""
        opening = Opening(self)
        self._wait(opening)
        await opening.future


class Opening:
    """A request that waits for its object's gate."""

    __slots__ = ("_actor", "future")

    def __init__(self, actor: InputGate) -> None:
        self._actor = actor
        self.future: asyncio.Future[None] = actor.surroundings.loop.create_future()

    def __call__(self, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None or type(error) is Superseded:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._actor.not_run(error))
