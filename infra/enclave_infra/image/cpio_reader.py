"""Reads the cpio archives in an image's ramdisks, with limits: images may be somebody else's.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import msgspec

from enclave_infra.image.errors import ImageError

__all__ = ["ArchiveEntry", "read_ramdisk"]

_HEADER_BYTES: Final = 110
_MAGICS: Final = (b"070701", b"070702")
_TRAILER: Final = "TRAILER!!!"
_MAX_NAME_BYTES: Final = 4096
_MAX_ENTRIES: Final = 1_000_000
_MAX_LINK_BYTES: Final = 4096
_PIECE_BYTES: Final = 1 << 18
_GZIP: Final = b"\x1f\x8b"
_S_IFMT, _S_IFLNK = 0o170000, 0o120000


class ArchiveEntry(msgspec.Struct, frozen=True):
    """One entry: `sha256` is of its content, `link` a symbolic link's target."""

    name: str
    mode: int
    owner: tuple[int, int]
    size_bytes: int
    device: tuple[int, int]
    sha256: str
    link: str = ""


def read_ramdisk(
    stream: BinaryIO, size: int, keep: Callable[[str], bool] = lambda _: False
) -> Iterator[tuple[ArchiveEntry, bytes]]:
    """Yield the entries of one ramdisk, in their order.

    Args:
        stream: Positioned at the ramdisk's first byte: plain, or one or more members of gzip.
        size: The ramdisk's bytes.
        keep: Says by name which contents are wanted; of the others the bytes are empty.

    Raises:
        ImageError: It is no such archive.
    """
    source = _Plain(stream, size)
    for _ in range(_MAX_ENTRIES):
        item = _entry(source, keep)
        if item is None:
            return
        yield item
    raise ImageError(f"the ramdisk has more than {_MAX_ENTRIES} entries")


class _Plain:
    """The uncompressed bytes of a ramdisk."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size
        self._buffer = b""
        self._at = 0
        first = self._raw()
        self._unpacker = zlib.decompressobj(31) if first[:2] == _GZIP else None
        self._pending = first
        self.position = 0

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            piece = self._piece()
            if not piece:
                raise ImageError("a ramdisk ends in the middle of an entry, or is no gzip or cpio")
            self._buffer = self._buffer[self._at :] + piece
            self._at = 0
        data = self._buffer[self._at : self._at + size]
        self._at += size
        self.position += size
        return data

    def _piece(self) -> bytes:
        if self._unpacker is None:
            data, self._pending = self._pending or self._raw(), b""
            return data
        while True:
            if self._unpacker.eof:
                self._pending = self._unpacker.unused_data or self._raw()
                if self._pending[:2] != _GZIP:
                    return b""
                self._unpacker = zlib.decompressobj(31)
            data = self._pending or self._raw()
            if not data:
                return b""
            try:
                plain = self._unpacker.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise ImageError(f"a ramdisk cannot be unpacked: {error}") from error
            self._pending = self._unpacker.unconsumed_tail
            if plain:
                return plain

    def _raw(self) -> bytes:
        data = self._stream.read(min(self._left, _PIECE_BYTES))
        self._left -= len(data)
        return data


def _entry(source: _Plain, keep: Callable[[str], bool]) -> tuple[ArchiveEntry, bytes] | None:
    header = source.exactly(_HEADER_BYTES)
    if header[:6] not in _MAGICS:
        raise ImageError(f"an entry begins with {header[:6].hex()}, expected a cpio archive (newc)")
    try:
        fields = [int(header[start : start + 8], 16) for start in range(6, _HEADER_BYTES, 8)]
    except ValueError as error:
        raise ImageError("an entry's header is not hexadecimal") from error
    _, mode, uid, gid, _, _, size, _, _, major, minor, name_size, _ = fields
    if not 1 < name_size <= _MAX_NAME_BYTES:
        raise ImageError(f"an entry's name has {name_size} bytes, expected 2 to {_MAX_NAME_BYTES}")
    name = source.exactly(name_size)[:-1].decode("utf-8", "surrogateescape")
    source.exactly(-source.position % 4)
    if name == _TRAILER:
        return None
    link = mode & _S_IFMT == _S_IFLNK
    if link and size > _MAX_LINK_BYTES:
        raise ImageError(f"the link {name} has a target of {size} bytes")
    digest, kept, left = hashlib.sha256(), [], size
    wanted = link or keep(name)
    while left:
        data = source.exactly(min(left, _PIECE_BYTES))
        left -= len(data)
        digest.update(data)
        if wanted:
            kept.append(data)
    source.exactly(-source.position % 4)
    content = b"".join(kept)
    target = content.decode("utf-8", "surrogateescape") if link else ""
    entry = ArchiveEntry(name, mode, (uid, gid), size, (major, minor), digest.hexdigest(), target)
    return entry, content
