"""Transforms of the platform: of a fixed length, text to bytes and back, compression.

Source: Encoding standard §7.4, §7.5; Compression Streams standard; platform documentation, "Streams".
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from roost.api.buffers import to_bytes
from roost.api.chunks import options_of, size_of_chunk
from roost.api.writable_streams import TransformStream
from roost.errors import JsTypeError

_PIECE_BYTES: Final = 256 * 1024


class FixedLengthStream(TransformStream):
    """As many bytes as were announced: more or fewer are an error."""

    def __init__(self, length: int, *_: Any, **__: Any) -> None:
        left = int(length)

        def transform(chunk: Any, controller: Any) -> None:
            nonlocal left
            left -= size_of_chunk(chunk)
            if left < 0:
                raise JsTypeError("Attempt to write too many bytes through a FixedLengthStream.")
            controller.enqueue(chunk)

        def flush(_: Any) -> None:
            if left:
                raise JsTypeError("FixedLengthStream did not see all expected bytes before close().")

        super().__init__({"transform": transform, "flush": flush})


class TextEncoderStream(TransformStream):
    """Text in, UTF-8 out."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__({"transform": lambda chunk, controller: controller.enqueue(str(chunk).encode("utf-8", "replace"))})


class TextDecoderStream(TransformStream):
    """UTF-8 in, text out."""

    encoding = "utf-8"

    def __init__(self, label: str = "utf-8", options: Any = None, **more: Any) -> None:
        import codecs

        fatal = options_of(options, more).get("fatal")
        decoder = codecs.getincrementaldecoder(label)("strict" if fatal else "replace")

        def transform(chunk: Any, controller: Any) -> None:
            if text := decoder.decode(bytes(chunk)):
                controller.enqueue(text)

        def flush(controller: Any) -> None:
            if text := decoder.decode(b"", final=True):
                controller.enqueue(text)

        super().__init__({"transform": transform, "flush": flush})


_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15, "deflate-raw": -15}


def _window_bits(kind: str) -> int:
    if kind not in _WINDOW_BITS:
        raise JsTypeError(f"Unsupported compression format: {kind!r}; it is one of {', '.join(_WINDOW_BITS)}.")
    return _WINDOW_BITS[kind]


class CompressionStream(TransformStream):
    """`gzip`, `deflate` or `deflate-raw`."""

    def __init__(self, kind: str) -> None:
        compressor = zlib.compressobj(wbits=_window_bits(kind))

        def transform(chunk: Any, controller: Any) -> None:
            if piece := compressor.compress(to_bytes(chunk) or b""):
                controller.enqueue(piece)

        super().__init__({"transform": transform, "flush": lambda controller: controller.enqueue(compressor.flush())})


class DecompressionStream(TransformStream):
    """What `CompressionStream` makes, back; in pieces of bounded size."""

    def __init__(self, kind: str) -> None:
        decompressor = zlib.decompressobj(wbits=_window_bits(kind))

        async def transform(chunk: Any, controller: Any) -> None:
            rest = to_bytes(chunk) or b""
            full = False  # zlib may hold back more of what it has read already
            while (rest or full) and not decompressor.eof:
                try:
                    piece = decompressor.decompress(rest, _PIECE_BYTES)
                except zlib.error as error:
                    raise JsTypeError(f"Decompression failed: {error}") from error
                if piece:
                    controller.enqueue(piece)
                    await controller.has_room()
                rest, full = decompressor.unconsumed_tail, len(piece) == _PIECE_BYTES
            if decompressor.eof and (rest or decompressor.unused_data):
                raise JsTypeError("Decompression failed: there is more behind the end of the data.")

        def flush(controller: Any) -> None:
            if not decompressor.eof:
                raise JsTypeError("Decompression failed: the data ends too early.")

        super().__init__({"transform": transform, "flush": flush})
