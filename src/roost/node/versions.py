"""Versions of the app: copies in `versions/<number>` of the data folder, and which of them runs.

A version is made by a deployment, and by a start with code that no version has. So a later edit of the source changes
nothing that runs, and what was rolled back from is not run again by a restart. The last `KEPT` are kept, and what runs.
Secrets (`.env`, `.dev.vars`) are kept beside, in `versions/<number>.secrets`, where nothing is served from.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from roost.errors import ConfigError, RoostError
from roost.node.config import read_app
from roost.node.tree import code_part, copy, digest, read_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roost.node.config import App
    from roost.node.tree import Tree

KEPT: Final = 10
_GIT_S: Final = 2.0

_log = logging.getLogger("roost.node")


class Version(msgspec.Struct):
    """One version. `source` is the folder it was copied from; what it was read with is kept for a rollback."""

    number: int
    source: str
    deployed_ms: int
    config: str | None = None
    env: str | None = None
    variables: list[str] = []
    active: bool = False
    digest: str = ""  # "": of Roost 0.1, which made none
    message: str = ""
    commit: str = ""  # of the source's git repository


class Source(NamedTuple):
    """A folder, and what its configuration is read with."""

    folder: Path
    config: str | None = None
    env: str | None = None
    variables: Sequence[str] = ()

    def inner_config(self) -> str | None:
        """The configuration's path in the folder. Raises ConfigError if it is elsewhere."""
        if self.config is None:
            return None
        path, folder = Path(self.config).resolve(), self.folder.resolve()
        if not path.is_relative_to(folder):
            raise ConfigError(f"--config: {path} is not in {folder}; a version is one folder.", key="--config")
        return str(path.relative_to(folder))


class Choice(NamedTuple):
    """What a start runs: a version's app, or (None) the folder itself; what is to be said of it; and the folder's digest,
    if it is to become a new version."""

    app: App | None
    line: str = ""
    new: str = ""


