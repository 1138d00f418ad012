"""A file that appears whole or not at all."""

import contextlib
import errno
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from enclave_encryption.errors import OutputError
from enclave_protocol.chunked_encryption import BytesLike

__all__ = ["OutputFile"]

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger files are not allowed there",
}


class OutputFile:
    """Writes beside `path`, and renames to it when the `with` block ends without an error.

    Args:
        path: The final name; a file of that name is replaced in one step.

    Raises:
        OutputError: The directory is missing or not writable, or `path` is a directory; while
            writing: the disk is full, or an input/output error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        self._descriptor = -1

    def __enter__(self) -> Self:
        if self._path.is_dir():
            raise OutputError(f"{self._path}: is a directory; give -o a file's name")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            # Nobody else reads it while it is incomplete.
            self._descriptor = os.open(self._temporary, flags, 0o600)
        except OSError as error:
            raise self._explained(error) from None
        return self

    def write(self, data: BytesLike) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise self._explained(error) from None

    def overwrite(self, offset: int, data: BytesLike) -> None:
        """Write `data` over what was written at `offset`; where `write` goes on stays."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._explained(error) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as failure:
            raise self._explained(failure) from None
        finally:
            os.close(self._descriptor)
            # Gone already after a rename; after anything else it must go.
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()

    def _publish(self) -> None:
        os.fchmod(self._descriptor, 0o666 & ~_umask() & 0o644)
        os.fsync(self._descriptor)
        self._temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _explained(self, error: OSError) -> OutputError:
        if error.errno in _FULL:
            return OutputError(
                f"{self._path}: {_FULL[error.errno]}; free some space or give -o another place"
            )
        return OutputError(f"{self._path}: cannot be written: {error.strerror}")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
