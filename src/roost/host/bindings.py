"""What a binding is to a host. `roost.bindings` has the kinds there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from roost.host.worker.surroundings import Surroundings


class Binding(Protocol):
    """All bindings of one kind that an app has."""

    def open(self, surroundings: Surroundings) -> Mapping[str, Any]:
        """What worker code finds in `env`, by name. Called once. Raises ConfigError for what the worker has not."""
        ...

    def close(self) -> None:
        """The host ends: nothing is asked any more. Waits for what is under way."""
        ...
