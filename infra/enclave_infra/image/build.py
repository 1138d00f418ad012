"""Builds an image, step by step."""

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from enclave_infra.image.build_cache import BuildCache
from enclave_infra.image.cpio_archive import write_cpio
from enclave_infra.image.debian_lock import (
    ARCHITECTURES,
    KERNEL,
    ROOT,
    DebianPackage,
    check_packages,
    read_lock,
)
from enclave_infra.image.debian_mirror import Mirror
from enclave_infra.image.debian_packages import (
    LEFT_OUT,
    describe_package,
    fetch_kernel,
    fetch_root,
    unpack_root,
)
from enclave_infra.image.eif_writer import EifParts, write_eif
from enclave_infra.image.errors import LockError
from enclave_infra.image.image_rules import check_root
from enclave_infra.image.kernel_files import KernelFiles, debian_kernel, nitro_kernel
from enclave_infra.image.own_code import install_own_code, own_version
from enclave_infra.image.pinned_python import PinnedPython
from enclave_infra.image.python_packages import PYTHON, SITE, install_packages
from enclave_infra.image.root_settings import (
    ImageSettings,
    finish_root,
    strip_root,
    write_boot,
    write_settings,
)
from enclave_infra.image.sbom import python_packages, write_sbom
from enclave_infra.image.tar_export import write_tar
from enclave_infra.image.work_folder import work_folder
from enclave_protocol.eif import Eif

__all__ = ["BuildOptions", "BuiltImage", "build_image"]

_LEVEL: Final = 6
_MEMORY_BYTES: Final = 2 << 30
_CPUS: Final = 2
_SOFTWARE_NSM: Final = (f"/usr/bin/python{PYTHON}", "-I", "-m", "enclave_infra.software_nsm")
_TIME: Final = "2023-11-14T22:13:20+00:00"
"""`cpio_archive.EPOCH_S`: an image that told when it was built could not be built again."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        output: The EIF to write.
        flavour: Names the set of Python packages.
        requirements: Lock files with these packages.
        machine: x86_64 or aarch64.
        mirror: Where Debian packages come from.
        debian_lock: Exact Debian packages; None: the newest ones, which nobody can reproduce.
        kernel_folder: nitro-cli's blobs; None: Debian's cloud kernel.
        development: With the software NSM, under a name of its own.
        tar: Where the root file system goes as a tar file, or None.
        cache: A folder of this user that keeps what was fetched, or None.
    """

    output: Path
    flavour: str
    requirements: tuple[Path, ...]
    machine: str
    mirror: Mirror
    debian_lock: Path | None
    kernel_folder: Path | None = None
    development: bool = False
    tar: Path | None = None
    cache: Path | None = None


class BuiltImage(msgspec.Struct, frozen=True):
    """What was built: the image as read back, its name, and its list of contents."""

    eif: Eif
    name: str
    sbom: Path


def build_image(options: BuildOptions, progress: Callable[[str], None]) -> BuiltImage:
    """Build an image.

    Beside `output` it writes `output`.spdx.json, the list of what is in it.

    Args:
        options: What to build.
        progress: Told each step.

    Raises:
        EnclaveError: It cannot be built.
        OSError: Reading or writing failed.
    """
    with work_folder() as work:
        return _Build(options, work, progress).run()


