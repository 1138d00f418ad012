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

__all__ = ["MODULES_FOLDER", "ModuleLoadError", "load_modules", "parent_cid"]

MODULES_FOLDER: Final = Path("/modules")
_ORDER_FILE: Final = "order"
"""In the folder: one file name a line; a module comes after those it needs."""
_PARENT_FILE: Final = "parent-cid"
"""Beside them: 2 with a VM's kernel, 3 with Nitro's (FACTS, vsock)."""
_NITRO_CID: Final = 3
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
    order = folder / _ORDER_FILE
    if not order.exists():
        return ()
    with order.open("rb") as file:
        names = file.read(_MAX_ORDER_BYTES).decode("ascii").split()
    return tuple(name for name in names if _load(folder / name))


def parent_cid(folder: Path = MODULES_FOLDER) -> int:
    """Return where the parent is on vsock; without a file of ours nitro-cli chose the kernel.

    Raises:
        ModuleLoadError: The file says something else than 2 or 3.
    """
    path = folder / _PARENT_FILE
    if not path.exists():
        return _NITRO_CID
    text = path.read_text().strip()
    if text not in ("2", "3"):
        raise ModuleLoadError(f"{path} says {text!r}, expected 2 or 3")
    return int(text)


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
