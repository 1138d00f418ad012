"""What the first bytes of an ELF file say: whether it is a program, and for which processor.

Source: System V ABI, generic part, chapter 4, "ELF Header"; elf(5).
"""

import struct
from typing import Final

import msgspec

from enclave_protocol.package_errors import PackageError

__all__ = ["ELF_HEADER_BYTES", "ElfHeader", "ProgramError", "read_elf_header"]

ELF_HEADER_BYTES: Final = 64
_HEADER: Final = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_MAGIC: Final = b"\x7fELF"
_64_BITS, _LITTLE_ENDIAN = 2, 1
_ENTRY_BYTES: Final = 56
"""Of the table of segments."""
_MAX_SEGMENTS: Final = 128
"""Linkers make about ten."""
_FIXED, _MOVABLE = 2, 3
_MACHINES: Final = {62: "x86_64", 183: "aarch64"}


class ProgramError(PackageError):
    """A file of a package is no program that a vault could run."""


class ElfHeader(msgspec.Struct, frozen=True):
    """Of a program.

    Attributes:
        machine: The processor, as `os.uname().machine` has it.
        fixed: It runs at the addresses in the file and at no others.
        entry: Address of its first instruction.
        table_offset: Where in the file the table of segments is, in bytes.
        table_count: Its entries, of 56 bytes each; 1 to 128.
    """

    machine: str
    fixed: bool
    entry: int
    table_offset: int
    table_count: int

    @property
    def table_bytes(self) -> int:
        """Length of the table of segments."""
        return self.table_count * _ENTRY_BYTES


def read_elf_header(head: bytes) -> ElfHeader:
    """Return what a file says of itself.

    Args:
        head: Its first 64 bytes, or all of a shorter one.

    Raises:
        ProgramError: It is no program, or for a processor or an operating mode that no enclave has.
    """
    if head[:2] == b"#!":
        raise ProgramError("is a script for another program, and a vault starts none")
    if len(head) < ELF_HEADER_BYTES or head[:4] != _MAGIC:
        raise ProgramError("is no compiled program (no ELF file)")
    fields = _HEADER.unpack(head[:ELF_HEADER_BYTES])
    _, width, order, _, _, kind, machine, _, entry, table, _, _, _, size, count = fields[:15]
    if (width, order) != (_64_BITS, _LITTLE_ENDIAN) or machine not in _MACHINES:
        raise ProgramError("is compiled for another processor than x86_64 or aarch64")
    if kind not in (_FIXED, _MOVABLE):
        raise ProgramError("is compiled, but no program: link it")
    if entry == 0:
        raise ProgramError("is a shared library: link it as a program")
    if size != _ENTRY_BYTES or not 1 <= count <= _MAX_SEGMENTS:
        raise ProgramError("has a damaged ELF header")
    return ElfHeader(_MACHINES[machine], kind == _FIXED, entry, table, count)
