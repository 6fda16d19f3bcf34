"""What a kind of binding is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from roost.host.bindings import Binding

Configs = dict[str, dict[str, Any]]
"""By the name in `env`: what the configuration says, as JSON can hold it; it travels to the hosts."""


class Place(NamedTuple):
    """Where a piece of configuration stands: its file, and the worker's name."""

    path: Path
    worker: str


class Version(NamedTuple):
    """Of the code that runs; empty if it is no version that is kept."""

    id: str = ""
    tag: str = ""
    timestamp: str = ""


class Kind(Protocol):
    """A class whose instances are `host.bindings.Binding`s."""

    @property
    def KEY(self) -> str:
        """The key of the configuration that it reads."""
        ...

    @property
    def IS_INHERITED(self) -> bool:
        """Whether an environment has what the top level says, too."""
        ...

    def parse(self, value: Any, place: Place) -> Configs:
        """What the configuration says. Raises ConfigError."""
        ...

    def __call__(self, configs: Mapping[str, dict[str, Any]], version: Version) -> Binding: ...
