"""Maps a compiled program into this process, beside what is there, as the kernel does for exec.

A program with fixed addresses may want those of the interpreter that runs this: it is mapped
somewhere else, and moved by the last instructions before it starts (`program_start.py`).

Source: Linux, fs/binfmt_elf.c; mmap(2), mremap(2).
"""

import ctypes
import mmap
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from enclave_kernel.vault.program_file import ProgramFile, Segment

__all__ = ["MappedProgram", "Move", "map_anonymous", "map_program", "page_end", "protect"]

_PROT_NONE: Final = 0
"""Of mmap(2): what is there cannot be touched."""

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_FAILED: Final = ctypes.c_void_p(-1).value
_ANONYMOUS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@dataclass(frozen=True)
class Move:
    """Memory that belongs somewhere else: one mapping, in bytes of whole pages."""

    source: int
    size: int
    target: int


@dataclass(frozen=True)
class MappedProgram:
    """A program in memory.

    Attributes:
        base: What its own addresses count from, once it is moved.
        moves: What is left to do; nothing for a movable program.
    """

    base: int
    moves: tuple[Move, ...]


def map_program(path: str, program: ProgramFile) -> MappedProgram:
    """Map the program at `path`.

    Args:
        path: Its file, where programs may be run.
        program: What the file says.

    Raises:
        OSError: There is not enough memory, or nothing may be run from where the file is.
    """
    alignment = max(mmap.PAGESIZE, *(segment.alignment for segment in program.segments))
    first = _page(program.segments[0].address)
    span = page_end(program.segments[-1].end) - first
    room = map_anonymous(span + alignment, _PROT_NONE, flags=_MAP_NORESERVE)
    # As far from a multiple of the alignment as the file has it.
    start = room + (first - room) % alignment
    ranges: list[tuple[int, int]] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for segment in program.segments:
            ranges += _map_segment(descriptor, segment, start - first)
    finally:
        os.close(descriptor)
    if not program.header.fixed:
        return MappedProgram(start - first, ())
    # A segment may begin on the page that the one before it ends on, and has it then.
    ends = [min(end, following) for (_, end), (following, _) in pairwise([*ranges, (2**64, 0)])]
    return MappedProgram(
        0,
        tuple(
            Move(begin, end - begin, begin - start + first)
            for (begin, _), end in zip(ranges, ends, strict=True)
            if begin < end
        ),
    )


def map_anonymous(size: int, protection: int, *, flags: int = 0) -> int:
    """Return the address of new memory.

    Args:
        size: Bytes.
        protection: PROT_... of mmap(2).
        flags: MAP_... besides MAP_PRIVATE and MAP_ANONYMOUS.

    Raises:
        OSError: There is not enough.
    """
    return _mmap(0, size, protection, _ANONYMOUS | flags)


def protect(address: int, size: int, protection: int) -> None:
    """Change what may be done with memory: address and size in bytes, of whole pages.

    Raises:
        OSError: mprotect(2) refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection) != 0:
        raise _error()


def page_end(address: int) -> int:
    """Return the address, or number of bytes, rounded up to whole pages."""
    return _page(address + mmap.PAGESIZE - 1)


def _map_segment(descriptor: int, segment: Segment, base: int) -> list[tuple[int, int]]:
    """Map a segment over reserved memory; return where each mapping begins and ends."""
    start = base + _page(segment.address)
    stored_end = base + segment.address + segment.stored
    ranges = []
    behind = start
    if segment.stored:
        behind = page_end(stored_end)
        size, flags, offset = behind - start, mmap.MAP_PRIVATE | _MAP_FIXED, _page(segment.offset)
        if segment.size == segment.stored:
            _mmap(start, size, segment.protection, flags, descriptor, offset)
        else:
            _mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, offset)
            ctypes.memset(stored_end, 0, behind - stored_end)
            protect(start, size, segment.protection)
        ranges.append((start, behind))
    if segment.size > segment.stored:
        end = page_end(base + segment.end)
        if end > behind:
            _mmap(behind, end - behind, segment.protection, _ANONYMOUS | _MAP_FIXED)
            ranges.append((behind, end))
    return ranges


def _mmap(
    address: int, size: int, protection: int, flags: int, descriptor: int = -1, offset: int = 0
) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    result = libc.mmap(
        ctypes.c_void_p(address),
        ctypes.c_size_t(size),
        protection,
        flags,
        descriptor,
        ctypes.c_long(offset),
    )
    if result == _FAILED or result is None:
        raise _error()
    return int(result)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _page(address: int) -> int:
    return address & -mmap.PAGESIZE
