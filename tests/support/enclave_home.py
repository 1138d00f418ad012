"""An enclave of its own for tests: directories, environment, CLI, and a look at what is left."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from enclave_parent_gateway.kernelspec_install import install_kernelspec

__all__ = ["EnclaveHome", "kernel", "new_home", "run_code", "wait_until"]

_CLEARED = ("ENCLAVE_", "AWS_")


class EnclaveHome:
    """Directories of one enclave, and the environment that leads there.

    Args:
        root: A short path: Unix sockets go below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runtime = root / "r"
        self.variables = {
            "ENCLAVE_RUNTIME_DIR": str(self.runtime),
            "JUPYTER_PATH": str(root / "share"),
            "JUPYTER_RUNTIME_DIR": str(root / "jupyter"),
            "JUPYTER_CONFIG_DIR": str(root / "config"),
            "IPYTHONDIR": str(root / "ipython"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        install_kernelspec(root / "share")

    @property
    def environ(self) -> dict[str, str]:
        """A whole environment for processes that use this enclave."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_CLEARED)}
        return kept | self.variables

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `enclave` with these arguments."""
        return [sys.executable, "-m", "enclave_parent_gateway", *arguments]

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `enclave` and return what it did, whatever its exit code."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return `enclave status --json`."""
        result: dict[str, Any] = msgspec.json.decode(self.run("status", "--json").stdout)
        return result

    def processes(self) -> dict[int, str]:
        """Return command lines by pid of all live processes that name the runtime directory."""
        return self._naming(str(self.runtime))

    def _naming(self, path: str) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if path in line:
                    found[int(entry.name)] = line
        return found

    def close(self) -> None:
        """End the enclave and remove the directories."""
        self.run("down")
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)
        if left:
            raise RuntimeError(f"left over after enclave down: {left}")


@contextmanager
def new_home() -> Iterator[EnclaveHome]:
    """Return an enclave home below /tmp; everything in it is ended and removed afterwards."""
    home = EnclaveHome(Path(tempfile.mkdtemp(prefix="enc", dir="/tmp")))
    try:
        yield home
    finally:
        home.close()


@contextmanager
def kernel(**options: Any) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Start a kernel `enclave` and a client of it; shut it down afterwards."""
    manager = KernelManager(kernel_name="enclave")
    manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_code(client: BlockingKernelClient, code: str, timeout_s: float = 30.0) -> str:
    """Run a cell; return what it printed, or NAME: VALUE of its error."""
    texts: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])

    reply = client.execute_interactive(code, timeout=timeout_s, output_hook=collect)["content"]
    while reply["status"] == "aborted":
        # ipykernel aborts what arrives right after an error, until its loop has gone round once.
        reply = client.execute_interactive(code, timeout=timeout_s, output_hook=collect)["content"]
    if reply["status"] == "error":
        return f"{reply['ename']}: {reply['evalue']}"
    return "".join(texts)


def wait_until(condition: Any, timeout_s: float = 10.0) -> bool:
    """Return whether `condition()` became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
