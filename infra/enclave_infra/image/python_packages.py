"""Python packages of an image: exactly those of its lock files, checked by their hashes.

pip fetches and unpacks them for the image's interpreter and architecture; nothing of them is run,
and only wheels are taken. Source: pip(1), "Hash-checking mode".
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import ImageError
from enclave_infra.image.programs import run

__all__ = ["PIP_ENVIRON", "PYTHON", "SITE", "install_packages", "platform_options"]

PYTHON: Final = "3.11"
"""Debian bookworm's."""
SITE: Final = f"usr/local/lib/python{PYTHON}/dist-packages"
_TAGS: Final = ("manylinux_2_36", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28")
_OLDER_TAGS: Final = (
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
)
_NOT_PACKAGES: Final = ("bin", "share", "etc", "man", "include")
"""What --target makes beside the packages: programs with this machine's interpreter in them, and
files for a desktop. An image starts its programs with -m."""
_HASH: Final = r" +--hash=sha256:[0-9a-f]{64}"
_PIN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+"
_LOCK_LINE: Final = re.compile(rf" *(?:#[ -~]*)?|(?:{_PIN}|{_HASH})(?:{_HASH})*(?: \\)?")
"""Of what pip understands, versions and hashes only: by other lines it would ask another index, or
take packages that run code when they are installed."""
PIP_ENVIRON: Final = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1"}


def platform_options(machine: str) -> list[str]:
    """Return pip's options for the image's interpreter on `machine` (x86_64, aarch64)."""
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    return options + [f"--platform={tag}_{machine}" for tag in (*_TAGS, *_OLDER_TAGS)]


def install_packages(requirements: Sequence[Path], machine: str, root: Path) -> None:
    """Install what the files list into an image's root.

    Args:
        requirements: Files with exact versions and hashes.
        machine: x86_64 or aarch64.
        root: Of the image.

    Raises:
        ImageError: A package is listed twice, has no hash, or has another one; or a file says more
            than versions and hashes.
        ToolError: pip failed.
    """
    for path in requirements:
        _check_lock(path)
    site = root / SITE
    site.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-deps", "--no-compile", "--require-hashes", "--no-warn-conflicts"]
    command += [f"--target={site}", *platform_options(machine)]
    for path in requirements:
        command += ["--requirement", str(path)]
    run(command, environ=PIP_ENVIRON)
    for name in _NOT_PACKAGES:
        if (site / name).is_dir():
            shutil.rmtree(site / name)
    _forget_origins(site)


def _check_lock(path: Path) -> None:
    if not path.is_file():
        raise ImageError(f"there is no requirements file {path}")
    for number, line in enumerate(path.read_bytes().decode("ascii", "replace").split("\n"), 1):
        if not _LOCK_LINE.fullmatch(line):
            raise ImageError(
                f"{path}, line {number}: not an exact version with SHA-256 hashes; write the file "
                "with enclave-image lock-requirements"
            )


def _forget_origins(site: Path) -> None:
    """Remove what tells how this machine installed a package, from RECORD too."""
    for folder in site.glob("*.dist-info"):
        for name in ("direct_url.json", "REQUESTED"):
            (folder / name).unlink(missing_ok=True)
        record = folder / "RECORD"
        if not record.is_file():
            continue
        left_out = re.compile(
            rf"(\.\./|{re.escape(folder.name)}/(direct_url\.json|REQUESTED),|"
            rf"({'|'.join(_NOT_PACKAGES)})/)"
        )
        lines = record.read_text("utf-8").splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not left_out.match(line)), "utf-8")
