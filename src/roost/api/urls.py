"""URLs as the WHATWG parser writes them. Source: URL standard §4.5."""

from __future__ import annotations

import re
from typing import Final

import ada_url

_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_NORMAL: Final = re.compile(
    rf"https?://(?![^/]*xn--)(?:(?:[a-z0-9-]+\.)*[a-z][a-z0-9-]*|{_BYTE}(?:\.{_BYTE}){{3}})(?::(?:[1-9]\d{{3}}|[1-5]\d{{4}}))?"
    r"/(?![^?]*(?:/\.|%2[eE]))(?!\.)[A-Za-z0-9/_.~!$&()*+,;=:@%-]*(?:\?[A-Za-z0-9/_.~!$&()*+,;=:@%?-]*)?"
).fullmatch
"""What most requests ask for, which the parser would not change; it takes ten times as long."""


_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.~!$&()*+,;=:@-]*(?:\?[A-Za-z0-9/_.~!$&()*+,;=:@%?-]*)?").fullmatch  # a path
_MAX_ORIGINS: Final = 64
_origins: set[str] = set()  # of URLs that were as the parser writes them


def normalised(url: str) -> str | None:
    """An absolute URL as the parser writes it; None for what is none."""
    path = url.find("/", 8)
    if path > 0 and url[:path] in _origins and "/." not in url and _PLAIN(url, path) is not None:
        return url
    if _NORMAL(url) is not None:
        if len(_origins) >= _MAX_ORIGINS:
            _origins.clear()
        _origins.add(url[:path])
        return url
    try:
        return str(ada_url.URL(url).href)
    except ValueError:
        return None
