"""What of an app's folder is its code: the files that a version is copied from, and a digest of them.

Left out are what tools keep beside code (`LEFT_OUT`), the data folder, and files with secrets (`.env`, `.dev.vars`), which
are read apart. Links are copied as links; one that leaves the folder is dropped, and said: its target is not the app's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, NamedTuple

from roost.errors import ConfigError

LEFT_OUT: Final = (
    ".roost", ".git", ".venv", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".DS_Store",
)  # fmt: skip
SECRETS: Final = (".env", ".env.*", ".dev.vars", ".dev.vars.*")
MAX_ENTRIES: Final = 50_000
_PIECE_BYTES: Final = 1024 * 1024


class Entry(NamedTuple):
    """One thing in the folder. `link` is a link's target, relative to its own folder; None for what is no link."""

    name: str
    is_folder: bool
    link: str | None
    size: int


class Tree(NamedTuple):
    """A folder's entries, sorted; names of links that leave it, and of what is no file; the paths of its secrets."""

    source: Path
    entries: list[Entry]
    dropped: list[str]
    secrets: list[Path]

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries)


def read_tree(source: Path, data: Path | None = None) -> Tree:
    """Look through a folder. Raises ConfigError if it has too many entries, OSError if it cannot be read."""
    root = source.resolve()
    kept_out = None if data is None else data.resolve()
    entries: list[Entry] = []
    dropped: list[str] = []
    secrets: list[Path] = []

    def look(folder: Path, prefix: str) -> None:
        with os.scandir(folder) as found:
            inside = sorted(found, key=lambda each: each.name)
        for each in inside:
            name = prefix + each.name
            path = Path(each.path)
            if each.name in LEFT_OUT or path == kept_out:
                continue
            if any(fnmatch(each.name, pattern) for pattern in SECRETS):
                if not prefix and each.is_file():
                    secrets.append(path)
                continue
            if len(entries) >= MAX_ENTRIES:
                raise ConfigError(f"{source} has more than {MAX_ENTRIES} files; is it the app's folder?")
            if each.is_symlink():
                entries.append(Entry(name, is_folder=False, link=_target(path), size=0))
            elif each.is_dir():
                entries.append(Entry(name, is_folder=True, link=None, size=0))
                look(path, f"{name}/")
            elif each.is_file():
                entries.append(Entry(name, is_folder=False, link=None, size=each.stat().st_size))
            else:
                dropped.append(name)

    look(root, "")
    names = {str(root / entry.name) for entry in entries if entry.link is None} | {str(root)}
    kept: list[Entry] = []
    for entry in entries:
        if entry.link is None:
            kept.append(entry)
        elif entry.link in names:
            relative = os.path.relpath(entry.link, (root / entry.name).parent)
            kept.append(entry._replace(link=relative))
        else:
            dropped.append(entry.name)
    return Tree(root, kept, dropped, secrets)


def _target(link: Path) -> str:
    try:
        return str(link.resolve(strict=True))
    except (OSError, RuntimeError):
        return ""  # it leads nowhere, or in a circle


def digest(tree: Tree, *beside: object) -> str:
    """What tells one state of the folder from another: names, contents and links, and what it is run with; behind a dash,
    its secrets."""
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps(beside, sort_keys=True).encode())
    for entry in tree.entries:
        kind = "folder" if entry.is_folder else "file" if entry.link is None else f"link to {entry.link}"
        total.update(f"\0{kind}\0{entry.name}\0".encode("utf-8", "surrogateescape"))
        if entry.link is None and not entry.is_folder:
            total.update(_digest_of(tree.source / entry.name))
    hidden = hashlib.blake2b(digest_size=8)
    for secret in tree.secrets:
        hidden.update(secret.name.encode() + b"\0" + _digest_of(secret))
    return f"{total.hexdigest()}-{hidden.hexdigest()}"


def code_part(found: str) -> str:
    """A digest without its secrets."""
    return found.partition("-")[0]


def _digest_of(path: Path) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            found.update(piece)
    return found.digest()


def copy(tree: Tree, target: Path, secrets: Path) -> None:
    """Copy the tree to `target`, and its secrets, for their owner only, to `secrets`. Raises OSError; may leave a part."""
    target.mkdir(parents=True, mode=0o700)
    for entry in tree.entries:
        path = target / entry.name
        if entry.is_folder:
            path.mkdir()
        elif entry.link is not None:
            os.symlink(entry.link, path)
        else:
            shutil.copyfile(tree.source / entry.name, path)
            shutil.copymode(tree.source / entry.name, path)
    if tree.secrets:
        secrets.mkdir(mode=0o700)
        for secret in tree.secrets:
            shutil.copyfile(secret, secrets / secret.name)
            os.chmod(secrets / secret.name, 0o600)
