"""What kernels and vaults use of processors and memory: looked at on a clock, never on demand.

Whoever asks gets what was seen last, so that asking often, or at a chosen moment, shows no more.
Vaults are shown in few and coarse steps: the numbers are a way for the parent to watch a package
at work, and for a package to tell the parent something (docs/decisions/usage_of_vaults.md).
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from enclave_kernel.isolation.control_groups import ControlGroup
from enclave_kernel.process_usage import cpu_seconds, memory_bytes, process_tree

__all__ = [
    "KERNEL_PERIOD_S",
    "VAULT_PERIOD_S",
    "KernelMeter",
    "Meter",
    "Usage",
    "UsageClock",
    "VaultMeter",
    "cpu_step",
    "memory_step",
]

KERNEL_PERIOD_S: Final = 5.0
VAULT_PERIOD_S: Final = 30.0
_MIB: Final = 2**20
_KERNEL_MEMORY: Final = 16 * _MIB
_SMALLEST_MEMORY: Final = 64 * _MIB
_LARGEST_MEMORY: Final = 1024 * 1024 * _MIB
_SMALLEST_PERCENT: Final = 25
_LARGEST_PERCENT: Final = 25 * 2**10
_IDLE_PERCENT: Final = 1.0


@dataclass(frozen=True)
class Usage:
    """What was seen last.

    Attributes:
        memory_bytes: In use.
        cpu_percent: Of one processor, since the look before.
        cpu_s: Since the start; None where it is not told.
    """

    memory_bytes: int
    cpu_percent: int
    cpu_s: float | None = None


def memory_step(size: int) -> int:
    """Return the smallest power of two from 64 MiB to 1 TiB that `size` bytes fit into."""
    step = _SMALLEST_MEMORY
    while step < size and step < _LARGEST_MEMORY:
        step *= 2
    return step


def cpu_step(percent: float) -> int:
    """Return 0 for an idle vault, else the smallest of 25, 50, 100, 200 ... that is no less."""
    if percent < _IDLE_PERCENT:
        return 0
    step = _SMALLEST_PERCENT
    while step < percent and step < _LARGEST_PERCENT:
        step *= 2
    return step


class Meter(Protocol):
    """Something that is looked at."""

    def look(self) -> None:
        """Look now, and keep what is to be shown. Blocks for some milliseconds."""


class _ProcessMeter:
    """The process tree below one process, from its control group as far as that tells.

    Args:
        pid: Of the outermost process.
        group: Its control group, if it has one.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        pid: int,
        group: ControlGroup | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid = pid
        self._group = group
        self._clock = clock
        self._looked = clock()
        self._cpu_s = 0.0
        self.seen: Usage | None = None

    def _measure(self) -> tuple[int, float, float]:
        """Return memory in bytes, processor seconds so far, and percent since the look before."""
        group = self._group
        memory = None if group is None else group.memory_bytes()
        cpu_s = None if group is None else group.cpu_seconds()
        if memory is None or cpu_s is None:
            # From the group itself where there is one: to look through all of /proc for each of
            # hundreds of kernels would keep a processor busy.
            pids = process_tree(self._pid) if group is None else group.pids()
            memory = memory_bytes(pids) if memory is None else memory
            cpu_s = cpu_seconds(pids) if cpu_s is None else cpu_s
        now = self._clock()
        # A process that nobody waited for takes its time with it: the sum does not fall here.
        cpu_s = max(cpu_s, self._cpu_s)
        percent = 100 * (cpu_s - self._cpu_s) / max(now - self._looked, 0.001)
        self._looked, self._cpu_s = now, cpu_s
        return memory, cpu_s, percent


class KernelMeter(_ProcessMeter):
    """A kernel's process and what it started: the user's own, in 16 MiB and whole percent.

    What a package returns makes that process larger, which is why it is not told to the byte.
    """

    def look(self) -> None:
        """See `Meter`."""
        memory, cpu_s, percent = self._measure()
        rounded = -(-memory // _KERNEL_MEMORY) * _KERNEL_MEMORY
        self.seen = Usage(rounded, round(percent), round(cpu_s, 1))


class VaultMeter(_ProcessMeter):
    """A vault: shown in steps, and with no sum of which the steps could be undone."""

    _looked_once = False

    def look(self) -> None:
        """See `Meter`. Shows nothing the first time.

        Whoever loads a package right before a look would see how it begins, in a span as short as
        they like.
        """
        memory, _, percent = self._measure()
        if self._looked_once:
            self.seen = Usage(memory_step(memory), cpu_step(percent))
        self._looked_once = True


class UsageClock:
    """Has everything looked at again and again: kernels every 5 s, vaults every 30 s.

    All vaults at the same moments, which are the enclave's and nobody else's to choose.

    Args:
        kernels: Returns what is to be looked at more often.
        vaults: Returns what is to be looked at less often.
        period_s: Between two looks at the kernels.
    """

    def __init__(
        self,
        kernels: Callable[[], Sequence[Meter]],
        vaults: Callable[[], Sequence[Meter]],
        period_s: float = KERNEL_PERIOD_S,
    ) -> None:
        self._kernels = kernels
        self._vaults = vaults
        self._period_s = period_s

    async def run(self) -> None:
        """Go on until cancelled."""
        every = round(VAULT_PERIOD_S / KERNEL_PERIOD_S)
        turn = 0
        while True:
            await asyncio.sleep(self._period_s)
            turn += 1
            meters = [*self._kernels(), *(self._vaults() if turn % every == 0 else ())]
            if meters:
                await asyncio.to_thread(_look_at, meters)


def _look_at(meters: Iterable[Meter]) -> None:
    for meter in meters:
        meter.look()
