"""`ratelimits`: `await env.NAME.limit({"key": …})`. Source: platform documentation, Workers, "Rate Limiting" binding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.config_values import text
from roost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from roost.api.rate_limits import Window
    from roost.bindings.kind import Configs, Place, Version
    from roost.host.worker.surroundings import Surroundings


class RateLimits:
    """Those of one app: so many of one key in a period. Bindings of one `namespace_id` count together; each host counts
    for itself."""

    KEY = "ratelimits"
    IS_INHERITED = False

    @staticmethod
    def parse(value: Any, place: Place) -> Configs:
        found: Configs = {}
        for entry in value if isinstance(value, list) else [value]:
            table = entry if isinstance(entry, dict) else {}
            simple = table.get("simple")
            limit, period = (simple.get("limit"), simple.get("period")) if isinstance(simple, dict) else (None, None)
            name = table.get("name")
            if type(limit) is not int or limit < 1 or period not in (10, 60) or not isinstance(name, str):
                raise ConfigError(
                    f"{place.path}: each of ratelimits needs a name, a namespace_id and"
                    " simple = { limit = N, period = 10 or 60 }.",
                    key="ratelimits",
                )
            namespace = text(str(table.get("namespace_id", name)), "ratelimits.namespace_id", place.path)
            found[name] = {"namespace_id": namespace, "limit": limit, "period_s": int(period)}
        return found

    def __init__(self, configs: Mapping[str, dict[str, Any]], version: Version) -> None:
        self._configs = configs

    def open(self, surroundings: Surroundings) -> Mapping[str, Any]:
        from roost.api.rate_limits import RateLimit, Window

        def uncounted() -> None:
            surroundings.counters.rates_uncounted += 1

        windows: dict[tuple[str, int], Window] = {}
        found = {}
        for name, config in self._configs.items():
            key = config["namespace_id"], config["period_s"]
            if key not in windows:
                windows[key] = Window(config["period_s"], surroundings.now_s, uncounted)
            found[name] = RateLimit(config["limit"], windows[key])
        return found

    def close(self) -> None:
        """It keeps nothing."""
