"""A virtual machine with an NSM of Linux's own driver: QEMU's `virtio-nsm`, and a kernel for it.

Debian has neither for its 12th release; `.ci/nsm-tools` makes the one and fetches the other.
"""

import gzip
import os
import subprocess
from pathlib import Path

from enclave_infra.image.cpio_archive import write_cpio
from enclave_infra.image.eif_writer import EifParts, write_eif
from enclave_infra.image.image_view import view_image
from enclave_infra.image.kernel_files import debian_kernel
from enclave_infra.image.root_settings import write_boot
from enclave_protocol.eif import METADATA, RAMDISK
from tests.support.project_wheel import ROOT

__all__ = ["install_nsm_tools", "nsm_image", "nsm_path"]

_FOLDER = ROOT / ".cache" / "nsm"
_TIMEOUT_S = 900
_MEMORY_BYTES = 1 << 30


def install_nsm_tools() -> None:
    """Make QEMU and fetch the kernel, where they are missing."""
    subprocess.run([ROOT / ".ci" / "nsm-tools"], check=True, timeout=_TIMEOUT_S)


def nsm_path() -> str:
    """Return a PATH on which that QEMU is the first one."""
    return f"{_FOLDER / 'bin'}:{os.environ['PATH']}"


def nsm_image(image: Path, folder: Path) -> Path:
    """Return an x86_64 image, new in `folder`, with the root of another and the kernel with NSM."""
    (package,) = _FOLDER.glob("linux-image-*.deb")
    kernel = debian_kernel(package, "amd64", folder / "kernel")
    boot = folder / "boot"
    write_boot(boot, kernel)
    plain, packed = folder / "boot.cpio", folder / "boot.cpio.gz"
    with plain.open("xb") as file:
        write_cpio(boot, file, console=True)
    packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    root, metadata = folder / "root.cpio.gz", b""
    with image.open("rb") as file:
        for kind, offset, size in view_image(image).sections():
            file.seek(offset)
            if kind == RAMDISK:
                root.write_bytes(file.read(size))  # the last one stays
            elif kind == METADATA:
                metadata = file.read(size)
    made = folder / image.name
    parts = EifParts(
        kernel=kernel.kernel,
        cmdline=kernel.cmdline,
        ramdisks=[packed, root],
        metadata=metadata,
        arm64=False,
        memory_bytes=_MEMORY_BYTES,
        cpus=2,
    )
    write_eif(parts, made)
    return made
