"""KV namespaces of one host: their files, and the thread that waits for the disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import apsw

from roost.api.kv import KvNamespace
from roost.api.runtime import current_context
from roost.errors import OverloadError
from roost.host.io_context import Context
from roost.host.stubs import calling_actor
from roost.link.port import NO_CONTEXT
from roost.storage.database import StorageError
from roost.storage.key_values import KeyValues, Pair, namespace_path

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from roost.host.host import Host

MAX_WAITING: Final = 1_000


class KvStores:
    """All namespaces of one host. One thread: what one handler puts and then gets keeps its order."""

    def __init__(self, host: Host, data: Path, namespaces: Mapping[str, str]) -> None:
        self._host = host
        self._executor: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._open: dict[Path, KeyValues] = {}
        self.bindings = {
            binding: KvNamespace(_Namespace(self, namespace_path(data, namespace)))
            for binding, namespace in namespaces.items()
        }

    def now_s(self) -> float:
        return self._host.disk.clock.wall_ms() / 1000

    def begin(self, path: Path, what: str, operation: Callable[[KeyValues], Any]) -> asyncio.Future[Any]:
        """An operation in the thread, behind those begun before and the writes that the calling object has made. Raises
        OverloadError."""
        if self._waiting >= MAX_WAITING:
            self._host.counters.kv_refused += 1
            raise OverloadError(f"{self._waiting} KV operations are waiting for the disk; try again later.")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "roost kv")
        executor = self._executor
        loop = self._host.loop
        caller = calling_actor()
        if caller is not None and caller.gate.shut:
            caller.check_may_wait()
        context = current_context.get(None)
        pinned = context.pin(what) if isinstance(context, Context) else 0
        answered: asyncio.Future[Any] = loop.create_future()
        self._waiting += 1

        def over(done: asyncio.Future[Any]) -> None:
            self._waiting -= 1
            if isinstance(context, Context):
                context.unpin(pinned)
            if answered.done():
                return
            if done.cancelled():
                answered.cancel()
            elif (error := done.exception()) is not None:
                answered.set_exception(error)
            else:
                answered.set_result(done.result())

        def when_durable(broken: BaseException | None) -> None:
            if broken is not None:
                failed: asyncio.Future[Any] = loop.create_future()
                failed.set_exception(broken)
                over(failed)
                return
            try:
                running = loop.run_in_executor(executor, self._in_thread, path, operation)
            except RuntimeError as error:  # the host ends
                running = loop.create_future()
                running.set_exception(StorageError(f"the host ends: {error}"))
            running.add_done_callback(over, context=NO_CONTEXT)

        if caller is None or not caller.gate.shut:
            when_durable(None)
        else:
            caller.gate.hold(when_durable)
        return answered

    def _in_thread(self, path: Path, operation: Callable[[KeyValues], Any]) -> Any:
        try:
            if path not in self._open:
                self._open[path] = KeyValues(path)
            return operation(self._open[path])
        except apsw.Error as error:
            raise StorageError(
                f"the KV namespace's file {path} cannot be used: {error}; `roost check` tells more."
            ) from error

    def close(self) -> None:
        """After the last operation. Blocks for as long as one takes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for store in self._open.values():
            store.close()
        self._open.clear()


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
        return self._stores.begin(self._path, "KV put", lambda store: store.put(key, pair, self.now_s()))

    def delete(self, keys: Sequence[str]) -> asyncio.Future[None]:
        return self._stores.begin(self._path, "KV delete", lambda store: store.delete(keys))

    def list(self, prefix: str, after: str, limit: int) -> asyncio.Future[list[tuple[str, str | None, int | None]]]:
        def operation(store: KeyValues) -> list[tuple[str, str | None, int | None]]:
            listed = store.list(prefix, after, limit, self.now_s())
            return [(each.name, each.metadata, each.expires_s) for each in listed]

        return self._stores.begin(self._path, "KV list", operation)
