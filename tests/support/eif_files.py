"""EIF files of version 4, written as FACTS describes them."""

import struct
import zlib

__all__ = ["CMDLINE", "KERNEL", "METADATA", "RAMDISK", "eif", "sealed"]

KERNEL, CMDLINE, RAMDISK, METADATA = 1, 2, 3, 5


def eif(sections: list[tuple[int, bytes]], *, flags: int = 0, version: int = 4) -> bytes:
    """Return an image of these sections, each a type and its content."""
    offsets, sizes, body = [], [], b""
    for kind, data in sections:
        offsets.append(548 + len(body))
        sizes.append(len(data))
        body += struct.pack(">HHQ", kind, 0, len(data)) + data
    pad = [0] * (32 - len(sections))
    head = struct.pack(">4sHHQQHH", b".eif", version, flags, 1 << 30, 2, 0, len(sections))
    head += struct.pack(">64QI", *offsets, *pad, *sizes, *pad, 0)
    return head + struct.pack(">I", zlib.crc32(head + body)) + body


def sealed(data: bytes) -> bytes:
    """Return these bytes with its CRC-32 made right again."""
    return data[:544] + struct.pack(">I", zlib.crc32(data[:544] + data[548:])) + data[548:]
