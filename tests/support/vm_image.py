"""Enclave images for the tests in a virtual machine: built once for each state of the sources."""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.support.project_wheel import ROOT

__all__ = ["vm_image"]

_CACHE = ROOT / ".cache" / "vm"
_SOURCES = ("protocol", "kernel", "infra")
_BUILD_TIMEOUT_S = 900


def vm_image(flavour: str = "base", *, development: bool = True) -> Path:
    """Return an image of the sources as they are now; built unless that was done before.

    Args:
        flavour: Of the image builder.
        development: With the software NSM.
    """
    name = f"{flavour}-development" if development else flavour
    image = _CACHE / f"{name}-{_digest()}.eif"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            for old in _CACHE.glob(f"{name}-{'?' * 16}.eif*"):
                old.unlink()
            partial = image.with_suffix(".partial")
            command = [str(Path(sys.executable).parent / "enclave-image"), "build"]
            command += ["-o", str(partial), "--flavour", flavour]
            command += ["--development"] if development else []
            subprocess.run(command, check=True, timeout=_BUILD_TIMEOUT_S)
            partial.replace(image)
    return image


def _digest() -> str:
    """Return what tells two states of the sources apart, 16 characters."""
    digest = hashlib.sha256()
    for folder in (*_SOURCES, "setup.cfg"):
        path = ROOT / folder
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(os.fsencode(file.relative_to(ROOT)) + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
