"""A folder that is reached by descriptors only: nothing outside of it is ever read or written.

Every path is walked name by name from the root's descriptor, and no link is followed: not at the
end, and not on the way. What is opened is a plain file with one name, on the root's own file
system. A file appears by a rename of one that was whole. Whoever may change the tree meanwhile can
make an operation fail, and not lead it elsewhere (THREATS Y-01, Y-03, Y-04, Y-06, Y-10).
"""

import ctypes
import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError
from enclave_protocol.workspace.messages import MAX_FILE_BYTES, Entry, Reason
from enclave_protocol.workspace.names import TEMPORARY_FOLDER, NameRefusedError, check_rel

__all__ = [
    "FILE_FLAGS",
    "INODE_MASK",
    "SETTLED_NS",
    "Staged",
    "Tree",
    "TreeError",
    "entry_of",
    "reason_for",
]

SETTLED_NS: Final = 20_000_000
"""Two changes within a tick of the kernel's clock (10 ms at most) leave the same time on a file:
one that is older than this has a time that tells (docs/spec/workspace.md, "Changes")."""
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TEMPORARY_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
INODE_MASK: Final = 2**63 - 1
_MAX_TIME_NS: Final = 2**62
_RESERVE_BYTES: Final = 4 * 1024 * 1024
"""Left free, so that a full workspace does not take the rest of the system with it."""
_REASONS: Final[dict[int, Reason]] = {
    errno.ENOENT: "changed",
    errno.ENOTDIR: "changed",
    errno.EISDIR: "changed",
    errno.ESTALE: "changed",
    errno.ELOOP: "special",
    errno.ENXIO: "special",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EROFS: "denied",
    errno.ENOTEMPTY: "occupied",
    errno.EEXIST: "occupied",
    errno.ENAMETOOLONG: "name",
}
_RENAME_NOREPLACE: Final = 1
# Not in every C library; one that has it takes no link at either end.
_renameat2: Final = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


