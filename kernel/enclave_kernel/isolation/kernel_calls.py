"""Calls of the C library that Python has no function for, and their one error."""

import ctypes
import os
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = ["LIBC", "LockdownError", "prctl", "system_call"]

LIBC: Final = ctypes.CDLL(None, use_errno=True)


class LockdownError(EnclaveError):
    """The walls are not as they must be; the process ends before it holds anything."""


def system_call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 or more.

    Raises:
        LockdownError: It returned less; says why. `__cause__` is the OSError.
    """
    if getattr(LIBC, name)(*arguments) < 0:
        code = ctypes.get_errno()
        raise LockdownError(
            f"{name} failed while the walls were put up: {os.strerror(code)}"
        ) from OSError(code, os.strerror(code))


def prctl(option: int, value: int = 0) -> int:
    """Call prctl and return its result, which is not negative.

    Raises:
        OSError: The kernel refused, or does not know the option.
    """
    zero = ctypes.c_ulong(0)
    result: int = LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
    return result
