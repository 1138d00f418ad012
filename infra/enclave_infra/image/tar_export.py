"""The root file system as a tar file for `FROM scratch`, for Docker and nitro-cli; reproducible."""

import os
import stat
import tarfile
from pathlib import Path
from typing import Final

from enclave_infra.image.cpio_archive import EPOCH_S, image_mode, image_paths
from enclave_infra.image.python_packages import PYTHON

__all__ = ["CONTAINER_COMMAND", "write_tar"]

CONTAINER_COMMAND: Final = (f"/usr/bin/python{PYTHON}", "-I", "-m", "enclave_kernel.boot")
"""What a container of the tar file is to run, as the CMD of its Dockerfile."""


def write_tar(root: Path, output: Path) -> None:
    """Write the root as one tar file, which appears whole or not at all.

    Raises:
        ImageError: There is something other than files, folders and links.
        OSError: Reading or writing failed.
    """
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with tarfile.open(temporary, "x", format=tarfile.PAX_FORMAT) as archive:
            for path in image_paths(root):
                _add(archive, path, root)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, path: Path, root: Path) -> None:
    mode = image_mode(path, root)
    entry = tarfile.TarInfo(path.relative_to(root).as_posix())
    entry.mode = stat.S_IMODE(mode)
    entry.mtime = EPOCH_S
    if stat.S_ISLNK(mode):
        entry.type = tarfile.SYMTYPE
        entry.linkname = str(path.readlink())
        archive.addfile(entry)
    elif stat.S_ISDIR(mode):
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    else:
        entry.size = path.stat().st_size
        with path.open("rb") as file:
            archive.addfile(entry, file)
