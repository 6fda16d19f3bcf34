"""Snake_case names beside the platform's camelCase ones, generated here and nowhere else.

`getWebSockets` is also `get_web_sockets` and `get_websockets` (Cloudflare's own documentation uses the latter).
"""

from __future__ import annotations

import re
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)


def snake_case(name: str) -> str:
    """`idFromName` → `id_from_name`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def snake_cases(name: str) -> tuple[str, ...]:
    """The snake_case names of a camelCase one: two where it has WebSocket, one else; none for a name in lower case."""
    one_word = name.replace("WebSocket", "Websocket").replace("webSocket", "websocket")
    return tuple(alias for alias in dict.fromkeys((snake_case(name), snake_case(one_word))) if alias != name)


def with_snake_case(cls: _Class) -> _Class:
    """Give a class a snake_case alias for each of its public camelCase names."""
    for name, value in list(vars(cls).items()):
        if name.startswith("_") or name.lower() == name or name[0].isupper():
            continue
        for alias in snake_cases(name):
            if not hasattr(cls, alias):
                setattr(cls, alias, value)
    return cls
