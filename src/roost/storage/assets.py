"""Static files beside the worker (`assets` in wrangler's configuration), answered by the gateway without a host, or by a
host as `env.ASSETS`.

The folder is indexed at start: a request is looked up in that index and never becomes part of a path, so no name from
outside reaches the file system; links out of the folder are not indexed. Source: platform documentation, Static Assets
(`html_handling` "auto-trailing-slash", `not_found_handling`, `run_worker_first`).
"""

from __future__ import annotations

import logging
import mimetypes
import os
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from roost.events import Headers

_log = logging.getLogger("roost.assets")

MAX_ASSET_BYTES: Final = 25 * 1024 * 1024  # the platform's limit
MAX_ASSETS: Final = 20_000
_CACHE_BYTES: Final = 16 * 1024 * 1024
_CACHE_FILE_BYTES: Final = 256 * 1024


class Asset(msgspec.Struct):
    """One indexed file."""

    path: str
    content_type: str


class Found(NamedTuple):
    """A file as the answer to a request."""

    status: int
    headers: Headers
    body: bytes


class Assets:
    """The index of one folder, and a bounded cache of small files."""

    def __init__(self, directory: Path, not_found: str = "none", *, worker_first: bool = False) -> None:
        self._worker_first = worker_first
        self._not_found = not_found
        self._index: dict[str, Asset] = {}
        self._cache: dict[str, tuple[int, bytes]] = {}
        self._cached_bytes = 0
        for relative, path in _walk(directory):
            content_type = mimetypes.guess_type(relative)[0] or "application/octet-stream"
            if content_type.startswith("text/") or content_type.endswith(("javascript", "json")):
                content_type += "; charset=utf-8"
            asset = Asset(path, content_type)
            self._index["/" + relative] = asset
            if relative == "index.html" or relative.endswith("/index.html"):
                self._index["/" + relative.removesuffix("index.html")] = asset
            elif relative.endswith(".html"):
                self._index["/" + relative.removesuffix(".html")] = asset

    @property
    def before_worker(self) -> bool:
        """Whether files are looked up before the worker is asked."""
        return not self._worker_first

    def find(self, method: str, target: str, accept: str, if_none_match: str) -> Found | None:
        """The answer to a request for a path; None if it is not a file here."""
        if method not in ("GET", "HEAD"):
            return None
        asset = self._index.get(unquote(target.split("?", 1)[0]))
        status = 200
        if asset is None:
            if self._not_found == "single-page-application" and "text/html" in accept:
                asset = self._index.get("/")
            elif self._not_found == "404-page":
                asset, status = self._index.get("/404.html"), 404
        if asset is None:
            return None
        try:
            tag, body = self._read(asset.path)
        except OSError as error:
            _log.warning("assets: %s cannot be read: %s", asset.path, error)
            return None
        fields: Headers = [
            ("Content-Type", asset.content_type),
            ("ETag", tag),
            ("Cache-Control", "public, max-age=0, must-revalidate"),
        ]
        return Found(304, fields, b"") if if_none_match == tag else Found(status, fields, body)

    def _read(self, path: str) -> tuple[str, bytes]:
        status = os.stat(path)
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        cached = self._cache.get(path)
        if cached is not None and cached[0] == status.st_mtime_ns:
            return tag, cached[1]
        with open(path, "rb") as file:
            body = file.read(MAX_ASSET_BYTES)
        if cached is None and len(body) <= _CACHE_FILE_BYTES and self._cached_bytes + len(body) <= _CACHE_BYTES:
            self._cached_bytes += len(body)
            self._cache[path] = (status.st_mtime_ns, body)
        elif cached is not None:
            self._cached_bytes -= len(self._cache.pop(path)[1])
        return tag, body


def _walk(directory: Path) -> Iterator[tuple[str, str]]:
    """Relative POSIX path and real path of each regular file; hidden files and links are left out."""
    count = 0
    for folder, names, files in os.walk(directory):
        names[:] = [name for name in names if not name.startswith(".") and not os.path.islink(f"{folder}/{name}")]
        for name in files:
            path = os.path.join(folder, name)
            if name.startswith(".") or os.path.islink(path) or os.path.getsize(path) > MAX_ASSET_BYTES:
                _log.warning("assets: %s is not served (hidden, a link, or over %d bytes)", path, MAX_ASSET_BYTES)
                continue
            count += 1
            if count > MAX_ASSETS:
                _log.warning("assets: only the first %d files of %s are served", MAX_ASSETS, directory)
                return
            yield os.path.relpath(path, directory).replace(os.sep, "/"), path
