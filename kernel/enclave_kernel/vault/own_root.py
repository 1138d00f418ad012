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

from enclave_kernel.isolation.seccomp import ARCHITECTURES
from enclave_kernel.vault.kernel_calls import LIBC, LockdownError, system_call

__all__ = ["DEVICES", "MASKED", "enter_own_root", "move_root", "pivot_root"]

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_MOVE = 0x20, 0x1000, 0x2000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH: Final = 2
_SAFE: Final = _MS_NOSUID | _MS_NODEV
_ROOT_OPTIONS: Final = "mode=0755,size=1m,nr_inodes=8192"
_MAX_INODES: Final = 131_072
"""Twice what a package may hold in files: its folders and temporary files fit beside them."""

_LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DATA: Final = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
DEVICES: Final = ("null", "zero", "full", "random", "urandom")
"""All that is in /dev, /dev/shm aside."""
MASKED: Final = (
    *("kcore", "keys", "key-users", "kallsyms", "kmsg", "timer_list", "sched_debug"),
    *("sysrq-trigger", "latency_stats", "kpagecount", "kpageflags", "kpagecgroup", "modules"),
)
"""Files of /proc that tell of the whole kernel or act on it."""


def enter_own_root(mount_point: str, *, uid: int, gid: int, memory_limit: int | None) -> str:
    """Make a new root and leave the old one for good.

    Folders on the way to what is shown are new and passable, whatever the real ones are: a
    supervisor that root started below a closed home directory works, and the vault sees nothing
    else of it.

    Args:
        mount_point: Existing, empty directory with an unguessable name.
        uid: The vault's user, owner of the private folder.
        gid: Its group.
        memory_limit: Bytes of all its files together; None for half of the memory.

    Returns:
        The private folder: a tmpfs, not executable, with `tmp` in it, which is /tmp as well.

    Raises:
        LockdownError: A mount failed.
        OSError: A folder cannot be made.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    root = Path(mount_point)
    needed = [path for path in _needed() if Path(path).exists()]
    _mount("tmpfs", root, "tmpfs", _SAFE | _MS_NOEXEC, _ROOT_OPTIONS)
    mask = os.umask(0o022)
    try:
        # First: in development the code itself may be below /tmp.
        private = _make_private(root, uid, gid, memory_limit)
        for path in needed:
            _show(root, path)
        _make_devices(root, private / "shm")
        _make_proc(root)
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
    _mount("none", "/", None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _SAFE | _MS_NOEXEC)
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
    _mount(".", "/", None, _MS_MOVE)
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
    _bind(path, target, _MS_RDONLY | _SAFE)


def _make_private(root: Path, uid: int, gid: int, memory_limit: int | None) -> Path:
    """Mount the one place where the vault may write; all its folders share one limit."""
    private = root / root.name
    private.mkdir()
    size = "50%" if memory_limit is None else str(memory_limit)
    options = f"mode=0700,uid={uid},gid={gid},size={size},nr_inodes={_MAX_INODES}"
    flags = _SAFE | _MS_NOEXEC
    _mount("tmpfs", private, "tmpfs", flags, options)
    for name in ("tmp", "shm"):
        (private / name).mkdir(mode=0o700)
        os.chown(private / name, uid, gid)
    (root / "tmp").mkdir()
    _bind(str(private / "tmp"), root / "tmp", flags)
    return private


def _make_devices(root: Path, shared_memory: Path) -> None:
    devices = root / "dev"
    devices.mkdir()
    for name in DEVICES:
        (devices / name).touch()
        _bind(f"/dev/{name}", devices / name, _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC)
    (devices / "shm").mkdir()
    _bind(str(shared_memory), devices / "shm", _SAFE | _MS_NOEXEC)


def _make_proc(root: Path) -> None:
    proc = root / "proc"
    proc.mkdir()
    flags = _SAFE | _MS_NOEXEC
    _mount("proc", proc, "proc", flags, "hidepid=2")
    # Before Linux 5.8 a pid namespace's /proc exists from its start, and takes options only so.
    _mount("proc", proc, "proc", flags | _MS_REMOUNT, "hidepid=2")
    _bind(str(proc / "sys"), proc / "sys", flags | _MS_RDONLY)
    for name in MASKED:
        if (proc / name).exists():
            _bind("/dev/null", proc / name, flags | _MS_RDONLY)


def _bind(source: str, target: Path, flags: int) -> None:
    _mount(source, target, None, _MS_BIND)
    _mount("none", target, None, _MS_BIND | _MS_REMOUNT | flags)


def _mount(
    source: str, target: str | Path, kind: str | None, flags: int, options: str | None = None
) -> None:
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
            f"mounting {target} failed while the vault started: {os.strerror(code)}"
        ) from OSError(code, os.strerror(code))
