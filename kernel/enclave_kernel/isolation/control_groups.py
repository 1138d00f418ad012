"""Limits by control groups, version 1 (the enclave) or 2 (a developer's machine)."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = ["ControlGroup", "ControlGroupError", "ControlGroups", "GroupLimits"]

_ROOT: Final = Path("/sys/fs/cgroup")
_REMEDY: Final = "start the enclave as root, or without a memory limit"
_NODES: Final = ("1:3", "1:5", "1:7", "1:8", "1:9")
"""null, zero, full, random, urandom: to be read and written, never made."""
_SHARES_OF_ONE, _WEIGHT_OF_ONE, _MAX_WEIGHT = 1024, 100, 10_000
"""What the kernel gives a group, and a process that is in none (version 1, version 2)."""


class ControlGroupError(EnclaveError):
    """The system has no memory control group that this process may use."""


@dataclass(frozen=True)
class GroupLimits:
    """Limits of one group. Processors are shared: what many want, each group gets as much of.

    Attributes:
        memory_bytes: What its processes may use together, files in a tmpfs included.
        tasks: Processes and threads, or None for no limit.
        devices: Leave it five harmless devices (version 1 only; in 2 that takes BPF).
    """

    memory_bytes: int
    tasks: int | None = None
    devices: bool = False


class ControlGroup:
    """The group of one process tree.

    Args:
        paths: Its directory under each controller, made by `ControlGroups`.
        limits: What was asked for.
        version: 1 or 2.
    """

    def __init__(self, paths: Mapping[str, Path], limits: GroupLimits, version: int) -> None:
        self.limit_bytes = limits.memory_bytes
        self._paths = dict(paths)
        self._version = version

    @property
    def controllers(self) -> dict[str, str]:
        """What limits it, each with the end of its path in `/proc/PID/cgroup`."""
        return {
            name: f"/{path.parent.name}/{path.name}" for name, path in sorted(self._paths.items())
        }

    def add(self, pid: int) -> None:
        """Move a process into the group; what it forks later follows.

        Raises:
            OSError: The process is gone, or the kernel refuses.
        """
        for path in set(self._paths.values()):
            (path / "cgroup.procs").write_text(str(pid))

    def killed_for_memory(self) -> bool:
        """Say whether the kernel killed a process of the group because the group was full."""
        path = self._paths.get("memory")
        if path is None:
            return False
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        try:
            lines = (path / name).read_text().splitlines()
        except OSError:
            return False
        counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
        if self._version == 1 and "oom_kill" not in counts:
            # Before Linux 4.13 only the number of refused allocations is kept.
            return int((path / "memory.failcnt").read_text()) > 0
        return int(counts.get("oom_kill", "0")) > 0

    def peak_bytes(self) -> int | None:
        """Return the most memory its processes had at a time; None where that is not kept.

        Version 2 keeps it since Linux 5.19.
        """
        path = self._paths.get("memory")
        if path is None:
            return None
        name = "memory.max_usage_in_bytes" if self._version == 1 else "memory.peak"
        try:
            return int((path / name).read_text())
        except (OSError, ValueError):
            return None

    def memory_bytes(self) -> int | None:
        """Return the memory its processes have written to, files in a tmpfs included.

        Caches are left out: the system takes them back when it needs them. None: it is not told.
        """
        counts = self._counts("memory", "memory.stat")
        names = ("total_rss", "total_shmem") if self._version == 1 else ("anon", "shmem")
        if names[0] not in counts:
            return None
        return sum(counts.get(name, 0) for name in names)

    def cpu_seconds(self) -> float | None:
        """Return the processor time of all its processes, ended ones included.

        None: it is not told (version 1 has another controller for it).
        """
        if self._version == 1:
            return None
        used = self._counts("memory", "cpu.stat").get("usage_usec")
        return None if used is None else used / 1e6

    def pids(self) -> tuple[int, ...]:
        """Return its processes, as this process knows them; none of a group that is gone."""
        path = self._paths.get("memory")
        try:
            lines = [] if path is None else (path / "cgroup.procs").read_text().split()
        except OSError:
            return ()
        return tuple(int(line) for line in lines)

    def _counts(self, controller: str, name: str) -> dict[str, int]:
        """Return the numbers of a file with one name and number a line; none if it is not there."""
        path = self._paths.get(controller)
        try:
            lines = [] if path is None else (path / name).read_text().splitlines()
            return {key: int(value) for key, value in (line.split(maxsplit=1) for line in lines)}
        except (OSError, ValueError):
            return {}

    def remove(self) -> None:
        """Remove the group once its processes are gone; a busy one is left to its parent."""
        for path in set(self._paths.values()):
            with contextlib.suppress(OSError):
                path.rmdir()


class ControlGroups:
    """Makes one group per process tree below a directory of its own.

    Args:
        name: Of the directory; unique in the system.
        limits: Of every group. Controllers that are not there are left out, memory excepted.

    Raises:
        ControlGroupError: There is no memory controller, or no right to use it.
    """

    def __init__(self, name: str, limits: GroupLimits) -> None:
        self._limits = limits
        _sweep()
        try:
            if (_ROOT / "memory" / "memory.limit_in_bytes").exists():
                self._version = 1
                self._bases = dict(self._make_version_1(name))
            elif "memory" in (_ROOT / "cgroup.controllers").read_text().split():
                self._version = 2
                self._bases = dict(self._make_version_2(name))
            else:
                raise ControlGroupError(f"the system has no memory control group; {_REMEDY}")
        except OSError as error:
            raise ControlGroupError(
                f"no memory control group can be made in {_ROOT}: {error.strerror}; {_REMEDY}"
            ) from error

    def _make_version_1(self, name: str) -> Iterator[tuple[str, Path]]:
        for controller in self._wanted():
            base = _ROOT / controller / name
            try:
                if not base.parent.is_dir():
                    continue
                base.mkdir()
            except OSError:
                if controller == "memory":
                    raise
                continue
            if controller == "cpu":
                # All groups together are to count as a process on every processor, not as one.
                with contextlib.suppress(OSError):
                    (base / "cpu.shares").write_text(str(_SHARES_OF_ONE * (os.cpu_count() or 1)))
            yield controller, base

    def _make_version_2(self, name: str) -> Iterator[tuple[str, Path]]:
        base = _ROOT / name
        available = (_ROOT / "cgroup.controllers").read_text().split()
        usable = [controller for controller in self._wanted() if controller in available]
        for place in (_ROOT, base):
            if place is base:
                base.mkdir()
            for controller in tuple(usable):
                try:
                    (place / "cgroup.subtree_control").write_text(f"+{controller}")
                except OSError:
                    # Some kernels refuse it while there are real-time processes.
                    if controller != "cpu":
                        raise
                    usable.remove(controller)
        if "cpu" in usable:
            weight = min(_MAX_WEIGHT, _WEIGHT_OF_ONE * (os.cpu_count() or 1))
            with contextlib.suppress(OSError):
                (base / "cpu.weight").write_text(str(weight))
        yield from ((controller, base) for controller in usable)

    def _wanted(self) -> Iterator[str]:
        yield "memory"
        yield "cpu"
        if self._limits.tasks is not None:
            yield "pids"
        if self._limits.devices:
            yield "devices"

    def create(self, name: str) -> ControlGroup:
        """Make a group.

        Args:
            name: Unique among the living ones; safe as a file name.

        Raises:
            OSError: The kernel refuses.
        """
        paths = {controller: base / name for controller, base in self._bases.items()}
        for path in set(paths.values()):
            path.mkdir()
        group = ControlGroup(paths, self._limits, self._version)
        try:
            self._limit(paths)
        except BaseException:
            group.remove()
            raise
        return group

    def _limit(self, paths: Mapping[str, Path]) -> None:
        limit = str(self._limits.memory_bytes)
        memory = paths["memory"]
        if self._version == 1:
            (memory / "memory.limit_in_bytes").write_text(limit)
            # Where swap is counted: no way around the limit.
            with contextlib.suppress(OSError):
                (memory / "memory.memsw.limit_in_bytes").write_text(limit)
        else:
            (memory / "memory.max").write_text(limit)
            with contextlib.suppress(OSError):
                (memory / "memory.swap.max").write_text("0")
        if "pids" in paths:
            (paths["pids"] / "pids.max").write_text(str(self._limits.tasks))
        if "devices" in paths:
            (paths["devices"] / "devices.deny").write_text("a")
            for node in _NODES:
                (paths["devices"] / "devices.allow").write_text(f"c {node} rw")

    def close(self) -> None:
        """Remove the directory and every empty group in it."""
        for base in set(self._bases.values()):
            with contextlib.suppress(OSError):
                for path in base.iterdir():
                    if path.is_dir():
                        with contextlib.suppress(OSError):
                            path.rmdir()
                base.rmdir()


def _sweep() -> None:
    """Remove the empty groups of supervisors that were killed; those of living ones are left."""
    for base in (*_ROOT.glob("enclave-*"), *_ROOT.glob("*/enclave-*")):
        pid = base.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                for group in base.iterdir():
                    if group.is_dir():
                        group.rmdir()
                base.rmdir()
