"""One message's bytes smaller and back, as permessage-deflate has it (RFC 7692 §7.2). Pure.

Large messages are the library `isal`'s where that is installed (and the environment has no `ROOST_NO_EXTENSIONS`), short
ones are zlib's, which is ahead there. Beside zlib's level 6 isal takes a third less time at 1 KB, a fifth of it at 8 KB and
a twentieth at 64 KB, for 5 to 40 % more bytes. Both are held to the same by `tests/unit/test_deflate.py`; of damaged
messages isal passes some that zlib refuses (incomplete codes), bounded as all others.
"""

from __future__ import annotations

import os
import zlib
from typing import Any, Final

_TAIL: Final = b"\x00\x00\xff\xff"
_LAST_BLOCK: Final = b"\x01\x00\x00\xff\xff"
_MAX_STREAMS: Final = 16

_ISAL_FROM_BYTES: Final = 600  # of a payload
_ISAL_INFLATES_FROM_BYTES: Final = 4096  # of what is compressed
_ISAL_LEVELS: Final = (0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
"""isal's 0 to 3 by zlib's 0 to 9: its 0 gives far more bytes, and is not used."""

ZLIB_MAX_BYTES: Final = 128 * 1024
"""What zlib has to compress may be so large: with more of it one message would hold others up for milliseconds."""


def _isal() -> Any:
    """The library's module like zlib, None without it."""
    if os.environ.get("ROOST_NO_EXTENSIONS"):
        return None
    try:
        from isal import isal_zlib
    except ImportError:  # it is not made for every processor
        return None
    return isal_zlib


fast: Any = _isal()
_ERRORS: Final[tuple[type[Exception], ...]] = (zlib.error,) if fast is None else (zlib.error, fast.error)


def deflate(payload: bytes | memoryview, bits: int, level: int) -> bytes | None:
    """A message's payload compressed, None if that is not smaller or would take long. `level` is zlib's, 1 to 9; the window
    is at most 2^`bits` bytes."""
    size = len(payload)
    if fast is not None and size >= _ISAL_FROM_BYTES and bits >= 9:
        compressor = fast.compressobj(_ISAL_LEVELS[level], zlib.DEFLATED, -bits)
    elif size > ZLIB_MAX_BYTES:
        return None
    else:
        # as large a window as the message needs: setting up a large one costs more than compressing a short message
        needed = max(9, (size - 1).bit_length())
        if needed > bits == 8 and size > 256:  # zlib has no window of 256 bytes; a short message needs none
            return None
        window = min(max(bits, 9), needed, 15)
        compressor = zlib.compressobj(level, zlib.DEFLATED, -window, min(9, window - 6))
    data: bytes = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return data[:-4] if len(data) - 4 < size else None


def inflate(data: bytes, max_bytes: int) -> bytes | None:
    """A compressed message's payload; None if it is larger than `max_bytes`. Raises ValueError if it is damaged or cut.

    Never takes more memory than `max_bytes` and a little, whatever it would become. A sender may end its stream and begin
    another (RFC 7692 §7.2.3.4), but not so often that finding the next one would take the time.
    """
    inflater = zlib if fast is None or len(data) < _ISAL_INFLATES_FROM_BYTES else fast
    left = data + _TAIL
    pieces: list[bytes] = []
    size = 0
    try:
        for _ in range(_MAX_STREAMS):
            decompressor = inflater.decompressobj(-15)
            piece = decompressor.decompress(left, max_bytes - size + 1)
            size += len(piece)
            pieces.append(piece)
            if size > max_bytes or decompressor.unconsumed_tail:
                return None
            left = decompressor.unused_data
            if decompressor.eof and left != _TAIL:
                continue
            # It must end between two blocks: then one more, which is empty and the last, ends the stream.
            if not decompressor.eof and (decompressor.decompress(_LAST_BLOCK, 1) or not decompressor.eof):
                raise ValueError("A compressed message is cut.")
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except _ERRORS as error:
        raise ValueError(f"A compressed message is damaged: {error}") from error
    raise ValueError(f"A compressed message has more than {_MAX_STREAMS} streams.")
