"""The links of one host to its gateways: who is here, who is awaited, and what is kept for those that are not here yet.

The invariant: while a gateway may still say which events it gives again, nobody takes an event for new.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from roost.events import ENVELOPE_VERSION, Hello, Leaving, Welcome
from roost.host.gateway_link import GatewayLink

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from roost.events import Event
    from roost.host.gateway_link import GatewayEvents, StoredGroup
    from roost.host.limits import HostCounters
    from roost.host.spec import HostSpec
    from roost.link.port import Link

_log = logging.getLogger("roost.host")

GATEWAY_WAITS_S: Final = 2.0  # for a gateway that is not here or does not answer, before the others go on
ONE_MORE_POLL_S: Final = 0.05
_MAX_UNSAID: Final = 16  # gateways
_MAX_UNSAID_BYTES: Final = 64 * 1024 * 1024


class Links:
    """Those of one host."""

    events: GatewayEvents
    begin: Callable[[], None]
    """Called once, when all gateways are here or have had their time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: HostSpec, counters: HostCounters) -> None:
        self._loop = loop
        self._spec = spec
        self._counters = counters
        self._numbers = 0
        self.here: list[GatewayLink] = []
        self.life = int.from_bytes(spec.random_bytes(6), "big")  # of this process, for what its objects say
        self.leaving = False  # the gateways are told to give nothing new
        self.ending = False  # nothing new begins
        self._abandoned = False
        self.are_awaited = spec.gateways > 1  # what comes is kept: who wakes must know its sockets at every gateway
        self._before_all: list[tuple[GatewayLink, list[Event]]] = []
        self._unsaid: dict[int, list[StoredGroup]] = {}  # for gateways that are not here yet, by epoch
        self._unsaid_bytes = 0

    def __iter__(self) -> Iterator[GatewayLink]:
        return iter(self.here)

    def __len__(self) -> int:
        return len(self.here)

    def __getitem__(self, index: int) -> GatewayLink:
        return self.here[index]

    def add(self, link: Link, mark: str) -> GatewayLink:
        """Serve a gateway from now on. `mark`: the file of this host's progress page."""
        spec = self._spec
        gateway = GatewayLink(self._loop, link, self._numbers, self.life, self.events)
        self._numbers += 1
        gateway.abandoned = self._abandoned
        self.here.append(gateway)
        link.send(Hello(ENVELOPE_VERSION, spec.slot, spec.slots, mark, gateway.index, self.life, spec.one_host))
        link.start(gateway)
        if len(self.here) == 1:
            if not self.are_awaited:
                self.begin()
            else:
                self._loop.call_later(GATEWAY_WAITS_S, self._take_soon)
        return gateway

    def of(self, epoch: int) -> GatewayLink | None:
        """The gateway process of that epoch."""
        return next((gateway for gateway in self.here if gateway.epoch == epoch), None)

    # who is awaited

    @property
    def awaits_gateways(self) -> bool:
        """Whether one has not said yet which events it gives again."""
        return self._spec.gateways > 1 and sum(gateway.welcome for gateway in self.here) < self._spec.gateways

    @property
    def some_are_redelivered(self) -> bool:
        """Whether an event may come that was given to an earlier host."""
        for gateway in self.here:
            if gateway.redelivered:
                return True
        return self.awaits_gateways

    def keep(self, gateway: GatewayLink, events: Sequence[Event]) -> None:
        """Until all gateways are here."""
        self._before_all.append((gateway, list(events)))
        if sum(bool(other.welcome) for other in self.here) >= self._spec.gateways:
            self._take()

    def _take_soon(self) -> None:
        """The time is over; but if this process was stopped, what has arrived meanwhile is read first."""
        self._loop.call_later(ONE_MORE_POLL_S, self._take)

    def _take(self) -> None:
        """All gateways are here, or have had their time: what came before begins now."""
        was_awaited, self.are_awaited = self.are_awaited, False
        kept, self._before_all = self._before_all, []
        if was_awaited and not self.ending:
            self.begin()
            for gateway, events in kept:
                if gateway in self.here:
                    self.events.on_events(gateway, events)
                    gateway.link.flush()

    def welcomed(self, gateway: GatewayLink, event: Welcome) -> None:
        """A gateway says who it is, and what it gives again: it gets what was kept for it."""
        gateway.epoch = event.epoch
        gateway.redelivery_upto = event.given_before
        gateway.redelivered = set(event.redelivered)
        gateway.received_before(event.life, event.groups_upto, event.groups_besides)
        gateway.welcome = True
        for _, life, group, envelopes in self._unsaid.pop(event.epoch, ()):
            self._unsaid_bytes -= len(envelopes)
            if not gateway.has_received(life, group):
                gateway.send_envelopes(envelopes)

    def send_later(self, group: StoredGroup) -> None:
        """What an earlier life of an object had to say to a gateway that is not here (yet)."""
        epoch, _, _, envelopes = group
        if self._unsaid_bytes + len(envelopes) > _MAX_UNSAID_BYTES or (
            len(self._unsaid) >= _MAX_UNSAID and epoch not in self._unsaid
        ):
            if not self._counters.answers_unsaid:
                _log.error("host: a gateway is away for too long: what objects had said to its sockets is lost")
            self._counters.answers_unsaid += 1
            return
        self._unsaid_bytes += len(envelopes)
        self._unsaid.setdefault(epoch, []).append(group)

    # the end

    def flush(self) -> None:
        for gateway in self.here:
            gateway.link.flush()

    def leave(self) -> bool:
        """Tell all to give nothing new; whether they were not told before."""
        if self.leaving:
            return False
        self.leaving = True
        for gateway in self.here:
            gateway.link.send(Leaving())
        self.flush()
        return True

    @property
    def are_pending(self) -> bool:
        """Whether an event is not done, or something is on its way."""
        return any(gateway.running or gateway.link.unsent or (self.leaving and not gateway.left) for gateway in self.here)

    def abandon(self) -> None:
        """Handlers are being cancelled: what they end with is not done."""
        self._abandoned = True
        for gateway in self.here:
            gateway.abandoned = True

    def close(self) -> None:
        for gateway in self.here:
            gateway.link.close()

    def unique_numbers(self) -> int:
        """An even start, below 2^52, for numbers that no earlier host of this slot has used."""
        return int.from_bytes(self._spec.random_bytes(4), "big") >> 4 << 24
