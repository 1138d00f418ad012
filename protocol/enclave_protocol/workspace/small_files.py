"""Small files of a tree, many after another: the same checks as `tree`, with less around them.

A folder that the one before was in is not walked to again: while a batch lasts its descriptor is
the folder, wherever that is moved meanwhile. Where it was is where the walk led, below the root.
"""

import os
import stat
from typing import Final

from enclave_protocol.workspace.messages import Entry
from enclave_protocol.workspace.names import wrong_name
from enclave_protocol.workspace.tree import FILE_FLAGS, INODE_MASK, Tree, TreeError, reason_for

__all__ = ["SmallFiles"]

_TYPE_AND_MODE: Final = 0o170777


class SmallFiles:
    """Looks at, reads and writes whole files of a tree; to be closed after each batch.

    Args:
        tree: The tree.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._rel = ""
        self._folder = -1

    def close(self) -> None:
        """Forget the folder that was used last; also after folders were moved or removed."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _place(self, rel: str) -> str:
        """Have the folder of a file open; return the file's name in it."""
        above, _, name = rel.rpartition("/")
        reason = wrong_name(name)
        if reason is not None:
            raise TreeError("name", reason)
        if self._folder < 0 or above != self._rel:
            self.close()
            # The temporary folder is refused here as well: it is no place for a file.
            self._folder = self._tree.open_folder(above)
            self._rel = above
        return name

    def look(self, rel: str) -> Entry | None:
        """Return what is at a path, None for nothing.

        Raises:
            TreeError: It does not travel, or cannot be looked at.
        """
        try:
            name = self._place(rel)
            return self._tree.look_in(self._folder, name)
        except TreeError as error:
            if error.reason == "changed":
                return None
            raise
        except OSError as error:
            raise reason_for(error) from error

    def is_still(self, rel: str, entry: Entry) -> bool:
        """Say whether a file that was written here is still the very same."""
        try:
            name = self._place(rel)
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except (TreeError, OSError):
            return False
        return (
            status.st_ino & INODE_MASK == entry.inode
            and status.st_mtime_ns == entry.mtime_ns
            and status.st_size == entry.size
            and status.st_mode & 0o777 == entry.mode
        )

    def read(self, rel: str, expect: Entry) -> bytes:
        """Return what is in a file that is, and stays, as expected.

        Raises:
            TreeError: It is not, or cannot be read.
        """
        try:
            name = self._place(rel)
            descriptor = os.open(name, FILE_FLAGS, dir_fd=self._folder)
            try:
                before = os.fstat(descriptor)
                self._check(before, expect)
                data = os.read(descriptor, expect.size + 1)
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise reason_for(error) from error
        if len(data) != expect.size or after.st_mtime_ns != before.st_mtime_ns:
            raise TreeError("changed", "it changed meanwhile")
        return data

    def _check(self, status: os.stat_result, expect: Entry) -> None:
        if (
            status.st_mode & _TYPE_AND_MODE == stat.S_IFREG | expect.mode
            and status.st_mtime_ns == expect.mtime_ns
            and status.st_size == expect.size
            and status.st_nlink == 1
            and status.st_dev == self._tree.device
        ):
            return
        self._tree.check(status)
        raise TreeError("changed", "it changed meanwhile")

    def write(self, rel: str, entry: Entry, expect: Entry | None, data: memoryview) -> Entry:
        """Put a whole file into its place, with its time and mode; return what it is there.

        Args:
            rel: Its place.
            entry: As it is to be.
            expect: What is in its place now; None: nothing.
            data: Its content, as long as `entry` says.

        Raises:
            TreeError: The place is not as expected, there is no room, or it cannot be written.
        """
        tree = self._tree
        staged = tree.stage(entry.mode)
        placed = False
        try:
            name = self._place(rel)
            if data and os.write(staged.descriptor, data) != len(data):
                raise TreeError("full", "there is no room for it")
            os.utime(staged.descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            status = os.fstat(staged.descriptor)
            if status.st_mode & 0o777 != entry.mode:
                # This process's mask took some of it.
                os.fchmod(staged.descriptor, entry.mode)
            inode = status.st_ino & INODE_MASK
            if expect is None:
                tree.place_new(staged, self._folder, name)
            else:
                tree.check_place(self._folder, name, expect)
                tree.place(staged, self._folder, name)
            placed = True
        except OSError as error:
            raise reason_for(error) from error
        finally:
            if placed:
                os.close(staged.descriptor)
            else:
                tree.abandon(staged)
        return Entry("file", entry.size, entry.mtime_ns, entry.mode, inode)
