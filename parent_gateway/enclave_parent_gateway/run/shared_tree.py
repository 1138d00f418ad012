"""A tree that several processes write to at a time: `enclave sync` and any number of runs."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from enclave_parent_gateway.runtime_dir import FileLock
from enclave_protocol.workspace.names import TEMPORARY_FOLDER
from enclave_protocol.workspace.tree import Tree

__all__ = ["SharedTree"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES: Final = 20


class SharedTree(Tree):
    """A `Tree` whose unfinished files are in a folder of its own, in the one that is not mirrored.

    Args:
        root: The folder.
        sync_lock: Held by `enclave sync`, which relies on the folder that this one is made in;
            None: no mirror can be in this root.

    Raises:
        TreeError: It cannot be opened or written to.
    """

    def __init__(self, root: Path, sync_lock: FileLock | None) -> None:
        self._own = f"run-{secrets.token_hex(8)}"
        self._sync_lock = sync_lock
        super().__init__(root)

    def _open_temporary(self) -> int:
        for attempt in range(_TRIES):
            with suppress(FileExistsError):
                os.mkdir(TEMPORARY_FOLDER, 0o700, dir_fd=self.root)
            try:
                above = os.open(TEMPORARY_FOLDER, _FOLDER, dir_fd=self.root)
                try:
                    os.mkdir(self._own, 0o700, dir_fd=above)
                    return os.open(self._own, _FOLDER, dir_fd=above)
                finally:
                    os.close(above)
            except FileNotFoundError:
                # Another run has just ended, and removed it.
                if attempt == _TRIES - 1:
                    raise
        raise FileNotFoundError(TEMPORARY_FOLDER)

    def close(self) -> None:
        """Remove what is unfinished, the folders if nobody else has a use for them, and close."""
        with suppress(OSError):
            with os.scandir(self._temporary) as found:
                names = [item.name for item in found]
            for name in names:
                os.unlink(name, dir_fd=self._temporary)
        os.close(self._temporary)
        with suppress(OSError):
            os.rmdir(f"{TEMPORARY_FOLDER}/{self._own}", dir_fd=self.root)
            # While this is held no mirror begins, which would be left with a removed folder.
            if self._sync_lock is None or self._sync_lock.try_acquire():
                try:
                    os.rmdir(TEMPORARY_FOLDER, dir_fd=self.root)
                finally:
                    if self._sync_lock is not None:
                        self._sync_lock.release()
        os.close(self.root)
