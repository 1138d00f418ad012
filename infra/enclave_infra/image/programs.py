"""Runs the builder's programs (mmdebstrap, dpkg-deb, tar, pip): one place for their errors."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import ToolError

__all__ = ["output_of", "require", "run"]

_DEBIAN_PACKAGES: Final = {
    "mmdebstrap": "mmdebstrap",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "tar": "tar",
    "zstd": "zstd",
}
_LAST_LINES: Final = 3
_MAX_LINE: Final = 300


def require(*names: str) -> None:
    """Check that programs are installed.

    Raises:
        ToolError: One is not; says what to type.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        packages = " ".join(_DEBIAN_PACKAGES.get(name, name) for name in missing)
        raise ToolError(
            f"{' and '.join(missing)} cannot be found; type: apt-get install {packages}"
        )


def run(command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed on standard error.

    Raises:
        ToolError: It failed; the text has its last lines.
    """
    return _run(command, environ, capture=False).stderr.decode("utf-8", "replace")


def output_of(command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None) -> bytes:
    """The same, returning its standard output.

    Raises:
        ToolError: It failed.
    """
    return _run(command, environ, capture=True).stdout


def _run(
    command: Sequence[str | Path], environ: Mapping[str, str] | None, *, capture: bool
) -> "subprocess.CompletedProcess[bytes]":
    words = [str(word) for word in command]
    require(words[0])
    result = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
        check=False,
    )
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.decode("utf-8", "replace").splitlines()]
        said = " / ".join(line[:_MAX_LINE] for line in lines if line)[-_LAST_LINES * _MAX_LINE :]
        raise ToolError(f"{Path(words[0]).name} failed (exit code {result.returncode}): {said}")
    return result
