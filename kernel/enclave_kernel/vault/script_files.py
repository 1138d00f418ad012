"""A script's view of the workspace: regular files that were sent, in the vault's own memory.

Nothing is shared with the notebook: no link, and no file that could be swapped while it is read.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_archive import (
    ArchiveReader,
    Entry,
    FileData,
    FileEnd,
    FileStart,
    encode_archive,
)
from enclave_protocol.package_errors import PackageError
from enclave_protocol.script_messages import check_workspace_path
from enclave_protocol.vault_messages import VaultMessageError

__all__ = ["InputFiles", "OutputRefusedError", "WorkspaceSpaceError", "collect_outputs"]

_PIECE_BYTES: Final = 1024 * 1024


class WorkspaceSpaceError(PackageError):
    """The workspace's files do not fit into the memory the vault has for them."""


class OutputRefusedError(EnclaveError):
    """What a script wrote cannot leave the vault."""


class InputFiles:
    """Takes the archive of the workspace's files.

    Args:
        root: Existing, empty folder that is the workspace from now on.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._reader = ArchiveReader()
        self._file: IO[bytes] | None = None
        self._any = False

    def feed(self, data: memoryview) -> None:
        """Take the next bytes.

        Raises:
            PackageError: They are no archive, or do not fit.
        """
        self._any = True
        try:
            for event in self._reader.feed(data):
                if isinstance(event, FileStart):
                    self._start(event)
                elif isinstance(event, FileData) and self._file is not None:
                    self._file.write(event.data)
                elif isinstance(event, FileEnd) and self._file is not None:
                    self._file.close()
                    self._file = None
        except OSError as error:
            raise WorkspaceSpaceError(
                f"the files of the workspace do not fit into the vault ({error.strerror}): name "
                "fewer, or give the enclave more memory"
            ) from None

    def _start(self, start: FileStart) -> None:
        path = self.root / start.path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        if start.size:
            os.posix_fallocate(descriptor, 0, start.size)

    def finish(self, folders: tuple[str, ...]) -> None:
        """Check that the archive is complete and make the folders.

        Raises:
            PackageError: It is not, or they do not fit.
            VaultMessageError: A folder's name is none.
        """
        if self._any:
            self._reader.finish()
        for folder in folders:
            check_workspace_path(folder)
            try:
                (self.root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise WorkspaceSpaceError(
                    f"the folder {folder!r} cannot be made in the vault: {error.strerror}"
                ) from None

    def check_outputs(self, outputs: tuple[str, ...], folders: tuple[str, ...]) -> None:
        """Check where a script's files are to be collected: in folders that `finish` made.

        Raises:
            VaultMessageError: One is another, such as one with `..`.
        """
        if not set(outputs) <= set(folders):
            raise VaultMessageError("an output folder is none of the workspace's folders")


def collect_outputs(
    root: Path, folders: tuple[str, ...], most_bytes: int, sent_bytes: int = 0
) -> Iterator[bytes]:
    """Yield the archive of the regular files in these folders; links and the like are left out.

    Args:
        root: The workspace's folder.
        folders: Below it, each checked.
        most_bytes: Of all files together; 0 for no limit.
        sent_bytes: What left otherwise, and counts as well.

    Raises:
        OutputRefusedError: More than the owner allows, or a name that no archive takes.
    """
    entries: dict[str, Entry] = {}
    total = sent_bytes
    for folder in folders:
        for path, size in _regular_files(root, folder):
            name = str(path.relative_to(root))
            if name not in entries:
                total += size
                entries[name] = Entry(name, size)
    if most_bytes and total > most_bytes:
        raise OutputRefusedError(
            f"the script wrote {total} bytes, the package's owner allows {most_bytes}"
        )
    ordered = sorted(entries.values(), key=lambda entry: os.fsencode(entry.path))
    for piece in encode_archive(ordered, lambda entry: _read(root / entry.path, entry.size)):
        yield bytes(piece)


def _regular_files(root: Path, folder: str) -> Iterator[tuple[Path, int]]:
    place = root
    for part in folder.split("/"):
        place /= part
        # `os.walk` follows the link that it is started with, and all on the way there.
        if place.is_symlink():
            return
    for base, folders, names in os.walk(place, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(base, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size


def _read(path: Path, size: int) -> Iterator[bytes]:
    # Who the script left behind may have put a link or a FIFO there meanwhile.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags), "rb") as stream:
        while size > 0 and (piece := stream.read(min(size, _PIECE_BYTES))):
            size -= len(piece)
            yield piece
