"""Pixels as a PNG file that holds them and nothing else: no text, no profile, no date."""

import struct
import zlib
from typing import Final

__all__ = ["encode_png"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}
_NO_FILTER: Final = b"\x00"


def encode_png(width: int, height: int, channels: int, pixels: bytes | memoryview) -> bytes:
    """Return the file.

    Args:
        width: Pixels in a row.
        height: Rows.
        channels: Bytes for each pixel: 1 grey, 3 red, green and blue, 4 with opacity.
        pixels: Rows from the top, without gaps.

    Raises:
        ValueError: The pixels do not fit the size.
    """
    row = width * channels
    if channels not in _COLOUR_TYPES or min(width, height) < 1 or row * height != len(pixels):
        raise ValueError("the pixels do not fit the image's size")
    compressor = zlib.compressobj()
    data = bytearray()
    for start in range(0, len(pixels), row):
        data += compressor.compress(_NO_FILTER)
        data += compressor.compress(pixels[start : start + row])
    data += compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", bytes(data)), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
