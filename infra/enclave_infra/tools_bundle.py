"""`python -m enclave_infra.tools_bundle`: the wheels a machine in AWS installs, as one zip file.

The zip file holds them with a `requirements.txt` of their hashes: whoever knows its SHA-256 knows
every byte that is installed, and nothing comes from a package index.
"""

import argparse
import hashlib
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = ["BundleError", "main", "write_bundle"]

REQUIREMENTS_NAME: Final = "requirements.txt"
_WHEEL: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?)-(?P<version>[0-9][A-Za-z0-9._+!]*)"
    r"(?:-[0-9][A-Za-z0-9._]*)?-[A-Za-z0-9._]+-[A-Za-z0-9._]+-[A-Za-z0-9._]+\.whl",
    re.ASCII,
)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The same wheels give the same zip file, byte for byte."""
_READ_BYTES: Final = 1 << 20


class BundleError(EnclaveError):
    """The directory is not a set of wheels."""


def write_bundle(directory: Path, output: Path) -> str:
    """Write the wheels in a directory as one zip file.

    Args:
        directory: Holds one wheel of each distribution and nothing else.
        output: Appears whole or not at all.

    Returns:
        SHA-256 of the zip file's requirements.txt, lower-case hex.

    Raises:
        BundleError: No wheels, another file, or two wheels of one distribution.
        OSError: Reading or writing failed.
    """
    wheels = _wheels(directory)
    lines = [f"{name}=={version} --hash=sha256:{_sha256(path)}\n" for name, version, path in wheels]
    requirements = "".join(lines).encode()
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as bundle:  # wheels are compressed
            bundle.writestr(_entry(REQUIREMENTS_NAME), requirements)
            for _, _, path in wheels:
                with path.open("rb") as source, bundle.open(_entry(path.name), "w") as target:
                    while data := source.read(_READ_BYTES):
                        target.write(data)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(requirements).hexdigest()


def _wheels(directory: Path) -> list[tuple[str, str, Path]]:
    """Return name, version and path of each wheel, by name."""
    found: dict[str, tuple[str, str, Path]] = {}
    for path in sorted(directory.iterdir()):
        match = _WHEEL.fullmatch(path.name)
        if match is None or not path.is_file():
            raise BundleError(
                f"{path} is no wheel: remove it, or build it (pip wheel --no-deps -w {directory})"
            )
        name = re.sub(r"[._]+", "-", match["name"]).lower()
        if name in found:
            raise BundleError(f"{found[name][2]} and {path} are one distribution: remove one")
        found[name] = (name, match["version"], path)
    if not found:
        raise BundleError(f"{directory} has no wheels: fill it with pip wheel or pip download")
    return [found[name] for name in sorted(found)]


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    return entry


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Write a bundle and print what the CloudFormation templates ask for as ToolsSha256.

    Returns:
        0; 1 with one line on stderr when nothing was written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m enclave_infra.tools_bundle",
        description="Put wheels into one zip file, with a list of their hashes, and print the "
        "SHA-256 of that list.",
        epilog="Example: pip wheel --wheel-dir wheels '.[owner]' && "
        "python -m enclave_infra.tools_bundle wheels owner-tools.zip",
    )
    parser.add_argument("directory", metavar="WHEELS", type=Path, help="directory of wheels")
    parser.add_argument("output", metavar="FILE", type=Path, help="zip file to write")
    arguments = parser.parse_args(argv)
    try:
        digest = write_bundle(arguments.directory, arguments.output)
    except (EnclaveError, OSError) as error:
        print(f"tools_bundle: {error}", file=sys.stderr)  # noqa: T201  # a CLI
        return 1
    print(digest)  # noqa: T201  # a CLI
    return 0


if __name__ == "__main__":
    sys.exit(main())
