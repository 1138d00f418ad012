"""Linux 4.14 as far as its system calls go: everything newer answers ENOSYS.

A filter for the calling thread and what it starts, written by hand: the shipped compiler kills
foreign ABIs, and what happens to those is for the vault's own filter to decide.
"""

import os
import struct
from typing import Final

from enclave_kernel.isolation.seccomp import (
    ARCHITECTURES,
    ENOSYS,
    RET_ALLOW,
    RET_ERRNO,
    install_filter,
)

__all__ = ["LINUX_4_14_LAST", "install_old_kernel"]

_MACHINE: Final = ARCHITECTURES[os.uname().machine]
LINUX_4_14_LAST: Final = _MACHINE.numbers["statx"]
"""statx came with 4.11 and is the last one that 4.14 has: io_pgetevents came with 4.18."""
_X32_BIT: Final = 0x40000000
_LOAD, _RETURN, _IF_EQUAL, _IF_AT_LEAST = 0x20, 0x06, 0x15, 0x35


def install_old_kernel() -> None:
    """Bind this thread, and what it starts from now on, to the calls of Linux 4.14.

    Needs root: it sets no_new_privs for nobody, for that would be a wall of its own.
    """
    program = (
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 0, 4, _MACHINE.audit_code),
        (_LOAD, 0, 0, 0),
        (_IF_AT_LEAST, 2, 0, _X32_BIT),
        (_IF_AT_LEAST, 0, 1, LINUX_4_14_LAST + 1),
        (_RETURN, 0, 0, RET_ERRNO | ENOSYS),
        (_RETURN, 0, 0, RET_ALLOW),
    )
    install_filter(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
