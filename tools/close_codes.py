"""Writes `docs/reference/close-codes.md` from `roost/closes.py` (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from roost.closes import WHEN, CloseCode, table

PAGE: Final = Path(__file__).parent.parent / "docs/reference/close-codes.md"
_HEAD: Final = """# Close codes

All codes and reasons by which Roost itself ends a WebSocket. Made from `src/roost/closes.py` by `make docs`.

A program's own codes pass through as they are. Codes of the protocol (1002, 1007, 1009) come with a reason that says what
was wrong. 1006 is never sent: the connection is cut, or was.

| code | reason | when |
|---|---|---|
"""


def page() -> str:
    rows = [f"| {close.code:d} | {close.reason} | {WHEN[name]} |" for name, close in table().items()]
    rows += [
        f"| {CloseCode.PROTOCOL_ERROR:d} | what was wrong with the frame | the client broke RFC 6455 |",
        f"| {CloseCode.INVALID_DATA:d} | what was not UTF-8 | a text message, or a close reason |",
        f"| {CloseCode.TOO_BIG:d} | the size and the limit | a message of more than `limits.max_message_bytes` |",
    ]
    return _HEAD + "\n".join(sorted(rows, key=lambda row: int(row[2:6]))) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
