"""The list of Debian packages that an image is made of: exact versions with their SHA-256.

It stands in for a snapshot of the archive: whatever a mirror serves, other bytes are refused. One
line a package: architecture, purpose (root or kernel), name, version, SHA-256.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import LockError

__all__ = [
    "ARCHITECTURES",
    "KERNEL",
    "ROOT",
    "DebianPackage",
    "check_packages",
    "read_lock",
    "write_lock",
]

ROOT, KERNEL = "root", "kernel"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""Ours and Debian's name."""
_LINE: Final = re.compile(
    r"(amd64|arm64) (root|kernel) ([a-z0-9][a-z0-9.+-]+) ([0-9A-Za-z.+:~-]+) ([0-9a-f]{64})"
)
_MAX_LOCK_BYTES: Final = 1 << 20
_HEADER: Final = """\
# Debian packages of enclave images: architecture, purpose, name, version, SHA-256.
# Made by: enclave-image lock. Anything else than this is refused when an image is built.
"""


@dataclass(frozen=True, order=True)
class DebianPackage:
    """One line: a package for one architecture (Debian's name) and purpose."""

    architecture: str
    purpose: str
    name: str
    version: str
    sha256: str


def read_lock(path: Path) -> tuple[DebianPackage, ...]:
    """Read a lock file.

    Raises:
        LockError: It cannot be read, or a line is malformed.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_LOCK_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise LockError(f"the lock file {path} cannot be read: {error}") from error
    packages = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise LockError(
                f"{path}:{number} is not: architecture, purpose, name, version, SHA-256"
            )
        packages.append(DebianPackage(*match.groups()))
    return tuple(sorted(packages))


def write_lock(path: Path, packages: Iterable[DebianPackage]) -> None:
    """Write a lock file, sorted."""
    lines = (
        f"{p.architecture} {p.purpose} {p.name} {p.version} {p.sha256}\n" for p in sorted(packages)
    )
    path.write_text(_HEADER + "".join(lines), encoding="ascii")


def check_packages(fetched: Iterable[DebianPackage], locked: Iterable[DebianPackage]) -> None:
    """Check that exactly the locked packages were fetched, byte for byte.

    Raises:
        LockError: Names the first one that differs.
    """
    have = {package.name: package for package in fetched}
    wanted = {package.name: package for package in locked}
    for name in sorted(have.keys() | wanted.keys()):
        if have.get(name) != wanted.get(name):
            raise LockError(
                f"package {name} is {_text(have.get(name))}, the lock file says "
                f"{_text(wanted.get(name))}: see what changed, then type: enclave-image lock"
            )


def _text(package: DebianPackage | None) -> str:
    if package is None:
        return "not there"
    return f"{package.version} with SHA-256 {package.sha256}"
