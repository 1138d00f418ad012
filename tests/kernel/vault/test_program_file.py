"""A compiled program's parts, as its file has them, and files that are damaged."""

import ctypes
import mmap
import random
import struct
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from enclave_kernel.vault.program_file import read_program_file
from enclave_kernel.vault.program_memory import map_program, page_end
from enclave_protocol.elf_header import ProgramError

PROGRAM = Path(sys.executable).read_bytes()
TABLE, ENTRY = 64, 56
COUNT = struct.unpack_from("<H", PROGRAM, 56)[0]
LOADS = [
    at
    for at in range(TABLE, TABLE + COUNT * ENTRY, ENTRY)
    if struct.unpack_from("<I", PROGRAM, at)[0] == 1
]
OFFSET, ADDRESS, STORED, SIZE, ALIGNMENT = 8, 16, 32, 40, 48


def changed(at: int, value: int) -> bytes:
    return PROGRAM[:at] + struct.pack("<Q", value) + PROGRAM[at + 8 :]


def test_the_interpreters_own() -> None:
    program = read_program_file(sys.executable)
    assert len(program.segments) == len(LOADS)
    assert Path(program.interpreter).is_file()
    assert any(segment.protection & mmap.PROT_EXEC for segment in program.segments)
    first = program.segments[0]
    assert program.table_address == first.address + TABLE
    executable = next(one for one in program.segments if one.protection & mmap.PROT_EXEC)
    assert executable.address <= program.header.entry < executable.end
    for one, other in pairwise(program.segments):
        assert one.end <= other.address


@pytest.mark.parametrize(
    "data",
    [
        *(changed(LOADS[0] + field, 2**63) for field in (OFFSET, ADDRESS, STORED, SIZE)),
        *(changed(LOADS[-1] + field, 2**64 - 1) for field in (OFFSET, ADDRESS, STORED, SIZE)),
        changed(LOADS[1] + ADDRESS, 1),
        changed(LOADS[-1] + ADDRESS, 0),
        changed(LOADS[0] + ALIGNMENT, 3),
        changed(LOADS[0] + ALIGNMENT, 2**40),
        changed(32, 2**63),
        PROGRAM[: TABLE + ENTRY],
    ],
    ids=range(14),
)
def test_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "program").write_bytes(data)
    with pytest.raises(ProgramError, match="table of segments"):
        read_program_file(str(tmp_path / "program"))


def test_segments_that_share_a_page_move_once(tmp_path: Path) -> None:
    """As old linkers place them, at fixed addresses; the later one has the page, as with exec."""
    machine = PROGRAM[18:20]
    base, data, size = 0x10000, b"initialised data", 0x2000
    header = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0" + machine + b"\1\0\0\0"
    header += struct.pack("<QQQIHHHHHH", base + 0x100, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    table = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, 0x800, 0x800, 0x1000)
    begin = base + 0x800
    table += struct.pack("<IIQQQQQQ", 1, 6, 0x800, begin, begin, len(data), size, 0x1000)
    path = tmp_path / "program"
    path.write_bytes((header + table).ljust(0x800, b"\x90") + data + b"not of it")
    mapped = map_program(str(path), read_program_file(str(path)))
    assert mapped.base == 0
    assert [(move.target, move.size) for move in mapped.moves] == [
        (base, mmap.PAGESIZE),
        (base + mmap.PAGESIZE, page_end(base + 0x800 + size) - base - mmap.PAGESIZE),
    ]
    first, second = mapped.moves
    assert second.source == first.source + first.size
    source = ctypes.string_at(first.source, first.size + second.size)
    assert source[0x800:] == data.ljust(len(source) - 0x800, b"\0")
    libc = ctypes.CDLL(None)
    for move in mapped.moves:
        libc.munmap(ctypes.c_void_p(move.source), ctypes.c_size_t(move.size))


def test_any_damage_is_refused_or_can_be_mapped(tmp_path: Path) -> None:
    source = random.Random(20261126)
    path = tmp_path / "program"
    taken = refused = 0
    for _ in range(500):
        data = bytearray(PROGRAM[:1_048_576])
        for _ in range(source.randint(1, 3)):
            data[source.randrange(4, TABLE + COUNT * ENTRY)] = source.randrange(256)
        path.write_bytes(data)
        try:
            program = read_program_file(str(path))
        except ProgramError:
            refused += 1
            continue
        taken += 1
        for segment in program.segments:
            assert segment.offset + segment.stored <= len(data)
            assert 0 <= segment.address < segment.end <= 2**46
    assert refused > 50
    assert taken + refused == 500
