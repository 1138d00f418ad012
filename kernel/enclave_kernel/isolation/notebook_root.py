"""What a notebook's processes see of the file system: the image read-only, and places of their own.

In place, in a mount namespace of its own: every mount becomes read-only, and what is not for a
notebook is covered. The standard library only, as root, before the change of user.

Source: THREATS section C, step 6 and "User's kernel"; docs/spec/kernel_process.md, "Root".
"""

import os
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError
from enclave_kernel.isolation.mounts import (
    DEVICES,
    MS_BIND,
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
from enclave_kernel.isolation.owned_folder import bind_as_owned

__all__ = ["HOME", "WORKSPACE", "NotebookRoot", "enter_notebook_root"]

HOME: Final = Path("/home/notebook")
WORKSPACE: Final = Path("/home/workspace")
"""Where notebooks find the files that are mirrored with the parent."""
_OWN: Final = Path("/run")
"""Where the notebook's tmpfs is while it is filled; in the end /run is an empty folder of it."""
_KERNEL_MOUNTS: Final = ("/dev", "/proc", "/sys")
_SYSTEM: Final = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin"),
    *("/sys", "/usr", "/var"),
)
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 (mounts of its own)
_MAX_INODES: Final = 1_048_576


@dataclass(frozen=True)
class NotebookRoot:
    """What a notebook got.

    Attributes:
        folder: Where it starts: the notebook's folder, or its home.
        writable: Its folder can be written to.
    """

    folder: str
    writable: bool


@dataclass(frozen=True)
class _Place:
    """One path to cover with a folder of the tmpfs, or to show again below a covered one."""

    cover: Path | None = None
    descriptor: int = -1
    owned: bool = False
    writable: bool = False


