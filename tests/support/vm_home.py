"""An enclave of its own in a virtual machine."""

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.enclave_home import EnclaveHome, wait_until

__all__ = ["VmHome", "new_vm_home"]

_UP_TIMEOUT_S = 400


class VmHome(EnclaveHome):
    """An `EnclaveHome` whose backend is qemu.

    Args:
        root: A short path: Unix sockets go below it.
        image: The EIF.
    """

    def __init__(self, root: Path, image: Path) -> None:
        super().__init__(root)
        self.image = image
        self.variables |= {"ENCLAVE_BACKEND": "qemu", "ENCLAVE_IMAGE": str(image)}

    def up(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Run `enclave up`, which takes half a minute where the machine is emulated."""
        return subprocess.run(
            self.command("up", *options),
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=_UP_TIMEOUT_S,
            check=False,
        )

    def console(self) -> str:
        """Return what the machine wrote to its console since its start."""
        return (self.runtime / "log" / "console.log").read_text(errors="replace")

    def pid(self, pattern: str) -> int:
        """Return the pid of the one process of this enclave whose command line matches."""
        found = [pid for pid, line in self.processes().items() if re.search(pattern, line)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} processes match {pattern!r}: {self.processes()}")
        return found[0]

    @contextmanager
    def sync(self, folder: Path) -> Iterator["subprocess.Popen[Any]"]:
        """Run `enclave sync` until the end of the block; it is live when the block begins."""
        process = subprocess.Popen(
            self.command("sync", "-d", str(folder)),
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            if not wait_until(lambda: self._phase() == "live", 60):
                process.kill()
                raise RuntimeError(f"enclave sync is not live: {process.communicate()[0]}")
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)

    def _phase(self) -> str:
        mirror = self.status().get("sync")
        return mirror["phase"] if mirror else ""


@contextmanager
def new_vm_home(image: Path) -> Iterator[VmHome]:
    """Return a home below /tmp with nothing running; all of it is gone afterwards."""
    home = VmHome(Path(tempfile.mkdtemp(prefix="encvm", dir="/tmp")), image)
    try:
        yield home
    finally:
        home.close()
