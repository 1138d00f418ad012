"""Ctrl-C and the like while a script runs: noted, and a poller wakes up."""

import signal
import socket
from types import FrameType, TracebackType
from typing import Self

__all__ = ["StopSignals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are counted. For the main thread only.

    Attributes:
        wakeup: Readable when a signal came.
        interrupts: How often SIGINT came.
        ending: SIGTERM or SIGHUP, if one came.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.ending: int | None = None
        self.wakeup, self._other = socket.socketpair()
        self._previous: dict[signal.Signals, object] = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.interrupts += 1
        else:
            self.ending = number

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
