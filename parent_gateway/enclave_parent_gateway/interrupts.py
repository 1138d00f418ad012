"""Ctrl-C that waits for a good moment: between steps, never between starting and noting."""

import signal
from types import FrameType, TracebackType

__all__ = ["DeferredInterrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DeferredInterrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP are only noted; `check` raises for them.

    For the main thread only. Processes started meanwhile get the default handlers.
    """

    def __init__(self) -> None:
        self._noted = False
        self._previous: dict[signal.Signals, object] = {}

    def check(self) -> None:
        """Act on a signal that came.

        Raises:
            KeyboardInterrupt: One came since `__enter__` or the last check.
        """
        if self._noted:
            self._noted = False
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._noted = True

    def __enter__(self) -> "DeferredInterrupts":
        for number in _SIGNALS:
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
        self._previous.clear()
