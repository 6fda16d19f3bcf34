"""Binary values as worker code sees them: `ArrayBuffer` and `Blob`.

Python Workers get binary messages as proxies of JavaScript buffers; ours are `bytes` that also answer to the proxy's
names (`to_bytes()`, `byteLength`…). Source: Pyodide JsBuffer; reference 1.4 and its "open points".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from roost.js_values import ArrayBuffer as ArrayBuffer


def to_bytes(value: Any) -> bytes | None:
    """The bytes of any bytes-like value or Blob, as plain `bytes`; None if it is neither."""
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Blob):
        return value.raw
    return None


class Blob:
    """Immutable bytes with a type. Source: reference 1.1; W3C File API."""

    __slots__ = ("content_type", "raw")

    def __init__(self, blob_parts: Any = (), content_type: str | None = None, endings: str | None = None) -> None:
        parts = [blob_parts] if isinstance(blob_parts, str | bytes | bytearray | memoryview | Blob) else blob_parts
        raw = b""
        for part in parts:
            piece = part.encode() if isinstance(part, str) else to_bytes(part)
            if piece is None:
                raise TypeError(f"A Blob is made of str, bytes and Blob, not {type(part).__name__}.")
            raw += piece
        self.raw = raw
        self.content_type = content_type or ""

    @classmethod
    def new(cls, parts: Any = (), *, type: str = "") -> Self:
        return cls(parts, type)

    @property
    def size(self) -> int:
        return len(self.raw)

    @property
    def type(self) -> str:
        return self.content_type

    @property
    def js_object(self) -> Self:
        return self

    async def text(self) -> str:
        return self.raw.decode("utf-8", "replace")

    async def bytes(self) -> Any:
        return self.raw

    async def arrayBuffer(self) -> ArrayBuffer:
        return ArrayBuffer(self.raw)

    def slice(self, start: int = 0, end: int | None = None, content_type: str | None = None) -> Blob:
        return Blob([self.raw[start:end]], content_type)

    def __repr__(self) -> str:
        return f"Blob({self.size} bytes, {self.content_type!r})"


class BlobEnding(StrEnum):
    """How a Blob's line endings are written. Source: reference 1.1."""

    TRANSPARENT = "transparent"
    NATIVE = "native"


BlobValue = str | bytes | bytearray | memoryview | Blob


class File(Blob):
    """A Blob with a name. Source: reference 1.1."""

    __slots__ = ("last_modified", "name")

    def __init__(
        self,
        blob_parts: Any,
        filename: str,
        content_type: str | None = None,
        endings: str | None = None,
        last_modified: int | None = None,
    ) -> None:
        super().__init__(blob_parts, content_type, endings)
        self.name = filename
        self.last_modified = last_modified or 0
