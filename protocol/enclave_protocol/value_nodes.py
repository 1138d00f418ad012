"""What encoder and decoder of values share: tags, element types, checks, and the one error.

No I/O, and no code that looks at a value: that is theirs.
"""

import enum
import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

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
    "check_text_array",
    "count",
    "dtype_of",
    "module_of",
    "refuse_header",
]

ACCEPTED: Final = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, "
    "slice, range, dates and times, Decimal, UUID, numpy arrays of numbers, times and fixed "
    "strings, pandas DataFrame, Series and Index, Arrow tables and arrays, SciPy sparse "
    "matrices, PIL images and torch CPU tensors"
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
    (
        *(dtype.type for dtype in DTYPES.values()),
        *(np.longlong, np.ulonglong, np.datetime64, np.timedelta64),
    )
)
# Times and fixed strings come in endless kinds. The pattern is what keeps text like "f8,O" away
# from numpy, and long enough numbers away from its arithmetic; no size is 0.
_FLEXIBLE_DTYPE: Final = re.compile(
    r"[SU][1-9][0-9]{0,5}|[mM]8(\[([1-9][0-9]{0,6})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?", re.ASCII
)
KEY_TYPES: Final = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes),
        *(date, datetime, time, timedelta, Decimal, UUID),
    )
)


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
    NUMPY_TEXT = 14
    SLICE = 15
    RANGE = 16
    DECIMAL = 17
    UUID = 18
    DATE = 20
    TIME = 21
    DATETIME = 22
    TIMEDELTA = 23
    FRAME = 30
    SERIES = 31
    INDEX = 32
    PANDAS_SCALAR = 33
    ARROW_ARRAY = 40
    ARROW_CHUNKED = 41
    ARROW_TABLE = 42
    ARROW_BATCH = 43
    SPARSE = 50
    IMAGE = 51
    TENSOR = 52


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


def dtype_of(name: object) -> "np.dtype[Any]":
    """Return the type of element that `name` stands for; what numpy is given was matched before.

    Raises:
        ValueRefusedError: It is not on the list.
    """
    if type(name) is str:
        known = DTYPES.get(name)
        if known is not None:
            return known
        if _FLEXIBLE_DTYPE.fullmatch(name):
            try:
                return np.dtype(f"<{name}" if name[0] != "S" else name)
            except (TypeError, ValueError, OverflowError):
                # numpy's own limits: the message below says all there is to say.
                pass
    raise ValueRefusedError("an array came with a type of element that is not accepted")


def check_text_array(array: "np.ndarray[Any, Any]") -> None:
    """Check the elements of a contiguous array of `U` strings: numpy itself never does.

    Raises:
        ValueRefusedError: Some element is no Unicode text.
    """
    points = array.reshape(-1).view(np.uint32)
    if points.size and (
        int(points.max()) > 0x10FFFF or bool(((points >= 0xD800) & (points < 0xE000)).any())
    ):
        raise ValueRefusedError("an array of strings holds something that is no text")


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
            f"more than {limits.items} items in containers: put numbers into a numpy array, "
            "and tables into one table"
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


def module_of(kind: type) -> str:
    """Return the name of a type's module as `type` has it, whatever a metaclass makes of it.

    "" where there is none, which is what `exec` may make, or one that is no text.
    """
    try:
        module: object = type.__dict__["__module__"].__get__(kind)
    except AttributeError:
        return ""
    return module if type(module) is str else ""
