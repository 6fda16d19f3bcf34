"""What a client has already, and which part it asks for. Source: RFC 9110 §13, §14."""

from __future__ import annotations

import re
from typing import Final


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
