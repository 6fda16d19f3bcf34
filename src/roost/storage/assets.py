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
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
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
    """A file as the answer to a request: its content, or where that is: `size` bytes of `path` from `offset` on."""

    status: int
    headers: Headers
    body: bytes = b""
    path: str = ""
    offset: int = 0
    size: int = 0


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

    def find(self, method: str, target: str, accept: str, if_none_match: str) -> tuple[int, Headers, bytes] | None:
        """The answer to a request for a path, with the whole content; None if it is not a file here."""
        found = self.look_up(method, target, {"accept": accept, "if-none-match": if_none_match})
        if found is None or not found.path:
            return None if found is None else found[:3]
        try:
            with open(found.path, "rb") as file:
                file.seek(found.offset)
                return found.status, found.headers, file.read(found.size)
        except OSError as error:
            _log.warning("assets: %s cannot be read: %s", found.path, error)
            return None

    def look_up(self, method: str, target: str, fields: Mapping[str, str]) -> Found | None:
        """The answer to a request for a path, by its header fields (lower-case names); None if it is not a file here.

        Source: RFC 9110 §13.1.2 (If-None-Match), §13.1.5 (If-Range), §14 (Range: one range; several are answered whole).
        """
        if method not in ("GET", "HEAD"):
            return None
        asset = self._index.get(unquote(target.split("?", 1)[0]))
        status = 200
        if asset is None:
            if self._not_found == "single-page-application" and "text/html" in fields.get("accept", ""):
                asset = self._index.get("/")
            elif self._not_found == "404-page":
                asset, status = self._index.get("/404.html"), 404
        if asset is None:
            return None
        try:
            about = os.stat(asset.path)
            body = self._small(asset.path, about) if about.st_size <= _CACHE_FILE_BYTES else None
        except OSError as error:
            _log.warning("assets: %s cannot be read: %s", asset.path, error)
            return None
        tag = f'"{about.st_mtime_ns:x}-{about.st_size:x}"'
        headers: Headers = [
            ("Content-Type", asset.content_type),
            ("ETag", tag),
            ("Cache-Control", "public, max-age=0, must-revalidate"),
        ]
        if tag_matches(fields.get("if-none-match", ""), tag):
            return Found(304, headers)
        start, size = 0, about.st_size if body is None else len(body)
        if status == 200:
            headers.append(("Accept-Ranges", "bytes"))
            wanted = fields.get("range", "") if method == "GET" and fields.get("if-range", tag) == tag else ""
            part = part_of(wanted, size)
            if part is not None and not part:
                return Found(416, [("Content-Range", f"bytes */{size}"), ("Content-Type", "text/plain")])
            if part is not None:
                headers.append(("Content-Range", f"bytes {part[0]}-{part[1]}/{size}"))
                start, size, status = part[0], part[1] - part[0] + 1, 206
        if body is not None:
            return Found(status, headers, body[start : start + size] if status == 206 else body)
        return Found(status, headers, b"", asset.path, start, size)

    def _small(self, path: str, about: os.stat_result) -> bytes:
        cached = self._cache.get(path)
        if cached is not None and cached[0] == about.st_mtime_ns:
            return cached[1]
        with open(path, "rb") as file:
            body = file.read(_CACHE_FILE_BYTES)
        if cached is None and self._cached_bytes + len(body) <= _CACHE_BYTES:
            self._cached_bytes += len(body)
            self._cache[path] = (about.st_mtime_ns, body)
        elif cached is not None:
            self._cached_bytes -= len(self._cache.pop(path)[1])
        return body


def tag_matches(if_none_match: str, tag: str) -> bool:
    """Whether a client has that version already: `*`, or a list of tags compared weakly (RFC 9110 §13.1.2)."""
    if not if_none_match:
        return False
    return if_none_match.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in if_none_match.split(",")]


_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


def part_of(wanted: str, size: int) -> list[int] | None:
    """The first and last byte that a Range asks for; [] for one that cannot be had; None for none, or none that is
    understood, which is answered whole (RFC 9110 §14.2)."""
    match = _RANGE.match(wanted.replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:  # the last so many
        return [max(0, size - int(last)), size - 1] if int(last) and size else []
    if last and int(last) < int(first):
        return None
    return [int(first), min(int(last) if last else size - 1, size - 1)] if int(first) < size else []


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
