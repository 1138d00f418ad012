"""A vault's own view of the file system: its tmpfs, and a way to the code it imports.

The standard library only, before the change of user. Everything here ends with the vault's mount
namespace; nothing shows outside of it.

Source: THREATS section C, step 6; docs/spec/vault_process.md, "Lockdown".
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = ["LockdownError", "mount_own_view", "system_call"]

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_PASSABLE: Final = 0o001
_COVER_OPTIONS: Final = "mode=0755,size=1m,nr_inodes=4096"


class LockdownError(EnclaveError):
    """The vault's walls are not as they must be; it ends before it holds anything."""


def system_call(libc: ctypes.CDLL, name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0.

    Raises:
        LockdownError: It returned something else; says why.
    """
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise LockdownError(f"{name} failed while the vault started: {os.strerror(code)}")


def mount_own_view(
    libc: ctypes.CDLL, private_dir: str, options: str, needed: Iterable[str]
) -> None:
    """Mount a tmpfs on the private directory, and open a way to what the vault imports.

    Folders that only their owner may enter (a home directory of mode 0700, say) would keep the
    vault's user from the interpreter's packages. Each is covered by an empty tmpfs in which only
    the needed folders appear again, read-only: the vault sees them, and nothing else of it.

    Args:
        libc: The C library; this process is root in a mount namespace of its own.
        private_dir: Existing, empty directory.
        options: The private tmpfs's mount options: owner, size, number of files.
        needed: Folders that must be reachable after the change of user; missing ones are skipped.

    Raises:
        LockdownError: A mount failed.
    """
    _mount(libc, "none", "/", None, _MS_REC | _MS_PRIVATE, None)
    targets = sorted({path for path in needed if Path(path).exists() and _cover(path)})
    covers = {_cover(path) for path in (*targets, str(Path(private_dir).parent))} - {None}
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in targets}
    mask = os.umask(0o022)
    try:
        for cover in sorted(filter(None, covers)):
            flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
            _mount(libc, "tmpfs", cover, "tmpfs", flags, _COVER_OPTIONS)
        for path, source in sources.items():
            _show_again(libc, path, source)
        Path(private_dir).parent.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(mask)
        for source in sources.values():
            os.close(source)
    Path(private_dir).mkdir(mode=0o700, exist_ok=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(libc, "tmpfs", private_dir, "tmpfs", flags, options)


def _cover(path: str) -> str | None:
    """Return the first folder on the way to `path` that others may not pass, if there is one."""
    for folder in reversed(Path(path).parents):
        if not folder.stat().st_mode & _PASSABLE:
            return str(folder)
    return None


def _show_again(libc: ctypes.CDLL, path: str, source: int) -> None:
    target = Path(path)
    if target.exists():
        # Inside a folder that was shown again already.
        return
    if os.path.isdir(f"/proc/self/fd/{source}"):  # noqa: PTH112 (Path would not follow it)
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(libc, f"/proc/self/fd/{source}", path, None, _MS_BIND, None)
    flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    _mount(libc, "none", path, None, flags, None)


def _mount(
    libc: ctypes.CDLL, source: str, target: str, kind: str | None, flags: int, options: str | None
) -> None:
    system_call(
        libc,
        "mount",
        source.encode(),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if options is None else options.encode(),
    )
