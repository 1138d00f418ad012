"""The directory to be packed: finding its files, refusing what is none, reading them unchanged.

Everything is opened beneath one directory descriptor without following links, so what was
checked is what is read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_encryption.errors import SourceTreeError
from enclave_protocol.package_archive import Entry, NameTable, check_path
from enclave_protocol.package_errors import PackageError

__all__ = ["READ_BYTES", "SKIPPED_NAMES", "SourceFile", "SourceTree", "scan"]

SKIPPED_NAMES: Final = frozenset({"__pycache__", ".ipynb_checkpoints", ".git", ".DS_Store"})
"""Never packed, at any depth: derived from the rest, or not part of what is published."""

READ_BYTES: Final = 32 * 16 * 1024
"""Whole chunks of the encryption; larger reads leave the core's cache and are slower."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that takes a file's place must not hang us.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


@dataclass(frozen=True)
class SourceFile:
    """A regular file as it was when scanned."""

    entry: Entry
    identity: tuple[int, int, int, int]


@dataclass(frozen=True)
class SourceTree:
    """A scanned directory.

    Attributes:
        root: The directory.
        files: In the archive's order.
    """

    root: Path
    files: tuple[SourceFile, ...]

    def read(self, file: SourceFile, buffer: memoryview) -> Iterator[memoryview]:
        """Yield the contents of `file` in pieces, each a view of `buffer`.

        Raises:
            SourceTreeError: The file is not the one scanned any more, or cannot be read.
        """
        path = file.entry.path
        try:
            with _opened_beneath(self.root, path) as descriptor:
                self._check_same(file, descriptor)
                total = 0
                while count := os.readv(descriptor, [buffer]):
                    total += count
                    if total > file.entry.size:
                        raise _changed(path)
                    yield buffer[:count]
                if total != file.entry.size:
                    raise _changed(path)
                self._check_same(file, descriptor)
        except OSError as error:
            raise SourceTreeError([f"{path}: cannot be read: {error.strerror}"]) from None

    def text(self, path: str, limit: int) -> str | None:
        """Return the UTF-8 text of the file `path`, None if the tree has no such file.

        Args:
            path: As in the archive.
            limit: Largest size allowed, bytes.

        Raises:
            SourceTreeError: Larger than `limit`, changed, unreadable or not UTF-8.
        """
        for file in self.files:
            if file.entry.path == path:
                break
        else:
            return None
        if file.entry.size > limit:
            raise SourceTreeError([f"{path}: has {file.entry.size} bytes, at most {limit}"])
        buffer = memoryview(bytearray(READ_BYTES))
        data = b"".join(bytes(piece) for piece in self.read(file, buffer))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SourceTreeError([f"{path}: is not UTF-8 text"]) from None

    @staticmethod
    def _check_same(file: SourceFile, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or _identity(status) != file.identity:
            raise _changed(file.entry.path)


def scan(root: Path) -> SourceTree:
    """Return the files in `root`; nothing is written, nothing read but names and attributes.

    Raises:
        SourceTreeError: `root` is no directory, is empty, or holds links, devices, sockets,
            FIFOs, unreadable files, or names a package cannot have: all of them are named.
    """
    problems: list[str] = []
    found: list[SourceFile] = []
    try:
        # The root itself may be reached through a link: it is what the owner typed.
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceTreeError([_root_problem(root, error)]) from None
    try:
        _scan_directory(descriptor, "", found, problems)
    finally:
        os.close(descriptor)
    found.sort(key=lambda file: file.entry.path.encode("utf-8", "surrogateescape"))
    names = NameTable()
    for file in found:
        try:
            names.add(file.entry.path)
        except PackageError as error:
            problems.append(error.reason)
    if problems:
        raise SourceTreeError(problems)
    if not found:
        raise SourceTreeError([f"{root}: holds no file to encrypt"])
    return SourceTree(root, tuple(found))


def _root_problem(root: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{root}: no such directory"
    if error.errno == errno.ENOTDIR:
        return f"{root}: is not a directory"
    return f"{root}: cannot be opened: {error.strerror}"


def _scan_directory(
    descriptor: int, prefix: str, found: list[SourceFile], problems: list[str]
) -> None:
    with os.scandir(descriptor) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        if name in SKIPPED_NAMES:
            continue
        path = prefix + name
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                check_path(path)  # bounds the depth, too
                inner = os.open(name, _DIRECTORY, dir_fd=descriptor)
                try:
                    _scan_directory(inner, f"{path}/", found, problems)
                finally:
                    os.close(inner)
                continue
            if not stat.S_ISREG(status.st_mode):
                kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
                problems.append(f"{_shown(path)}: is {kind}; packages hold regular files only")
                continue
            # Opening is the one true test of whether it can be read.
            os.close(os.open(name, _FILE, dir_fd=descriptor))
        except OSError as error:
            problems.append(f"{_shown(path)}: cannot be read: {error.strerror}")
            continue
        except PackageError as error:
            problems.append(error.reason)
            continue
        executable = bool(status.st_mode & stat.S_IXUSR)
        found.append(SourceFile(Entry(path, status.st_size, executable), _identity(status)))


@contextmanager
def _opened_beneath(root: Path, path: str) -> Iterator[int]:
    """Open `path` part by part beneath `root`, following no link."""
    *folders, name = path.split("/")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        opened = os.open(name, _FILE, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    try:
        yield opened
    finally:
        os.close(opened)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: str) -> SourceTreeError:
    return SourceTreeError([f"{path}: changed while it was packed; encrypt again"])


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)
