"""What is in an image: its sections, its PCRs, and the files of its ramdisks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from enclave_infra.image.cpio_reader import ArchiveEntry, read_ramdisk
from enclave_protocol.eif import CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, Eif, read_eif

__all__ = ["SECTION_NAMES", "ImageView", "view_image"]

SECTION_NAMES: Final = {
    KERNEL: "kernel",
    CMDLINE: "cmdline",
    RAMDISK: "ramdisk",
    SIGNATURE: "signature",
    METADATA: "metadata",
}
_HEADER_BYTES, _SECTION_BYTES = 548, 12
_MAX_TEXT_BYTES: Final = 1 << 20


class ImageView:
    """An image file that was read to its end and found whole.

    Attributes:
        path: The file.
        eif: What the reader says of it.
    """

    def __init__(self, path: Path, eif: Eif) -> None:
        self.path = path
        self.eif = eif

    @property
    def cmdline(self) -> str:
        """The kernel's command line."""
        return self._text(CMDLINE).decode("utf-8", "replace")

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata, which nobody measured; empty if there is none that can be read."""
        try:
            return msgspec.json.decode(self._text(METADATA), type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return {}

    def sections(self) -> Iterator[tuple[int, int, int]]:
        """Yield type, offset of the content, and size of each section."""
        position = _HEADER_BYTES
        for section in self.eif.sections:
            yield section.kind, position + _SECTION_BYTES, section.size_bytes
            position += _SECTION_BYTES + section.size_bytes

    def ramdisks(self) -> Iterator[list[ArchiveEntry]]:
        """Yield the entries of each ramdisk.

        Raises:
            ImageError: One is no cpio archive, or is compressed otherwise than with gzip.
        """
        with self.path.open("rb") as file:
            for kind, offset, size in self.sections():
                if kind == RAMDISK:
                    file.seek(offset)
                    yield [entry for entry, _ in read_ramdisk(file, size)]

    def read_files(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the contents of files in the ramdisks; of several of one name, the last one's.

        Args:
            wanted: Says by name which; together they should fit into memory.

        Raises:
            ImageError: A ramdisk cannot be read.
        """
        found: dict[str, bytes] = {}
        with self.path.open("rb") as file:
            for kind, offset, size in self.sections():
                if kind == RAMDISK:
                    file.seek(offset)
                    read = read_ramdisk(file, size, keep=wanted)
                    found |= {entry.name: data for entry, data in read if wanted(entry.name)}
        return found

    def _text(self, wanted: int) -> bytes:
        with self.path.open("rb") as file:
            for kind, offset, size in self.sections():
                if kind == wanted and size <= _MAX_TEXT_BYTES:
                    file.seek(offset)
                    return file.read(size)
        return b""


def view_image(path: Path) -> ImageView:
    """Read an image file.

    Raises:
        EifError: It is no whole image.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return ImageView(path, read_eif(file))