class TreeError(EnclaveError):
    """Something was not done in the tree. `reason` is for programs, the text for people."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


def reason_for(error: OSError) -> TreeError:
    """Return what a failed system call means here."""
    reason = _REASONS.get(error.errno or 0, "failed")
    return TreeError(reason, os.strerror(error.errno) if error.errno else "it failed")


def entry_of(status: os.stat_result, now_ns: int) -> Entry:
    """Return the entry of a plain file or a folder.

    Args:
        status: Of it.
        now_ns: The time when that was asked for, or before.
    """
    if stat.S_ISDIR(status.st_mode):
        return Entry("folder", 0, 0, status.st_mode & 0o777, status.st_ino & INODE_MASK)
    time_ns = max(-_MAX_TIME_NS, min(status.st_mtime_ns, _MAX_TIME_NS))
    fresh = abs(now_ns - time_ns) < SETTLED_NS
    return Entry(
        "file",
        min(status.st_size, MAX_FILE_BYTES),
        time_ns,
        status.st_mode & 0o777,
        status.st_ino & INODE_MASK,
        fresh,
    )


@dataclass(slots=True)
class Staged:
    """A file on its way: in the temporary folder, under a name of ours."""

    descriptor: int
    name: str


class Tree:
    """The folder at `root` and what is below, for one process.

    Args:
        root: The folder; its own path may have links in it.

    Attributes:
        root: Its descriptor.
        device: Its file system: nothing on another one is looked at.

    Raises:
        TreeError: It cannot be opened or written to.
    """

    def __init__(self, root: Path | int) -> None:
        try:
            if isinstance(root, int):
                self.root = os.dup(root)
            else:
                self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.device = os.fstat(self.root).st_dev
            self._temporary = self._open_temporary()
        except OSError as error:
            raise reason_for(error) from error
        self._number = 0

    def _open_temporary(self) -> int:
        with suppress(FileExistsError):
            os.mkdir(TEMPORARY_FOLDER, 0o700, dir_fd=self.root)
        folder = os.open(TEMPORARY_FOLDER, _FOLDER_FLAGS, dir_fd=self.root)
        # Files that a process left there which was ended.
        _empty(folder)
        return folder

    def close(self) -> None:
        """Remove what is unfinished, and close."""
        _empty(self._temporary)
        os.close(self._temporary)
        with suppress(OSError):
            os.rmdir(TEMPORARY_FOLDER, dir_fd=self.root)
        os.close(self.root)

    # Looking

    @contextmanager
    def folder(self, rel: str) -> Iterator[int]:
        """Open a folder; "" is the root.

        Raises:
            TreeError: It is not there, or the way to it is no chain of folders.
        """
        current = self.open_folder(rel)
        try:
            yield current
        except OSError as error:
            raise reason_for(error) from error
        finally:
            os.close(current)

    def open_folder(self, rel: str) -> int:
        """Return a descriptor of a folder; "" is the root.

        Raises:
            TreeError: As `folder`.
        """
        if rel:
            _check(rel)
        try:
            current = os.open(".", _FOLDER_FLAGS, dir_fd=self.root)
            try:
                for name in rel.split("/") if rel else ():
                    below = os.open(name, _FOLDER_FLAGS, dir_fd=current)
                    os.close(current)
                    current = below
                if os.fstat(current).st_dev != self.device:
                    raise TreeError("special", "another file system is mounted there")
            except BaseException:
                os.close(current)
                raise
        except OSError as error:
            raise reason_for(error) from error
        return current

    @contextmanager
    def _place(self, rel: str) -> Iterator[tuple[int, str]]:
        """Open the folder that `rel` is in; with the last name."""
        _check(rel)
        above, _, name = rel.rpartition("/")
        with self.folder(above) as folder:
            yield folder, name

    def look(self, rel: str) -> Entry | None:
        """Return what is at `rel`, None for nothing.

        Raises:
            TreeError: It is neither a plain file nor a folder, or cannot be looked at.
        """
        try:
            with self._place(rel) as (folder, name):
                return self.look_in(folder, name)
        except TreeError as error:
            if error.reason == "changed":
                return None
            raise

    def look_in(self, folder: int, name: str) -> Entry | None:
        """Return what is in an open folder by that name, None for nothing.

        Raises:
            TreeError: It does not travel.
            OSError: It cannot be looked at.
        """
        now_ns = time.time_ns()
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        self.check(status)
        return entry_of(status, now_ns)

    def check(self, status: os.stat_result) -> None:
        """Refuse what does not travel.

        Raises:
            TreeError: It is no plain file or folder of this file system, or has other names.
        """
        reason = self.refused(status)
        if reason is not None:
            raise TreeError("special", reason)

    def refused(self, status: os.stat_result) -> str | None:
        """Return why something does not travel, None if it does."""
        if stat.S_ISLNK(status.st_mode):
            return "it is a symbolic link"
        if status.st_dev != self.device:
            return "it is on another file system"
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            return "it is a device, a socket or a pipe"
        if status.st_nlink != 1:
            return "it has several names (hard links)"
        if status.st_size > MAX_FILE_BYTES:
            return "it is larger than 4 TiB"
        return None

    @contextmanager
    def reading(self, rel: str, expect: Entry) -> Iterator[int]:
        """Open a file for reading, if it is as expected.

        Raises:
            TreeError: It is not, or cannot be read.
        """
        with self._place(rel) as (folder, name):
            descriptor = os.open(name, FILE_FLAGS, dir_fd=folder)
            try:
                self.check_same(descriptor, expect)
                yield descriptor
            finally:
                os.close(descriptor)

    def check_same(self, descriptor: int, expect: Entry) -> None:
        """Refuse an open file that is not, or no more, what is expected.

        One that is expected to be fresh may be in any state.

        Raises:
            TreeError: It is not.
        """
        status = os.fstat(descriptor)
        self.check(status)
        if not stat.S_ISREG(status.st_mode):
            raise TreeError("changed", "it is a folder now")
        if not expect.fresh and not entry_of(status, 0).same_state(expect):
            raise TreeError("changed", "it changed meanwhile")

    def entry(self, descriptor: int) -> Entry:
        """Return what an open file is now."""
        now_ns = time.time_ns()
        return entry_of(os.fstat(descriptor), now_ns)

    # Changing

    def free_bytes(self) -> int:
        """Return how much may still be written."""
        found = os.fstatvfs(self.root)
        return max(0, found.f_bavail * found.f_frsize - _RESERVE_BYTES)

    def make_room(self, size: int) -> None:
        """Refuse what does not fit.

        Raises:
            TreeError: It does not.
        """
        free = self.free_bytes()
        if size > free:
            raise TreeError("full", f"it needs {_mib(size)}, and {_mib(free)} are free")

    def stage(self, mode: int = 0o600) -> Staged:
        """Make an empty file in the temporary folder, which only its owner enters.

        Raises:
            TreeError: It cannot be made.
        """
        self._number += 1
        name = f"{os.getpid()}-{self._number}"
        try:
            return Staged(os.open(name, _TEMPORARY_FLAGS, mode, dir_fd=self._temporary), name)
        except OSError as error:
            raise reason_for(error) from error

    def abandon(self, staged: Staged) -> None:
        """Forget a staged file."""
        os.close(staged.descriptor)
        with suppress(OSError):
            os.unlink(staged.name, dir_fd=self._temporary)

    def commit(self, staged: Staged, rel: str, entry: Entry, expect: Entry | None) -> Entry:
        """Have a staged file take its place, with its time and mode; return what it became.

        Args:
            staged: It is gone afterwards, whatever happens.
            rel: Its place.
            entry: Size, time and mode that it is to have.
            expect: What is in that place now, to be replaced; None: nothing.

        Raises:
            TreeError: Something else is in its place, it has another size, or it cannot be done.
        """
        placed = False
        try:
            status = os.fstat(staged.descriptor)
            if status.st_size != entry.size:
                raise TreeError("failed", f"{status.st_size} of {entry.size} bytes came")
            os.fchmod(staged.descriptor, entry.mode)
            os.utime(staged.descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            with self._place(rel) as (folder, name):
                if expect is None:
                    self.place_new(staged, folder, name)
                else:
                    self.check_place(folder, name, expect)
                    self.place(staged, folder, name)
                placed = True
            return _with_inode(entry, status)
        except OSError as error:
            raise reason_for(error) from error
        finally:
            if placed:
                os.close(staged.descriptor)
            else:
                self.abandon(staged)

    def place(self, staged: Staged, folder: int, name: str) -> None:
        """Rename a staged file to its place, which was checked."""
        os.rename(staged.name, name, src_dir_fd=self._temporary, dst_dir_fd=folder)

    def place_new(self, staged: Staged, folder: int, name: str) -> None:
        """Rename a staged file to a place that has to be free, in one step.

        Raises:
            TreeError: It is not free.
            OSError: It cannot be renamed.
        """
        if _renameat2 is not None:
            encoded = os.fsencode(name)
            source = staged.name.encode()
            if _renameat2(self._temporary, source, folder, encoded, _RENAME_NOREPLACE) == 0:
                return
            code = ctypes.get_errno()
            if code == errno.EEXIST:
                raise TreeError("changed", "there is something by that name now")
            if code not in (errno.EINVAL, errno.ENOSYS):
                raise OSError(code, os.strerror(code))
        # The file system, or the C library, does not know of it.
        self.check_place(folder, name, None)
        self.place(staged, folder, name)

    def check_place(self, folder: int, name: str, expect: Entry | None) -> None:
        """Refuse a place that is not as expected; None: it is to be free.

        Raises:
            TreeError: It is not.
        """
        found = self.look_in(folder, name)
        if expect is None:
            if found is not None:
                raise TreeError("changed", "there is something by that name now")
        elif found is None or found.kind != expect.kind or not expect.same_state(found):
            raise TreeError("changed", "it changed meanwhile")

    def make_folder(self, rel: str, mode: int) -> Entry:
        """Make a folder, or give one that is there its mode; its owner may always use it.

        Raises:
            TreeError: Something else is there, or it cannot be made.
        """
        wanted = mode & 0o777 | 0o700
        with self._place(rel) as (folder, name):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
            descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
            try:
                self.check(os.fstat(descriptor))
                os.fchmod(descriptor, wanted)
                return entry_of(os.fstat(descriptor), 0)
            finally:
                os.close(descriptor)

    def set_meta(self, rel: str, entry: Entry, expect: Entry) -> Entry:
        """Give a file its time and mode, a folder its mode; return what it became.

        Raises:
            TreeError: It is not as expected, or it cannot be done.
        """
        if expect.kind == "folder":
            return self.make_folder(rel, entry.mode)
        with self.reading(rel, expect) as descriptor:
            os.fchmod(descriptor, entry.mode)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            return entry_of(os.fstat(descriptor), 0)

    def remove(self, rel: str, expect: Entry) -> None:
        """Remove a file, or a folder that is empty.

        Raises:
            TreeError: It is not as expected, or not empty.
        """
        with self._place(rel) as (folder, name):
            if expect.kind == "folder":
                os.rmdir(name, dir_fd=folder)
            else:
                self.check_place(folder, name, expect)
                os.unlink(name, dir_fd=folder)

    def move(self, source: str, target: str, expect: Entry) -> Entry:
        """Rename a file or folder to a name that is free; return what it is now.

        Raises:
            TreeError: It is not as expected, or the name is taken.
        """
        with self._place(source) as (old, old_name), self._place(target) as (new, new_name):
            found = self.look_in(old, old_name)
            if found is None or found.kind != expect.kind:
                raise TreeError("changed", "it is gone")
            if found.kind == "file" and not found.same_state(expect):
                raise TreeError("changed", "it changed meanwhile")
            self.check_place(new, new_name, None)
            os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)
            return found


def _empty(folder: int) -> None:
    with os.scandir(folder) as items:
        names = [item.name for item in items]
    for name in names:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _check(rel: str) -> None:
    try:
        check_rel(rel)
    except NameRefusedError as error:
        raise TreeError("name", error.reason) from error


def _with_inode(entry: Entry, status: os.stat_result) -> Entry:
    """Return the entry with the inode of this file."""
    return Entry(entry.kind, entry.size, entry.mtime_ns, entry.mode, status.st_ino & INODE_MASK)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
