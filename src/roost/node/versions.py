"""Deployed versions: copies of the app in `versions/<number>` of the data folder.

So a later edit of the source changes nothing that runs. The last `KEPT` are kept, and the one that runs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

import msgspec

from roost.errors import ConfigError

KEPT: Final = 10
_LEFT_OUT: Final = (".roost", ".git", ".venv", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache")


class Version(msgspec.Struct):
    """One deployment. `source` is the folder it was copied from; what it was read with is kept for a rollback."""

    number: int
    source: str
    deployed_ms: int
    config: str | None = None
    env: str | None = None
    variables: list[str] = []
    active: bool = False


class Versions:
    """The versions of one data folder. Files are small; called rarely."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "versions"
        self._file = self._folder / "versions.json"

    def all(self) -> list[Version]:
        """Oldest first. Raises ConfigError if the list is damaged."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[Version])
        except FileNotFoundError:
            return []
        except (msgspec.MsgspecError, OSError) as error:
            raise ConfigError(f"{self._file} cannot be read: {error}") from error

    def folder(self, version: Version) -> Path:
        return self._folder / str(version.number)

    def add(self, source: Path, config: str | None, env: str | None, variables: list[str]) -> Version:
        """Copy an app; it is not the active version yet."""
        if config is not None and not Path(config).resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"--config: {config} is not in {source}; a deployment is one folder.", key="--config")
        versions = self.all()
        version = Version(
            number=1 + max((version.number for version in versions), default=0),
            source=str(source.resolve()),
            deployed_ms=time.time_ns() // 1_000_000,
            config=None if config is None else str(Path(config).resolve().relative_to(source.resolve())),
            env=env,
            variables=variables,
        )
        target = self.folder(version)
        shutil.rmtree(target, ignore_errors=True)  # of a deployment that was cut short; there is one at a time
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=False)
        return version

    def discard(self, version: Version) -> None:
        """It did not start."""
        shutil.rmtree(self.folder(version), ignore_errors=True)

    def activate(self, version: Version) -> None:
        """It runs now; older ones beyond `KEPT` go."""
        versions = [other for other in self.all() if other.number != version.number]
        for other in versions:
            other.active = False
        version.active = True
        versions = sorted([*versions, version], key=lambda each: each.number)
        while len(versions) > KEPT:
            oldest = next(each for each in versions if not each.active)
            versions.remove(oldest)
            self.discard(oldest)
        self._save(versions)

    def none_active(self) -> None:
        """The node runs a folder itself."""
        versions = self.all()
        if any(version.active for version in versions):
            for version in versions:
                version.active = False
            self._save(versions)

    def _save(self, versions: list[Version]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(versions))
        new.replace(self._file)

    def find(self, number: int | None) -> Version:
        """The version to roll back to: of a number, or the newest before the active one. Raises ConfigError."""
        versions = self.all()
        active = next((version for version in versions if version.active), None)
        if number is not None:
            found = next((version for version in versions if version.number == number), None)
        else:
            before = [version for version in versions if active is not None and version.number < active.number]
            found = before[-1] if before else None
        if found is None:
            known = ", ".join(str(version.number) for version in versions) or "none"
            raise ConfigError(
                f"there is no {'earlier version' if number is None else f'version {number}'} (there are: {known})."
            )
        return found
