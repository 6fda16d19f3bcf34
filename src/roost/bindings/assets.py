"""`assets`: a folder of static files, which the gateway serves; `env.NAME.fetch()` if it has a binding. Source: platform
documentation, Workers, "Static assets"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from roost.config_values import nearest, one_of, table, text
from roost.errors import ConfigError
from roost.storage.assets import HTML_HANDLING, NOT_FOUND_HANDLING, Assets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from roost.bindings.kind import Configs, Place, Version
    from roost.host.worker.surroundings import Surroundings


class AssetsConfig(msgspec.Struct, frozen=True):
    """`assets`: a folder of static files."""

    directory: str
    binding: str = ""
    not_found_handling: str = "none"
    html_handling: str = "auto-trailing-slash"
    run_worker_first: bool | list[str] = False

    def files(self) -> Assets:
        """The folder's files, to be looked up."""
        handling = self.not_found_handling, self.html_handling
        return Assets(Path(self.directory), *handling, worker_first=self.run_worker_first)


def config_of(value: Any, path: Path) -> AssetsConfig:
    """What the configuration says. Raises ConfigError."""
    entry = table(value, "assets", path)
    directory = (path.parent / text(entry.get("directory", ""), "assets.directory", path)).resolve()
    if not directory.is_dir():
        raise ConfigError(f"{path}: assets.directory: {directory} is not a folder.", key="assets.directory")
    known = list(AssetsConfig.__struct_fields__)
    for key in entry:
        if key not in known:
            raise ConfigError(f"{path}: assets: unknown key {key!r}.{nearest(key, known)}", key=f"assets.{key}")
    first = entry.get("run_worker_first", False)
    if not isinstance(first, bool) and not (isinstance(first, list) and all(isinstance(each, str) for each in first)):
        raise ConfigError(
            f"{path}: assets.run_worker_first is true, false or a list of paths such as '/api/*' and '!/api/docs/*'.",
            key="assets.run_worker_first",
        )
    return AssetsConfig(
        str(directory),
        text(entry.get("binding", ""), "assets.binding", path),
        one_of(entry.get("not_found_handling", "none"), NOT_FOUND_HANDLING, "assets.not_found_handling", path),
        one_of(entry.get("html_handling", HTML_HANDLING[0]), HTML_HANDLING, "assets.html_handling", path),
        first,
    )


class AssetsBinding:
    """That of one app."""

    KEY = "assets"
    IS_INHERITED = True

    @staticmethod
    def parse(value: Any, place: Place) -> Configs:
        config = config_of(value, place.path)
        return {config.binding: msgspec.to_builtins(config)} if config.binding else {}

    def __init__(self, configs: Mapping[str, dict[str, Any]], version: Version) -> None:
        self._configs = configs

    def open(self, surroundings: Surroundings) -> Mapping[str, Any]:
        from roost.api.service import AssetsStub

        return {name: AssetsStub(AssetsConfig(**config).files().find) for name, config in self._configs.items()}

    def close(self) -> None:
        """It keeps nothing."""
