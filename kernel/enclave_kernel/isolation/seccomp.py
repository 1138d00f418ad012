"""Seccomp filters: compiled to classic BPF here, installed by one prctl; no library is needed.

What to allow is somebody else's decision (`vault_syscalls.py`).

Source: THREATS B.3 and C; Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from enclave_kernel.isolation.syscall_numbers import AARCH64, X86_64
from enclave_protocol.errors import EnclaveError

__all__ = [
    "ARCHITECTURES",
    "ENOSYS",
    "EPERM",
    "RET_ALLOW",
    "RET_ERRNO",
    "RET_KILL_PROCESS",
    "Architecture",
    "Condition",
    "Policy",
    "SeccompError",
    "compile_filter",
    "install_filter",
]

EPERM: Final = 1
ENOSYS: Final = 38
RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_X32_BIT: Final = 0x40000000
_MAX_INSTRUCTIONS: Final = 4096
_MAX_VALUES: Final = 255
"""What a conditional jump reaches over."""
_NR_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x05, 0x15, 0x35

_Instruction = tuple[int, int, int, int]
_Code = list[_Instruction]


class SeccompError(EnclaveError):
    """A filter cannot be compiled or installed."""


@dataclass(frozen=True)
class Architecture:
    """What differs between processors.

    Attributes:
        audit_code: AUDIT_ARCH_... of its 64-bit ABI; every other ABI is killed.
        numbers: System calls by name.
    """

    audit_code: int
    numbers: Mapping[str, int]


ARCHITECTURES: Final = {
    "x86_64": Architecture(0xC000003E, X86_64),
    "aarch64": Architecture(0xC00000B7, AARCH64),
}
"""By `os.uname().machine`."""


@dataclass(frozen=True)
class Condition:
    """`argument & mask` must be one of `values`, or with `refuse` none of them. 32 bits each.

    The kernel takes an int argument from the low half of the register: comparing 64 bits would let
    `(1 << 32) | 40` pass for something else than 40 (THREATS K-07). A pointer has two conditions.
    """

    argument: int
    values: frozenset[int]
    mask: int = 0xFFFFFFFF
    high: bool = False
    refuse: bool = False


@dataclass(frozen=True)
class Policy:
    """Which system calls pass, by name. Names that the architecture lacks are skipped.

    Attributes:
        allowed: Pass.
        conditional: Pass if all conditions hold.
        alternatives: Pass if all conditions of one of several sets hold.
        missing: Answer ENOSYS, as every call does that is newer than the table of numbers: the
            C library then takes an older way. All others answer EPERM.
    """

    allowed: frozenset[str]
    conditional: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    alternatives: Mapping[str, tuple[tuple[Condition, ...], ...]] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()


def compile_filter(policy: Policy, machine: str) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    Args:
        policy: What passes.
        machine: A key of `ARCHITECTURES`.

    Raises:
        SeccompError: There is no table for this machine, or the filter is too long.
    """
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise SeccompError(
            f"no system call numbers are known for {machine}, only for {', '.join(ARCHITECTURES)}"
        )
    ends: list[tuple[int, _Code]] = []
    _add_range(ends, 0, _return(RET_ERRNO | EPERM))
    actions = _actions(policy, architecture.numbers)
    for number in range(max(architecture.numbers.values()) + 1):
        _add_range(ends, number, actions.get(number, _return(RET_ERRNO | EPERM)))
    _add_range(ends, max(architecture.numbers.values()) + 1, _return(RET_ERRNO | ENOSYS))
    # x32 calls have the architecture of 64-bit ones, and this bit. Elsewhere nothing is up there.
    _add_range(ends, _X32_BIT, _return(RET_KILL_PROCESS))
    code = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_IF_EQUAL, 1, 0, architecture.audit_code),
        (_RETURN, 0, 0, RET_KILL_PROCESS),
        (_LOAD, 0, 0, _NR_OFFSET),
        *_search(ends),
    ]
    if len(code) > _MAX_INSTRUCTIONS:
        raise SeccompError(f"the filter has {len(code)} instructions, more than the kernel takes")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install_filter(program: bytes) -> None:
    """Bind this thread, and what it makes from now on, to a filter. There is no way back.

    Args:
        program: Of `compile_filter`; no new privileges must be set already.

    Raises:
        SeccompError: The kernel refuses it, or has no filters.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a short, and a pointer on its own boundary.
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    )
    zero = ctypes.c_ulong(0)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    if libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(header), zero, zero) != 0:
        raise SeccompError(f"the kernel refuses the filter: {os.strerror(ctypes.get_errno())}")


def _actions(policy: Policy, numbers: Mapping[str, int]) -> dict[int, _Code]:
    actions: dict[int, _Code] = {}
    kinds: tuple[tuple[frozenset[str], Callable[[str], _Code]], ...] = (
        (policy.allowed, lambda _: _return(RET_ALLOW)),
        (policy.missing, lambda _: _return(RET_ERRNO | ENOSYS)),
        (frozenset(policy.conditional), lambda name: _test((policy.conditional[name],))),
        (frozenset(policy.alternatives), lambda name: _test(policy.alternatives[name])),
    )
    known = ARCHITECTURES["x86_64"].numbers.keys() | ARCHITECTURES["aarch64"].numbers.keys()
    for names, make in kinds:
        for name in names:
            if name not in known:
                raise SeccompError(f"no system call is called {name}")
            if name not in numbers:
                continue
            if numbers[name] in actions:
                raise SeccompError(f"the policy says two things about {name}")
            actions[numbers[name]] = make(name)
    return actions


def _return(action: int) -> _Code:
    return [(_RETURN, 0, 0, action)]


def _add_range(ranges: list[tuple[int, _Code]], start: int, code: _Code) -> None:
    """Let `code` decide from number `start` on."""
    if ranges and ranges[-1][0] == start:
        ranges.pop()
    if not ranges or ranges[-1][1] != code:
        ranges.append((start, code))


def _search(ranges: list[tuple[int, _Code]]) -> _Code:
    """Return a binary search for the number in the accumulator: about seven steps, not 190."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    # A conditional jump reaches 255 instructions, an unconditional one all of them.
    return [
        (_JUMP_IF_AT_LEAST, 0, 1, ranges[middle][0]),
        (_JUMP, 0, 0, len(below)),
        *below,
        *above,
    ]


