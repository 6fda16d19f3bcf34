"""`Headers`: a case-insensitive multimap with the names of Fetch and of Python mappings.

Source: Fetch standard §5.2; reference 1.3 (`request.headers.get(name)` on an HTTPMessage-like mapping).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from roost.errors import JsTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BAD_NAME = frozenset(' \t\r\n:\0()<>@,;\\"/[]?={}')


def _text(value: Any) -> str:
    """A value as JavaScript would write it."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "undefined", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


class Headers:
    """Header fields. Reading ignores the case of names; iterating gives them in lower case, sorted, each once (Set-Cookie
    as often as there are). `pairs` has them as they came."""

    __slots__ = ("pairs",)

    def __init__(self, init: Any = None) -> None:
        self.pairs: list[tuple[str, str]] = []
        if init is not None:
            for name, value in _pairs_of(init):
                self.append(name, value)

    @classmethod
    def new(cls, init: Any = None, **fields: str) -> Self:
        headers = cls(init)
        for name, value in fields.items():
            headers.append(name, value)
        return headers

    @classmethod
    def of(cls, pairs: list[tuple[str, str]]) -> Self:
        """Wrap fields that were already checked, without copying."""
        headers = cls.__new__(cls)
        headers.pairs = pairs
        return headers

    def append(self, name: str, value: Any) -> None:
        text = (value if type(value) is str else _text(value)).strip(" \t\r\n")
        if not name or not name.isascii() or not _BAD_NAME.isdisjoint(name):
            raise JsTypeError(f"Invalid header name {name!r}.")
        if "\r" in text or "\n" in text or "\0" in text:
            raise JsTypeError(f"Invalid value of header {name!r}: it must not contain line breaks or NUL.")
        if not text.isascii() and any(ord(c) > 0xFF for c in text):
            raise JsTypeError(f"Invalid value of header {name!r}: it has a character beyond Latin-1; encode it first.")
        self.pairs.append((name, text))

    def set(self, name: str, value: Any) -> None:
        self.delete(name)
        self.append(name, value)

    def delete(self, name: str) -> None:
        wanted = name.lower()
        self.pairs = [pair for pair in self.pairs if pair[0].lower() != wanted]

    def get(self, name: str, default: Any = None) -> Any:
        wanted = name.lower()
        values = [value for field, value in self.pairs if field.lower() == wanted]
        return ", ".join(values) if values else default

    def has(self, name: str) -> bool:
        return name in self

    def get_all(self, name: str, default: Any = None) -> Any:
        wanted = name.lower()
        return [value for field, value in self.pairs if field.lower() == wanted] or default

    getAll = get_all

    def getSetCookie(self) -> list[str]:
        return list(self.get_all("set-cookie", []))

    def keys(self) -> list[str]:
        return [name for name, _ in self.items()]

    def values(self) -> list[str]:
        return [value for _, value in self.items()]

    def items(self) -> list[tuple[str, str]]:
        """Sorted and combined (Fetch standard §2.2.2, "sort and combine")."""
        combined: dict[str, str] = {}
        cookies = []
        for field, value in self.pairs:
            name = field.lower()
            if name == "set-cookie":
                cookies.append((name, value))
            else:
                combined[name] = f"{combined[name]}, {value}" if name in combined else value
        return sorted([*combined.items(), *cookies], key=lambda pair: pair[0])

    entries = items

    def forEach(self, function: Any) -> None:
        for name, value in self.items():
            function(value, name)

    def __contains__(self, name: object) -> bool:
        if self.pairs and isinstance(name, str):
            wanted = name.lower()
            for field, _ in self.pairs:
                if field.lower() == wanted:
                    return True
        return False

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return str(value)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set(name, value)

    def __delitem__(self, name: str) -> None:
        self.delete(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.items())

    def __repr__(self) -> str:
        return f"Headers({[name for name, _ in self.pairs]})"  # values may be secrets


def _pairs_of(init: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(init, Headers):
        return init.pairs
    if hasattr(init, "items"):
        return list(init.items())
    return [(name, value) for name, value in init]
