"""The tables against the kernel's own headers, where they are installed."""

import re
from pathlib import Path

import pytest

from enclave_kernel.isolation.syscall_numbers import AARCH64, X86_64

X86_64_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
GENERIC_HEADER = Path("/usr/include/asm-generic/unistd.h")


def numbers_in(header: Path) -> dict[str, int]:
    if not header.exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\b", header.read_text(), re.M)
    return {name: int(number) for name, number in found}


def test_x86_64_is_what_the_header_says() -> None:
    header = numbers_in(X86_64_HEADER)
    known = {name: number for name, number in header.items() if number <= max(X86_64.values())}
    assert known == X86_64


def test_aarch64_is_what_the_header_says() -> None:
    header = numbers_in(GENERIC_HEADER)
    # The header's internal name for the call of two widths.
    header["newfstatat"] = header["fstatat"]
    assert {name: header.get(name) for name in AARCH64} == AARCH64
    # What is missing: calls of other machines, and two that are none.
    others = {"arch_specific_syscall", "syscalls", "fstatat", "sync_file_range2"}
    for name in header.keys() - AARCH64.keys() - others:
        assert name.endswith("64") or header[name] > max(AARCH64.values()), name


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("socket", 41, 198),
        ("clone", 56, 220),
        ("execve", 59, 221),
        ("ptrace", 101, 117),
        ("keyctl", 250, 219),
        ("seccomp", 317, 277),
        ("bpf", 321, 280),
        ("rseq", 334, 293),
        ("clone3", 435, 435),
    ],
)
def test_numbers_known_by_heart(name: str, x86_64: int, aarch64: int) -> None:
    assert (X86_64[name], AARCH64[name]) == (x86_64, aarch64)
