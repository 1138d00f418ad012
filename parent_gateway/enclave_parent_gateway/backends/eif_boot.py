"""Takes an enclave image apart into what a virtual machine boots, measured on the way.

What is measured is the private copy that is booted, so that nobody changes it in between.
Source: FACTS, "EIF version 4"; the order of the ramdisks in memory is that of the image.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from enclave_parent_gateway.errors import EnclaveStartError
from enclave_protocol.eif import CMDLINE, KERNEL, METADATA, RAMDISK, Eif, EifError, read_eif

__all__ = ["BootFiles", "measure_image", "unpack_eif"]

_HEADER_BYTES: Final = 548
_SECTION_HEADER_BYTES: Final = 12
_MAX_CMDLINE_BYTES: Final = 2048
"""COMMAND_LINE_SIZE of Linux on x86."""
_MAX_METADATA_BYTES: Final = 1 << 20
_CPIO_ALIGNMENT: Final = 4
"""An uncompressed archive begins at a multiple of it (Linux, init/initramfs.c)."""
_PIECE_BYTES: Final = 1 << 20


class _Metadata(msgspec.Struct, frozen=True):
    """What of the metadata section is of use here; it is not measured."""

    name: str = msgspec.field(name="ImageName", default="unnamed")


@dataclass(frozen=True)
class BootFiles:
    """An image, taken apart.

    Attributes:
        eif: What was read, with its PCRs.
        name: The image's name, from its metadata, which nothing proves.
        image_bytes: Size of the whole image.
        kernel: File of the kernel.
        initrd: File of all ramdisks, one behind the other.
        cmdline: The kernel's command line.
    """

    eif: Eif
    name: str
    image_bytes: int
    kernel: Path
    initrd: Path
    cmdline: str


def measure_image(image: Path) -> tuple[Eif, int]:
    """Return what an image holds, and its size in bytes.

    Raises:
        EnclaveStartError: The file cannot be read or is no image.
    """
    try:
        with image.open("rb") as file:
            eif, size = read_eif(file), os.fstat(file.fileno()).st_size
    except (OSError, EifError) as error:
        raise _unusable(image, error) from error
    return eif, size


def unpack_eif(
    image: Path, folder: Path, *, extra_ramdisk: Callable[[bytes], bytes] | None = None
) -> BootFiles:
    """Copy, measure and take apart an image.

    Args:
        image: The EIF.
        folder: Where the files go, a directory of this user alone.
        extra_ramdisk: Makes one more ramdisk, told PCR0, to go behind those of the image; it is
            not measured.

    Raises:
        EnclaveStartError: As `measure_image`.
    """
    copy = folder / "image.eif"
    try:
        shutil.copyfile(image, copy)
        eif, size = measure_image(copy)
        extra = extra_ramdisk(eif.pcrs[0]) if extra_ramdisk is not None else b""
        with copy.open("rb") as file:
            return _take_apart(file, eif, size, folder, extra)
    except (OSError, EifError) as error:
        raise _unusable(image, error) from error
    finally:
        copy.unlink(missing_ok=True)


def _unusable(image: Path, error: OSError | EifError) -> EnclaveStartError:
    if isinstance(error, EifError):
        return EnclaveStartError(f"{image} is no enclave image: {error}")
    return EnclaveStartError(
        f"the image {error.filename or image} cannot be used: {error.strerror or error}"
    )


def _take_apart(
    file: BinaryIO, eif: Eif, size: int, folder: Path, extra_ramdisk: bytes
) -> BootFiles:
    kernel, initrd = folder / "kernel", folder / "initrd"
    cmdline = metadata = b""
    position = _HEADER_BYTES
    with initrd.open("wb") as ramdisks:
        for section in eif.sections:
            file.seek(position + _SECTION_HEADER_BYTES)
            if section.kind == KERNEL:
                with kernel.open("wb") as target:
                    _copy(file, target, section.size_bytes)
            elif section.kind == CMDLINE:
                cmdline = file.read(min(section.size_bytes, _MAX_CMDLINE_BYTES + 1))
            elif section.kind == RAMDISK:
                _copy(file, ramdisks, section.size_bytes)
            elif section.kind == METADATA and section.size_bytes <= _MAX_METADATA_BYTES:
                metadata = file.read(section.size_bytes)
            position += _SECTION_HEADER_BYTES + section.size_bytes
        if extra_ramdisk:
            ramdisks.write(bytes(-ramdisks.tell() % _CPIO_ALIGNMENT))
            ramdisks.write(extra_ramdisk)
    return BootFiles(eif, _name(metadata), size, kernel, initrd, _text(cmdline))


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        data = source.read(min(size, _PIECE_BYTES))
        if not data:
            raise EifError("it became shorter while it was read")
        target.write(data)
        size -= len(data)


def _text(cmdline: bytes) -> str:
    """Return the command line; it becomes an argument of a program."""
    text = cmdline.rstrip(b"\0\n").decode("ascii", "replace")
    if len(text) > _MAX_CMDLINE_BYTES or not text.isprintable() or "\ufffd" in text:
        raise EifError(
            f"its kernel's command line is not printable ASCII of at most {_MAX_CMDLINE_BYTES} "
            "characters"
        )
    return text


def _name(metadata: bytes) -> str:
    try:
        name = msgspec.json.decode(metadata, type=_Metadata).name
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "unnamed"
    return name if name.isprintable() and len(name) <= 100 else "unnamed"
