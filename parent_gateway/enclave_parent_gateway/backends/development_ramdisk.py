"""The ramdisk that tells a development image of this machine's software NSM root and local cloud.

It goes behind the ramdisks of the image and is not measured: a production image has no use for its
one folder, `/development`.
Source: `enclave_kernel.boot.development`; Linux,
Documentation/driver-api/early-userspace/buffer-format.rst (cpio, form "newc").
"""

import stat
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

__all__ = ["development_ramdisk"]

_FOLDER: Final = "development"
_ROOT_FOLDER: Final = f"{_FOLDER}/nsm-root"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4


def development_ramdisk(
    *, pcr0: bytes, kms_endpoint_url: str, nsm_root: Mapping[str, bytes]
) -> bytes:
    """Return the ramdisk, an uncompressed archive.

    Args:
        pcr0: Of the image, which the software NSM shall attest.
        kms_endpoint_url: The local cloud's, as the gateway reaches it.
        nsm_root: Files of the software NSM's root, by name.
    """
    files = {
        f"{_FOLDER}/pcr0": pcr0.hex().encode(),
        f"{_FOLDER}/kms-endpoint-url": kms_endpoint_url.encode(),
        **{f"{_ROOT_FOLDER}/{PurePosixPath(name).name}": data for name, data in nsm_root.items()},
    }
    archive = bytearray()
    for number, folder in enumerate((_FOLDER, _ROOT_FOLDER), start=1):
        archive += _entry(number, folder, stat.S_IFDIR | 0o700, b"")
    for number, (name, content) in enumerate(sorted(files.items()), start=3):
        archive += _entry(number, name, stat.S_IFREG | 0o600, content)
    return bytes(archive + _entry(0, _TRAILER, 0, b""))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    """Return one entry: a header of thirteen numbers of eight hex digits, name, content."""
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
