"""`_headers`, `_redirects`, `.assetsignore` and patterns of paths, as the platform reads them beside static files.

Source: platform documentation, Static Assets: "Headers", "Redirects", "Configuration and bindings" (limits there).
"""

from __future__ import annotations

import logging
import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_log = logging.getLogger("roost.assets")

MAX_HEADER_RULES: Final = 100
MAX_STATIC_REDIRECTS: Final = 2000
MAX_DYNAMIC_REDIRECTS: Final = 100
MAX_LINE: Final = 2000
_STATUSES: Final = (200, 301, 302, 303, 307, 308)
_PLACEHOLDER: Final = re.compile(r":([A-Za-z]\w*)", re.ASCII)
_WILD: Final = re.compile(r"\*|:([A-Za-z]\w*)", re.ASCII)
_FIELD: Final = re.compile(r"([!#$%&'*+.^`|~\w-]+)\s*:(.*)", re.ASCII)
_IN_PATH: Final = "/!$&'()*+,;=:@~-._"
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))


class Redirect(NamedTuple):
    """Where a path goes. 200: the file there is answered under the path that was asked for."""

    target: str
    status: int


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    host: str | None


def _rule(source: str) -> _Rule:
    """A path with `*` (anything, `:splat`) and `:name` (up to the next slash, or to what follows it in the rule);
    `https://host` in front is for one host. Matching takes time in proportion to the path, whoever wrote that. Raises
    ValueError."""
    host = None
    if "://" in source:
        parts = urlsplit(source)
        host, source = parts.netloc.lower(), parts.path or "/"
    wild = list(_WILD.finditer(source))
    names = [match[1] or "splat" for match in wild]
    if len(set(names)) < len(names):
        raise ValueError("a name, or *, is in it twice")
    if "*" in [match[0] for match in wild[:-1]]:
        raise ValueError("nothing but plain text can follow a *")
    pieces: list[str] = []
    position = 0
    for match, following in zip_longest(wild, wild[1:]):
        pieces.append(re.escape(source[position : match.start()]))
        position = match.end()
        literal = source[position : following.start() if following else len(source)]
        if match[0] == "*":
            pieces.append("(?P<splat>.*)")
        elif not literal and following:
            raise ValueError(f"{match[0]} and {following[0]} have nothing between them")
        elif literal and not literal.startswith("/"):
            pieces.append(f"(?P<{match[1]}>(?:(?!{re.escape(literal)})[^/])+)")
        else:
            pieces.append(f"(?P<{match[1]}>[^/]+)")
    pieces.append(re.escape(source[position:]))
    return _Rule(re.compile("".join(pieces) + r"\Z", re.DOTALL), host)


