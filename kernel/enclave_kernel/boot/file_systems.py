"""The file systems an enclave starts with: the image read-only, and the kernel's own ones.

The standard library only. What is mounted already (by nitro-cli's own init) stays.
Source: THREATS section C; FACTS, "Enclave kernel".
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError
from enclave_kernel.isolation.mounts import (
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    SAFE,
    mount,
    root_kind,
)

__all__ = ["close_root", "cover_root", "mount_control_groups", "mount_kernel_file_systems"]

_CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
_CONTROLLERS: Final = ("memory", "cpu", "pids", "devices", "freezer")
_ROOTFS: Final = "rootfs"


def mount_kernel_file_systems() -> None:
    """Mount /dev, /proc, /sys, /run, /tmp and what belongs below them.

    Raises:
        LockdownError: A mount failed.
        OSError: A folder cannot be made.
    """
    safe = SAFE | MS_NOEXEC
    _mount_once("proc", "/proc", "proc", safe)
    _mount_once("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755")
    for name in ("pts", "shm"):
        Path("/dev", name).mkdir(exist_ok=True)
    _mount_once("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620")
    _mount_once("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777")  # noqa: S108 (a mount of its own)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with suppress(FileExistsError):
            Path("/dev", name).symlink_to(f"/proc/self/fd/{number}")
    with suppress(FileExistsError):
        Path("/dev/fd").symlink_to("/proc/self/fd")
    _mount_once("sysfs", "/sys", "sysfs", safe)
    # Vaults and notebooks mount file systems of their own below.
    _mount_once("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    _mount_once("tmpfs", "/tmp", "tmpfs", safe, "mode=1777")  # noqa: S108 (a mount of its own)


def mount_control_groups() -> None:
    """Mount control groups: version 2 where it has the memory controller, else version 1.

    Raises:
        LockdownError: Neither can be mounted.
    """
    if (_CONTROL_GROUPS / "memory").is_dir() or (_CONTROL_GROUPS / "cgroup.procs").exists():
        return
    flags = SAFE | MS_NOEXEC
    with suppress(LockdownError):
        mount("cgroup2", _CONTROL_GROUPS, "cgroup2", flags)
        if "memory" in (_CONTROL_GROUPS / "cgroup.controllers").read_text().split():
            return
    mount("tmpfs", _CONTROL_GROUPS, "tmpfs", flags, "mode=0755")
    enabled = _enabled_controllers()
    for name in _CONTROLLERS:
        if name in enabled:
            (_CONTROL_GROUPS / name).mkdir()
            mount("cgroup", _CONTROL_GROUPS / name, "cgroup", flags, name)


def cover_root() -> None:
    """Put the initramfs over itself as a mount that can be made read-only and exchanged.

    The kernel's first root is neither: pivot_root(2) refuses it. Elsewhere nothing is done.

    Raises:
        LockdownError: A mount failed.
    """
    if not _is_initramfs():
        return
    mount("/", "/mnt", None, MS_BIND | MS_REC)
    os.chdir("/mnt")
    mount(".", "/", None, MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def close_root() -> None:
    """Make the image read-only; what is mounted below stays as it is.

    Raises:
        LockdownError: The mount failed.
    """
    mount("none", "/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _is_initramfs() -> bool:
    # Without one the root lies outside of what this process sees, as after nitro-cli's chroot.
    return root_kind() in (_ROOTFS, "ramfs", "tmpfs")


def _mount_once(
    source: str, target: str, kind: str, flags: int, options: str | None = None
) -> None:
    path = Path(target)
    path.mkdir(exist_ok=True)
    if path.is_mount():
        mount("none", path, None, MS_BIND | MS_REMOUNT | flags)
        return
    mount(source, path, kind, flags, options)


def _enabled_controllers() -> set[str]:
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
    return {row[0] for row in rows if len(row) == 4 and row[3] == "1"}
