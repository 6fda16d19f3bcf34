"""`kv_namespaces`: `env.NAME` is a `KvNamespace`, kept in a file. Source: platform documentation, Workers KV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.config_values import text
from roost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from roost.bindings.kind import Configs, Place, Version
    from roost.host.calls.kv import KvStores
    from roost.host.worker.surroundings import Surroundings


class KvNamespaces:
    """Those of one app."""

    KEY = "kv_namespaces"
    IS_INHERITED = False

    @staticmethod
    def parse(value: Any, place: Place) -> Configs:
        if not isinstance(value, list):
            raise ConfigError(f"{place.path}: kv_namespaces must be a list.", key="kv_namespaces")
        found: Configs = {}
        for entry in value:
            if not isinstance(entry, dict) or not isinstance(entry.get("binding"), str):
                raise ConfigError(f"{place.path}: each of kv_namespaces needs a binding.", key="kv_namespaces")
            name = entry["binding"]
            found[name] = {"id": text(entry.get("id") or name, "kv_namespaces.id", place.path)}
        return found

    def __init__(self, configs: Mapping[str, dict[str, Any]], version: Version) -> None:
        self._ids = {name: config["id"] for name, config in configs.items()}
        self._stores: KvStores | None = None

    def open(self, surroundings: Surroundings) -> Mapping[str, Any]:
        from roost.host.calls.kv import KvStores

        self._stores = KvStores(surroundings, self._ids)
        return self._stores.bindings

    def close(self) -> None:
        if self._stores is not None:
            self._stores.close()