def _fill(text: str, match: re.Match[str], safe: str) -> str:
    """What a client sent in the place of a name, encoded where it is not `safe`."""
    values = match.groupdict()
    return _PLACEHOLDER.sub(
        lambda name: quote(values[name[1]], safe=safe, errors="replace") if name[1] in values else name[0], text
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that say something, and "" for one that is left out and would have begun a new rule."""
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
            if not line[0].isspace():
                yield number, ""
        elif line.strip() and not line.strip().startswith("#"):
            yield number, line


class HeaderRules:
    """`_headers`: fields that answers with static files get besides, or lose."""

    def __init__(self, path: Path) -> None:
        self._rules: list[tuple[_Rule, list[tuple[str, str]], list[str]]] = []
        is_left_out = True  # the rule that the line belongs to
        for number, line in _lines(path):
            if not line[:1].isspace():
                if len(self._rules) >= MAX_HEADER_RULES:
                    _log.warning("assets: %s:%d: only %d rules are read", path, number, MAX_HEADER_RULES)
                    break
                is_left_out = not line
                try:
                    self._rules += [] if is_left_out else [(_rule(line.strip()), [], [])]
                except ValueError as error:
                    is_left_out = True
                    _log.warning("assets: %s:%d: %r is no path: %s", path, number, line.strip(), error)
            elif is_left_out:
                _log.warning("assets: %s:%d: a header without a path above it that is read", path, number)
            elif line.strip().startswith("!"):
                self._rules[-1][2].append(line.strip()[1:].strip().lower())
            else:
                field = _FIELD.fullmatch(line.strip())
                if field is None or not _is_value(field[2]):
                    _log.warning("assets: %s:%d: %r is no header", path, number, line.strip())
                else:
                    self._rules[-1][1].append((field[1], field[2].strip()))

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
                text = _fill(value, match, _PRINTABLE)
                before = added.get(name.lower())
                added[name.lower()] = (name, text if before is None else f"{before[1]}, {text}")
        if added:
            headers = [*(pair for pair in headers if pair[0].lower() not in added), *added.values()]
        return headers


def _is_value(text: str) -> bool:
    return all((0x20 <= ord(each) < 0x100 and ord(each) != 0x7F) or each == "\t" for each in text)


class RedirectRules:
    """`_redirects`: where paths go, before files are looked up."""

    def __init__(self, path: Path) -> None:
        self._static: dict[str, Redirect] = {}
        self._dynamic: list[tuple[_Rule, Redirect]] = []
        for number, line in _lines(path):
            if not line:
                continue
            source, target, status = [*line.split(), "", ""][:3]
            if not target or not source.startswith("/") or not re.fullmatch("[0-9]{3}", status or "302"):
                _log.warning("assets: %s:%d: %r is not `/from to [status]`", path, number, line.strip())
                continue
            redirect = Redirect(quote(target, safe=_PRINTABLE), int(status or 302))
            if redirect.status not in _STATUSES or (redirect.status == 200 and not target.startswith("/")):
                _log.warning("assets: %s:%d: a redirect has a status of %s; 200 only to a path", path, number, _STATUSES)
            elif "*" in source or _PLACEHOLDER.search(source):
                self._add_dynamic(source, redirect, f"{path}:{number}")
            elif len(self._static) < MAX_STATIC_REDIRECTS:
                self._static.setdefault(source, redirect)
            else:
                _log.warning("assets: %s:%d: only %d redirects are read", path, number, MAX_STATIC_REDIRECTS)

    def _add_dynamic(self, source: str, redirect: Redirect, where: str) -> None:
        if len(self._dynamic) >= MAX_DYNAMIC_REDIRECTS:
            _log.warning("assets: %s: only %d redirects with * or : are read", where, MAX_DYNAMIC_REDIRECTS)
            return
        try:
            self._dynamic.append((_rule(source), redirect))
        except ValueError as error:
            _log.warning("assets: %s: %r is no path: %s", where, source, error)

    def find(self, path: str, query: str) -> Redirect | None:
        """Where a path goes, with the query of the request unless the rule has its own."""
        found = self._static.get(path)
        if found is None:
            for (pattern, _), redirect in self._dynamic:
                match = pattern.match(path)
                if match is not None:
                    target = _fill(redirect.target, match, _IN_PATH)
                    if target.startswith("//") and not redirect.target.startswith("//"):
                        target = "/" + target.lstrip("/")  # not to another host, as the client would have it
                    found = Redirect(target, redirect.status)
                    break
        if found is None or not query:
            return found
        target, hash_sign, fragment = found.target.partition("#")
        return found if "?" in target else Redirect(f"{target}?{query}{hash_sign}{fragment}", found.status)


class Ignored:
    """`.assetsignore`: files that are not served, in the language of `.gitignore`."""

    def __init__(self, path: Path) -> None:
        self._spec: Any = None
        lines = list(_lines(path))
        if not lines:
            return
        import pathspec  # here, as few have such a file: it takes as long as a tenth of a host's start

        kept = []
        for number, line in lines:
            try:
                pathspec.GitIgnoreSpec.from_lines([line])
                kept.append(line)
            except ValueError as error:
                _log.warning("assets: %s:%d: %r is no pattern: %s", path, number, line, error)
        self._spec = pathspec.GitIgnoreSpec.from_lines(kept)

    def __contains__(self, relative: object) -> bool:
        return self._spec is not None and isinstance(relative, str) and bool(self._spec.match_file(relative))


class PathPatterns:
    """`run_worker_first`: a list of paths with `*`; those that begin with `!` take back."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._wanted = [each.split("*") for each in patterns if not each.startswith("!")]
        self._not = [each[1:].split("*") for each in patterns if each.startswith("!")]

    def match(self, path: str) -> bool:
        return any(_fits(path, each) for each in self._wanted) and not any(_fits(path, each) for each in self._not)


def _fits(path: str, pieces: list[str]) -> bool:
    """Whether a path consists of these pieces, with anything between them."""
    if len(pieces) == 1:
        return path == pieces[0]
    first, *middle, last = pieces
    end = len(path) - len(last)
    if not path.startswith(first) or not path.endswith(last) or end < len(first):
        return False
    position = len(first)
    for piece in middle:
        found = path.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True
