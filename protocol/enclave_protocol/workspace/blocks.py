"""Blocks of a file and their hashes: what of a large file need not travel again.

Blocks lie at multiples of their size, and are the same only at the same place: what is appended or
written in place is found, what is moved within a file is not. A rolling checksum as rsync's would
find it too, at a price for every byte that only compiled code can pay; models, tables and logs grow
or are written anew (docs/spec/workspace.md, "Blocks").
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Final

from enclave_protocol.workspace.messages import Signature

__all__ = ["HASH_BYTES", "MIN_SIGNED_BYTES", "block_bytes_for", "digest_of", "sign", "unchanged"]

HASH_BYTES: Final = 32
MIN_SIGNED_BYTES: Final = 256 * 1024
"""Smaller files travel whole."""
_MIN_BLOCK_BYTES: Final = 64 * 1024
_MAX_BLOCKS: Final = 16384
"""So that a signature has at most 512 KiB, whatever the file's size."""
_READ_BYTES: Final = 1024 * 1024


def block_bytes_for(size: int) -> int:
    """Return the size of the blocks of a file of `size` bytes."""
    block = _MIN_BLOCK_BYTES
    while size > block * _MAX_BLOCKS:
        block *= 2
    return block


def sign(descriptor: int, size: int, block_bytes: int | None = None) -> Signature:
    """Return the hashes of a file's blocks.

    Args:
        descriptor: Open for reading; its position does not matter and does not change.
        size: Bytes to sign, from its start.
        block_bytes: Of the file it is to be compared with; None: as fits this file.

    Raises:
        OSError: It cannot be read.
    """
    block = block_bytes or block_bytes_for(size)
    digests = b"".join(
        _hash_range(descriptor, at, min(at + block, size)) for at in range(0, size, block)
    )
    return Signature(block, digests)


def _hash_range(descriptor: int, start: int, end: int) -> bytes:
    digest = hashlib.sha256()
    for data in _read(descriptor, start, end):
        digest.update(data)
    return digest.digest()


def _read(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        data = os.pread(descriptor, min(_READ_BYTES, end - start), start)
        if not data:
            return
        yield data
        start += len(data)


def digest_of(descriptor: int, size: int) -> bytes:
    """Return the SHA-256 of a file's first `size` bytes.

    Raises:
        OSError: It cannot be read.
    """
    return _hash_range(descriptor, 0, size)


def unchanged(descriptor: int, size: int, theirs: Signature) -> Iterator[tuple[int, int, bool]]:
    """Cut a file into ranges that the other side has, or has not; neighbours of a kind are one.

    Args:
        descriptor: Our file.
        size: Its bytes.
        theirs: Signature of their file.

    Yields:
        Offset, size, and whether they have it.

    Raises:
        OSError: It cannot be read.
    """
    block = theirs.block_bytes
    start, known = 0, False
    for number, offset in enumerate(range(0, size, block)):
        expected = theirs.digests[number * HASH_BYTES : (number + 1) * HASH_BYTES]
        end = min(offset + block, size)
        # Their last block may be shorter: then it has another hash, unless the file ends there.
        same = bool(expected) and _hash_range(descriptor, offset, end) == expected
        if same != known:
            if offset > start:
                yield start, offset - start, known
            start, known = offset, same
    if size > start:
        yield start, size - start, known
