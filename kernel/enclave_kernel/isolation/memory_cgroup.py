"""Memory limits by control groups, version 1 (the enclave) or 2 (a developer's machine)."""

import contextlib
import os
from pathlib import Path

from enclave_protocol.errors import EnclaveError

__all__ = ["MemoryCgroup", "MemoryCgroupError", "MemoryCgroups"]

_ROOT = Path("/sys/fs/cgroup")
_REMEDY = "start the enclave as root, or without a memory limit"


class MemoryCgroupError(EnclaveError):
    """The system has no memory control group that this process may use."""


class MemoryCgroup:
    """The group of one process tree.

    Args:
        path: Its directory, made by `MemoryCgroups`.
        limit_bytes: What its processes may use together.
        version: 1 or 2.
    """

    def __init__(self, path: Path, limit_bytes: int, version: int) -> None:
        self.limit_bytes = limit_bytes
        self._path = path
        self._version = version

    def add(self, pid: int) -> None:
        """Move a process into the group; what it forks later follows.

        Raises:
            OSError: The process is gone, or the kernel refuses.
        """
        (self._path / "cgroup.procs").write_text(str(pid))

    def killed_for_memory(self) -> bool:
        """Say whether the kernel killed a process of the group because the group was full."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        try:
            lines = (self._path / name).read_text().splitlines()
        except OSError:
            return False
        counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
        if self._version == 1 and "oom_kill" not in counts:
            # Before Linux 4.13 only the number of refused allocations is kept.
            return int((self._path / "memory.failcnt").read_text()) > 0
        return int(counts.get("oom_kill", "0")) > 0

    def remove(self) -> None:
        """Remove the group once its processes are gone; a busy one is left to its parent."""
        with contextlib.suppress(OSError):
            self._path.rmdir()


class MemoryCgroups:
    """Makes one group per kernel below a directory of its own.

    Args:
        limit_bytes: The limit of every group, in bytes.

    Raises:
        MemoryCgroupError: There is no memory controller, or no right to use it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        name = f"enclave-{os.getpid()}"
        try:
            if (_ROOT / "memory" / "memory.limit_in_bytes").exists():
                self._version = 1
                self._base = _ROOT / "memory" / name
                self._base.mkdir()
            elif "memory" in (_ROOT / "cgroup.controllers").read_text().split():
                self._version = 2
                self._base = _ROOT / name
                (_ROOT / "cgroup.subtree_control").write_text("+memory")
                self._base.mkdir()
                (self._base / "cgroup.subtree_control").write_text("+memory")
            else:
                raise MemoryCgroupError(f"the system has no memory control group; {_REMEDY}")
        except OSError as error:
            raise MemoryCgroupError(
                f"no memory control group can be made in {_ROOT}: {error.strerror}; {_REMEDY}"
            ) from error

    def create(self, name: str) -> MemoryCgroup:
        """Make a group.

        Args:
            name: Unique among the living ones; safe as a file name.

        Raises:
            OSError: The kernel refuses.
        """
        path = self._base / name
        path.mkdir()
        if self._version == 1:
            (path / "memory.limit_in_bytes").write_text(str(self._limit))
            # Where swap is counted: no way around the limit.
            with contextlib.suppress(OSError):
                (path / "memory.memsw.limit_in_bytes").write_text(str(self._limit))
        else:
            (path / "memory.max").write_text(str(self._limit))
            with contextlib.suppress(OSError):
                (path / "memory.swap.max").write_text("0")
        return MemoryCgroup(path, self._limit, self._version)

    def close(self) -> None:
        """Remove the directory and every empty group in it."""
        with contextlib.suppress(OSError):
            for path in self._base.iterdir():
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
            self._base.rmdir()