class _Build:
    def __init__(self, options: BuildOptions, work: Path, progress: Callable[[str], None]) -> None:
        self._options = options
        self._work = work
        self._progress = progress
        self._root = work / "root"
        self._boot = work / "boot"
        self._architecture = ARCHITECTURES[options.machine]
        self._locked = () if options.debian_lock is None else read_lock(options.debian_lock)
        self._cache = BuildCache(options.cache)
        suffix = "-development" if options.development else ""
        self._name = f"enclave-{options.flavour}{suffix}"

    def run(self) -> BuiltImage:
        options = self._options
        self._progress("fetching Debian packages")
        packages = self._debian_root(self._architecture, self._root)
        tools = self._tools()
        self._progress("fetching the kernel")
        kernel, kernel_packages = self._kernel()
        self._progress("installing Python packages")
        self._fill_root()
        self._progress("compiling Python modules")
        folders = [self._root / f"usr/lib/python{PYTHON}", self._root / SITE]
        tools.compile(self._root, folders)
        check_root(self._root, development=options.development)
        write_boot(self._boot, kernel)
        self._progress("writing ramdisks")
        ramdisks = [self._ramdisk("boot", tools), self._ramdisk("root", tools)]
        if options.tar is not None:
            self._progress("writing the tar file")
            write_tar(self._root, options.tar)
        self._progress("writing the image")
        parts = EifParts(
            kernel=kernel.kernel,
            cmdline=kernel.cmdline,
            ramdisks=ramdisks,
            metadata=self._metadata(kernel),
            arm64=options.machine == "aarch64",
            memory_bytes=_MEMORY_BYTES,
            cpus=_CPUS,
        )
        eif = write_eif(parts, options.output)
        sbom = options.output.with_name(f"{options.output.name}.spdx.json")
        write_sbom(
            sbom,
            name=self._name,
            version=own_version(),
            pcr0=eif.pcrs[0],
            debian=[p for p in (*packages, *kernel_packages) if p.name not in LEFT_OUT],
            python=python_packages(self._root / SITE),
        )
        return BuiltImage(eif, self._name, sbom)

    def _debian_root(self, architecture: str, root: Path) -> tuple[DebianPackage, ...]:
        locked = self._locked_for(architecture, ROOT)
        archive = self._work / f"{root.name}.tar"
        if not self._cache.take(archive, "root", locked):
            fetch_root(architecture, self._options.mirror, locked, archive)
            self._cache.keep(archive, "root", locked)
        packages = unpack_root(archive, architecture, root)
        archive.unlink()
        if locked:
            check_packages(packages, locked)
        return packages

    def _tools(self) -> PinnedPython:
        """Return the locked interpreter for this machine, which need not be the image's."""
        here = platform.machine()
        target = self._work / "tools"
        if here == self._options.machine:
            # A copy: what it runs from must not change while the image is made of it.
            shutil.copytree(self._root / "usr", target / "usr", symlinks=True)
        else:
            self._debian_root(ARCHITECTURES[here], target)
        return PinnedPython(target)

    def _kernel(self) -> tuple[KernelFiles, tuple[DebianPackage, ...]]:
        folder = self._options.kernel_folder
        if folder is not None:
            return nitro_kernel(folder, self._architecture), ()
        locked = self._locked_for(self._architecture, KERNEL)
        path = self._work / "kernel.deb"
        if not self._cache.take(path, "kernel", locked):
            wanted = locked[0] if locked else None
            fetched = fetch_kernel(
                self._architecture, self._options.mirror, wanted, self._work / "apt"
            )
            fetched.replace(path)
            self._cache.keep(path, "kernel", locked)
        package = describe_package(path, self._architecture, KERNEL)
        if locked:
            check_packages([package], locked)
        return debian_kernel(path, self._architecture, self._work / "kernel"), (package,)

    def _locked_for(self, architecture: str, purpose: str) -> tuple[DebianPackage, ...]:
        found = tuple(
            package
            for package in self._locked
            if package.architecture == architecture and package.purpose == purpose
        )
        if self._options.debian_lock is not None and not found:
            raise LockError(
                f"{self._options.debian_lock} names no {purpose} packages of {architecture}"
            )
        return found

    def _fill_root(self) -> None:
        options = self._options
        strip_root(self._root)
        install_packages(options.requirements, options.machine, self._root)
        install_own_code(self._root, development=options.development)
        finish_root(self._root)
        software_nsm = _SOFTWARE_NSM if options.development else ()
        write_settings(self._root, ImageSettings(self._name, options.development, software_nsm))

    def _ramdisk(self, name: str, tools: PinnedPython) -> Path:
        plain, packed = self._work / f"{name}.cpio", self._work / f"{name}.cpio.gz"
        with plain.open("xb") as file:
            write_cpio(self._work / name, file, console=name == "boot")
        tools.compress(plain, packed, _LEVEL)
        plain.unlink()
        return packed

    def _metadata(self, kernel: KernelFiles) -> bytes:
        """Return what nitro-cli shows of an image (describe-eif, "Metadata")."""
        fields = {
            "ImageName": self._name,
            "ImageVersion": own_version(),
            "BuildMetadata": {
                "BuildTime": _TIME,
                "BuildTool": "enclave-image",
                "BuildToolVersion": own_version(),
                "OperatingSystem": "Debian GNU/Linux 12",
                "KernelVersion": kernel.version,
            },
            "DockerInfo": {},
        }
        return msgspec.json.encode(fields)
