"""Checks of single values of configuration files, and what was probably meant."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from roost.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def table(value: Any, key: str, path: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} must be a table.", key=key)
    return value


def text(value: Any, key: str, path: Path) -> str:
    """Raises ConfigError."""
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key} must be a string.", key=key)
    return value


def one_of(value: Any, allowed: tuple[str, ...], key: str, path: Path) -> str:
    """Raises ConfigError with the nearest."""
    if value not in allowed:
        more = nearest(str(value), list(allowed))
        raise ConfigError(f"{path}: {key} is {value!r}; it is one of {', '.join(allowed)}.{more}", key=key)
    return str(value)


def nearest(name: str, known: list[str]) -> str:
    """` Did you mean "x"?` for the known name closest to a wrong one, or nothing."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""
