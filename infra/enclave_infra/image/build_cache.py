"""Keeps what was fetched between two builds of one user: files named by the lock they belong to.

What comes out is checked against the lock again, package by package, by whoever uses it.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enclave_infra.image.debian_lock import DebianPackage

__all__ = ["BuildCache"]

_MOST_FILES: Final = 8
"""Both machines' roots and kernels, of this lock and of the one before."""


class BuildCache:
    """A folder of files.

    Args:
        folder: Made at the first use, closed to other users; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def take(self, target: Path, kind: str, locked: Sequence[DebianPackage]) -> bool:
        """Put a kept file at `target`; say whether there was one. Without a lock there is none."""
        path = self._path(kind, locked)
        if path is None or not path.is_file():
            return False
        shutil.copyfile(path, target)
        os.utime(path)
        return True

    def keep(self, source: Path, kind: str, locked: Sequence[DebianPackage]) -> None:
        """Keep a copy of `source`; the files that were not used for longest make room."""
        path = self._path(kind, locked)
        if path is None:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        kept = sorted(path.parent.glob("[!.]*"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-_MOST_FILES]:
            file.unlink(missing_ok=True)

    def _path(self, kind: str, locked: Sequence[DebianPackage]) -> Path | None:
        if self._folder is None or not locked:
            return None
        lines = "".join(f"{package}\n" for package in sorted(locked))
        return self._folder / f"{kind}-{hashlib.sha256(lines.encode()).hexdigest()[:32]}"
