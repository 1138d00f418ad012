"""What JupyterLab's kernel usage panel asks a kernel: `usage_request` on the control channel.

ipykernel answers it with psutil, and without it with so little that the panel breaks. This answer
has the same fields from /proc. The memory is that of the kernel and its vaults, which the kernel
itself cannot see: the supervisor tells, in steps. The host is "enclave": its name is not shown.

Source: ipykernel 7.4, `Kernel.usage_request`; jupyter-resource-usage, `KernelUsageHandler` and
widget.tsx: the fields it reads.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from enclave_kernel.process_usage import cpu_seconds, memory_bytes, process_tree
from enclave_kernel.session.supervisor_link import SupervisorLink

__all__ = ["HOST_NAME", "UsageReply"]

HOST_NAME: Final = "enclave"
_PROC: Final = Path("/proc")
_SHORTEST_SPAN_S: Final = 1.0
_HOST_STEP: Final = 64 * 2**20
_IDLE: Final = slice(3, 5)
_ALL: Final = slice(0, 8)
"""Fields of stat's line "cpu" (proc(5)): idle and iowait; and all but those of guests, which are
in the others."""


class UsageReply:
    """Answers, with the processor time since an earlier one, or since this object was made.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self._cpu_s = cpu_seconds(process_tree(os.getpid()))
        self._host = _host_ticks()
        self._own_percent = 0.0
        self._host_percent: float | None = None

    def content(self, link: SupervisorLink | None) -> dict[str, Any]:
        """Return the reply's content. Blocks for some milliseconds, or until the supervisor told.

        `kernel_cpu` is percent of one processor, `host_cpu_percent` of all; sizes are in bytes.
        `host_...` is the enclave.

        Args:
            link: Who knows of the vaults; None: there are none.
        """
        vaults = None if link is None else link.vaults_usage()
        pids = process_tree(os.getpid())
        self._look(pids)
        reply: dict[str, Any] = {
            "hostname": HOST_NAME,
            "pid": os.getpid(),
            "kernel_cpu": round(self._own_percent + (vaults.cpu_percent if vaults else 0), 1),
            "kernel_memory": memory_bytes(pids) + (vaults.memory_bytes if vaults else 0),
            "cpu_count": os.cpu_count(),
            "host_virtual_memory": _host_memory(),
        }
        if self._host_percent is not None:
            reply["host_cpu_percent"] = self._host_percent
        return reply

    def _look(self, pids: tuple[int, ...]) -> None:
        """Take the percentages anew, unless that was just done: processors count in 10 ms."""
        now = self._clock()
        if now - self._looked < _SHORTEST_SPAN_S:
            return
        cpu_s, host = cpu_seconds(pids), _host_ticks()
        # A child that ended and was not waited for takes its time with it.
        self._own_percent = max(0.0, 100 * (cpu_s - self._cpu_s) / (now - self._looked))
        busy, total = (after - before for after, before in zip(host, self._host, strict=True))
        if total > 0:
            self._host_percent = float(round(min(100.0, max(0.0, 100 * busy / total))))
        self._looked, self._cpu_s, self._host = now, cpu_s, host


def _host_ticks() -> tuple[int, int]:
    """Return the time that all processors were busy, and all of their time."""
    line = (_PROC / "stat").read_text().partition("\n")[0]
    fields = [int(field) for field in line.split()[1:]]
    total = sum(fields[_ALL])
    return total - sum(fields[_IDLE]), total


def _host_memory() -> dict[str, int | float]:
    """Return the fields of psutil's `virtual_memory`, as the panel reads them."""
    lines = (_PROC / "meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}

    def size(name: str) -> int:
        # The system's, other notebooks' vaults among it: rounded, if only for who looks at screens.
        return round(kib.get(name, 0) * 1024 / _HOST_STEP) * _HOST_STEP

    total, available = size("MemTotal"), size("MemAvailable")
    cached = size("Cached") + size("SReclaimable")
    used = total - available
    return {
        "total": total,
        "available": available,
        "percent": round(100 * used / total, 1) if total else 0.0,
        "used": used,
        "free": size("MemFree"),
        "active": size("Active"),
        "inactive": size("Inactive"),
        "buffers": size("Buffers"),
        "cached": cached,
        "shared": size("Shmem"),
        "slab": size("Slab"),
    }
