"""Loads the kernel modules of the image, in the order that the builder wrote down.

The standard library only. Source: finit_module(2).
"""

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC
from enclave_protocol.errors import EnclaveError

__all__ = ["MODULES_FOLDER", "ORDER_FILE", "ModuleLoadError", "load_modules"]

MODULES_FOLDER: Final = Path("/modules")
ORDER_FILE: Final = "order"
"""In the folder: one file name a line; a module comes after those it needs."""
_MAX_ORDER_BYTES: Final = 16 * 1024
_NUMBERS: Final = {"x86_64": 313, "aarch64": 273}
_NOT_HERE: Final = (errno.ENODEV, errno.EEXIST)
"""No such device in this machine, or loaded (or built in) already."""


class ModuleLoadError(EnclaveError):
    """A module of the image cannot be loaded."""


def load_modules(folder: Path = MODULES_FOLDER) -> tuple[str, ...]:
    """Load what the image has; return the names of what the kernel took.

    Raises:
        ModuleLoadError: The kernel refuses one for another reason than a missing device.
    """
    order = folder / ORDER_FILE
    if not order.exists():
        return ()
    with order.open("rb") as file:
        names = file.read(_MAX_ORDER_BYTES).decode("ascii").split()
    return tuple(name for name in names if _load(folder / name))


def _load(path: Path) -> bool:
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise ModuleLoadError(f"no modules are loaded on {os.uname().machine}")
    with path.open("rb") as file:
        if LIBC.syscall(ctypes.c_long(number), file.fileno(), b"", 0) == 0:
            return True
    code = ctypes.get_errno()
    if code in _NOT_HERE:
        return False
    raise ModuleLoadError(f"the kernel does not take {path.name}: {os.strerror(code)}")
