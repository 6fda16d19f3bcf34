"""The key-value table of an object's file: the statement of a `list`."""

from __future__ import annotations

from typing import Any


def list_query(
    *, start: str | None, after: str | None, end: str | None, prefix: str, reverse: bool, limit: int | None
) -> tuple[str, tuple[Any, ...]]:
    """SQL and its values for pairs in the order of their keys' UTF-8 bytes; bounds keep their meaning when reversed."""
    conditions: list[str] = []
    bindings: list[Any] = []
    for condition, bound in (("key >= ?", start), ("key > ?", after), ("key < ?", end)):
        if bound is not None:
            conditions.append(condition)
            bindings.append(bound)
    if prefix:
        conditions += ["key >= ?", "substr(key, 1, ?) = ?"]
        bindings += [prefix, len(prefix), prefix]
        # The next string after all that begin with the prefix, so that the index ends the scan.
        if (last := ord(prefix[-1])) < 0xD7FF:
            conditions.append("key < ?")
            bindings.append(prefix[:-1] + chr(last + 1))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = " ORDER BY key DESC" if reverse else " ORDER BY key"
    bound_limit = " LIMIT ?" if limit is not None else ""
    if limit is not None:
        bindings.append(limit)
    return f"SELECT key, value FROM _cf_KV{where}{order}{bound_limit}", tuple(bindings)
