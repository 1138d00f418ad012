"""Writes enclave image files of version 4. Source: FACTS, "EIF version 4"."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from enclave_infra.image.errors import ImageError
from enclave_protocol.eif import CMDLINE, KERNEL, METADATA, RAMDISK, VERSION, Eif, read_eif

__all__ = ["EifParts", "write_eif"]

_MAX_SECTIONS: Final = 32
_HEAD: Final = struct.Struct(f">4sHHQQHH{_MAX_SECTIONS}Q{_MAX_SECTIONS}QI")
_CRC: Final = struct.Struct(">I")
_SECTION: Final = struct.Struct(">HHQ")
_ARM64: Final = 1
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class EifParts:
    """What goes into an image.

    Attributes:
        kernel: The kernel's file, as the boot loader takes it.
        cmdline: Its command line.
        ramdisks: The first one belongs to PCR1, the others to PCR2.
        metadata: JSON; not measured.
        arm64: For Graviton.
        memory_bytes: Suggested by the image; whoever starts it decides.
        cpus: Likewise.
    """

    kernel: Path
    cmdline: str
    ramdisks: Sequence[Path]
    metadata: bytes
    arm64: bool
    memory_bytes: int
    cpus: int


def write_eif(parts: EifParts, output: Path) -> Eif:
    """Write an image; the file appears whole or not at all.

    Returns:
        What the reader finds in it.

    Raises:
        ImageError: There are too many ramdisks, or none.
        OSError: Reading or writing failed.
    """
    contents: list[tuple[int, Path | bytes]] = [
        (KERNEL, parts.kernel),
        (CMDLINE, parts.cmdline.encode("ascii")),
        *((RAMDISK, path) for path in parts.ramdisks),
        (METADATA, parts.metadata),
    ]
    if not parts.ramdisks or len(contents) > _MAX_SECTIONS:
        raise ImageError(
            f"an image has 1 to {_MAX_SECTIONS - 3} ramdisks, not {len(parts.ramdisks)}"
        )
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with temporary.open("x+b") as file:
            _write(parts, contents, file)
        with temporary.open("rb") as written:
            image = read_eif(written)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return image


def _write(parts: EifParts, contents: Sequence[tuple[int, Path | bytes]], file: BinaryIO) -> None:
    sizes = [
        len(content) if isinstance(content, bytes) else content.stat().st_size
        for _, content in contents
    ]
    offsets, position = [], _HEAD.size + _CRC.size
    for size in sizes:
        offsets.append(position)
        position += _SECTION.size + size
    empty = [0] * (_MAX_SECTIONS - len(contents))
    head = _HEAD.pack(
        b".eif",
        VERSION,
        _ARM64 if parts.arm64 else 0,
        parts.memory_bytes,
        parts.cpus,
        0,
        len(contents),
        *(*offsets, *empty),
        *(*sizes, *empty),
        0,
    )
    crc = zlib.crc32(head)
    file.write(head + bytes(_CRC.size))
    for (kind, content), size in zip(contents, sizes, strict=True):
        crc = _put(file, _SECTION.pack(kind, 0, size), crc)
        if isinstance(content, bytes):
            crc = _put(file, content, crc)
            continue
        with content.open("rb") as source:
            while data := source.read(_PIECE_BYTES):
                crc = _put(file, data, crc)
    file.seek(_HEAD.size)
    file.write(_CRC.pack(crc))


def _put(file: BinaryIO, data: bytes, crc: int) -> int:
    file.write(data)
    return zlib.crc32(data, crc)
