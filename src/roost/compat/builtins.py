"""JavaScript's own objects, as far as Python sources use them through `js`: `Object`, `Array`, `Date`, `JSON`, `Math`,
`RegExp`, `Map`, `Set` and the functions of the global object. Source: ECMAScript §19, §20 to §25; reference 1.4.

Long because it is a list of small objects of JavaScript, none of which knows another.
"""

from __future__ import annotations

import base64
import copy
import json as _json
import math
import random
import re
import time
import urllib.parse
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self

from roost.errors import JsException, JsTypeError
from roost.js_values import JsDict, JsList, JsMap
from roost.values import DataCloneError, as_js, decode_js, encode, to_unicode

if TYPE_CHECKING:
    from collections.abc import Iterable


class Object:
    """`Object.fromEntries`, `.values`, `.keys`, `.entries`, `.assign`, `.new()`."""

    @staticmethod
    def new() -> JsDict:
        return JsDict()

    @staticmethod
    def fromEntries(entries: Any) -> JsDict:
        return JsDict(entries.items() if isinstance(entries, dict) else [(name, value) for name, value in entries])

    @staticmethod
    def values(value: Any) -> JsList:
        return JsList(value.object_values() if hasattr(value, "object_values") else value.values())

    @staticmethod
    def keys(value: Any) -> JsList:
        return JsList(value.object_keys() if hasattr(value, "object_keys") else value.keys())

    @staticmethod
    def entries(value: Any) -> JsList:
        return JsList(value.object_entries() if hasattr(value, "object_entries") else value.items())

    @staticmethod
    def assign(target: dict[Any, Any], *sources: Any) -> dict[Any, Any]:
        for source in sources:
            target.update(source)
        return target

    @staticmethod
    def freeze(value: Any) -> Any:
        return value


class Array:
    """`Array.from(items)` (also `from_`), `Array.of`, `Array.new`, `Array.isArray`."""

    @staticmethod
    def new(*items: Any) -> JsList:
        return JsList([None] * items[0] if len(items) == 1 and isinstance(items[0], int) else items)

    of = new

    @staticmethod
    def from_(items: Iterable[Any], function: Any = None) -> JsList:
        return JsList(items if function is None else map(function, items))

    @staticmethod
    def isArray(value: Any) -> bool:
        return isinstance(value, list | tuple)


setattr(Array, "from", staticmethod(Array.from_))


