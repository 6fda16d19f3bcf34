"""`URL` and `URLSearchParams`: the WHATWG parser that workerd has, too (Ada). Source: URL standard §4, §5, §6."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any, Self

import ada_url

from roost.errors import JsTypeError
from roost.values import to_unicode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class URLSearchParams:
    """A query string as a multimap."""

    is_url_encoded = True

    def __init__(self, query: Any = "", changed: Callable[[str], None] | None = None) -> None:
        if query is None or isinstance(query, str):
            self._pairs = _parse(str(query or "").removeprefix("?"))
        elif isinstance(query, URLSearchParams):
            self._pairs = list(query._pairs)
        else:
            self._pairs = [(str(k), str(v)) for k, v in (query.items() if hasattr(query, "items") else query)]
        self._changed = changed

    @classmethod
    def new(cls, query: Any = "") -> Self:
        return cls(query)

    def _set(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        if self._changed is not None:
            self._changed(str(self))

    @property
    def size(self) -> int:
        return len(self._pairs)

    def get(self, name: str, default: Any = None) -> Any:
        return next((value for key, value in self._pairs if key == name), default)

    def getAll(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    get_all = getAll

    def has(self, name: str, value: Any = None) -> bool:
        return any(key == name and value in (None, held) for key, held in self._pairs)

    def set(self, name: str, value: Any) -> None:
        """The first of that name changes its value, the others go; without one it comes last."""
        kept, found = [], False
        for pair in self._pairs:
            if pair[0] != name:
                kept.append(pair)
            elif not found:
                kept.append((name, str(value)))
                found = True
        self._set(kept if found else [*kept, (str(name), str(value))])

    def append(self, name: str, value: Any) -> None:
        self._set([*self._pairs, (str(name), str(value))])

    def delete(self, name: str, value: Any = None) -> None:
        self._set([(key, held) for key, held in self._pairs if key != name or value not in (None, held)])

    def sort(self) -> None:
        self._set(sorted(self._pairs, key=lambda pair: pair[0].encode("utf-16-be", "surrogatepass")))

    def entries(self) -> list[tuple[str, str]]:
        return list(self._pairs)

    items = entries

    def keys(self) -> list[str]:
        return [key for key, _ in self._pairs]

    def values(self) -> list[str]:
        return [value for _, value in self._pairs]

    def forEach(self, function: Callable[..., Any]) -> None:
        for key, value in self._pairs:
            function(value, key)

    def to_py(self, **_: Any) -> dict[str, str]:
        return dict(self._pairs)

    def toString(self) -> str:
        return "&".join(f"{_encode(key)}={_encode(value)}" for key, value in self._pairs)

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self._pairs)

    def __getitem__(self, name: str) -> str:
        if (value := self.get(name)) is None:
            raise KeyError(name)
        return str(value)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    __str__ = toString

    def __repr__(self) -> str:
        return f"URLSearchParams({self})"


def _parse(query: str) -> list[tuple[str, str]]:
    pairs = []
    for part in query.split("&"):
        if part:
            name, _, value = part.replace("+", " ").partition("=")
            pairs.append((urllib.parse.unquote(name), urllib.parse.unquote(value)))
    return pairs


def _encode(text: str) -> str:
    return urllib.parse.quote_plus(to_unicode(text), safe="*-._").replace("~", "%7E")


class URL:
    """An absolute URL in its parts, which may be set."""

    def __init__(self, url: Any, base: Any = None) -> None:
        try:
            self._url = ada_url.URL(str(url), None if base is None else str(base))
        except ValueError:
            raise JsTypeError(f"Invalid URL string: {str(url)!r}.") from None
        self._params: URLSearchParams | None = None

    @classmethod
    def new(cls, url: Any, base: Any = None) -> Self:
        return cls(url, base)

    @staticmethod
    def canParse(url: Any, base: Any = None) -> bool:
        return bool(ada_url.check_url(str(url)) if base is None else ada_url.URL.can_parse(str(url), str(base)))

    can_parse = canParse

    @classmethod
    def parse(cls, url: Any, base: Any = None) -> Self | None:
        return cls(url, base) if cls.canParse(url, base) else None

    @property
    def origin(self) -> str:
        return str(self._url.origin)

    @property
    def searchParams(self) -> URLSearchParams:
        """Live: what is changed here is in the URL."""
        if self._params is None:
            self._params = URLSearchParams(self._url.search, self._set_search)
        return self._params

    search_params = searchParams

    def _set_search(self, query: str) -> None:
        self._url.search = query

    def toString(self) -> str:
        return str(self._url.href)

    toJSON = toString

    __str__ = toString

    def __eq__(self, other: object) -> bool:
        return isinstance(other, URL) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"


def _part(name: str) -> property:
    def get(self: URL) -> str:
        return str(getattr(self._url, name))

    def put(self: URL, value: Any) -> None:
        if name == "href" and not URL.canParse(value):
            raise JsTypeError(f"Invalid URL string: {str(value)!r}.")
        setattr(self._url, name, str(value))
        self._params = None

    return property(get, put)


for _name in ("href", "protocol", "username", "password", "host", "hostname", "port", "pathname", "search", "hash"):
    setattr(URL, _name, _part(_name))
