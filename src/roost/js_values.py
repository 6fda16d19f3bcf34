"""Values of Python that are read like JavaScript's, too: objects, arrays, buffers, dates, maps.

Source: Pyodide's proxies as workers written for the platform use them; reference 1.5.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class JsDict(dict[Any, Any]):
    """A dict that is read like a JavaScript object, too: `value["x"]` and `value.x`. Source: reference 1.5."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the object has no {name!r}; it has {', '.join(map(str, self))}.") from None

    def __missing__(self, key: Any) -> Any:
        """A number's text finds it: keys of objects are strings in JavaScript."""
        if isinstance(key, str) and len(key) < 20 and key.removeprefix("-").isdecimal() and int(key) in self:
            return self[int(key)]
        raise KeyError(key)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def copy(self) -> JsDict:
        return type(self)(self)

    def to_py(self, **_: Any) -> dict[Any, Any]:
        return dict(self)

    def object_keys(self) -> list[Any]:
        return list(self)

    def object_values(self) -> list[Any]:
        return list(dict.values(self))

    def object_entries(self) -> list[tuple[Any, Any]]:
        return list(self.items())


class ArrayBuffer(bytes):
    """Bytes with the names of a proxied ArrayBuffer or typed array."""

    __slots__ = ()

    @classmethod
    def new(cls, source: Any = b"") -> Self:
        """`ArrayBuffer.new(length)` or `Uint8Array.new(iterable or buffer)`."""
        return cls(source)

    @property
    def byteLength(self) -> int:
        return len(self)

    length = byteLength

    @property
    def buffer(self) -> Self:
        return self

    def to_bytes(self) -> bytes:
        return bytes(self)

    def to_py(self, **_: Any) -> memoryview:
        return memoryview(self)

    def to_memoryview(self) -> memoryview:
        return memoryview(self)

    # What Pyodide makes of a buffer is often a memoryview: its names, too.

    @property
    def nbytes(self) -> int:
        return len(self)

    @property
    def obj(self) -> Self:
        return self

    def tobytes(self, order: str | None = None) -> bytes:
        return bytes(self)

    def tolist(self) -> list[int]:
        return list(self)

    def cast(self, *arguments: Any) -> memoryview:
        return memoryview(self).cast(*arguments)

    def release(self) -> None:
        """There is nothing to release."""

    def slice(self, start: int = 0, end: int | None = None) -> ArrayBuffer:
        return ArrayBuffer(self[start:end])


class JsList(list[Any]):
    """A list that is read like a JavaScript array, too."""

    @property
    def length(self) -> int:
        return len(self)

    def to_py(self, **_: Any) -> list[Any]:
        return [item.to_py() if isinstance(item, JsDict | JsList) else item for item in self]

    def push(self, *items: Any) -> int:
        self.extend(items)
        return len(self)

    def at(self, index: int) -> Any:
        return self[index] if -len(self) <= index < len(self) else None

    def includes(self, item: Any) -> bool:
        return item in self

    def indexOf(self, item: Any) -> int:
        return self.index(item) if item in self else -1

    def join(self, separator: str = ",") -> str:
        return separator.join("" if item is None else str(item) for item in self)

    def slice(self, start: int = 0, end: int | None = None) -> JsList:
        return JsList(self[start:end])

    def concat(self, *others: Any) -> JsList:
        return JsList([*self, *(item for other in others for item in (other if isinstance(other, list) else [other]))])

    def map(self, function: Callable[[Any], Any]) -> JsList:
        return JsList([function(item) for item in self])

    def filter(self, function: Callable[[Any], Any]) -> JsList:
        return JsList([item for item in self if function(item)])

    def find(self, function: Callable[[Any], Any]) -> Any:
        return next((item for item in self if function(item)), None)

    def some(self, function: Callable[[Any], Any]) -> bool:
        return any(function(item) for item in self)

    def every(self, function: Callable[[Any], Any]) -> bool:
        return all(function(item) for item in self)

    def forEach(self, function: Callable[[Any], Any]) -> None:
        for item in self:
            function(item)

    def object_keys(self) -> list[str]:
        return [str(index) for index in range(len(self))]

    def object_values(self) -> list[Any]:
        return list(self)

    def object_entries(self) -> list[tuple[str, Any]]:
        return [(str(index), item) for index, item in enumerate(self)]


class JsDate(datetime):
    """A datetime that is read like a JavaScript Date, too."""

    def getTime(self) -> int:
        return round(self.timestamp() * 1000)

    valueOf = getTime

    def toISOString(self) -> str:
        return self.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{self.microsecond // 1000:03d}Z"


class JsMap(JsDict):
    """A JavaScript Map: its views are iterators, too (`found.keys().next().value`)."""

    __slots__ = ()

    def keys(self) -> Any:
        return _Keys(self)

    def values(self) -> Any:
        return _Values(self)

    def entries(self) -> Any:
        return _Entries(self)


class _Next:
    """What makes a view of a mapping a JavaScript iterator, too."""

    _iterator: Iterator[Any] | None = None

    def next(self) -> JsDict:
        """The next one, as `{value, done}`."""
        if self._iterator is None:
            self._iterator = iter(self)  # type: ignore[call-overload]
        for value in self._iterator:
            return JsDict(value=value, done=False)
        return JsDict(value=None, done=True)


class _Keys(_Next, KeysView[Any]):
    def __reversed__(self) -> Iterator[Any]:
        return iter(list(self)[::-1])


class _Values(_Next, ValuesView[Any]):
    pass


class _Entries(_Next, ItemsView[Any, Any]):
    pass
