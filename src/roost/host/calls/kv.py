"""KV namespaces of one host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roost.api.kv import KvNamespace
from roost.host.calls.shared_files import SharedFiles
from roost.storage.key_values import KeyValues, Pair, namespace_path

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from roost.host.worker.surroundings import Surroundings


class KvStores:
    """All namespaces of one host."""

    def __init__(self, surroundings: Surroundings, namespaces: Mapping[str, str]) -> None:
        self._surroundings = surroundings
        self._files = SharedFiles(surroundings, "KV", KeyValues)
        self.bindings = {
            binding: KvNamespace(_Namespace(self, namespace_path(surroundings.disk.data, namespace)))
            for binding, namespace in namespaces.items()
        }

    def now_s(self) -> float:
        return self._surroundings.now_s()

    def begin(self, path: Path, what: str, operation: Callable[[KeyValues], Any], size: int = 0) -> asyncio.Future[Any]:
        """Raises OverloadError."""
        if self._files.is_full:
            self._surroundings.counters.kv_refused += 1
        return self._files.begin(path, what, operation, size)

    def close(self) -> None:
        self._files.close()


class _Namespace:
    """`api.kv.KvPort` of one namespace."""

    def __init__(self, stores: KvStores, path: Path) -> None:
        self._stores = stores
        self._path = path

    def now_s(self) -> float:
        return self._stores.now_s()

    def get(self, keys: Sequence[str]) -> asyncio.Future[list[tuple[bytes, str | None, int | None] | None]]:
        def operation(store: KeyValues) -> list[tuple[bytes, str | None, int | None] | None]:
            found = store.get(keys, self.now_s())
            return [None if pair is None else (pair.value, pair.metadata, pair.expires_s) for pair in found]

        return self._stores.begin(self._path, "KV get", operation)

    def put(self, key: str, value: bytes, metadata: str | None, expires_s: int | None) -> asyncio.Future[None]:
        pair = Pair(value, metadata, expires_s)
        return self._stores.begin(self._path, "KV put", lambda store: store.put(key, pair, self.now_s()), len(value))

    def delete(self, keys: Sequence[str]) -> asyncio.Future[None]:
        return self._stores.begin(self._path, "KV delete", lambda store: store.delete(keys))

    def list(self, prefix: str, after: str, limit: int) -> asyncio.Future[list[tuple[str, str | None, int | None]]]:
        def operation(store: KeyValues) -> list[tuple[str, str | None, int | None]]:
            listed = store.list(prefix, after, limit, self.now_s())
            return [(each.name, each.metadata, each.expires_s) for each in listed]

        return self._stores.begin(self._path, "KV list", operation)
