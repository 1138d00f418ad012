"""From the encrypted body to what the importer needs: sources in memory, data files in place.

Nothing placed here is used before `finish` returned: only then has the last chunk verified.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from enclave_protocol.compiled_code import HEAD_BYTES, is_compiled_head, is_compiled_name
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.package_archive import ArchiveEnd, ArchiveEvent, FileEnd, FileStart
from enclave_protocol.package_errors import PackageError, PackageTruncatedError
from enclave_protocol.package_header import PackageHeader
from enclave_protocol.package_reader import PackageReader

__all__ = ["NativeCodeError", "PackageSpaceError", "Unpacker"]

_MAX_SOURCE_BYTES: Final = 32 * 1024 * 1024
"""Of one module or notebook; the compiler takes a multiple of it."""


class PackageSpaceError(PackageError):
    """The package's files do not fit into the memory the vault has for them."""


class NativeCodeError(PackageError):
    """The package brings compiled code, and its policy does not say so."""

    def __init__(self) -> None:
        # The message names no file: those of the package are the owner's.
        super().__init__(
            "it brings compiled code, which its policy does not allow: its owner has to set "
            "[policy] native = true, or leave that code out"
        )


class Unpacker:
    """Decrypts a body piece by piece.

    Args:
        header: The file's header.
        data_key: 32 bytes; the caller wipes it.
        root: Existing, empty directory for the data files.

    Attributes:
        sources: Python source by path.
        notebooks: The same of notebooks that the label declares as scripts; all others are data.
    """

    def __init__(self, header: PackageHeader, data_key: bytearray, root: Path) -> None:
        self.sources: dict[str, bytearray] = {}
        self.notebooks: dict[str, bytearray] = {}
        self._runnable = {
            script.file
            for script in header.label.scripts.values()
            if script.file.endswith(NOTEBOOK_SUFFIX)
        }
        self._root = root
        self._folders: set[str] = set()
        self._complete = False
        self._native = header.label.policy.native
        self._current: bytearray | memoryview = bytearray()
        self._reader = PackageReader(header, data_key, place=self._place)

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the body.

        Args:
            data: To be left as it is until the next call of a method returned; `PackageReader.feed`
                says why.

        Raises:
            PackageError: They are not what the owner encrypted, or do not fit.
        """
        self._consume(self._reader.feed(data, kept=True))

    def finish(self) -> dict[str, bytearray]:
        """Verify that the body is complete and return the sources by path.

        Raises:
            PackageError: It is altered or not complete.
        """
        self._consume(self._reader.finish())
        if not self._complete:
            raise PackageTruncatedError("the archive ends too early")
        # With it go the derived key and the last plaintext it staged.
        del self._reader
        return self.sources

    def _consume(self, events: Iterable[ArchiveEvent]) -> None:
        for event in events:
            # Contents go where `_place` said; only ends are of interest.
            self._complete = isinstance(event, ArchiveEnd)
            if isinstance(event, FileEnd) and not self._native:
                self._refuse_compiled()

    def _refuse_compiled(self) -> None:
        """Look at the file that just ended: nothing of it was used."""
        if is_compiled_head(bytes(self._current[:HEAD_BYTES])):
            raise NativeCodeError
        self._current = bytearray()

    def _place(self, start: FileStart) -> bytearray | memoryview:
        if not self._native and is_compiled_name(start.path):
            raise NativeCodeError
        self._current = self._find_place(start)
        return self._current

    def _find_place(self, start: FileStart) -> bytearray | memoryview:
        folder = start.path.rpartition("/")[0]
        try:
            if folder not in self._folders:
                # Also for sources alone: `importlib.resources` expects the folder of a package.
                (self._root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                self._folders.add(folder)
            if start.path.endswith(".py"):
                return _place_source(self.sources, start)
            if start.path in self._runnable:
                return _place_source(self.notebooks, start)
            return _place_file(self._root / start.path, start.size)
        except (OSError, MemoryError):
            # The message names no file: those of the package are the owner's.
            raise PackageSpaceError(
                "its files do not fit into the enclave's memory: unload other packages, or give "
                "the enclave more memory"
            ) from None


def _place_source(sources: dict[str, bytearray], start: FileStart) -> bytearray:
    if start.size > _MAX_SOURCE_BYTES:
        raise PackageError(
            f"one of its modules has {start.size} bytes, at most {_MAX_SOURCE_BYTES} are "
            "accepted: the owner has to move its data into a file"
        )
    source = sources[start.path] = bytearray(start.size)
    return source


def _place_file(path: Path, size: int) -> memoryview:
    """Return the memory of a new file, so that it is decrypted right there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        if not size:
            return memoryview(bytearray())
        # The size first: huge pages are only given within it.
        os.truncate(descriptor, size)
        # Now, and not when a page is first touched: that would be a fatal signal.
        os.posix_fallocate(descriptor, 0, size)
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)
