"""Classic BPF as the kernel runs it on `struct seccomp_data`: a second opinion on a filter."""

import struct

__all__ = ["seccomp_data", "verdict"]

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x05, 0x15, 0x35


def seccomp_data(number: int, audit_code: int, arguments: tuple[int, ...] = ()) -> bytes:
    """Return what the kernel shows to a filter; arguments that are not given are 0."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    return struct.pack("=IIQ6Q", number, audit_code, 0, *(value % 2**64 for value in padded))


def verdict(program: bytes, data: bytes) -> int:
    """Run a filter; raises on whatever the kernel's verifier would refuse."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == _RETURN:
            return int(value)
        if code == _LOAD:
            if value % 4 or value + 4 > len(data):
                raise ValueError(f"load from {value}")
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == _AND:
            accumulator &= value
        elif code == _JUMP:
            position += value
        elif code == _JUMP_IF_EQUAL:
            position += if_true if accumulator == value else if_false
        elif code == _JUMP_IF_AT_LEAST:
            position += if_true if accumulator >= value else if_false
        else:
            raise ValueError(f"unknown instruction {code:#x}")