class Versions:
    """The versions of one data folder. Files are small; called rarely, and one call at a time."""

    def __init__(self, data: Path, min_free_bytes: int = 0) -> None:
        self._data = data
        self._min_free_bytes = min_free_bytes
        self._folder = data / "versions"
        self._file = self._folder / "versions.json"

    def all(self) -> list[Version]:
        """Oldest first; none, with a warning, if the list is damaged."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[Version])
        except FileNotFoundError:
            return []
        except (msgspec.MsgspecError, OSError) as error:
            _log.warning("node: %s cannot be read (%s): the versions before this are not known", self._file, error)
            return []

    @property
    def active(self) -> Version | None:
        return next((version for version in self.all() if version.active), None)

    def folder(self, version: Version) -> Path:
        return self._folder / str(version.number)

    def _secrets(self, version: Version) -> Path:
        return self._folder / f"{version.number}.secrets"

    def app(self, version: Version) -> App:
        """The app of a version, from its copy. It runs on the `.venv` of its source. Raises ConfigError."""
        folder, secrets = self.folder(version), self._secrets(version)
        app = read_app(
            folder,
            config=folder / version.config if version.config else None,
            env=version.env,
            variables=version.variables,
            default_name=Path(version.source).name,
            secrets=secrets if secrets.is_dir() else folder,  # Roost 0.1 copied them with everything else
        )
        made = datetime.fromtimestamp(version.deployed_ms / 1000, UTC).isoformat(timespec="milliseconds")
        about = str(version.number), version.message, made.replace("+00:00", "Z")
        return msgspec.structs.replace(app, folder=version.source, version=about)

    def look_at(self, source: Source) -> tuple[Tree, str]:
        """A folder as a version would be made of it, and its digest. Raises ConfigError or OSError."""
        tree = read_tree(source.folder, self._data)
        return tree, digest(tree, source.inner_config(), source.env, list(source.variables))

    def with_digest(self, wanted: str) -> Version | None:
        """The active version if it is of that digest, else the newest that is."""
        found = [version for version in self.all() if self._digest(version) == wanted]
        return next((version for version in found if version.active), found[-1] if found else None)

    def _digest(self, version: Version) -> str:
        if version.digest:
            return version.digest
        try:  # of Roost 0.1, which copied secrets with everything else
            return digest(read_tree(self.folder(version)), version.config, version.env, version.variables)
        except (RoostError, OSError):
            return ""

    def add(self, source: Source, message: str = "", expected: str = "") -> tuple[Version, list[str]]:
        """Copy a folder; it is not the active version yet. Also what of it was left out, one line each. Raises
        ConfigError if it would take the space that objects need, or has not the `expected` digest (any more), and
        OSError; leaves nothing then."""
        tree, found = self.look_at(source)
        free = shutil.disk_usage(self._data).free
        if free - tree.bytes < self._min_free_bytes:
            raise ConfigError(
                f"a copy of {source.folder} needs {tree.bytes} bytes, and {self._data} has {free} free, of which objects"
                f" need {self._min_free_bytes} (storage.min_free_bytes). Make room, or lower the setting."
            )
        versions = self.all()
        version = Version(
            number=1 + max((*(version.number for version in versions), self._highest_folder()), default=0),
            source=str(source.folder.resolve()),
            deployed_ms=time.time_ns() // 1_000_000,
            config=source.inner_config(),
            env=source.env,
            variables=list(source.variables),
            digest=found,
            message=message,
            commit=_commit_of(source.folder),
        )
        try:
            copy(tree, self.folder(version), self._secrets(version))
            made = digest(read_tree(self.folder(version)), version.config, version.env, version.variables)
            if code_part(made) != code_part(expected or found):
                raise ConfigError(f"{source.folder} was changed meanwhile; try again.")
        except BaseException:
            self.discard(version)
            raise
        return version, [f"{name} is left out: it leads out of {source.folder}, or is no file" for name in tree.dropped]

    def _highest_folder(self) -> int:
        """Of a list that was lost, folders may be left."""
        try:
            return max((int(path.name) for path in self._folder.iterdir() if path.name.isdigit()), default=0)
        except OSError:
            return 0

    def discard(self, version: Version) -> None:
        """It did not start, or is one too many."""
        for path in (self.folder(version), self._secrets(version)):
            shutil.rmtree(path, ignore_errors=True)

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

    def keep(self, version: Version) -> None:
        """It is known, and can be rolled back to, but another one runs."""
        versions = sorted([*self.all(), version], key=lambda each: each.number)
        self._save(versions)

    def prune(self) -> None:
        """Remove what a start or a deployment that was cut short has left. Not if the list cannot be read."""
        try:
            known = {str(version.number) for version in msgspec.json.decode(self._file.read_bytes(), type=list[Version])}
        except FileNotFoundError:
            known = set()
        except (msgspec.MsgspecError, OSError):
            return
        for path in self._folder.glob("*"):
            number = path.name.removesuffix(".secrets")
            if number.isdigit() and number not in known:
                shutil.rmtree(path, ignore_errors=True)

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

    # at start

    def choose(self, source: Source, *, from_folder: bool) -> Choice:
        """What a start runs. Code that was rolled back from or replaced is not run again, and code that no version has is
        never passed over."""
        try:
            _, found = self.look_at(source)
        except (RoostError, OSError) as error:
            return Choice(None, f"{source.folder} is run, and cannot be rolled back to: {error}")
        same, active = self.with_digest(found), self.active
        if same is not None and same.active:
            return Choice(self._kept_app(same))
        if active is None:
            return Choice(None, new=found)
        if same is None or from_folder:
            line = f"{source.folder} is not version {active.number}, which ran last: it is run as a new version"
            return Choice(None, line, found)
        app = self._kept_app(active)
        if app is None:
            return Choice(None, f"version {active.number}, which ran last, cannot be read: {source.folder} is run", found)
        return Choice(
            app,
            f"version {active.number} runs: {source.folder} is version {same.number}, which was replaced or rolled back"
            " from. To run it: `roost deploy`, or `roost serve --from-folder`",
        )

    def _kept_app(self, version: Version) -> App | None:
        try:
            return self.app(version)
        except (RoostError, OSError) as error:
            _log.warning("node: version %d cannot be read: %s", version.number, error)
            return None


def _commit_of(folder: Path) -> str:
    """The folder's git commit, short; "" if it has none, or git is not here."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, timeout=_GIT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