def _test(alternatives: tuple[tuple[Condition, ...], ...]) -> _Code:
    """Return code that allows the call if one set of conditions holds, and else refuses it."""
    code = _return(RET_ERRNO | EPERM)
    for conditions in reversed(alternatives):
        code = _test_all(conditions, code)
    return code


def _test_all(conditions: tuple[Condition, ...], otherwise: _Code) -> _Code:
    """Return code that allows if all conditions hold, and else goes on with `otherwise`."""
    code = _return(RET_ALLOW)
    for condition in reversed(conditions):
        code = _test_one(condition, code, otherwise)
    return code


def _test_one(condition: Condition, then: _Code, otherwise: _Code) -> _Code:
    values = sorted(condition.values)
    if len(values) > _MAX_VALUES:
        raise SeccompError(f"a condition has {len(values)} values, at most {_MAX_VALUES} fit")
    code: _Code = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * condition.argument + 4 * condition.high)]
    if condition.mask != 0xFFFFFFFF:
        code.append((_AND, 0, 0, condition.mask))
    equal, unequal = (otherwise, then) if condition.refuse else (then, otherwise)
    for index, value in enumerate(values):
        # Over the values that are left, and over the jump behind them.
        code.append((_JUMP_IF_EQUAL, len(values) - index, 0, value))
    # A conditional jump reaches 255 instructions, an unconditional one all of them.
    return [*code, (_JUMP, 0, 0, len(equal)), *equal, *unequal]
