"""The kernel of an image, its modules and command line: Debian's for a VM, nitro-cli's for EC2."""

import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import ImageError
from enclave_infra.image.programs import run

__all__ = ["KernelFiles", "debian_kernel", "nitro_kernel"]

_WANTED: Final = ("virtio_pci", "virtio_mmio", "nsm", "virtio_rng", "vmw_vsock_virtio_transport")
"""Devices of a Nitro enclave and of QEMU; what is built in or not made for a kernel is left out."""
_CMDLINE: Final = {
    "amd64": "console=ttyS0 reboot=t panic=-1 random.trust_cpu=on loglevel=4 rdinit=/init",
    "arm64": "console=ttyAMA0 panic=-1 random.trust_cpu=on loglevel=4 rdinit=/init",
}
_NITRO_KERNELS: Final = {"amd64": "bzImage", "arm64": "Image"}
_MAX_CMDLINE_BYTES: Final = 2048
_MAX_MODULE_BYTES: Final = 64 << 20
_DEPENDS: Final = re.compile(rb"\0depends=([A-Za-z0-9_,-]*)\0")
_VM_CID, _NITRO_CID = 2, 3


@dataclass(frozen=True)
class KernelFiles:
    """What a kernel brings to an image.

    Attributes:
        kernel: The kernel's file.
        cmdline: Its command line.
        version: For the image's metadata.
        parent_cid: Where the parent is on vsock.
        modules: Name and content, in the order to load them.
    """

    kernel: Path
    cmdline: str
    version: str
    parent_cid: int
    modules: Mapping[str, bytes] = field(default_factory=dict)


def debian_kernel(package: Path, architecture: str, folder: Path) -> KernelFiles:
    """Unpack Debian's cloud kernel into `folder` and choose what an image needs of it.

    Raises:
        ImageError: The package is not laid out as expected.
        ToolError: dpkg-deb failed.
    """
    run(["dpkg-deb", "--extract", package, folder])
    kernels = sorted((folder / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise ImageError(f"{package.name} holds {len(kernels)} kernels, expected one")
    version = kernels[0].name.removeprefix("vmlinuz-")
    trees = [folder / "usr/lib/modules" / version, folder / "lib/modules" / version]
    tree = next((path for path in trees if path.is_dir()), None)
    if tree is None:
        raise ImageError(f"{package.name} holds no modules of {version}")
    modules = _choose(tree)
    if "vmw_vsock_virtio_transport.ko" not in modules:
        raise ImageError(f"{package.name} has no vsock for virtio: take the cloud kernel")
    return KernelFiles(kernels[0], _CMDLINE[architecture], version, _VM_CID, modules)


def nitro_kernel(folder: Path, architecture: str) -> KernelFiles:
    """Take the kernel that nitro-cli comes with (/usr/share/nitro_enclaves/blobs).

    The command line and the NSM's driver are the folder's, its init is not used.

    Raises:
        ImageError: A file is missing.
    """
    kernel, cmdline_file, driver = (
        folder / name for name in (_NITRO_KERNELS[architecture], "cmdline", "nsm.ko")
    )
    for path in (kernel, cmdline_file, driver):
        if not path.is_file():
            raise ImageError(
                f"{path} is missing: --kernel-dir names the folder of nitro-cli's blobs for "
                f"{architecture}, with {kernel.name}, cmdline and nsm.ko"
            )
    with cmdline_file.open("rb") as file:
        given = file.read(_MAX_CMDLINE_BYTES).decode("ascii", "replace").split()
    if any("\ufffd" in word for word in given):
        raise ImageError(f"{cmdline_file} is not ASCII text")
    # "nomodules" is their kernel's word for a boot without initramfs modules; root= is not needed.
    words = [word for word in given if not word.startswith(("root=", "rdinit=", "init="))]
    version = _version_beside(kernel)
    modules = {driver.name: _content(driver)}
    return KernelFiles(kernel, " ".join([*words, "rdinit=/init"]), version, _NITRO_CID, modules)


def _version_beside(kernel: Path) -> str:
    """Return the version that the kernel's configuration names in its third line."""
    config = kernel.with_name(f"{kernel.name}.config")
    if config.is_file():
        match = re.search(r"^# Linux/\S+ (\S+) Kernel", config.read_text("utf-8", "replace"), re.M)
        if match:
            return match[1]
    return "unknown"


def _choose(tree: Path) -> dict[str, bytes]:
    """Return the wanted modules and those that they depend on, each after what it needs."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    chosen: dict[str, bytes] = {}

    def take(name: str) -> None:
        path = files.get(name)
        if path is None or f"{name}.ko" in chosen:
            return
        content = _content(path)
        for needed in _depends(content, path):
            take(needed)
        chosen[f"{name}.ko"] = content

    for name in _WANTED:
        take(name)
    return chosen


def _content(path: Path) -> bytes:
    opener = lzma.open if path.suffix == ".xz" else Path.open
    with opener(path, "rb") as file:
        content: bytes = file.read(_MAX_MODULE_BYTES + 1)
    if len(content) > _MAX_MODULE_BYTES:
        raise ImageError(f"{path} is larger than {_MAX_MODULE_BYTES >> 20} MiB")
    return content


def _depends(content: bytes, path: Path) -> Sequence[str]:
    match = _DEPENDS.search(content)
    if match is None:
        raise ImageError(f"{path} says nothing about the modules it needs")
    return [name.replace("-", "_") for name in match[1].decode("ascii").split(",") if name]
