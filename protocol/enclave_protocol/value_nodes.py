"""What encoder and decoder of values share: tags, element types, checks, and the one error.

No I/O, and no code that looks at a value: that is theirs.
"""

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

import numpy as np

from enclave_protocol.errors import EnclaveError
from enclave_protocol.value_limits import CodecLimits

__all__ = [
    "ACCEPTED",
    "DTYPES",
    "INLINE_BYTES",
    "KEY_TYPES",
    "NUMPY_SCALARS",
    "EncodedValue",
    "Handle",
    "Tag",
    "ValueRefusedError",
    "check_depth",
    "count",
    "refuse_header",
]

ACCEPTED: Final = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset "
    "and numpy arrays of booleans and numbers"
)
INLINE_BYTES: Final = 4096
"""Contents up to this size travel in the header: a buffer of their own costs a system call."""
# Looked up here, never given to numpy: `np.dtype` of a stranger's text may mean objects.
# Long doubles are left out: their padding would carry stale memory.
DTYPES: Final = {
    name: np.dtype(name)
    for name in "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()  # noqa: SIM905 (one line)
}
NUMPY_SCALARS: Final = frozenset(
    (*(dtype.type for dtype in DTYPES.values()), np.longlong, np.ulonglong)
)
KEY_TYPES: Final = frozenset((type(None), bool, int, float, complex, str, bytes))


class Tag(enum.IntEnum):
    """The first item of every msgpack array in a header; docs/spec/vault_calls.md lists them."""

    LIST = 1
    TUPLE = 2
    SET = 3
    FROZENSET = 4
    DICT = 5
    BIG_INT = 6
    COMPLEX = 7
    BYTEARRAY = 8
    LONG_STR = 9
    LONG_BYTES = 10
    ARRAY = 11
    NUMPY_SCALAR = 12
    HANDLE = 13


class EncodedValue(NamedTuple):
    """A value ready to travel.

    Attributes:
        header: msgpack, at most `CodecLimits.header_bytes` long.
        buffers: Large contents, in the order the header refers to them. They may still be the
            sender's own memory: send them before the value changes.
    """

    header: bytes
    buffers: tuple[memoryview, ...]


class Handle(NamedTuple):
    """Stands for an object that stays in its vault: a random number and its class's name."""

    number: int
    class_name: str


class ValueRefusedError(EnclaveError, TypeError):
    """A value, or the bytes of one, may not cross the boundary of an encrypted package."""

    def __init__(self, reason: str, path: Sequence[str] = ()) -> None:
        super().__init__(f"{', '.join(path)}: {reason}" if path else reason)
        self.reason = reason
        self.path = list(path)

    def inside(self, step: str) -> "ValueRefusedError":
        """Return the same refusal seen from the container: `step` names the place in it."""
        return ValueRefusedError(self.reason, [step, *self.path])


def check_depth(depth: int, limits: CodecLimits) -> None:
    """Check how many containers a value is inside of.

    Raises:
        ValueRefusedError: As many as `limits` allows, or more.
    """
    if depth >= limits.depth:
        raise ValueRefusedError(
            f"more than {limits.depth} containers inside each other, or one inside itself"
        )


def count(before: int, items: int, limits: CodecLimits) -> int:
    """Return `before + items`.

    Raises:
        ValueRefusedError: That is more than `limits` allows.
    """
    if before + items > limits.items:
        raise ValueRefusedError(
            f"more than {limits.items} items in containers: put numbers into a numpy array"
        )
    return before + items


def refuse_header(size: int, limits: CodecLimits) -> NoReturn:
    """Refuse a header of `size` bytes.

    Raises:
        ValueRefusedError: Always.
    """
    raise ValueRefusedError(
        f"{size} bytes of small values, expected at most {limits.header_bytes}: "
        "put numbers into a numpy array"
    )
