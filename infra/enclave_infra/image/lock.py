"""Makes the lock files anew: what the mirror and the package index have now, for both machines.

Source: pip(1), "pip install --report"; PEP 508.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import Final

import msgspec

from enclave_infra.image.debian_lock import ARCHITECTURES, KERNEL, DebianPackage
from enclave_infra.image.debian_mirror import Mirror
from enclave_infra.image.debian_packages import (
    describe_package,
    fetch_kernel,
    fetch_root,
    unpack_root,
)
from enclave_infra.image.errors import LockError
from enclave_infra.image.own_code import DISTRIBUTION
from enclave_infra.image.programs import run
from enclave_infra.image.python_packages import PIP_ENVIRON, PYTHON, platform_options
from enclave_infra.image.work_folder import work_folder

__all__ = ["FLAVOURS", "lock_debian", "lock_python", "requirements_of", "without"]

FLAVOURS: Final = {
    "base": ("pip",),
    "datascience": (
        *("pip", "pandas", "scikit-learn", "pyarrow", "onnxruntime", "matplotlib"),
        *("Pillow", "scipy", "tqdm"),
    ),
}
"""What an image has beside our own requirements; pip is for `%pip`."""
_OURS: Final = re.compile(r"""([^;]+)(?:;\s*extra\s*==\s*['"]enclave['"])?""")
_HEADER: Final = """\
# Python packages of a {} image, for x86_64 and aarch64: versions, SHA-256 of wheels.
# Made by: enclave-image lock
"""


class _Archive(msgspec.Struct):
    hashes: dict[str, str]


class _Download(msgspec.Struct):
    archive_info: _Archive


class _Metadata(msgspec.Struct):
    name: str
    version: str


class _Item(msgspec.Struct):
    metadata: _Metadata
    download_info: _Download


class _Report(msgspec.Struct):
    install: list[_Item]


def requirements_of(flavour: str) -> tuple[str, ...]:
    """Return what a flavour's packages are resolved from."""
    ours = []
    for line in requires(DISTRIBUTION) or ():
        match = _OURS.fullmatch(line)
        if match:
            ours.append(match[1].strip())
    return (*ours, *FLAVOURS[flavour])


def lock_debian(mirror: Mirror, progress: Callable[[str], None]) -> tuple[DebianPackage, ...]:
    """Return the newest Debian packages of an image, for every architecture.

    Raises:
        ToolError: A package cannot be fetched.
    """
    found: list[DebianPackage] = []
    for machine, architecture in ARCHITECTURES.items():
        progress(f"fetching Debian packages for {machine}")
        with work_folder() as work:
            fetch_root(architecture, mirror, (), work / "root.tar")
            found += unpack_root(work / "root.tar", architecture, work / "root")
            kernel = fetch_kernel(architecture, mirror, None, work / "apt")
            found.append(describe_package(kernel, architecture, KERNEL))
    return tuple(found)


def lock_python(
    title: str,
    requirements: Sequence[str],
    progress: Callable[[str], None],
    base: str | None = None,
) -> str:
    """Return the text of a lock file for these requirements.

    Args:
        title: Of what; stands in the first line.
        requirements: As in a requirements file.
        progress: Told each step.
        base: The text of a lock file whose versions are kept.

    Raises:
        LockError: Versions differ between the machines, or this is another Python.
        ToolError: pip cannot resolve them.
    """
    if "{}.{}".format(*sys.version_info) != PYTHON:
        raise LockError(f"lock files are made with Python {PYTHON}: markers depend on it")
    versions: dict[str, str] = {}
    hashes: dict[str, set[str]] = {}
    for machine in ARCHITECTURES:
        progress(f"resolving Python packages of {title} for {machine}")
        for item in _resolve(requirements, machine, base):
            name = re.sub(r"[-_.]+", "-", item.metadata.name).lower()
            version = item.metadata.version
            if versions.setdefault(name, version) != version:
                raise LockError(
                    f"{name} is {versions[name]} for one machine and {version} for the other: "
                    "pin a version that both have"
                )
            hashes.setdefault(name, set()).add(item.download_info.archive_info.hashes["sha256"])
    return _HEADER.format(title) + "".join(_lines(versions, hashes))


def without(text: str, base: str) -> str:
    """Return a lock file's text without the packages that another one has."""
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    known = set(_pins(base))
    return "".join(entry for entry in entries if not known & set(_pins(entry)))


def _pins(text: str) -> list[str]:
    return re.findall(r"^[a-z0-9-]+==[^ \n]+", text, re.MULTILINE)


def _lines(versions: dict[str, str], hashes: dict[str, set[str]]) -> Iterable[str]:
    for name in sorted(versions):
        shown = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[name]))
        yield f"{name}=={versions[name]}{shown}\n"


def _resolve(requirements: Sequence[str], machine: str, base: str | None) -> list[_Item]:
    with tempfile.TemporaryDirectory(prefix="enclave-image-") as name:
        work = Path(name)
        (work / "in").write_text("".join(f"{line}\n" for line in requirements))
        report = work / "report.json"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        command += ["--quiet", "--dry-run", "--ignore-installed", f"--report={report}"]
        command += [f"--target={work / 'target'}", *platform_options(machine)]
        command += ["--requirement", str(work / "in")]
        if base is not None:
            # Without hashes: as constraints they would be asked of every other package as well.
            (work / "base").write_text("".join(f"{line}\n" for line in _pins(base)))
            command += ["--constraint", str(work / "base")]
        run(command, environ=PIP_ENVIRON)
        return msgspec.json.decode(report.read_bytes(), type=_Report).install
