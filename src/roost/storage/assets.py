"""Static files beside the worker (`assets` in wrangler's configuration), answered by the gateway without a host, or by a
host as `env.ASSETS`.

The folder is indexed at start: a request is looked up in that index and never becomes part of a path, so no name from
outside reaches the file system; links out of the folder are not indexed. Source: platform documentation, Static Assets
(`html_handling`, `not_found_handling`, `run_worker_first`, `_headers`, `_redirects`, `.assetsignore`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from roost.api.conditional import part_of, tag_matches
from roost.storage.asset_rules import HeaderRules, Ignored, PathPatterns, RedirectRules
from roost.storage.content_types import content_type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from roost.events import Headers

    IntentOf = Callable[[dict[str, "Asset"], str, bool], "Intent | None"]

_log = logging.getLogger("roost.assets")

MAX_ASSET_BYTES: Final = 25 * 1024 * 1024  # the platform's limit
MAX_ASSETS: Final = 20_000
HTML_HANDLING: Final = ("auto-trailing-slash", "force-trailing-slash", "drop-trailing-slash", "none")
NOT_FOUND_HANDLING: Final = ("none", "404-page", "single-page-application")
_CACHE_BYTES: Final = 16 * 1024 * 1024
_CACHE_FILE_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_RULES: Final = ("_headers", "_redirects", ".assetsignore")

Version = tuple[int, int, int, int]
"""What says that a file is another one: times of content and inode, size, inode."""


class Asset(msgspec.Struct):
    """One indexed file, and the tag of its content once that was read."""

    path: str
    content_type: str
    version: Version | None = None
    tag: str = ""


class Found(NamedTuple):
    """A file as the answer to a request: its content, or where that is: `size` bytes of `path` from `offset` on."""

    status: int
    headers: Headers
    body: bytes = b""
    path: str = ""
    offset: int = 0
    size: int = 0


class Intent(NamedTuple):
    """What a path stands for: a file, or another path."""

    asset: Asset | None = None
    redirect: str = ""
    status: int = 200


class Assets:
    """The index of one folder, its rules, and a bounded cache of small files."""

    def __init__(
        self,
        directory: Path,
        not_found: str = "none",
        html_handling: str = "auto-trailing-slash",
        *,
        worker_first: bool | Sequence[str] = False,
    ) -> None:
        self._worker_first = worker_first if isinstance(worker_first, bool) else PathPatterns(worker_first)
        self._not_found = not_found
        self._intent = _INTENTS[html_handling]
        self._index: dict[str, Asset] = {}
        self._cache: dict[str, tuple[Version, bytes]] = {}
        self._cached_bytes = 0
        self._headers = HeaderRules(directory / "_headers")
        self._redirects = RedirectRules(directory / "_redirects")
        for relative, path in _walk(directory, Ignored(directory / ".assetsignore")):
            self._index["/" + relative] = Asset(path, content_type_of(relative))
        self._deepest_404 = max((len(name) for name in self._index if name.endswith("/404.html")), default=0)

    def before_worker(self, target: str) -> bool:
        """Whether files are looked up before the worker is asked for a path."""
        if isinstance(self._worker_first, bool):
            return not self._worker_first
        return not self._worker_first.match(unquote(target.split("?", 1)[0]))

    def find(self, method: str, target: str, fields: Mapping[str, str]) -> tuple[int, Headers, bytes] | None:
        """The answer to the worker's request for a path, with the whole content; None for another method than GET and HEAD,
        and for a file that cannot be read."""
        found = self.look_up(method, target, fields, for_worker=True)
        if found is None or not found.path:
            return None if found is None else found[:3]
        try:
            with open(found.path, "rb") as file:
                file.seek(found.offset)
                return found.status, found.headers, file.read(found.size)
        except OSError as error:
            _log.warning("assets: %s cannot be read: %s", found.path, error)
            return None

    def look_up(self, method: str, target: str, fields: Mapping[str, str], *, for_worker: bool = False) -> Found | None:
        """The answer to a request for a path, by its header fields (lower-case names); None if it is not a file here.

        Of a client, only a navigation gets the page for what is not found: anything else is the worker's. Source: RFC 9110
        §13.1.2 (If-None-Match), §13.1.5 (If-Range), §14 (Range: one range; several are answered whole).
        """
        if method not in ("GET", "HEAD"):
            return None
        raw, _, query = target.partition("?")
        asked = raw
        redirect = self._redirects.find(unquote(raw), query)
        if redirect is not None and redirect.status == 200:
            raw = redirect.target.partition("?")[0]
        if redirect is not None and redirect.status != 200:
            found: Found | None = Found(redirect.status, [("Location", redirect.target)])
        else:
            found = self._of_path(raw, query, method, fields, for_worker=for_worker)
        if found is None:
            if not for_worker:
                return None
            found = Found(404, [])
        return found._replace(headers=self._headers.apply(fields.get("host", ""), unquote(asked), found.headers))

    def _of_path(self, raw: str, query: str, method: str, fields: Mapping[str, str], *, for_worker: bool) -> Found | None:
        """Each file has one path, which others lead to; what may stand in a path by itself may also be encoded in it."""
        path = _decoded(raw)
        intent = self._intent(self._index, path, True)
        if intent is None and (for_worker or _is_navigation(fields)):
            intent = self._when_not_found(path)
        if intent is None:
            return None
        location = _encoded(intent.redirect or path)
        if intent.asset is None or raw not in (path, location, quote(path, safe=_IN_PATHS)):
            return Found(307, [("Location", f"{location}?{query}" if query else location)])
        return self._answer(intent.asset, intent.status, method, fields)

    def _when_not_found(self, path: str) -> Intent | None:
        if self._not_found == "single-page-application":
            page = self._index.get("/index.html")
            return None if page is None else Intent(page)
        path = path[: self._deepest_404]  # however long the client made it
        while self._not_found == "404-page" and path:
            path = path[: path.rfind("/")]
            page = self._index.get(f"{path}/404.html")
            if page is not None:
                return Intent(page, status=404)
        return None

    def _answer(self, asset: Asset, status: int, method: str, fields: Mapping[str, str]) -> Found | None:
        try:
            about = os.stat(asset.path)
            body = self._small(asset.path, about) if about.st_size <= _CACHE_FILE_BYTES else None
            tag = _tag(asset, about, body)
        except OSError as error:
            _log.warning("assets: %s cannot be read: %s", asset.path, error)
            return None
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
        version = _version(about)
        cached = self._cache.get(path)
        if cached is not None and cached[0] == version:
            return cached[1]
        with open(path, "rb") as file:
            body = file.read(_CACHE_FILE_BYTES)
        if cached is None and self._cached_bytes + len(body) <= _CACHE_BYTES:
            self._cached_bytes += len(body)
            self._cache[path] = (version, body)
        elif cached is not None:
            self._cached_bytes -= len(self._cache.pop(path)[1])
        return body


def _version(about: os.stat_result) -> Version:
    return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino


def _tag(asset: Asset, about: os.stat_result, body: bytes | None) -> str:
    """The tag of the content: the same for the same bytes, on every machine and after every deployment."""
    version = _version(about)
    if asset.version != version:
        digest = hashlib.blake2b(body or b"", digest_size=16)
        if body is None:
            with open(asset.path, "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
        asset.version, asset.tag = version, f'"{digest.hexdigest()}"'
    return asset.tag


def _is_navigation(fields: Mapping[str, str]) -> bool:
    """Whether a browser goes to a page, as far as the request tells."""
    mode = fields.get("sec-fetch-mode")
    if mode is not None:
        return mode == "navigate"
    accept = fields.get("accept")
    return accept is None or "text/html" in accept


_IN_PATHS: Final = "/!$&'()*+,;=:@~-._[]|\\^"  # what the URL parser leaves as it is in a path (WHATWG URL §1.3)
_AS_COMPONENT: Final = "!'()*~-._"  # what JavaScript's encodeURIComponent leaves as it is
_BAD_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")


def _decoded(raw: str) -> str:
    """As the platform reads a path: by segments, each as it is if it cannot be decoded; slashes in a row are one."""
    return _SLASHES.sub("/", "/".join(map(_segment, raw.split("/")))) if "%" in raw or "//" in raw else raw


_SLASHES: Final = re.compile("/+")


def _segment(raw: str) -> str:
    if _BAD_ESCAPE.search(raw):
        return raw
    try:
        return unquote(raw, errors="strict")
    except UnicodeDecodeError:
        return raw


def _encoded(path: str) -> str:
    return "/".join([quote(segment, safe=_AS_COMPONENT) for segment in path.split("/")])


# html_handling: what a path stands for. A redirect goes only to a path that would answer with that very file if it did not
# redirect in turn.

Index = dict[str, Asset]


def _to(index: Index, file: str, path: str, intent: IntentOf | None) -> Intent | None:
    asset = index.get(file)
    if asset is None or path in index or intent is None:
        return None
    there = intent(index, path, False)
    return Intent(redirect=path) if there is not None and there.asset is asset else None


def _file(index: Index, path: str, may_redirect: bool = True) -> Intent | None:
    asset = index.get(path)
    return None if asset is None else Intent(asset)


def _auto(index: Index, path: str, may_redirect: bool = True) -> Intent | None:
    again = _auto if may_redirect else None
    if path.endswith("/index") and path not in index:
        folder = path[:-5]
        found = _to(index, f"{path}.html", folder, again) or _to(index, f"{path[:-6]}.html", path[:-6], again)
    elif path.endswith("/index.html"):
        found = _to(index, path, path[:-10], again) or _to(index, f"{path[:-11]}.html", path[:-11], again)
    elif path.endswith("/"):
        found = _file(index, f"{path}index.html") or _to(index, f"{path[:-1]}.html", path[:-1], again)
    elif path.endswith(".html"):
        found = _to(index, path, path[:-5], again) or _to(index, f"{path[:-5]}/index.html", f"{path[:-5]}/", again)
    else:
        found = None
    return (
        found or _file(index, path) or _file(index, f"{path}.html") or _to(index, f"{path}/index.html", f"{path}/", again)
    )


def _force(index: Index, path: str, may_redirect: bool = True) -> Intent | None:
    again = _force if may_redirect else None
    if path.endswith("/index") and path not in index:
        found = _to(index, f"{path}.html", path[:-5], again) or _to(index, f"{path[:-6]}.html", path[:-5], again)
    elif path.endswith("/index.html"):
        found = _to(index, path, path[:-10], again) or _to(index, f"{path[:-11]}.html", path[:-10], again)
    elif path.endswith("/"):
        found = _file(index, f"{path}index.html") or _file(index, f"{path[:-1]}.html")
    elif path.endswith(".html"):
        folder = f"{path[:-5]}/"
        found = _to(index, path, folder, again) or _file(index, path) or _to(index, f"{folder}index.html", folder, again)
    else:
        found = None
    folder = f"{path}/"
    return (
        found
        or _file(index, path)
        or _to(index, f"{path}.html", folder, again)
        or _to(index, f"{folder}index.html", folder, again)
    )


def _drop(index: Index, path: str, may_redirect: bool = True) -> Intent | None:
    again = _drop if may_redirect else None
    found: Intent | None = None
    if path == "/":
        found = _file(index, "/index.html")
    elif path in ("/index", "/index.html"):
        found = _to(index, "/index.html", "/", again)
    elif path.endswith("/index") and path not in index:
        page = path[:-6]
        found = _to(index, f"{page}.html", page, again) or _to(index, f"{path}.html", page, again)
    elif path.endswith("/index.html"):
        page = path[:-11]
        found = _to(index, path, page, again) or _file(index, path) or _to(index, f"{page}.html", page, again)
    elif path.endswith("/"):
        page = path[:-1]
        found = _to(index, f"{page}.html", page, again) or _to(index, f"{page}/index.html", page, again)
    elif path.endswith(".html"):
        page = path[:-5]
        found = _to(index, path, page, again) or _to(index, f"{page}/index.html", page, again)
    return found or _file(index, path) or _file(index, f"{path}.html") or _file(index, f"{path}/index.html")


_INTENTS: Final[dict[str, IntentOf]] = dict(zip(HTML_HANDLING, (_auto, _force, _drop, _file), strict=True))


def _walk(directory: Path, ignored: Ignored) -> Iterator[tuple[str, str]]:
    """Relative POSIX path and real path of each regular file; links, rules and hidden files (but `.well-known`) are left
    out."""
    count = 0
    for folder, names, files in os.walk(directory):
        names[:] = [name for name in names if not _is_hidden(name) and not os.path.islink(f"{folder}/{name}")]
        for name in files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, directory).replace(os.sep, "/")
            if relative in _RULES or relative in ignored:
                continue
            if name.startswith(".") or os.path.islink(path) or os.path.getsize(path) > MAX_ASSET_BYTES:
                _log.warning("assets: %s is not served (hidden, a link, or over %d bytes)", path, MAX_ASSET_BYTES)
                continue
            count += 1
            if count > MAX_ASSETS:
                _log.warning("assets: only the first %d files of %s are served", MAX_ASSETS, directory)
                return
            yield relative, path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name != ".well-known"
