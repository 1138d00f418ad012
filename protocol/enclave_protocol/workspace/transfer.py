"""One file on its way: taken apart by the end that has it, put together by the end that gets it."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from enclave_protocol.workspace.blocks import unchanged
from enclave_protocol.workspace.messages import (
    DATA_BYTES,
    Copy,
    Data,
    Entry,
    Signature,
    WorkspaceError,
)
from enclave_protocol.workspace.tree import Tree, TreeError, reason_for

__all__ = ["IncomingFile", "pieces", "read_small"]

_COPY_UNSUPPORTED: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def read_small(descriptor: int, size: int) -> bytes:
    """Return a small file's bytes.

    Raises:
        TreeError: It got shorter.
        OSError: It cannot be read.
    """
    data = os.pread(descriptor, size, 0)
    if len(data) != size:
        raise TreeError("changed", "it changed meanwhile")
    return data


def pieces(descriptor: int, size: int, have: Signature | None) -> Iterator[Data | Copy]:
    """Take a file apart; its holes are left out.

    Args:
        descriptor: The file, open for reading.
        size: Its bytes.
        have: Signature of what the other end has in its place.

    Raises:
        TreeError: It got shorter.
        OSError: It cannot be read.
    """
    ranges = unchanged(descriptor, size, have) if have is not None else iter([(0, size, False)])
    for start, length, known in ranges:
        if known:
            yield Copy(start, length)
            continue
        for offset, end in _data_ranges(descriptor, start, start + length):
            while offset < end:
                data = os.pread(descriptor, min(DATA_BYTES, end - offset), offset)
                if not data:
                    raise TreeError("changed", "it changed meanwhile")
                yield Data(offset, memoryview(data))
                offset += len(data)


def _data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where between `start` and `end` a file has data, and no hole."""
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                # A file system that does not know of holes.
                yield start, end
            return
        if data >= end:
            return
        yield data, min(hole, end)
        start = hole


class IncomingFile:
    """A file that is put together beside its place, and takes it once it is whole.

    Args:
        tree: Where.
        rel: Its place.
        entry: Its size, time and mode in the end.
        expect: What is in its place now, to copy from and to be replaced; None: nothing.

    Raises:
        TreeError: There is no room, or the place is not as expected.
    """

    def __init__(self, tree: Tree, rel: str, entry: Entry, expect: Entry | None) -> None:
        self._tree = tree
        self._rel = rel
        self._entry = entry
        self._expect = expect
        self._position = 0
        # Before anything travels: by its name, and by what is there.
        found = tree.look(rel)
        if expect is None and found is not None:
            raise TreeError("changed", "there is something by that name now")
        tree.make_room(entry.size)
        self._staged = tree.stage()
        self._done = False
        self._base = -1
        try:
            if expect is not None and expect.kind == "file":
                with tree.reading(rel, expect) as descriptor:
                    self._base = os.dup(descriptor)
        except BaseException:
            self.abandon()
            raise

    def take(self, piece: Data | Copy) -> None:
        """Write a piece.

        Raises:
            WorkspaceError: It is not behind the one before, or beyond the file's end.
            TreeError: It cannot be written: no room, most likely.
        """
        size = len(piece.data) if isinstance(piece, Data) else piece.size
        end = piece.offset + size
        if piece.offset < self._position or end > self._entry.size:
            raise WorkspaceError("a piece of a file is out of order, or beyond its end")
        self._position = end
        try:
            if isinstance(piece, Copy):
                self._copy(piece.offset, end)
            else:
                _write(self._staged.descriptor, piece.data, piece.offset)
        except OSError as error:
            raise reason_for(error) from error

    def _copy(self, start: int, end: int) -> None:
        if self._base < 0 or self._expect is None or end > self._expect.size:
            raise WorkspaceError("a piece is to be copied from a file that is not there")
        for offset, stop in _data_ranges(self._base, start, end):
            while offset < stop:
                offset += self._copy_some(offset, stop - offset)

    def _copy_some(self, offset: int, size: int) -> int:
        try:
            copied = os.copy_file_range(self._base, self._staged.descriptor, size, offset, offset)
        except OSError as error:
            if error.errno not in _COPY_UNSUPPORTED:
                raise
            data = os.pread(self._base, min(DATA_BYTES, size), offset)
            _write(self._staged.descriptor, memoryview(data), offset)
            copied = len(data)
        if copied == 0:
            raise TreeError("changed", "it changed meanwhile")
        return copied

    def commit(self) -> Entry:
        """Have the file take its place; return what it is there.

        Raises:
            TreeError: The place is not as expected any more, or it cannot be done.
        """
        try:
            # What was a hole at the end.
            os.ftruncate(self._staged.descriptor, self._entry.size)
        except OSError as error:
            self.abandon()
            raise reason_for(error) from error
        self._done = True
        self._close_base()
        return self._tree.commit(self._staged, self._rel, self._entry, self._expect)

    def abandon(self) -> None:
        """Forget it; harmless after its end."""
        self._close_base()
        if not self._done:
            self._done = True
            self._tree.abandon(self._staged)

    def _close_base(self) -> None:
        if self._base >= 0:
            with suppress(OSError):
                os.close(self._base)
            self._base = -1


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]
