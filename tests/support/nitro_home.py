"""An enclave home whose backend is nitro, on a stand-in for nitro-cli and the hardware."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.eif_files import CMDLINE, KERNEL, RAMDISK, eif
from tests.support.enclave_home import EnclaveHome
from tests.support.project_wheel import ROOT

__all__ = ["IMAGE_MIB", "NitroHome", "new_nitro_home", "nitro_cli_program", "nitro_image"]

IMAGE_MIB = 3
_PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.support.nitro_cli import main
main()
"""


def nitro_cli_program() -> str:
    """Return the text of an executable that is the stand-in for nitro-cli."""
    return _PROGRAM.format(python=sys.executable, root=str(ROOT))


def nitro_image(content: bytes, *, other_machine: bool = False) -> bytes:
    """Return an image of `IMAGE_MIB` MiB for this machine."""
    arm64 = (platform.machine() == "aarch64") is not other_machine
    padded = content.ljust(IMAGE_MIB * 2**20 - 4096, b"\0")
    sections = [(KERNEL, b"kernel"), (CMDLINE, b"reboot=k"), (RAMDISK, padded)]
    return eif(sections, flags=int(arm64))


class NitroHome(EnclaveHome):
    """See `EnclaveHome`; `nitro-cli` is first on its PATH.

    Args:
        root: As there.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.stand_in = root / "n"
        self.image = root / "test.eif"
        self.allocator = root / "etc" / "nitro_enclaves" / "allocator.yaml"
        self.program = self.stand_in / "bin" / "nitro-cli"
        self.program.parent.mkdir(parents=True)
        self.program.write_text(nitro_cli_program())
        self.program.chmod(0o755)
        (self.stand_in / "root.pem").symlink_to("root/root.pem")
        self.allocator.parent.mkdir(parents=True)
        self.set_allocator(memory_mib=2048, cpu_count=2)
        self.write_image(b"first")
        self.variables |= {
            "ENCLAVE_BACKEND": "nitro",
            "ENCLAVE_NITRO_STAND_IN": str(self.stand_in),
            "NITRO_CLI_INSTALL_DIR": str(root),
            "PATH": f"{self.program.parent}:{os.environ['PATH']}",
        }

    def set_allocator(self, **settings: object) -> None:
        """Write the allocator's file."""
        lines = [f"{key}: {value}\n" for key, value in settings.items()]
        self.allocator.write_text("".join(["# Enclave configuration file.\n---\n", *lines]))

    def write_image(self, content: bytes, *, other_machine: bool = False) -> None:
        """Write an image of `IMAGE_MIB` MiB for this machine."""
        self.image.write_bytes(nitro_image(content, other_machine=other_machine))

    def up(self, *arguments: str, image: bool = True) -> "tuple[int, str]":
        """Run `enclave up`; return its exit code and all that it printed."""
        chosen = ("--image", str(self.image)) if image else ()
        done = self.run("up", *chosen, *arguments)
        return done.returncode, done.stdout + done.stderr

    def processes(self) -> dict[int, str]:
        """Return those of the enclave and of the stand-in."""
        return {**super().processes(), **self._naming(str(self.stand_in))}


@contextmanager
def new_nitro_home() -> Iterator[NitroHome]:
    """Return a nitro home below /tmp; everything in it is ended and removed afterwards."""
    home = NitroHome(Path(tempfile.mkdtemp(prefix="enc", dir="/tmp")))
    try:
        yield home
    finally:
        home.close()
        shutil.rmtree(home.root, ignore_errors=True)
