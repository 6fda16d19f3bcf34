"""Time and randomness as arguments, so that tests own both.

Nothing above this module calls `time` or `random` directly for a decision.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a component reads the time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch; may jump."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that a test moves by hand. Both readings advance together."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = float(start_ms)

    def monotonic(self) -> float:
        return self._now_ms / 1000

    def wall_ms(self) -> int:
        return int(self._now_ms)

    def advance(self, seconds: float) -> None:
        self._now_ms += seconds * 1000
