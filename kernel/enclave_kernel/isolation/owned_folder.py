"""Show a folder so that its owner's files are another user's: an idmapped mount.

For a notebook's folder on a developer's machine, whose files belong to whoever started the enclave.
Linux 5.12 and file systems that can do it; inside an enclave the files are the notebook's anyway.
The standard library only.

Source: mount_setattr(2), "ID-mapped mounts"; open_tree and move_mount of Linux 5.2.
"""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Final, NoReturn

from enclave_kernel.isolation.kernel_calls import LIBC, LockdownError, system_call
from enclave_kernel.isolation.seccomp import ARCHITECTURES

__all__ = ["bind_as_owned", "can_show_as_owned"]

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_MOUNT_ATTR_IDMAP: Final = 0x00100000
_CLONE_NEWUSER: Final = 0x10000000
_MAX_TEXT: Final = 64


def bind_as_owned(source: int, target: Path, *, uid: int, gid: int, read_only: bool) -> None:
    """Mount a folder at `target`, its owner's files shown as this user's, nosuid and nodev.

    What this user makes in it belongs to the folder's owner. Files of all others keep their
    permissions for others.

    Args:
        source: Descriptor of the folder.
        target: Existing folder.
        uid: User who is to own the folder's files here.
        gid: Its group.
        read_only: Nothing can be changed in it.

    Raises:
        OSError: The kernel or the file system cannot.
    """
    tree = _owned_tree(source, uid=uid, gid=gid, read_only=read_only)
    try:
        where = os.fsencode(target)
        _call("move_mount", tree, b"", _AT_FDCWD, where, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def can_show_as_owned(source: int) -> bool:
    """Say whether the kernel and the file system of a folder can do it."""
    try:
        os.close(_owned_tree(source, uid=1, gid=1, read_only=False))
    except OSError:
        return False
    return True


def _owned_tree(source: int, *, uid: int, gid: int, read_only: bool) -> int:
    """Return a descriptor of such a mount, which is nowhere yet."""
    status = os.fstat(source)
    users = _user_namespace(f"{status.st_uid} {uid} 1", f"{status.st_gid} {gid} 1")
    try:
        tree = _call("open_tree", source, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH)
        try:
            wanted = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_IDMAP
            access = (_MOUNT_ATTR_RDONLY, 0) if read_only else (0, _MOUNT_ATTR_RDONLY)
            # struct mount_attr: set, clear, propagation, user namespace. It is a copy of the mount
            # that the folder was found on, which may be closed to writing.
            attributes = struct.pack("=QQQQ", wanted | access[0], access[1], 0, users)
            _call("mount_setattr", tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        except BaseException:
            os.close(tree)
            raise
        return tree
    finally:
        os.close(users)


def _call(name: str, *arguments: int | bytes) -> int:
    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        raise OSError(errno.ENOSYS, name)
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result: int = LIBC.syscall(ctypes.c_long(architecture.numbers[name]), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _user_namespace(users: str, groups: str) -> int:
    """Return a descriptor of a user namespace with these maps; nobody is left in it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _be_in_user_namespace(theirs)
        theirs.close()
        try:
            # Its number in the /proc that is mounted, which may be another than ours of it.
            text, descriptors, _flags, _address = socket.recv_fds(ours, _MAX_TEXT, 1)
            if not descriptors:
                raise OSError(errno.EPERM, "user namespace")
            try:
                proc = Path("/proc", text.decode("ascii"))
                (proc / "uid_map").write_text(users)
                (proc / "gid_map").write_text(groups)
            except OSError:
                os.close(descriptors[0])
                raise
            return descriptors[0]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _be_in_user_namespace(link: socket.socket) -> NoReturn:
    with contextlib.suppress(OSError, LockdownError):
        system_call("unshare", _CLONE_NEWUSER)
        namespace = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(link, [str(Path("/proc/self").readlink()).encode()], [namespace])
        signal.pause()
    os._exit(1)
