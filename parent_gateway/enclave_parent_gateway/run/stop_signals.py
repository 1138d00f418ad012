"""Ctrl-C and the like while a script runs."""

import signal
import socket
from types import FrameType, TracebackType
from typing import Final, Self

from enclave_parent_gateway.run.run_errors import INTERRUPTED, RunStoppedError

__all__ = ["StopSignals"]

_SIGNAL_BASE: Final = 128
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, the first SIGINT is noted, and a poller wakes up. For the main thread only.

    The second, SIGTERM and SIGHUP raise `RunStoppedError` at once: the command may be waiting for
    somebody to read what it writes.

    Attributes:
        wakeup: Readable when a signal came.
        interrupts: How often SIGINT came.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.wakeup, self._other = socket.socketpair()
        self._previous: dict[signal.Signals, object] = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if number != signal.SIGINT:
            raise RunStoppedError(_SIGNAL_BASE + number)
        if self.interrupts > 1:
            raise RunStoppedError(INTERRUPTED)

    def drain(self) -> None:
        """Take what woke the poller."""
        try:
            self.wakeup.recv(4096)
        except BlockingIOError:
            return

    def __enter__(self) -> Self:
        self.wakeup.setblocking(False)
        self._other.setblocking(False)
        signal.set_wakeup_fd(self._other.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            # What the caller ignores (nohup) stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as getsignal returned it
        signal.set_wakeup_fd(-1)
        self.wakeup.close()
        self._other.close()
