"""`FormData`: form fields, URL-encoded or multipart. Source: reference 1.1; RFC 7578; Fetch standard §5.5.

No I/O. Multipart is split by its boundary and each part taken as its bytes: `email`'s parser decodes and reads them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from email.message import Message
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlencode

from roost.api.buffers import Blob, File
from roost.errors import JsTypeError
from roost.values import to_unicode

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FIELDS: Final = 10_000
URL_ENCODED: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"
_MAX_PART_HEAD_BYTES: Final = 8 * 1024
_PARAMETER: Final = re.compile(r';\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_EXTENDED: Final = re.compile(r";\s*filename\*=utf-8''([^;\s]+)", re.IGNORECASE)

FormDataValue = str | Blob


class FormData(MutableMapping[str, Any]):
    """Fields in order, several of one name. Values are str, Blob or File."""

    def __init__(self, fields: Any = None) -> None:
        self._fields: list[tuple[str, FormDataValue]] = []
        if isinstance(fields, FormData):
            self._fields = list(fields._fields)
        elif fields is not None:
            for name, value in fields.items() if hasattr(fields, "items") else fields:
                self.append(name, value)

    @classmethod
    def new(cls, fields: Any = None) -> Self:
        return cls(fields)

    def append(self, key: str, value: Any, filename: str | None = None) -> None:
        """One more value of a field."""
        if isinstance(value, Blob):
            if filename is not None or not isinstance(value, File):
                value = File([value], filename or "blob", value.content_type)
        elif isinstance(value, list | tuple | dict):
            raise TypeError(f"A form's value is str, Blob or File, not {type(value).__name__}; append() each of several.")
        else:
            value = str(value)
        self._fields.append((str(key), value))

    def delete(self, key: str) -> None:
        self._fields = [field for field in self._fields if field[0] != key]

    def get_all(self, key: str) -> list[Any]:
        return [value for name, value in self._fields if name == key]

    getAll = get_all

    def has(self, key: str) -> bool:
        return key in self

    def set(self, key: str, value: Any, filename: str | None = None) -> None:
        self.delete(key)
        self.append(key, value, filename)

    def __getitem__(self, key: str) -> Any:
        for name, value in self._fields:
            if name == key:
                return value
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self.delete(key)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._fields])

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:
        return any(name == key for name, _ in self._fields)

    def items(self) -> Any:
        """All fields, also several of one name."""
        return list(self._fields)

    entries = items

    def keys(self) -> Any:
        return [name for name, _ in self._fields]

    def values(self) -> Any:
        return [value for _, value in self._fields]

    @property
    def js_object(self) -> Self:
        return self

    def encoded(self) -> tuple[bytes, str]:
        """As a multipart body: its bytes and its content type."""
        boundary = f"----RoostFormBoundary{secrets.token_hex(12)}"
        parts: list[bytes] = []
        for name, value in self._fields:
            head = f'Content-Disposition: form-data; name="{_quoted(to_unicode(name))}"'
            body: bytes
            if isinstance(value, File):
                kind = value.content_type or "application/octet-stream"
                head += f'; filename="{_quoted(to_unicode(value.name))}"\r\nContent-Type: {_line(kind)}'
                body = value.raw
            else:
                body = to_unicode(str(value)).encode()
            parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + body + b"\r\n")
        return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"{MULTIPART}; boundary={boundary}"

    def urlencoded(self) -> str:
        return urlencode([(name, value) for name, value in self._fields if isinstance(value, str)])

    def __repr__(self) -> str:
        return f"FormData({self._fields!r})"


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "")


def parse_form(body: bytes, content_type: str) -> FormData:
    """The fields of a body. Raises TypeError (as JsException) for another type, a damaged body or too many fields."""
    kind = content_type.split(";")[0].strip().lower()
    if kind == URL_ENCODED:
        try:
            text = body.decode("utf-8", "replace")
            return FormData(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS))
        except ValueError as error:
            raise JsTypeError(f"The form has more than {MAX_FIELDS} fields.") from error
    if kind != MULTIPART:
        raise JsTypeError(f"form_data() reads {URL_ENCODED} and {MULTIPART}; the body is {content_type or 'untyped'}.")
    return _parse_multipart(body, content_type)


def _parse_multipart(body: bytes, content_type: str) -> FormData:
    """Parts between boundaries, their bytes as they are (RFC 7578, RFC 2046 §5.1.1)."""
    header = Message()
    header["Content-Type"] = _line(content_type)
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise JsTypeError("The multipart body has no boundary.")
    mark = b"--" + boundary.encode("latin-1", "replace")
    position = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if position == 1:
        raise JsTypeError("The multipart body does not begin with its boundary.")
    form = FormData()
    while True:
        position += len(mark)
        if body.startswith(b"--", position):
            return form
        start = body.find(b"\r\n", position)
        head_end = body.find(b"\r\n\r\n", start)
        end = -1 if start < 0 or head_end < 0 else body.find(b"\r\n" + mark, head_end + 4)
        if end < 0 and head_end >= 0 and body.startswith(b"\r\n" + mark, head_end + 2):
            end = head_end + 2  # an empty part whose blank line is the boundary's
        if end < 0 or head_end - start > _MAX_PART_HEAD_BYTES:
            raise JsTypeError("The multipart body is cut, or has a part with too long a head.")
        if len(form) == MAX_FIELDS:
            raise JsTypeError(f"The form has more than {MAX_FIELDS} fields.")
        _add_part(form, body[start + 2 : head_end].decode("utf-8", "replace"), body[head_end + 4 : end])
        position = end + 2


def _add_part(form: FormData, head: str, raw: bytes) -> None:
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))
    }
    disposition = fields.get("content-disposition", "")
    found = {match[1].lower(): _unquoted(match[2]) for match in _PARAMETER.finditer(disposition)}
    if "name" not in found:
        raise JsTypeError("A part of the multipart body has no name.")
    filename = found.get("filename")
    if (extended := _EXTENDED.search(disposition)) is not None:
        filename = unquote(extended[1], "utf-8", "replace")
    if filename is None:
        form.append(found["name"], raw.decode("utf-8", "replace"))
    else:
        form.append(found["name"], File([raw], filename, fields.get("content-type", "application/octet-stream")))


def _unquoted(text: str) -> str:
    return text.replace('\\"', '"').replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
