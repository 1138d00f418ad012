"""The interpreter of an unpacked root file system, run in place on this machine.

Bytecode and compressed data depend on the version of what makes them. With Debian's locked
interpreter they do not depend on the machine that builds. It is run through its own loader and
libraries: no chroot, no rights.
"""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enclave_infra.image.errors import ImageError
from enclave_infra.image.programs import run
from enclave_infra.image.python_packages import PYTHON

__all__ = ["PinnedPython"]

_LOADERS: Final = {
    "x86_64": "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "aarch64": "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
}
_COMPILE: Final = """
import compileall, py_compile, sys
root, *folders = sys.argv[1:]
for folder in folders:
    compileall.compile_dir(
        folder, maxlevels=100, quiet=2, stripdir=root, prependdir="/", workers=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""
_COMPRESS: Final = """
import sys, zlib
source, target, level = sys.argv[1:]
packer = zlib.compressobj(int(level), zlib.DEFLATED, 31)
with open(source, "rb") as plain, open(target, "wb") as packed:
    while data := plain.read(1 << 20):
        packed.write(packer.compress(data))
    packed.write(packer.flush())
"""


class PinnedPython:
    """The interpreter in `root`.

    Args:
        root: An unpacked root file system for this machine's architecture.

    Raises:
        ImageError: There is none that can run here.
    """

    def __init__(self, root: Path) -> None:
        loader = _LOADERS.get(platform.machine())
        if loader is None or not (root / loader).is_file():
            raise ImageError(f"no interpreter in {root} runs on {platform.machine()}")
        libraries = (root / loader).parent
        program = root / f"usr/bin/python{PYTHON}"
        words = (root / loader, "--library-path", libraries, program, "-s", "-S", "-B")
        self._command = [str(word) for word in words]

    def compile(self, root: Path, folders: Sequence[Path]) -> None:
        """Compile the modules below `folders` of an image's root.

        Files that are no Python of this version (there are some in test data) are left alone.

        Raises:
            ToolError: The interpreter failed.
        """
        self._run(_COMPILE, root, *folders)

    def compress(self, source: Path, target: Path, level: int) -> None:
        """Write `source` as one gzip member without name and time.

        Raises:
            ToolError: The interpreter failed.
        """
        self._run(_COMPRESS, source, target, str(level))

    def _run(self, code: str, *arguments: str | Path) -> None:
        # The order in sets, and so in bytecode, must not depend on chance.
        environ = {"PYTHONHASHSEED": "0", "PYTHONPATH": "", "PYTHONHOME": ""}
        run([*self._command, "-c", code, *arguments], environ=environ)
