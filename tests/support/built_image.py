"""Images built with the real command, once for all tests of a run and of the next ones.

They lie in a fixed folder, named by what they are made of: whoever asks second gets the same file.
"""

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from enclave_infra.image.debian_lock import ARCHITECTURES, read_lock
from tests.support.project_wheel import ROOT

__all__ = ["IMAGES", "LOCKS", "build", "built_image", "debian_lock", "install_programs"]

IMAGES = ROOT / ".cache" / "images"
LOCKS = ROOT / "infra" / "enclave_infra" / "image" / "locks"
_MADE_OF = ("kernel/enclave_kernel", "protocol/enclave_protocol", "infra/enclave_infra")
_TIMEOUT_S = 900
_KEPT = 8


def built_image(*options: str, name: str = "base") -> Path:
    """Return an image that `enclave-image build` made with these options.

    Beside it are its .spdx.json and, if `--tar` is not among the options, nothing else.
    """
    install_programs()
    with _lock():
        lock = debian_lock()
        folder = IMAGES / _key(lock, options)
        path = folder / f"{name}.eif"
        if not path.is_file():
            folder.mkdir(exist_ok=True)
            result = build(path, f"--debian-lock={lock}", *options)
            assert result.returncode == 0, result.stderr
            _make_room()
        os.utime(folder)
    return path


def build(
    output: Path,
    *options: str,
    environ: dict[str, str] | None = None,
    cache: Path | None = None,
    before: Sequence[str] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run `enclave-image build`, with the words of `before` before it."""
    command = [*before, sys.executable, "-m", "enclave_infra.image", "build", f"--output={output}"]
    command += [f"--cache={cache or IMAGES / 'packages'}", *options]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env={**os.environ, **(environ or {})},
    )


def debian_lock() -> Path:
    """Return the committed lock, or, where the mirror went on since, one of today's packages.

    A mirror without a snapshot forgets old versions: that must not stop a test of something else,
    and is said as a warning.
    """
    committed = LOCKS / "debian.lock"
    if _mirror_has(committed):
        return committed
    replaced = IMAGES / f"debian-{hashlib.sha256(committed.read_bytes()).hexdigest()[:16]}"
    today = replaced / committed.name
    if not today.is_file() or not _mirror_has(today):
        replaced.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "enclave_infra.image", "lock", "--debian-only"]
        subprocess.run([*command, f"--directory={replaced}"], check=True, timeout=_TIMEOUT_S)
    warnings.warn("the mirror is ahead of debian.lock; type: enclave-image lock", stacklevel=2)
    return today


def _mirror_has(lock: Path) -> bool:
    """Say whether the mirror has every version for this machine, as far as apt's lists tell."""
    here = ARCHITECTURES[platform.machine()]
    wanted = {(p.name, p.version) for p in read_lock(lock) if p.architecture == here}
    command = ["apt-cache", "madison", *sorted(name for name, _ in wanted)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("|") for line in shown.splitlines()]
    return wanted <= {(row[0].strip(), row[1].strip()) for row in rows if len(row) == 3}


def _key(lock: Path, options: tuple[str, ...]) -> str:
    digest = hashlib.sha256(lock.read_bytes() + "\0".join(options).encode())
    for folder in _MADE_OF:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _make_room() -> None:
    folders = [path.parent for path in IMAGES.glob("*/*.eif")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def install_programs() -> None:
    """Install what a build runs, where it is missing."""
    subprocess.run([ROOT / ".ci" / "image-tools"], check=True, timeout=_TIMEOUT_S)


@contextmanager
def _lock() -> Iterator[None]:
    """Build one at a time: another process that asks for the same image waits for it."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (IMAGES / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
