"""Which process of this machine it is that a process in a pid namespace calls by a number."""

from contextlib import suppress
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient

from tests.support.enclave_home import run_code

__all__ = ["kernel_pid", "machine_pid"]

_OWN_NAMESPACE = "__import__('os').stat('/proc/self/ns/pid').st_ino"


def kernel_pid(client: BlockingKernelClient, pid: str = "__import__('os').getpid()") -> int:
    """Return the machine's pid of a kernel, or of what else this expression gives in a cell."""
    namespace, number = run_code(client, f"print({_OWN_NAMESPACE}, {pid})").split()
    return machine_pid(int(namespace), int(number))


def machine_pid(namespace: int, number: int) -> int:
    """Return the machine's pid of the process that is `number` in this pid namespace.

    Raises:
        LookupError: There is none.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if (entry / "ns" / "pid").stat().st_ino != namespace:
                continue
            for line in (entry / "status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "NSpid" and int(value.split()[-1]) == number:
                    return int(entry.name)
    raise LookupError(f"no process is {number} in pid namespace {namespace}")
