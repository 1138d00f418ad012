"""Memory that is handed over once, sealed: a memfd nobody can change or shrink any more.

The sender writes and seals, the receiver checks the seals and maps. The mapping is private: what
the receiver writes into it is its own from then on, page by page, and nobody else's ever changes.

Source: docs/spec/vault_calls.md, "Large buffers"; THREATS section E.7.
"""

import contextlib
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from typing import Final

from enclave_protocol.vault_messages import VaultMessageError

__all__ = ["read_sealed", "write_sealed"]

_ALL_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_SEAL_EXEC: Final = 0x20
"""Appears by itself where vm.memfd_noexec is set; Linux 4.14 does not have it."""
_MAX_IO_BYTES: Final = 1 << 30
"""Linux moves at most 2 GiB at once."""
_ALIGNMENT: Final = 64
"""As numpy and Arrow like theirs; the gaps are zeros, for nothing was ever written there."""


def write_sealed(buffers: Sequence[memoryview]) -> int:
    """Return the descriptor of a sealed memfd that holds `buffers`.

    Args:
        buffers: Contiguous bytes.

    Raises:
        OSError: The machine has no memory or descriptor left, or no memfds.
    """
    descriptor = os.memfd_create("enclave-call", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    places, total = _places([len(buffer) for buffer in buffers])
    try:
        os.ftruncate(descriptor, total)
        # write(), not a mapping: a page written in whole is neither zeroed nor faulted in before.
        for place, buffer in zip(places, buffers, strict=True):
            position = 0
            while position < len(buffer):
                part = buffer[position : position + _MAX_IO_BYTES]
                position += os.pwrite(descriptor, part, place + position)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_sealed(descriptor: int, sizes: Sequence[int]) -> list[memoryview]:
    """Return the buffers that `write_sealed` put into a memfd: writable, and the caller's own.

    Args:
        descriptor: As received from whoever; stays open.
        sizes: Of the buffers, in bytes; the caller has limited their sum.

    Raises:
        VaultMessageError: It is no memfd of exactly that size with all four seals; nothing was
            allocated.
    """
    seals = 0
    # Everything but a file in memory answers EINVAL, or EBADF if it was opened with O_PATH.
    with contextlib.suppress(OSError):
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if seals & ~_SEAL_EXEC != _ALL_SEALS:
        raise VaultMessageError("a descriptor came that is no sealed memory")
    places, total = _places(sizes)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != total:
        raise VaultMessageError(
            f"sealed memory of {status.st_size} bytes came, {total} were announced"
        )
    if not total:
        return [memoryview(bytearray()) for _ in sizes]
    try:
        # MAP_SHARED of sealed memory is refused by Linux 4.14 (THREATS M-05).
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        mapped = memoryview(mmap.mmap(descriptor, total, flags=mmap.MAP_PRIVATE, prot=protection))
    except OSError:
        raise VaultMessageError("sealed memory came that cannot be mapped") from None
    return [mapped[place : place + size] for place, size in zip(places, sizes, strict=True)]


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where in the memfd each buffer begins, and the memfd's size; in bytes."""
    places = []
    end = 0
    for size in sizes:
        places.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, end
