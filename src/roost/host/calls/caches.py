"""`caches` of one host: the node's file, which all of its hosts share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from roost.errors import OverloadError, RoostError
from roost.host.calls.shared_files import SharedFiles
from roost.storage.http_cache import Entry, HttpCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from roost.api.runtime import Stored
    from roost.host.worker.surroundings import Surroundings

_log = logging.getLogger("roost.host")


class Caches:
    """`api.cache.CachePort`. What cannot be stored or read is not there: a cache never fails a request."""

    def __init__(self, surroundings: Surroundings, max_bytes: int, min_free_bytes: int) -> None:
        self._surroundings = surroundings
        self._path = surroundings.disk.data / "cache" / "http.sqlite"
        self._max_bytes = max_bytes
        self._files = SharedFiles(surroundings, "cache", lambda path: HttpCache(path, max_bytes, min_free_bytes), _remove)

    def now_s(self) -> float:
        return self._surroundings.now_s()

    async def _try(self, what: str, operation: Callable[[HttpCache], Any], otherwise: Any, size: int = 0) -> Any:
        try:
            return await self._files.begin(self._path, what, operation, size)
        except OverloadError:
            self._surroundings.counters.cache_refused += 1
        except (RoostError, OSError) as error:
            if not self._surroundings.counters.cache_failures:
                _log.error("host: %s", error)
            self._surroundings.counters.cache_failures += 1
        return otherwise

    async def match(self, cache: str, url: str) -> Stored | None:
        now_s = self.now_s()
        found = await self._try("cache match", lambda store: store.match(cache, url, now_s), None)
        if found is None:
            self._surroundings.counters.cache_misses += 1
            return None
        self._surroundings.counters.cache_hits += 1
        return found.status, found.reason, found.headers, found.body, found.stored_s

    async def put(self, cache: str, url: str, stored: Stored, expires_s: float) -> None:
        entry = Entry(*stored, expires_s=expires_s)
        now_s = self.now_s()
        if self._max_bytes:
            gone = await self._try("cache put", lambda store: store.put(cache, url, entry, now_s), 0, len(entry.body))
            self._surroundings.counters.cache_evictions += gone

    async def delete(self, cache: str, url: str) -> bool:
        now_s = self.now_s()
        found: bool = await self._try("cache delete", lambda store: store.delete(cache, url, now_s), False)
        return found

    def close(self) -> None:
        self._files.close()


def _remove(path: Path) -> None:
    """A damaged file: all in it may be lost."""
    _log.error("host: the cache file %s is damaged, and begins anew", path)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
