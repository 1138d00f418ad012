"""Processes we started, told apart from others that got the same pid later."""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec

__all__ = ["ProcessIdentity", "stop_process"]


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third on; the second may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


class ProcessIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process: its pid and its start time in clock ticks since boot (proc(5), field 22)."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """Return the identity of the process that has `pid` now; ticks are 0 if there is none."""
        fields = _stat_fields(pid)
        return cls(pid, int(fields[19]) if fields else 0)

    def is_running(self) -> bool:
        """Return whether this very process exists and is not a zombie."""
        fields = _stat_fields(self.pid)
        return fields is not None and int(fields[19]) == self.start_ticks and fields[0] not in "ZX"


def stop_process(process: ProcessIdentity, *, grace_s: float) -> bool:
    """End a process: SIGTERM, after `grace_s` seconds SIGKILL. A process that is gone is fine.

    Returns:
        Whether it ended by itself within the grace period.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        # Compared after opening: from here on the descriptor names this process and no other.
        if not process.is_running():
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if _ended(descriptor, grace_s):
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        _ended(descriptor, 5.0)
        return False
    finally:
        os.close(descriptor)


def _ended(pidfd: int, timeout_s: float) -> bool:
    """Wait until the process has ended (a zombie counts), at most `timeout_s` seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while (remaining := deadline - time.monotonic()) > 0:
        if poller.poll(remaining * 1000):
            return True
    return bool(poller.poll(0))
