"""Puts the owner's package together: our wrapper beside RapidOCR, unmodified from its wheel.

Run as `python examples/ocr/build_package.py [--output DIR]`. The wheel is fetched once, against
the hash in requirements.txt, into `.cache/`; nothing is downloaded after that.
"""

import argparse
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

__all__ = ["BuildError", "build", "fetch_wheel", "unpack"]

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "ocr"

# The wheel holds 100 files and 32 MB; a wheel that unpacks to more is not the one we know.
MAX_FILES = 1_000
MAX_BYTES = 200 * 1024 * 1024


class BuildError(Exception):
    """The package could not be put together; the message is one line."""


def fetch_wheel(requirements: Path, cache: Path) -> Path:
    """Return the wheel that `requirements` pins, from `cache` or else from the package index.

    Args:
        requirements: A file with one line `NAME==VERSION --hash=sha256:HEX`.
        cache: Directory for the wheel; made when absent.

    Raises:
        BuildError: The file pins no hash, or the index has no wheel with that hash.
    """
    pin = re.search(
        r"^(\S+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})$", requirements.read_text(), re.M
    )
    if pin is None:
        raise BuildError(f"{requirements} pins no NAME==VERSION --hash=sha256:HEX: add the line")
    name, version, expected = pin.groups()
    wheel = cache / f"{name}-{version}-py3-none-any.whl"
    if wheel.is_file() and _sha256(wheel) == expected:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    # A copy with another hash is pip's to replace, not to reuse.
    wheel.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
    result = subprocess.run([*command, "-d", str(cache)], capture_output=True, text=True)
    if result.returncode != 0 or not wheel.is_file():
        reason = [line for line in result.stderr.splitlines() if line.strip()] or ["no wheel"]
        raise BuildError(f"could not fetch {name} {version}: {reason[-1].strip()}")
    if _sha256(wheel) != expected:
        raise BuildError(f"{wheel} is not what {requirements.name} pins: delete it and try again")
    return wheel


def unpack(wheel: Path, destination: Path) -> None:
    """Unpack the import package and the licences of `wheel` into the empty `destination`.

    The licences go to `licenses/NAME/`; the rest of the metadata is left out.

    Raises:
        BuildError: A name in the archive would leave `destination`, is a link, comes twice, or
            there is more than MAX_FILES or MAX_BYTES of it. Checked before a byte is written.
    """
    with zipfile.ZipFile(wheel) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise BuildError(f"{wheel.name} is larger than expected: {MAX_FILES} files, 200 MiB")
        targets: dict[PurePosixPath, zipfile.ZipInfo] = {}
        for entry in entries:
            target = _target(wheel, entry)
            if target is None:
                continue
            if target in targets:
                raise BuildError(f"{wheel.name} holds {entry.filename!r} twice")
            targets[target] = entry
        for target, entry in targets.items():
            path = destination / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, path.open("xb") as out:
                shutil.copyfileobj(source, out)


def _target(wheel: Path, entry: zipfile.ZipInfo) -> PurePosixPath | None:
    """Return where `entry` goes below the package, or None for metadata that stays out."""
    path = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in entry.filename
    if unsafe or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise BuildError(f"{wheel.name} holds {entry.filename!r}: not a plain file inside it")
    name = wheel.name.split("-")[0]
    if path.parts[0] == name:
        return path
    if path.parts[0].endswith(".dist-info") and path.parts[1] == "licenses":
        return PurePosixPath("licenses", name, *path.parts[2:])
    return None


def build(output: Path, *, cache: Path = CACHE) -> Path:
    """Write the package directory that `enclave-owner encrypt -d` takes, and return it.

    Args:
        output: Directory to write; a package built there before is replaced, whole or not at all.
        cache: Where the wheel is kept.

    Raises:
        BuildError: The wheel cannot be had or is unsafe, or `output` holds something else.
    """
    if output.exists() and not (output / "enclave.toml").is_file():
        raise BuildError(f"{output} exists and is no package built here: choose another --output")
    wheel = fetch_wheel(HERE / "requirements.txt", cache)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ocr-", dir=output.parent) as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        fresh.mkdir(mode=0o755)
        unpack(wheel, fresh)
        for name in ("ocr.py", "enclave.toml"):
            shutil.copyfile(HERE / "package" / name, fresh / name)
        if output.exists():
            output.rename(old)
        fresh.rename(output)
    return output


def _sha256(path: Path) -> str:
    """Return the hash of the file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=CACHE / "package", metavar="DIR")
    arguments = parser.parse_args()
    try:
        print(os.path.relpath(build(arguments.output.absolute())))
    except (BuildError, OSError, zipfile.BadZipFile) as error:
        print(f"build_package: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
