"""Namespaces: which a process is in, and leaving them for new ones.

The standard library only.

Source: THREATS section C, step 5; namespaces(7), unshare(2).
"""

import contextlib
import errno
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError, system_call

__all__ = ["CLONE_NEWPID", "namespaces_of_this_process", "unshare"]

CLONE_NEWPID: Final = 0x20000000
_FLAGS: Final = {"mnt": 0x00020000, "pid": CLONE_NEWPID, "net": 0x40000000, "ipc": 0x08000000}
_OPTIONAL_FLAGS: Final = {"uts": 0x04000000, "cgroup": 0x02000000}


def unshare(hostname: bytes, *, own_pids: bool = False) -> frozenset[str]:
    """Leave the mount, pid, network and IPC namespaces, and uts and cgroup where there are any.

    Linux 4.5 and older have no cgroup namespaces, and a kernel may be built without uts: these
    two are taken where they are.

    Args:
        hostname: Of the new uts namespace.
        own_pids: This process has a pid namespace of its own already, and keeps it.

    Returns:
        Links of the namespaces that this process was in, and its children will not be in.

    Raises:
        LockdownError: One that must be left cannot be.
    """
    before = namespaces_of_this_process()
    flags = {name: flag for name, flag in _FLAGS.items() if name != "pid" or not own_pids}
    system_call("unshare", sum(flags.values()))
    left = set(flags)
    for name, flag in _OPTIONAL_FLAGS.items():
        try:
            system_call("unshare", flag)
        except LockdownError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
                raise
        else:
            left.add(name)
    if "uts" in left:
        system_call("sethostname", hostname, len(hostname))
    return frozenset(before[name] for name in left)


def namespaces_of_this_process() -> dict[str, str]:
    """Return its namespaces' links, as `pid:[4026531836]`, by name; those the kernel has."""
    links: dict[str, str] = {}
    for name in (*_FLAGS, *_OPTIONAL_FLAGS):
        with contextlib.suppress(FileNotFoundError):
            links[name] = str(Path(f"/proc/self/ns/{name}").readlink())
    return links
