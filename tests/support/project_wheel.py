"""This project's wheel, built from a copy of the tree."""

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["DOMAINS", "ROOT", "build_wheel"]

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = ("protocol", "kernel", "parent_gateway", "encryption", "infra")


def build_wheel(directory: Path) -> Path:
    """Build the wheel into `directory` and return its path; works without a network."""
    # Built from a copy: setuptools leaves build/ behind, and takes stale files from it.
    copy = directory / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*DOMAINS, "kernelspec"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(directory), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(copy)
    (wheel,) = directory.glob("enclave_kernel-*.whl")
    return wheel
