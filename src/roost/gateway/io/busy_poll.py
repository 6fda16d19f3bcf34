"""Whether to stay awake for clients: before its loop goes to sleep, a gateway may look again for some microseconds.

A processor that has gone to sleep takes its time to wake (50 µs on a virtual machine) and finds its caches cold, which is
more than a whole echo takes otherwise. Linux's haltpoll stays awake for the same reason, where the provider lets it. Plain
state, no I/O; `reactor` does the looking. The invariants: a wait costs at most `limit_s` of processor time; none does
unless half of the recent ones were shorter than that, so a gateway with less than some thousand turns a second never
polls, an idle one least of all; and whoever else wants the processor gets it, and is left alone for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from roost.gateway.counters import Counters

_OFTEN: Final = 0.5  # of the recent waits must have been short for the next one to begin awake
_WEIGHT: Final = 0.125  # of the last wait among the recent ones
_WANTED_S: Final = 20e-6  # giving way for longer, and again: somebody else needs the processor
_SLICE_S: Final = 500e-6  # so long, and it was no host that had a rest of its turn to do
_PAUSE_S: Final = 0.001  # without polling then; a hiccup of the hypervisor looks the same, so it begins small and doubles
_MAX_PAUSE_S: Final = 1.0


class BusyPoll:
    """One gateway's. All times are monotonic seconds."""

    __slots__ = ("_counters", "_gave_way", "_limit_s", "_not_before", "_pause_s", "_short", "_since", "_until")

    def __init__(self, limit_s: float, counters: Counters) -> None:
        self._limit_s = limit_s
        self._counters = counters
        self._short = 0.0  # the share of recent waits that were short
        self._since = 0.0  # when the present wait began; 0: it is over
        self._until = 0.0  # when it is no longer worth to stay awake
        self._not_before = 0.0  # somebody else needs the processor
        self._gave_way = False  # in this wait, for long
        self._pause_s = _PAUSE_S

    def begin(self, now: float) -> bool:
        """A wait begins; whether to stay awake for it."""
        if self._since:  # the one before was ended by a host that had something to say
            self._short -= self._short * _WEIGHT
        self._since = now
        if self._short < _OFTEN or now < self._not_before:
            return False
        self._until = now + self._limit_s
        self._gave_way = False
        return True

    def end(self, now: float) -> None:
        """What was waited for is here."""
        since = self._since
        if not since:
            return
        self._since = 0.0
        self._short += ((now - since < self._limit_s) - self._short) * _WEIGHT
        if self._until:
            self._until = 0.0
            self._counters.busy_polls_found += 1
            if self._pause_s > _PAUSE_S:
                self._pause_s /= 2

    @property
    def awake(self) -> bool:
        """Whether a wait has begun awake and is not over."""
        return self._until > 0.0

    def goes_on(self, now: float, gave_way_s: float) -> bool:
        """Nothing was there, and others had the processor for `gave_way_s`: whether to look again."""
        if gave_way_s > _WANTED_S and self._until:
            if not self._gave_way and gave_way_s < _SLICE_S:  # a host on the same processor may have had a rest to do
                self._gave_way = True
                self._until = now + self._limit_s
                return True
            self._not_before = now + self._pause_s
            self._pause_s = min(_MAX_PAUSE_S, self._pause_s * 2)
        elif now < self._until:
            return True
        if self._until:
            self._until = 0.0
            self._counters.busy_polls_missed += 1
        return False
