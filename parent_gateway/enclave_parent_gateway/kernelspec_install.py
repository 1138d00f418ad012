"""Installs the kernelspec `enclave`, which an editable install puts nowhere."""

import shutil
import sys
from pathlib import Path

from enclave_parent_gateway.errors import GatewayError

__all__ = ["KERNEL_NAME", "KernelspecError", "find_kernelspec", "install_kernelspec"]

KERNEL_NAME = "enclave"
_FILES = ("kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg")


class KernelspecError(GatewayError):
    """The kernelspec is not found, or cannot be written where it was to go."""


def find_kernelspec() -> Path:
    """Return the kernelspec's directory: the source tree's, else the installed data files.

    Raises:
        KernelspecError: Neither is there.
    """
    places = (
        Path(__file__).resolve().parents[2] / "kernelspec" / KERNEL_NAME,
        Path(sys.prefix) / "share" / "jupyter" / "kernels" / KERNEL_NAME,
    )
    for place in places:
        if (place / "kernel.json").is_file():
            return place
    raise KernelspecError(
        f"no kernelspec at {' or '.join(map(str, places))}; type: pip install --force-reinstall "
        "enclave-kernel"
    )


def install_kernelspec(data_dir: Path) -> Path:
    """Copy the kernelspec below `data_dir` and return where it is; an older one is replaced.

    Args:
        data_dir: A Jupyter data directory, such as ~/.local/share/jupyter.

    Raises:
        KernelspecError: It cannot be written there.
    """
    source = find_kernelspec()
    target = data_dir / "kernels" / KERNEL_NAME
    if target.resolve() == source.resolve():
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    except OSError as error:
        raise KernelspecError(
            f"cannot write {target}: {error.strerror}; type: enclave install-kernelspec --user"
        ) from error
    return target
