"""A process that is not our child, held so that no signal goes to whoever gets its pid later."""

import contextlib
import errno
import os
import signal

__all__ = ["HeldProcess"]


class HeldProcess:
    """A process of another parent's. Close it.

    Before Linux 5.3 (enclaves of Nitro may run 4.14, FACTS) there is no pidfd: then its folder in
    /proc is held, which is its own for ever. A pid would have to be given away between the look
    and the signal, within microseconds, for another process to get it.

    Args:
        pid: As seen here; the process must still be alive.

    Raises:
        OSError: There is no such process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._by_pidfd = True
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self._by_pidfd = False
            self._descriptor = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; a dead process is fine."""
        with contextlib.suppress(ProcessLookupError):
            if self._by_pidfd:
                signal.pidfd_send_signal(self._descriptor, number)
                return
            os.close(os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor))
            os.kill(self._pid, number)

    def close(self) -> None:
        """Let go of it; harmless the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
