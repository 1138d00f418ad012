"""A vault's own file system: a read-only root that holds what the interpreter needs, no more.

The standard library only, before the change of user, in new mount and pid namespaces. It ends with
them; nothing shows outside.

Source: THREATS section C, step 6; docs/spec/vault_process.md, "Root".
"""

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError, system_call
from enclave_kernel.isolation.mounts import (
    DEVICES,
    MS_BIND,
    MS_MOVE,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    SAFE,
    bind,
    make_proc,
    mount,
)
from enclave_kernel.isolation.seccomp import ARCHITECTURES
from enclave_kernel.vault.line_buffers import LINE_BUFFERS

__all__ = ["PACKAGE_FOLDER", "enter_own_root", "move_root", "pivot_root"]

PACKAGE_FOLDER: Final = "package"
"""Below the private folder: where the package's files are."""

_MNT_DETACH: Final = 2
_ROOT_OPTIONS: Final = "mode=0755,size=1m,nr_inodes=8192"
_HUGE_PAGES: Final = ",huge=within_size"
"""For large files: with pages of 4 KiB each, a package's weights take several times as long."""
_MAX_INODES: Final = 131_072
"""Twice what a package may hold in files: its folders and temporary files fit beside them."""

_LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DATA: Final = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
    LINE_BUFFERS,
)


def enter_own_root(
    mount_point: str, *, uid: int, gid: int, memory_limit: int | None, native: bool = False
) -> str:
    """Make a new root and leave the old one for good.

    Folders on the way to what is shown are new and passable, whatever the real ones are: a
    supervisor that root started below a closed home directory works, and the vault sees nothing
    else of it.

    Args:
        mount_point: Existing, empty directory with an unguessable name.
        uid: The vault's user, owner of the private folder.
        gid: Its group.
        memory_limit: Bytes of all its files together; None for half of the memory.
        native: The package brings compiled code: of its own folder it may be run.

    Returns:
        The private folder: a tmpfs, not executable, with `tmp` in it, which is /tmp as well.

    Raises:
        LockdownError: A mount failed.
        OSError: A folder cannot be made.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = Path(mount_point)
    needed = [path for path in _needed() if Path(path).exists()]
    mount("tmpfs", root, "tmpfs", SAFE | MS_NOEXEC, _ROOT_OPTIONS)
    mask = os.umask(0o022)
    try:
        # First: in development the code itself may be below /tmp.
        private = _make_private(root, uid, gid, memory_limit)
        if native:
            _make_executable(private / PACKAGE_FOLDER, uid, gid)
        for path in needed:
            _show(root, path)
        _make_devices(root, private / "shm")
        make_proc(root)
    finally:
        os.umask(mask)
    try:
        pivot_root(root)
    except LockdownError as error:
        # The root of an initramfs can be covered, but not exchanged.
        if not _is_errno(error, errno.EINVAL):
            raise
        move_root(root)
    os.chdir("/")
    mount("none", "/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE | MS_NOEXEC)
    return f"/{private.name}"


def pivot_root(root: Path) -> None:
    """Exchange `/` for `root`, and let go of all that was mounted before.

    Raises:
        LockdownError: The kernel refuses; EINVAL on an initramfs.
    """
    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        raise LockdownError("pivot_root failed while the vault started") from OSError(errno.EINVAL)
    os.chdir(root)
    system_call("syscall", ctypes.c_long(architecture.numbers["pivot_root"]), b".", b".")
    # The old root lies over the new one: "." is what is on top.
    system_call("umount2", b".", _MNT_DETACH)


def move_root(root: Path) -> None:
    """The same where the old root cannot be taken away: cover it, for ever.

    Nobody gets below it without CAP_SYS_CHROOT or CAP_SYS_ADMIN.

    Raises:
        LockdownError: The kernel refuses.
    """
    os.chdir(root)
    mount(".", "/", None, MS_MOVE)
    os.chroot(".")


def _is_errno(error: LockdownError, number: int) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == number


def _needed() -> Iterable[str]:
    base = str(Path(sys.base_prefix) / "lib")
    paths = {*_LIBRARIES, *_DATA, base, *(path for path in sys.path if path.startswith("/"))}
    # Under both names where a link is on the way. Parents come first.
    return sorted(paths | {os.path.realpath(path) for path in paths})


def _show(root: Path, path: str) -> None:
    """Bind `path` at the same place below `root`, read-only."""
    target = Path(f"{root}{path}")
    if target.exists() and target.samefile(path):
        return
    if Path(path).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    bind(path, target, MS_RDONLY | SAFE)


def _make_private(root: Path, uid: int, gid: int, memory_limit: int | None) -> Path:
    """Mount the one place where the vault may write; all its folders share one limit."""
    private = root / root.name
    private.mkdir()
    size = "50%" if memory_limit is None else str(memory_limit)
    options = f"mode=0700,uid={uid},gid={gid},size={size},nr_inodes={_MAX_INODES}"
    flags = SAFE | MS_NOEXEC
    try:
        mount("tmpfs", private, "tmpfs", flags, options + _HUGE_PAGES)
    except LockdownError as error:
        # A kernel that was built without them.
        if not _is_errno(error, errno.EINVAL):
            raise
        mount("tmpfs", private, "tmpfs", flags, options)
    for name in ("tmp", "shm"):
        (private / name).mkdir(mode=0o700)
        os.chown(private / name, uid, gid)
    (root / "tmp").mkdir()
    bind(str(private / "tmp"), root / "tmp", flags)
    return private


def _make_executable(folder: Path, uid: int, gid: int) -> None:
    """Let files in `folder`, which is made, be run; in all other places they cannot be."""
    folder.mkdir(mode=0o700)
    os.chown(folder, uid, gid)
    bind(str(folder), folder, SAFE)


def _make_devices(root: Path, shared_memory: Path) -> None:
    devices = root / "dev"
    devices.mkdir()
    for name in DEVICES:
        (devices / name).touch()
        bind(f"/dev/{name}", devices / name, MS_RDONLY | MS_NOSUID | MS_NOEXEC)
    (devices / "shm").mkdir()
    bind(str(shared_memory), devices / "shm", SAFE | MS_NOEXEC)
