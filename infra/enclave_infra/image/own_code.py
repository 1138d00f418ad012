"""Our own packages in an image: `enclave_kernel` and `enclave_protocol`, and no others.

They are copied from where this builder's installation has them, so that an image is what was
installed or checked out. A development image gets the software NSM as well.
"""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import ImageError
from enclave_infra.image.python_packages import SITE

__all__ = ["DISTRIBUTION", "install_own_code", "own_version"]

DISTRIBUTION: Final = "enclave-kernel"
_PACKAGES: Final = ("enclave_kernel", "enclave_protocol")
_DEVELOPMENT: Final = "enclave_infra"
_DEVELOPMENT_PARTS: Final = ("__init__.py", "software_nsm")
_NOT_COPIED: Final = shutil.ignore_patterns("__pycache__", ".*", "*~")


def own_version() -> str:
    """Return the version of this project."""
    return version(DISTRIBUTION)


def install_own_code(root: Path, *, development: bool) -> None:
    """Copy our packages into an image's root, with the metadata that tells their version.

    Raises:
        ImageError: A package is not installed beside this builder.
    """
    site = root / SITE
    for name in _PACKAGES:
        shutil.copytree(_folder(name), site / name, ignore=_NOT_COPIED)
    names = [*_PACKAGES]
    if development:
        source, target = _folder(_DEVELOPMENT), site / _DEVELOPMENT
        target.mkdir()
        shutil.copy(source / _DEVELOPMENT_PARTS[0], target)
        shutil.copytree(
            source / _DEVELOPMENT_PARTS[1], target / _DEVELOPMENT_PARTS[1], ignore=_NOT_COPIED
        )
        names.append(_DEVELOPMENT)
    number = own_version()
    info = site / f"{DISTRIBUTION.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {number}\n"
    )
    (info / "INSTALLER").write_text("enclave-image\n")
    (info / "top_level.txt").write_text("".join(f"{name}\n" for name in names))
    (info / "RECORD").write_text("".join(_record(site, [*names, info.name], info)))


def _folder(name: str) -> Path:
    spec = find_spec(name)
    locations = spec.submodule_search_locations if spec is not None else None
    if not locations:
        raise ImageError(f"{name} is not installed here: install enclave-kernel[infra] as a whole")
    return Path(next(iter(locations)))


def _record(site: Path, names: list[str], info: Path) -> Iterator[str]:
    """Yield the lines of a RECORD (recording installed projects, PyPA)."""
    for name in names:
        for folder, folders, files in os.walk(site / name):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
                shown = path.relative_to(site).as_posix()
                yield f"{shown},sha256={digest.decode().rstrip('=')},{path.stat().st_size}\n"
    yield f"{(info / 'RECORD').relative_to(site).as_posix()},,\n"
