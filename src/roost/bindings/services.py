"""`services`: another entrypoint of the same app as `env.NAME`. Source: reference 6.1, 4.4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.config_values import table, text
from roost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from roost.bindings.kind import Configs, Place, Version
    from roost.host.worker.surroundings import Surroundings


class Services:
    """Those of one app. `Default` is its main entrypoint."""

    KEY = "services"
    IS_INHERITED = False

    @staticmethod
    def parse(value: Any, place: Place) -> Configs:
        path = place.path
        if not isinstance(value, list):
            raise ConfigError(f"{path}: services must be a list.", key="services")
        found: Configs = {}
        for entry in value:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("binding", "service")):
                raise ConfigError(f"{path}: each of services needs a binding and a service.", key="services")
            if entry["service"] != place.worker:
                raise ConfigError(
                    f"{path}: services: {entry['binding']} is another worker ({entry['service']}); Roost binds entrypoints"
                    f" of the same app only (service = {place.worker!r}).",
                    key="services",
                )
            entrypoint = text(entry.get("entrypoint", "Default"), "services.entrypoint", path)
            found[entry["binding"]] = {
                "entrypoint": entrypoint,
                "props": table(entry.get("props", {}), "services.props", path),
            }
        return found

    def __init__(self, configs: Mapping[str, dict[str, Any]], version: Version) -> None:
        self._configs = configs

    def open(self, surroundings: Surroundings) -> Mapping[str, Any]:
        from roost.api.service import ServiceStub
        from roost.host.calls.services import EntrypointCaller

        known = surroundings.worker.entrypoints
        found = {}
        for name, config in self._configs.items():
            entrypoint = config["entrypoint"]
            if entrypoint != "Default" and entrypoint not in known:
                has = ", ".join(known) or "none"
                raise ConfigError(f"services: {name}: the worker has no entrypoint class {entrypoint} (it has: {has}).")
            found[name] = ServiceStub(EntrypointCaller(surroundings, entrypoint, config["props"]))
        return found

    def close(self) -> None:
        """It keeps nothing."""
