"""Fetches and unpacks Debian packages: mmdebstrap for the root file system, apt for the kernel.

No maintainer script is run (variant "extract"): nothing of a package is executed while an image is
built, and packages of another architecture need no emulator.
Source: mmdebstrap(1), "extract"; apt-get(8), "download".
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enclave_infra.image.debian_lock import ROOT, DebianPackage
from enclave_infra.image.debian_mirror import SUITE, Mirror
from enclave_infra.image.errors import ToolError
from enclave_infra.image.programs import output_of, require, run

__all__ = [
    "LEFT_OUT",
    "ROOT_PACKAGES",
    "describe_package",
    "fetch_kernel",
    "fetch_root",
    "kernel_package",
    "unpack_root",
]

ROOT_PACKAGES: Final = (
    *(
        "base-files",
        "bash",
        "ca-certificates",
        "coreutils",
        "dash",
        "findutils",
        "grep",
        "gzip",
        "libstdc++6",
    ),
    *("python3-minimal", "python3.11", "sed", "tar", "tzdata"),
)
"""An interpreter, its data, and what `!ls` and `%%bash` in a cell need."""
LEFT_OUT: Final = frozenset(
    # Wanted by maintainer scripts alone, and those are never run.
    {"debconf", "debianutils", "dpkg", "gcc-12-base", "libgmp10", "libmd0", "mawk", "openssl"}
)
_HOOKS: Final = Path("/usr/share/mmdebstrap/hooks/merged-usr")
_ARCHIVES: Final = Path("var/cache/apt/archives")
_KERNEL_FLAVOURS: Final = {"amd64": "cloud-amd64", "arm64": "cloud-arm64"}
_NO_MODE: Final = "unable to pick chroot mode"
_GONE: Final = ("Unable to locate package", "was not found", "404", "has no installation candidate")


def fetch_root(
    architecture: str, mirror: Mirror, locked: Sequence[DebianPackage], output: Path
) -> None:
    """Write a tar file of the unpacked packages, with the packages themselves still in it.

    Args:
        architecture: Debian's name.
        mirror: Where from.
        locked: Exact versions to take; none: the newest of `ROOT_PACKAGES` and what they need.
        output: The tar file to write.

    Raises:
        ToolError: mmdebstrap is missing or failed.
    """
    require("mmdebstrap", "dpkg-deb", "tar")
    wanted = [f"{package.name}={package.version}" for package in locked] or list(ROOT_PACKAGES)
    command = ["mmdebstrap", "--variant=extract", "--format=tar", "--skip=cleanup"]
    command += [f"--architectures={architecture}", f"--include={','.join(wanted)}"]
    command += [f"--hook-dir={_HOOKS}", SUITE, str(output), *mirror.source_lines()]
    try:
        # Its own temporary folder beside ours: an interrupted build leaves nothing.
        run(command, environ={"TMPDIR": str(output.parent)})
    except ToolError as error:
        raise _explained(error) from error


def unpack_root(archive: Path, architecture: str, root: Path) -> tuple[DebianPackage, ...]:
    """Unpack what `fetch_root` wrote, and return what it was made of.

    The packages that images leave out are taken out again; the returned list names them.

    Raises:
        ToolError: tar or dpkg-deb failed.
    """
    root.mkdir()
    run(
        [
            *("tar", "--extract", "--no-same-owner", "--no-same-permissions", "--exclude=./dev/*"),
            *("--file", archive, "--directory", root),
        ]
    )
    packages = []
    for path in sorted((root / _ARCHIVES).glob("*.deb")):
        package = describe_package(path, architecture, ROOT)
        packages.append(package)
        if package.name in LEFT_OUT:
            _take_out(path, root)
    return tuple(packages)


def fetch_kernel(
    architecture: str, mirror: Mirror, locked: DebianPackage | None, folder: Path
) -> Path:
    """Fetch the package of Debian's cloud kernel, newest or locked, and return it.

    Args:
        architecture: Debian's name.
        mirror: Where from.
        locked: The exact version, or None.
        folder: New; holds apt's state and the package.

    Raises:
        ToolError: apt failed.
    """
    require("apt-get", "dpkg-deb")
    options = _private_apt(architecture, mirror.source_lines(), folder)
    run(["apt-get", *options, "update"])
    if locked is None:
        name = kernel_package(options, architecture)
        wanted = name
    else:
        name, wanted = locked.name, f"{locked.name}={locked.version}"
    archives = folder / "archives"
    command = ["apt-get", *options, "download", wanted]
    archives.mkdir()
    try:
        run(["env", f"--chdir={archives}", *command])
    except ToolError as error:
        raise _explained(error) from error
    (path,) = archives.glob("*.deb")
    return path


def kernel_package(options: Sequence[str], architecture: str) -> str:
    """Return the name of the newest cloud kernel's package: the meta package depends on it."""
    meta = f"linux-image-{_KERNEL_FLAVOURS[architecture]}"
    text = output_of(["apt-cache", *options, "depends", f"{meta}:{architecture}"]).decode()
    for line in text.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name.partition(":")[0]
    raise ToolError(f"the mirror has no package {meta}")


def _private_apt(architecture: str, lines: Sequence[str], folder: Path) -> list[str]:
    """Return options for an apt that shares nothing with this machine's."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    (folder / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def describe_package(path: Path, architecture: str, purpose: str) -> DebianPackage:
    """Return the lock file's line for a package's file.

    Raises:
        ToolError: It is no Debian package.
    """
    shown = output_of(["dpkg-deb", "--showformat=${Package} ${Version}", "--show", path])
    name, version = shown.decode("ascii").split(" ")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DebianPackage(architecture, purpose, name, version, digest)


def _take_out(package: Path, root: Path) -> None:
    """Remove a package's files, and the folders that are empty then.

    A folder of the package may be a link in the root (/bin): those stay.
    """
    listing = output_of(["dpkg-deb", "--contents", package]).decode("utf-8")
    # Mode, owner, size, date, time, name; a link's target follows.
    names = [
        line.split(None, 5)[5].split(" -> ")[0].split(" link to ")[0]
        for line in listing.splitlines()
    ]
    for name in sorted(names, key=len, reverse=True):
        path = root / name.removeprefix("./")
        if not name.endswith("/"):
            path.unlink(missing_ok=True)
        elif path.is_dir() and not path.is_symlink() and path != root and not any(path.iterdir()):
            path.rmdir()


def _explained(error: ToolError) -> ToolError:
    if any(sign in str(error) for sign in _GONE):
        return ToolError(
            "the mirror has no longer (or not yet) what the lock file says; to take what it has "
            f"now, type: enclave-image lock ({error})"
        )
    if _NO_MODE in str(error):
        return ToolError(
            "without root, mmdebstrap needs a range of user ids of its own; type: sudo apt-get "
            "install uidmap && sudo usermod --add-subuids 100000-165535 --add-subgids "
            f"100000-165535 $USER, or build as root ({error})"
        )
    return error
