"""Rate limits: `env.LIMITER.limit({"key": …})`. Source: platform documentation, Workers, "Rate Limiting" binding."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from roost.api.promises import at_once
from roost.errors import JsTypeError
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_KEYS: Final = 100_000  # counted in one period; of more, those that come later are let through, and counted as such

_MAX_KEY: Final = 64  # of a longer one a digest is counted


class Window:
    """How often each key came in the current period. Periods begin with the clock's full minute, or ten seconds."""

    def __init__(self, period_s: int, now_s: Callable[[], float], uncounted: Callable[[], None]) -> None:
        self._period_s = period_s
        self._uncounted = uncounted  # is told of each that is not
        self._now_s = now_s
        self._period = 0
        self._counts: dict[str, int] = {}

    def count(self, key: str) -> int:
        """Another one of a key; how many it is in this period, 0 if that is not known."""
        if len(key) > _MAX_KEY:
            key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        period = int(self._now_s() // self._period_s)
        if period != self._period:
            self._period = period
            self._counts.clear()
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            self._uncounted()
            return 0
        self._counts[key] = found = self._counts.get(key, 0) + 1
        return found


class RateLimit:
    """`ratelimits` binding."""

    def __init__(self, limit: int, window: Window) -> None:
        self._limit = limit
        self._window = window

    @at_once
    def limit(self, options: Any = None, **more: Any) -> JsDict:
        """Count a request of `{key}`; `{success}`: whether it is within the limit. Raises JsTypeError without a key."""
        key = {**(options or {}), **more}.get("key") if isinstance(options, dict | None) else None
        if not isinstance(key, str):
            raise JsTypeError('limit() takes {"key": str}.')
        return JsDict(success=self._window.count(key) <= self._limit)

    def __repr__(self) -> str:
        return "<RateLimit>"
