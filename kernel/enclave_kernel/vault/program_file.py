"""Reads what a compiled program says of its parts in memory. Nothing is mapped here.

Source: System V ABI, generic part, chapter 5, "Program Header"; elf(5).
"""

import mmap
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from enclave_protocol.elf_header import ELF_HEADER_BYTES, ElfHeader, ProgramError, read_elf_header

__all__ = ["ProgramFile", "Segment", "read_program_file"]

_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_LOAD, _INTERPRETER, _STACK = 1, 3, 0x6474E551
_EXECUTE, _WRITE, _READ = 1, 2, 4
_MAX_PATH_BYTES: Final = 4096
_MAX_ADDRESS: Final = 2**46
"""What user programs have on either processor is more."""
_MAX_ALIGNMENT: Final = 2**30


@dataclass(frozen=True)
class Segment:
    """A part of the file that is loaded into memory. All numbers are bytes.

    Attributes:
        offset: Where it begins in the file.
        address: Where it begins in memory; of a movable program, counted from its base.
        stored: Its length in the file.
        size: Its length in memory; what is not stored is zero.
        protection: PROT_... of mmap(2).
        alignment: What its address is aligned to, as the file wants it.
    """

    offset: int
    address: int
    stored: int
    size: int
    protection: int
    alignment: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size


@dataclass(frozen=True)
class ProgramFile:
    """What a file says; it can still be wrong, to its own harm.

    Attributes:
        header: What it is.
        segments: At least one, by address; none overlaps another.
        interpreter: Path of the loader that it names, "" for a static program.
        executable_stack: It has code on its stack.
    """

    header: ElfHeader
    segments: tuple[Segment, ...]
    interpreter: str
    executable_stack: bool

    @property
    def table_address(self) -> int:
        """Where the table of segments is in memory; 0 if it is in none of them."""
        first = self.header.table_offset
        last = first + self.header.table_bytes
        for segment in self.segments:
            if segment.offset <= first and last <= segment.offset + segment.stored:
                return segment.address + first - segment.offset
        return 0


def read_program_file(path: str) -> ProgramFile:
    """Return what the file at `path` says of itself.

    Args:
        path: The file.

    Raises:
        ProgramError: It is no program, is damaged, or is for another processor than this one.
        OSError: It cannot be read.
    """
    with Path(path).open("rb", buffering=0) as file:
        descriptor = file.fileno()
        header = read_elf_header(os.pread(descriptor, ELF_HEADER_BYTES, 0))
        machine = os.uname().machine
        if header.machine != machine:
            raise ProgramError(f"is compiled for {header.machine}, and this enclave is {machine}")
        length = os.fstat(descriptor).st_size
        if header.table_offset + header.table_bytes > length:
            raise ProgramError("ends within its table of segments")
        table = os.pread(descriptor, header.table_bytes, header.table_offset)
        segments, interpreter, executable_stack = [], "", False
        for kind, flags, offset, address, _, stored, size, alignment in _SEGMENT.iter_unpack(table):
            if kind == _INTERPRETER and offset + stored <= length:
                path_bytes = os.pread(descriptor, min(stored, _MAX_PATH_BYTES), offset)
                interpreter = os.fsdecode(path_bytes.partition(b"\0")[0])
            elif kind == _STACK:
                executable_stack = bool(flags & _EXECUTE)
            elif kind == _LOAD and size:
                protection = _protection(flags)
                segments.append(Segment(offset, address, stored, size, protection, alignment))
    if not _fit(segments, length):
        raise ProgramError("has a damaged table of segments")
    return ProgramFile(header, tuple(segments), interpreter, executable_stack)


def _protection(flags: int) -> int:
    protection = mmap.PROT_READ if flags & _READ else 0
    protection |= mmap.PROT_WRITE if flags & _WRITE else 0
    return protection | (mmap.PROT_EXEC if flags & _EXECUTE else 0)


def _fit(segments: list[Segment], length: int) -> bool:
    """Say whether the segments can be mapped as they are."""
    page = mmap.PAGESIZE
    return (
        bool(segments)
        and all(
            segment.end <= _MAX_ADDRESS
            and segment.stored <= segment.size
            and segment.offset + segment.stored <= length
            and (not segment.stored or segment.offset % page == segment.address % page)
            and segment.alignment <= _MAX_ALIGNMENT
            and segment.alignment & (segment.alignment - 1) == 0
            for segment in segments
        )
        and all(one.end <= other.address for one, other in pairwise(segments))
    )