class Date:
    """A point in time, in ms since 1970: `Date.new()`, `Date.new(ms)`, `Date.new(text)`, `Date.new(2026, 0, 31, …)`."""

    def __init__(self, *parts: Any) -> None:
        if not parts:
            self._ms: float = Date.now()
        elif len(parts) > 1:
            self._ms = Date.UTC(*parts)
        elif isinstance(parts[0], str):
            self._ms = Date.parse(parts[0])
        elif isinstance(parts[0], Date | datetime):
            self._ms = parts[0]._ms if isinstance(parts[0], Date) else parts[0].timestamp() * 1000
        else:
            self._ms = float(parts[0])

    @classmethod
    def new(cls, *parts: Any) -> Self:
        return cls(*parts)

    @staticmethod
    def now() -> int:
        return time.time_ns() // 1_000_000

    @staticmethod
    def parse(text: str) -> float:
        """Milliseconds; NaN for what is no date. A date without a time is in UTC, and so is one without a zone here."""
        try:
            found = datetime.fromisoformat(text.strip())
        except ValueError:
            try:
                found = parsedate_to_datetime(text)
            except ValueError:
                return math.nan
        return _whole((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)

    @staticmethod
    def UTC(year: int, month: int = 0, day: int = 1, *more: int) -> float:
        hour, minute, second, ms = [*map(int, more), 0, 0, 0, 0][:4]
        start = datetime(int(year) + int(month) // 12, int(month) % 12 + 1, 1, tzinfo=UTC).timestamp()
        return _whole((start + (int(day) - 1) * 86400 + hour * 3600 + minute * 60 + second) * 1000 + ms)

    def _utc(self) -> datetime:
        if math.isnan(self._ms):
            raise JsException("Invalid time value", "RangeError")
        return datetime.fromtimestamp(self._ms / 1000, UTC)

    def getTime(self) -> float:
        return _whole(self._ms)

    valueOf = getTime

    def toISOString(self) -> str:
        return self._utc().strftime("%Y-%m-%dT%H:%M:%S") + f".{int(self._ms % 1000):03d}Z"

    toJSON = toISOString

    def toUTCString(self) -> str:
        return self._utc().strftime("%a, %d %b %Y %H:%M:%S GMT")

    def getUTCFullYear(self) -> int:
        return self._utc().year

    def getUTCMonth(self) -> int:
        return self._utc().month - 1

    def getUTCDate(self) -> int:
        return self._utc().day

    def getUTCDay(self) -> int:
        return self._utc().isoweekday() % 7

    def getUTCHours(self) -> int:
        return self._utc().hour

    def getUTCMinutes(self) -> int:
        return self._utc().minute

    def getUTCSeconds(self) -> int:
        return self._utc().second

    def getUTCMilliseconds(self) -> int:
        return int(self._ms % 1000)

    # A worker's own time zone is UTC.
    getFullYear, getMonth, getDate, getDay = getUTCFullYear, getUTCMonth, getUTCDate, getUTCDay
    getHours, getMinutes, getSeconds, getMilliseconds = getUTCHours, getUTCMinutes, getUTCSeconds, getUTCMilliseconds

    def getTimezoneOffset(self) -> int:
        return 0

    def to_py(self, **_: Any) -> datetime:
        return self._utc()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Date) and self._ms == other._ms

    def __lt__(self, other: Date) -> bool:
        return self._ms < other._ms

    def __hash__(self) -> int:
        return hash(self._ms)

    def __sub__(self, other: Date) -> float:
        return _whole(self._ms - other._ms)

    def __int__(self) -> int:
        return int(self._ms)

    def __float__(self) -> float:
        return float(self._ms)

    __str__ = toISOString


def _whole(number: float) -> float:
    return number if math.isnan(number) else int(number)


def _deep(value: Any) -> Any:
    if isinstance(value, dict):
        return JsDict({key: _deep(item) for key, item in value.items()})
    return JsList(map(_deep, value)) if isinstance(value, list) else value


class JSON:
    """`JSON.stringify` and `JSON.parse`, whose objects and arrays are read like JavaScript's."""

    @staticmethod
    def stringify(value: Any, replacer: Any = None, space: Any = None) -> str:
        separators = (",", ":") if space is None else (",", ": ")
        if isinstance(replacer, list | tuple) and isinstance(value, dict):
            value = {key: item for key, item in value.items() if key in replacer}
        indent = int(space) if isinstance(space, float) else space
        return _json.dumps(value, separators=separators, ensure_ascii=False, indent=indent, default=_json_of)

    @staticmethod
    def parse(text: str) -> Any:
        try:
            return _deep(_json.loads(text))
        except (ValueError, TypeError) as error:
            raise JsException(str(error), "SyntaxError") from error


def _json_of(value: Any) -> Any:
    to_json = getattr(value, "toJSON", None)
    if to_json is None:
        raise TypeError(f"{type(value).__name__} has no JSON")
    return to_json()


class _Math:
    """`Math`."""

    E, LN10, LN2, LOG10E, LOG2E = math.e, math.log(10), math.log(2), 1 / math.log(10), 1 / math.log(2)
    PI, SQRT1_2, SQRT2 = math.pi, math.sqrt(0.5), math.sqrt(2)

    ceil, floor, trunc = math.ceil, math.floor, math.trunc
    sqrt, cbrt, exp, log, log10, log2, log1p, expm1 = (
        math.sqrt, math.cbrt, math.exp, math.log, math.log10, math.log2, math.log1p, math.expm1,
    )  # fmt: skip
    sin, cos, tan, asin, acos, atan, atan2 = math.sin, math.cos, math.tan, math.asin, math.acos, math.atan, math.atan2
    sinh, cosh, tanh, hypot, abs = math.sinh, math.cosh, math.tanh, math.hypot, abs

    def random(self) -> float:
        return random.random()

    def round(self, number: float) -> int:
        return math.floor(number + 0.5)

    def pow(self, base: float, exponent: float) -> float:
        return float(base**exponent)

    def sign(self, number: float) -> int:
        return (number > 0) - (number < 0)

    def max(self, *numbers: float) -> float:
        return max(numbers, default=-math.inf)

    def min(self, *numbers: float) -> float:
        return min(numbers, default=math.inf)


Math = _Math()


class RegExp:
    """`RegExp.new(pattern, flags)`: `test`, `exec`. The syntax is JavaScript's where Python's `re` has it, too."""

    def __init__(self, pattern: str, flags: str = "") -> None:
        self.source, self.flags, self.lastIndex = pattern, flags, 0
        options = sum({"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}.get(flag, 0) for flag in flags)
        try:
            self._pattern = re.compile(re.sub(r"\(\?<(?![=!])", "(?P<", pattern), options)
        except re.error as error:
            raise JsException(f"Invalid regular expression: /{pattern}/: {error}", "SyntaxError") from error

    @classmethod
    def new(cls, pattern: str, flags: str = "") -> Self:
        return cls(pattern, flags)

    def exec(self, text: str) -> JsList | None:
        moves = "g" in self.flags or "y" in self.flags
        match = self._pattern.search(text, self.lastIndex if moves else 0)
        if moves:
            self.lastIndex = 0 if match is None else match.end()
        if match is None:
            return None
        found = JsList([match[0], *match.groups()])
        vars(found).update(index=match.start(), input=text, groups=JsDict(match.groupdict()))
        return found

    def test(self, text: str) -> bool:
        return self.exec(text) is not None

    def __str__(self) -> str:
        return f"/{self.source}/{self.flags}"


class Map(JsMap):
    """`Map.new(entries)`."""

    @classmethod
    def new(cls, entries: Any = ()) -> Self:
        return cls(entries.items() if isinstance(entries, dict) else entries)

    def set(self, key: Any, value: Any) -> Self:
        self[key] = value
        return self

    def has(self, key: Any) -> bool:
        return key in self

    def delete(self, key: Any) -> bool:
        return self.pop(key, _NONE) is not _NONE

    @property
    def size(self) -> int:
        return len(self)


class Set(set[Any]):
    """`Set.new(items)`."""

    @classmethod
    def new(cls, items: Any = ()) -> Self:
        return cls(items)

    def has(self, item: Any) -> bool:
        return item in self

    def delete(self, item: Any) -> bool:
        found = item in self
        self.discard(item)
        return found

    @property
    def size(self) -> int:
        return len(self)


_NONE: Final = object()


class Error:
    """`Error.new(message)`: something to raise."""

    @staticmethod
    def new(message: str = "", options: Any = None) -> JsException:
        return JsException(str(message))


def atob(text: str) -> str:
    """Base64 to a string of bytes (each character below 256)."""
    squeezed = re.sub(r"[\t\n\f\r ]", "", str(text))
    try:
        return base64.b64decode(squeezed + "=" * (-len(squeezed) % 4), validate=True).decode("latin-1")
    except ValueError as error:
        raise JsException(
            "atob() called with invalid base64-encoded data. (Only whitespace, '+', '/', alphanumeric ASCII characters, and"
            " up to two terminal '=' signs are allowed.)",
            "InvalidCharacterError",
        ) from error


def btoa(text: str) -> str:
    """A string of bytes to Base64."""
    try:
        return base64.b64encode(str(text).encode("latin-1")).decode()
    except UnicodeEncodeError as error:
        raise JsException(
            "btoa() can only operate on characters in the Latin1 (ISO/IEC 8859-1) range.", "InvalidCharacterError"
        ) from error


def structuredClone(value: Any, options: Any = None) -> Any:
    """A deep copy of what can be cloned. Raises DataCloneError with the path to what cannot."""
    if isinstance(value, Date):
        return copy.copy(value)
    try:
        return decode_js(encode(value))
    except DataCloneError:
        raise


_URI_COMPONENT: Final = "!'()*-._~"
_URI: Final = _URI_COMPONENT + ";/?:@&=+$,#"


def encodeURIComponent(text: Any) -> str:
    return urllib.parse.quote(to_unicode(str(text)), safe=_URI_COMPONENT)


def encodeURI(text: Any) -> str:
    return urllib.parse.quote(to_unicode(str(text)), safe=_URI)


def decodeURIComponent(text: Any) -> str:
    try:
        return urllib.parse.unquote(str(text), errors="strict")
    except UnicodeDecodeError as error:
        raise JsException("URI malformed", "URIError") from error


decodeURI = decodeURIComponent


def parseInt(text: Any, radix: int = 10) -> float:
    match = re.match(r"\s*([+-]?)(0[xX])?([0-9a-zA-Z]*)", str(text))
    assert match is not None
    base = 16 if match[2] and radix in (10, 16) else int(radix)
    digits = re.match(f"[{'0123456789abcdefghijklmnopqrstuvwxyz'[:base]}]*", match[3].lower())
    if digits is None or not digits[0]:
        return math.nan
    return int(match[1] + digits[0], base)


def parseFloat(text: Any) -> float:
    match = re.match(r"\s*([+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|Infinity))", str(text))
    return math.nan if match is None else float(match[1])


def isNaN(value: Any) -> bool:
    try:
        return math.isnan(float(value))
    except (TypeError, ValueError):
        return True


__all__ = [
    "JSON", "Array", "Date", "Error", "JsTypeError", "Map", "Math", "Object", "RegExp", "Set", "as_js", "atob", "btoa",
    "decodeURI", "decodeURIComponent", "encodeURI", "encodeURIComponent", "isNaN", "parseFloat", "parseInt",
    "structuredClone",
]  # fmt: skip
