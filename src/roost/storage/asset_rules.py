"""`_headers`, `_redirects`, `.assetsignore` and patterns of paths, as the platform reads them beside static files.

Source: platform documentation, Static Assets: "Headers", "Redirects", "Configuration and bindings" (limits there).
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import pathspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_log = logging.getLogger("roost.assets")

MAX_HEADER_RULES: Final = 100
MAX_STATIC_REDIRECTS: Final = 2000
MAX_DYNAMIC_REDIRECTS: Final = 100
MAX_LINE: Final = 2000
_STATUSES: Final = (200, 301, 302, 303, 307, 308)
_PLACEHOLDER: Final = re.compile(r":([A-Za-z]\w*)")


class Redirect(NamedTuple):
    """Where a path goes. 200: the file there is answered under the path that was asked for."""

    target: str
    status: int


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    host: str | None


def _rule(source: str) -> _Rule:
    """A path with `*` (anything, `:splat`) and `:name` (up to the next slash); `https://host` in front is for one host."""
    host = None
    if "://" in source:
        parts = urlsplit(source)
        host, source = parts.netloc.lower(), parts.path or "/"
    pieces: list[str] = []
    position = 0
    for match in re.finditer(r"\*|:([A-Za-z]\w*)", source):
        pieces.append(re.escape(source[position : match.start()]))
        pieces.append("(?P<splat>.*)" if match[0] == "*" else f"(?P<{match[1]}>[^/]+)")
        position = match.end()
    pieces.append(re.escape(source[position:]))
    return _Rule(re.compile("".join(pieces) + r"\Z", re.DOTALL), host)


def _fill(text: str, match: re.Match[str]) -> str:
    values = match.groupdict()
    return _PLACEHOLDER.sub(lambda name: values.get(name[1]) or ("" if name[1] in values else name[0]), text)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        _log.warning("assets: %s cannot be read: %s", path, error)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_LINE:
            _log.warning("assets: %s:%d is longer than %d characters and is left out", path, number, MAX_LINE)
        elif line.strip() and not line.strip().startswith("#"):
            yield number, line


class HeaderRules:
    """`_headers`: fields that answers with static files get besides, or lose."""

    def __init__(self, path: Path) -> None:
        self._rules: list[tuple[_Rule, list[tuple[str, str]], list[str]]] = []
        for number, line in _lines(path):
            if not line[0].isspace():
                if len(self._rules) >= MAX_HEADER_RULES:
                    _log.warning("assets: %s:%d: only %d rules are read", path, number, MAX_HEADER_RULES)
                    break
                try:
                    self._rules.append((_rule(line.strip()), [], []))
                except re.error as error:
                    _log.warning("assets: %s:%d: %r is no path: %s", path, number, line.strip(), error)
            elif not self._rules:
                _log.warning("assets: %s:%d: a header without a path above it", path, number)
            elif line.strip().startswith("!"):
                self._rules[-1][2].append(line.strip()[1:].strip().lower())
            else:
                name, colon, value = line.strip().partition(":")
                if not colon or not name.strip() or " " in name.strip():
                    _log.warning("assets: %s:%d: %r is no header", path, number, line.strip())
                else:
                    self._rules[-1][1].append((name.strip(), value.strip()))

    def apply(self, host: str, path: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The fields of an answer. Fields of several rules are joined by commas; one of ours is replaced."""
        added: dict[str, tuple[str, str]] = {}
        for (pattern, only_host), fields, removed in self._rules:
            match = pattern.match(path)
            if match is None or (only_host is not None and only_host != host.lower()):
                continue
            for name in removed:
                added.pop(name, None)
                headers = [pair for pair in headers if pair[0].lower() != name]
            for name, value in fields:
                text = _fill(value, match)
                before = added.get(name.lower())
                added[name.lower()] = (name, text if before is None else f"{before[1]}, {text}")
        if added:
            headers = [*(pair for pair in headers if pair[0].lower() not in added), *added.values()]
        return headers


class RedirectRules:
    """`_redirects`: where paths go, before files are looked up."""

    def __init__(self, path: Path) -> None:
        self._static: dict[str, Redirect] = {}
        self._dynamic: list[tuple[_Rule, Redirect]] = []
        for number, line in _lines(path):
            source, target, *rest = [*line.split(), ""][:3] if len(line.split()) < 3 else line.split()[:3]
            status = rest[0] if rest else ""
            if not target or not source.startswith("/") or not (status or "302").isdigit():
                _log.warning("assets: %s:%d: %r is not `/from to [status]`", path, number, line.strip())
                continue
            redirect = Redirect(target, int(status or 302))
            if redirect.status not in _STATUSES or (redirect.status == 200 and not target.startswith("/")):
                _log.warning("assets: %s:%d: a redirect has a status of %s; 200 only to a path", path, number, _STATUSES)
            elif "*" in source or _PLACEHOLDER.search(source):
                if len(self._dynamic) < MAX_DYNAMIC_REDIRECTS:
                    self._dynamic.append((_rule(source), redirect))
                else:
                    _log.warning(
                        "assets: %s:%d: only %d redirects with * or : are read", path, number, MAX_DYNAMIC_REDIRECTS
                    )
            elif len(self._static) < MAX_STATIC_REDIRECTS:
                self._static.setdefault(source, redirect)
            else:
                _log.warning("assets: %s:%d: only %d redirects are read", path, number, MAX_STATIC_REDIRECTS)

    def find(self, path: str, query: str) -> Redirect | None:
        """Where a path goes, with the query of the request unless the rule has its own."""
        found = self._static.get(path)
        if found is None:
            for (pattern, _), redirect in self._dynamic:
                match = pattern.match(path)
                if match is not None:
                    found = Redirect(_fill(redirect.target, match), redirect.status)
                    break
        if found is None or not query:
            return found
        target, hash_sign, fragment = found.target.partition("#")
        return found if "?" in target else Redirect(f"{target}?{query}{hash_sign}{fragment}", found.status)


class Ignored:
    """`.assetsignore`: files that are not served, in the language of `.gitignore`."""

    def __init__(self, path: Path) -> None:
        self._spec = pathspec.GitIgnoreSpec.from_lines(line for _, line in _lines(path))

    def __contains__(self, relative: object) -> bool:
        return isinstance(relative, str) and self._spec.match_file(relative)


class PathPatterns:
    """`run_worker_first`: a list of paths with `*`; those that begin with `!` take back."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._wanted = [_glob(each) for each in patterns if not each.startswith("!")]
        self._not = [_glob(each[1:]) for each in patterns if each.startswith("!")]

    def match(self, path: str) -> bool:
        return any(each.match(path) for each in self._wanted) and not any(each.match(path) for each in self._not)


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))) + r"\Z", re.DOTALL)
