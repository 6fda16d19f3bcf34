"""Tables that most contexts never write into: one empty table stands for all of them."""

from __future__ import annotations

from typing import Any, Final, NoReturn


class _Nothing(dict[Any, Any]):
    """An empty table that many share, each until it has something to write: most objects never use most of their tables,
    and a wake makes them all."""

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError("make a table of your own before you write into it")

    def setdefault(self, key: Any, default: Any = None) -> NoReturn:
        self[key] = default

    def update(self, *tables: Any, **values: Any) -> NoReturn:
        self[None] = None


NOTHING: Final[dict[Any, Any]] = _Nothing()
