"""`version_metadata`: `env.NAME` has `id`, `tag` and `timestamp` of the version that runs. Source: platform documentation,
Workers, "Version metadata" binding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.config_values import table, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from roost.bindings.kind import Configs, Place, Version
    from roost.host.worker.surroundings import Surroundings


class VersionMetadata:
    """That of one app."""

    KEY = "version_metadata"
    IS_INHERITED = False

    @staticmethod
    def parse(value: Any, place: Place) -> Configs:
        entry = table(value, "version_metadata", place.path)
        if not entry.get("binding"):
            return {}
        return {text(entry["binding"], "version_metadata.binding", place.path): {}}

    def __init__(self, configs: Mapping[str, dict[str, Any]], version: Version) -> None:
        self._configs = configs
        self._version = version

    def open(self, surroundings: Surroundings) -> Mapping[str, Any]:
        from roost.js_values import JsDict

        return {name: JsDict(self._version._asdict()) for name in self._configs}

    def close(self) -> None:
        """It keeps nothing."""
