"""Checks of single values of a configuration file."""

from __future__ import annotations

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
