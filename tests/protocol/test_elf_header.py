"""What the first bytes of a file say: whether it is a program that an enclave could run."""

import os
import struct
import sys
from pathlib import Path

import pytest

from enclave_protocol.elf_header import ELF_HEADER_BYTES, ProgramError, read_elf_header

PROGRAM = Path(sys.executable).read_bytes()[:ELF_HEADER_BYTES]
LIBRARY_ENTRY = struct.pack("<Q", 0)


def changed(at: int, value: bytes) -> bytes:
    return PROGRAM[:at] + value + PROGRAM[at + len(value) :]


def test_the_interpreter_is_a_program() -> None:
    header = read_elf_header(PROGRAM)
    assert header.machine == os.uname().machine
    assert header.fixed == (PROGRAM[16] == 2)
    # The table follows the header, as every linker has it.
    assert header.table_offset == ELF_HEADER_BYTES
    assert header.table_bytes == header.table_count * 56
    assert header.entry > 0


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "no compiled program"),
        (b"MZ" + bytes(62), "no compiled program"),
        (PROGRAM[:63], "no compiled program"),
        (b"#!/bin/sh\necho\n", "a script for another program"),
        (changed(4, b"\1"), "another processor"),
        (changed(5, b"\2"), "another processor"),
        (changed(18, b"\x28\0"), "another processor"),
        (changed(16, b"\1\0"), "link it"),
        (changed(16, b"\4\0"), "link it"),
        (changed(16, b"\3\0" + PROGRAM[18:24] + LIBRARY_ENTRY), "a shared library"),
        (changed(54, b"\x20\0"), "damaged"),
        (changed(56, b"\0\0"), "damaged"),
        (changed(56, b"\xff\xff"), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_none(head: bytes, reason: str) -> None:
    with pytest.raises(ProgramError, match=reason):
        read_elf_header(head)
