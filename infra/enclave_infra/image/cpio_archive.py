"""Writes a directory as a cpio archive in the form that the kernel unpacks (newc), reproducibly.

The same tree gives the same bytes, wherever and whenever it lies: entries are sorted by name, and
owner, time, inode numbers and modes are ours.
Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from enclave_infra.image.errors import ImageError

__all__ = ["EPOCH_S", "image_mode", "image_paths", "write_cpio"]

EPOCH_S: Final = 1_700_000_000
"""The time of every file in an image, seconds since 1970."""
_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_MAX_FILE_BYTES: Final = (1 << 32) - 1
_PIECE_BYTES: Final = 1 << 20
_OPEN_FOLDERS: Final = ("tmp", "var/tmp")
_CLOSED_FOLDERS: Final = ("root",)


def image_paths(root: Path) -> Iterator[Path]:
    """Yield everything below `root`, parents first, in the order of the names' bytes."""
    found = [
        Path(folder) / name for folder, folders, files in os.walk(root) for name in folders + files
    ]
    yield from sorted(found, key=lambda path: os.fsencode(path.relative_to(root)))


def image_mode(path: Path, root: Path) -> int:
    """Return the mode that a file has in the image: type and permissions.

    Nobody but root writes anywhere but in /tmp and /var/tmp; no file is setuid or setgid.

    Raises:
        ImageError: It is neither file, folder nor symbolic link.
    """
    mode = path.lstat().st_mode
    name = path.relative_to(root).as_posix()
    if stat.S_ISLNK(mode):
        return stat.S_IFLNK | 0o777
    if stat.S_ISDIR(mode):
        closed = 0o700 if name in _CLOSED_FOLDERS else 0o755
        return stat.S_IFDIR | (0o1777 if name in _OPEN_FOLDERS else closed)
    if stat.S_ISREG(mode):
        return stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)
    raise ImageError(
        f"/{name} is neither file, folder nor symbolic link: images hold no such thing"
    )


def write_cpio(root: Path, target: BinaryIO, *, console: bool = False) -> int:
    """Write everything below `root` as an archive.

    Args:
        root: A directory of regular files, directories and symbolic links.
        target: Written to from its current position.
        console: Add /dev/console, which the kernel opens for the first process.

    Returns:
        Bytes written.

    Raises:
        ImageError: There is something else, or a file of 4 GiB or more.
        OSError: Reading or writing failed.
    """
    writer = _Writer(target)
    if console:
        writer.entry("dev", stat.S_IFDIR | 0o755)
        writer.entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for path in image_paths(root):
        name = path.relative_to(root).as_posix()
        mode = image_mode(path, root)
        if stat.S_ISLNK(mode):
            writer.entry(name, mode, data=os.fsencode(path.readlink()))
        elif stat.S_ISREG(mode):
            writer.file(name, mode, path)
        elif not (console and name == "dev"):
            writer.entry(name, mode)
    writer.end()
    return writer.written


class _Writer:
    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._inode = 0
        self.written = 0

    def entry(
        self, name: str, mode: int, *, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._header(name, mode, len(data), device)
        self._write(data)
        self._pad()

    def file(self, name: str, mode: int, path: Path) -> None:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ImageError(f"/{name} has {size} bytes: at most 4 GiB fit into a ramdisk's entry")
        self._header(name, mode, size, (0, 0))
        begin = self.written
        with path.open("rb") as source:
            while data := source.read(_PIECE_BYTES):
                self._write(data)
        if self.written - begin != size:
            raise ImageError(f"{path} changed while it was read: build again")
        self._pad()

    def end(self) -> None:
        self._inode = -1
        self._header(_TRAILER, 0, 0, (0, 0))

    def _header(self, name: str, mode: int, size: int, device: tuple[int, int]) -> None:
        self._inode += 1
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        modified_s = EPOCH_S if self._inode else 0
        # inode, mode, uid, gid, links, time, size, device of the file system, device, name, check
        fields = (self._inode, mode, 0, 0, links, modified_s, size, 0, 0, *device, len(encoded), 0)
        self._write(_MAGIC + b"".join(b"%08X" % field for field in fields) + encoded)
        self._pad()

    def _pad(self) -> None:
        self._write(bytes(-self.written % 4))

    def _write(self, data: bytes) -> None:
        self._target.write(data)
        self.written += len(data)
