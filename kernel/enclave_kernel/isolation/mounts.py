"""Mounts of a walled-off process: the one call for them, a private /proc, harmless devices.

The standard library only.

Source: THREATS section C, step 6.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC, LockdownError, system_call

__all__ = [
    "DEVICES",
    "MASKED",
    "MS_BIND",
    "MS_MOVE",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SLAVE",
    "SAFE",
    "bind",
    "make_proc",
    "mount",
    "own_mounts",
    "root_kind",
]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE = 0x20, 0x1000, 0x2000
MS_REC, MS_PRIVATE, MS_SLAVE = 0x4000, 0x40000, 0x80000
SAFE: Final = MS_NOSUID | MS_NODEV

DEVICES: Final = ("null", "zero", "full", "random", "urandom")
"""All that is in /dev, /dev/shm aside."""
MASKED: Final = (
    *("kcore", "keys", "key-users", "kallsyms", "kmsg", "timer_list", "sched_debug"),
    *("sysrq-trigger", "latency_stats", "kpagecount", "kpageflags", "kpagecgroup", "modules"),
)
"""Files of /proc that tell of the whole kernel or act on it."""


_CLONE_NEWNS: Final = 0x00020000


def own_mounts() -> None:
    """Leave the mount namespace for one of its own: what is mounted there ends with its processes.

    What others mount goes on to be seen. Before any thread is started.

    Raises:
        LockdownError: The kernel refuses.
    """
    system_call("unshare", _CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_SLAVE)


def make_proc(root: Path) -> None:
    """Mount the pid namespace's own /proc below `root`, closed to other users and to writing.

    Raises:
        LockdownError: A mount failed.
        OSError: The folder cannot be made.
    """
    proc = root / "proc"
    proc.mkdir(exist_ok=True)
    flags = SAFE | MS_NOEXEC
    mount("proc", proc, "proc", flags, "hidepid=2")
    # Before Linux 5.8 a pid namespace's /proc exists from its start, and takes options only so.
    mount("proc", proc, "proc", flags | MS_REMOUNT, "hidepid=2")
    bind(str(proc / "sys"), proc / "sys", flags | MS_RDONLY)
    for name in MASKED:
        if (proc / name).exists():
            bind("/dev/null", proc / name, flags | MS_RDONLY)


def bind(source: str, target: Path, flags: int) -> None:
    """Show `source` at `target`, an existing file or folder, with these flags and no others.

    Raises:
        LockdownError: The kernel refuses.
    """
    mount(source, target, None, MS_BIND)
    mount("none", target, None, MS_BIND | MS_REMOUNT | flags)


def mount(
    source: str, target: str | Path, kind: str | None, flags: int, options: str | None = None
) -> None:
    """Call mount(2).

    Raises:
        LockdownError: The kernel refuses; `__cause__` is the OSError.
    """
    result = LIBC.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if options is None else options.encode(),
    )
    if result != 0:
        code = ctypes.get_errno()
        raise LockdownError(
            f"mounting {target} failed while the walls were put up: {os.strerror(code)}"
        ) from OSError(code, os.strerror(code))


def root_kind(mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the type of the root file system; None if it lies outside of what this process sees.

    Args:
        mounts: As in proc(5), "/proc/pid/mountinfo"; of several at `/` the last one counts.
    """
    lines = mounts.read_text().splitlines()
    last = [line for line in lines if line.split(" ")[4] == "/"][-1:]
    return last[0].partition(" - ")[2].split(" ")[0] if last else None
