"""Writes `docs/reference/close-codes.md` from `roost/closes.py` (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from roost.closes import WHEN, table

PAGE: Final = Path(__file__).parent.parent / "docs/reference/close-codes.md"
_HEAD: Final = """# Close codes

All codes and reasons by which Roost itself ends a WebSocket. Made from `src/roost/closes.py` by `make docs`.

A program's own codes pass through as they are. What stands in braces is filled in. 1006 is never sent: the
connection is cut, or was.

| code | reason | when |
|---|---|---|
"""


def page() -> str:
    rows = [f"| {close.code:d} | {close.reason} | {WHEN[name]} |" for name, close in table().items()]
    return _HEAD + "\n".join(sorted(rows, key=lambda row: int(row[2:6]))) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
