"""Processor time and memory of processes, as /proc tells them. Read only; no psutil.

Source: proc(5), /proc/PID/stat, /proc/PID/statm and /proc/PID/smaps_rollup.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["cpu_seconds", "memory_bytes", "process_tree"]

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PARENT, _TIMES, _RESIDENT = 1, slice(11, 15), 1
"""Fields of stat behind the name (ppid; utime, stime, cutime, cstime), and of statm."""


def _stat(pid: int) -> list[str]:
    """Return the fields behind the name, which may hold anything; none of an ended process."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def process_tree(root: int) -> tuple[int, ...]:
    """Return a process and all that descend from it, as far as they can be seen from here."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir(_PROC):  # noqa: PTH208 (no Path for each of hundreds)
        if entry.isdigit() and (fields := _stat(int(entry))):
            children[int(fields[_PARENT])].append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return tuple(found)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of these processes, with that of children they waited for."""
    ticks = sum(int(field) for pid in pids for field in _stat(pid)[_TIMES])
    return ticks / _TICKS_PER_S


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the memory of these processes; what several share counts once (PSS).

    Where that is not told, for a process of somebody else's, all of its resident memory counts.
    """
    return sum(_memory_of(pid) for pid in pids)


def _memory_of(pid: int) -> int:
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[_RESIDENT]) * _PAGE_BYTES
    except OSError:
        return 0