def enter_notebook_root(
    *,
    uid: int,
    gid: int,
    folder: str | None,
    hidden: Iterable[str],
    code: Iterable[str],
    memory_limit: int | None,
    workspace: str | None = None,
) -> NotebookRoot:
    """Cover and close the file system for one notebook.

    Args:
        uid: The notebook's user, owner of its home.
        gid: Its group.
        folder: The notebook's folder on a developer's machine, shown writable unless the enclave's
            own code or state is in it; None: it starts in its home.
        hidden: Folders with the enclave's state.
        code: Folders that its code is in, beside those of this interpreter.
        memory_limit: Bytes of all its own files together; None for half of the memory.
        workspace: The enclave's workspace, shown at `WORKSPACE`; None: it is not shown.

    Raises:
        LockdownError: A mount failed.
        OSError: A folder cannot be made.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    guarded = {path for path in _code(code) if path.exists()}
    closed = [Path(os.path.realpath(path)) for path in hidden if Path(path).exists()]
    start, writable = _folder(folder, guarded, closed)
    shown = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in guarded}
    if start is not None:
        shown[start] = os.open(start, os.O_PATH | os.O_CLOEXEC)
    if workspace is not None:
        shown[WORKSPACE] = os.open(workspace, os.O_PATH | os.O_CLOEXEC)
    mask = os.umask(0o022)
    try:
        _close_to_writing()
        size = "50%" if memory_limit is None else str(memory_limit)
        options = f"mode=0755,size={size},nr_inodes={_MAX_INODES}"
        mount("tmpfs", _OWN, "tmpfs", SAFE, options)
        _make_own_folders(uid, gid)
        _make_devices()
        places = _plan(shown, closed, start, writable=writable)
        for path in sorted(places, key=lambda path: path.parts):
            _put(path, places[path], uid, gid)
        make_proc(Path("/"))
        bind(str(_OWN / "run"), _OWN, SAFE | MS_NOEXEC)
    finally:
        os.umask(mask)
        for descriptor in shown.values():
            os.close(descriptor)
    own = HOME if workspace is None else WORKSPACE
    return NotebookRoot(str(start or own), writable)


def _code(folders: Iterable[str]) -> Iterable[Path]:
    """Return the folders that Python, and with it the enclave, runs from; under both names."""
    named = {
        *folders,
        sys.prefix,
        sys.exec_prefix,
        *(path for path in sys.path if path.startswith("/")),
    }
    named.add(str(Path(sys.base_prefix) / "lib"))
    return {Path(name) for name in named | {os.path.realpath(name) for name in named}}


def _folder(
    name: str | None, code: Iterable[Path], hidden: Iterable[Path]
) -> tuple[Path | None, bool]:
    """Return the notebook's folder, if it can be shown, and whether it may write there.

    A name that leads to the enclave's code or state must stay what it is: whoever could rename a
    folder on the way to it could put another in its place.
    """
    if name is None or not Path(name).is_dir():
        return None, False
    folder = Path(os.path.realpath(name))
    if folder == Path("/") or any(
        folder.is_relative_to(path) for path in (*map(Path, _SYSTEM), *hidden)
    ):
        return None, False
    guarded = (*code, *hidden)
    touches = any(path.is_relative_to(folder) or folder.is_relative_to(path) for path in guarded)
    return folder, not touches


def _close_to_writing() -> None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        target = fields[4].encode().decode("unicode_escape")
        if any(Path(target).is_relative_to(path) for path in _KERNEL_MOUNTS):
            continue
        flags = MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE
        if "noexec" in fields[5].split(","):
            flags |= MS_NOEXEC
        # One that lies below another mount cannot be named, and nobody reaches it.
        with suppress(LockdownError):
            mount("none", target, None, flags)
        if Path(target).exists() and not os.statvfs(target).f_flag & os.ST_RDONLY:
            raise LockdownError(f"{target} cannot be closed to writing")


def _make_own_folders(uid: int, gid: int) -> None:
    for name, mode in (("tmp", 0o1777), ("shm", 0o1777), ("home", 0o755), ("run", 0o755)):
        (_OWN / name).mkdir()
        (_OWN / name).chmod(mode)
    home = _OWN / "home" / HOME.name
    home.mkdir(mode=0o700)
    os.chown(home, uid, gid)


def _make_devices() -> None:
    devices = _OWN / "dev"
    devices.mkdir()
    for name in (*DEVICES, "tty"):
        (devices / name).touch()
        bind(f"/dev/{name}", devices / name, MS_NOSUID | MS_NOEXEC)
    for name in ("shm", "pts"):
        (devices / name).mkdir()
    bind(str(_OWN / "shm"), devices / "shm", SAFE)
    options = "newinstance,ptmxmode=0666,mode=0620"
    mount("devpts", devices / "pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    (devices / "ptmx").symlink_to("pts/ptmx")
    (devices / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (devices / name).symlink_to(f"/proc/self/fd/{number}")
    mount(str(devices), "/dev", None, MS_BIND | MS_REC)
    mount("none", "/dev", None, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE | MS_NOEXEC)


def _plan(
    shown: Mapping[Path, int], hidden: Iterable[Path], folder: Path | None, *, writable: bool
) -> dict[Path, _Place]:
    covers = {Path(name): _OWN / "tmp" for name in _TEMPORARY}
    covers[HOME.parent] = _OWN / "home"
    existing = [path for path in shown if path != WORKSPACE]
    empty = {Path("/sys"), *hidden, *(_closed_parent(path) for path in existing)}
    for number, path in enumerate(sorted(path for path in empty if path is not None)):
        if path not in covers:
            covers[path] = _OWN / f"empty-{number}"
    places = {path: _Place(cover) for path, cover in covers.items() if path.exists()}
    for path, descriptor in shown.items():
        if path == WORKSPACE:
            places[path] = _Place(descriptor=descriptor, owned=True, writable=True)
        elif path == folder:
            places[path] = _Place(descriptor=descriptor, owned=True, writable=writable)
        elif any(path.is_relative_to(cover) for cover in (*places, _OWN)):
            places[path] = _Place(descriptor=descriptor)
    return places


def _closed_parent(path: Path) -> Path | None:
    """Return the uppermost folder on the way to `path` that others cannot pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def _put(path: Path, place: _Place, uid: int, gid: int) -> None:
    if place.cover is not None:
        if not path.exists():
            # Out of sight already, below another cover.
            return
        place.cover.mkdir(exist_ok=True)
        bind(str(place.cover), path, SAFE)
        return
    if stat.S_ISDIR(os.fstat(place.descriptor).st_mode):
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=True)
    source = f"/proc/self/fd/{place.descriptor}"
    if place.owned:
        try:
            bind_as_owned(place.descriptor, path, uid=uid, gid=gid, read_only=not place.writable)
        except OSError:
            # No such mounts here: then with the permissions that others have.
            bind(source, path, SAFE if place.writable else SAFE | MS_RDONLY)
    else:
        bind(source, path, SAFE | MS_RDONLY)
