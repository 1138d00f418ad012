"""How much memory one kernel or one vault may use where nobody set a limit."""

import os
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.mounts import root_kind

__all__ = ["memory_share"]

_ROOT: Final = Path("/")
_MOUNTS: Final = Path("/proc/self/mountinfo")


def memory_share(root: Path = _ROOT, mounts: Path = _MOUNTS) -> int:
    """Return three quarters of the memory that the system's own root leaves, in bytes.

    In an enclave the root lies in memory and takes up to half of it. Counted with it, a limit
    could be more than there is: then the whole enclave runs out of memory before the one group
    does, and the kernel ends whatever it finds largest.

    Args:
        root: The root file system.
        mounts: Its mounts, as in proc(5), "/proc/pid/mountinfo".
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # A ramfs does not tell its size.
    if root_kind(mounts) in ("rootfs", "tmpfs"):
        status = os.statvfs(root)
        memory -= (status.f_blocks - status.f_bfree) * status.f_frsize
    return memory // 4 * 3
