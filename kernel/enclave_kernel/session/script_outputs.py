"""What a script wrote, put into the workspace: only files that may be there, and whole ones.

The vault is somebody else's: names are checked here again, and none that would run code on the
parent instance comes out.
"""

import secrets
import shutil
from pathlib import Path
from typing import IO

from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_archive import ArchiveReader, FileData, FileEnd, FileStart
from enclave_protocol.plain_text import plain_text
from enclave_protocol.workspace.names import fold, is_reserved

__all__ = ["OutputFiles", "OutputNameError"]


class OutputNameError(EnclaveError):
    """A script wrote a file that must not come into the workspace."""


class OutputFiles:
    """Collects a script's files beside their place, and moves them there at the end.

    Args:
        workspace: The folder that `/` means.
        outputs: Folders whose files are taken; all others are refused.
    """

    def __init__(self, workspace: Path, outputs: tuple[str, ...]) -> None:
        self._workspace = workspace
        self.outputs = outputs
        self._reader = ArchiveReader()
        self._staging = workspace / f".enclave-{secrets.token_hex(8)}"
        self._paths: list[str] = []
        self._file: IO[bytes] | None = None
        self._any = False

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the archive.

        Raises:
            OutputNameError: A file is outside the output folders, or has a forbidden name.
            PackageError: It is no archive.
            OSError: A file cannot be written.
        """
        self._any = True
        for event in self._reader.feed(data):
            if isinstance(event, FileStart):
                self._check(event.path)
                self._paths.append(event.path)
                place = self._staging / str(len(self._paths))
                self._staging.mkdir(mode=0o700, exist_ok=True)
                self._file = place.open("xb")
            elif isinstance(event, FileData) and self._file is not None:
                self._file.write(event.data)
            elif isinstance(event, FileEnd) and self._file is not None:
                self._file.close()
                self._file = None

    def place(self, path: str, data: bytes) -> None:
        """Take a file that was made here; it replaces one of the vault's by this name.

        Args:
            path: Below the workspace.
            data: Its contents.

        Raises:
            OutputNameError: As `feed`.
            OSError: It cannot be written.
        """
        self._check(path)
        self._paths.append(path)
        self._staging.mkdir(mode=0o700, exist_ok=True)
        (self._staging / str(len(self._paths))).write_bytes(data)

    def publish(self) -> tuple[str, ...]:
        """Move the files to their places and return their paths; older ones are replaced.

        Raises:
            OSError: A place cannot be written to, or a link is on the way to it.
            PackageError: The archive is not complete.
        """
        if self._any:
            self._reader.finish()
        for number, path in enumerate(self._paths, 1):
            (self._staging / str(number)).replace(self._make_place(path))
        return tuple(dict.fromkeys(self._paths))

    def close(self) -> None:
        """Remove what was not published."""
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def _check(self, path: str) -> None:
        if not any(path.startswith(f"{folder}/") for folder in self.outputs):
            raise OutputNameError("the script's files are not in its output folder")
        for part in path.split("/"):
            if fold(part).startswith(".") or is_reserved(part):
                raise OutputNameError(
                    f"the script wrote /{plain_text(path)}, whose name could run code on this "
                    "machine: it is not taken"
                )

    def _make_place(self, path: str) -> Path:
        folder = self._workspace
        for part in path.split("/")[:-1]:
            folder = folder / part
            if folder.is_symlink():
                raise OSError(f"{folder} is a link: nothing is written through it")
            folder.mkdir(exist_ok=True)
        return folder / path.rpartition("/")[2]
