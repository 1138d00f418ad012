"""Ctrl-C while a call is in a vault: passed on, with a deadline, and the stream left whole."""

# `signal` itself makes enums of numbers and handlers: as long as all else of a call takes here.
import _signal  # type: ignore[import-not-found]  # of CPython, as `_thread`
import queue
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

__all__ = ["INTERRUPT_TIMEOUT_S", "CallInterrupt"]

INTERRUPT_TIMEOUT_S: Final = 5.0
"""How long a vault may take to answer an interrupted call before it is killed."""


class CallInterrupt:
    """While entered, SIGINT goes to the vault instead of raising between two reads of a frame.

    Outside the main thread, where Python delivers no signals, only `press` interrupts.

    Args:
        interrupt: Sends SIGINT to the vault; called in a thread of its own.
        kill: Ends the vault; called when it did not answer within `INTERRUPT_TIMEOUT_S` seconds.

    Attributes:
        happened: Whether SIGINT came, or `press` was called.
        in_user_code: Set while a function of the user's runs within the call: SIGINT is handled as
            if there were no call.
    """

    def __init__(self, interrupt: Callable[[], None], kill: Callable[[], None]) -> None:
        self.happened = False
        self._interrupt = interrupt
        self._kill = kill
        self.in_user_code = False
        self._previous: Any = None
        self._entered = False
        self._over = False
        self._events: queue.SimpleQueue[bool] | None = None

    def press(self) -> None:
        """Interrupt the call; before it began, so that it never does. For any thread."""
        self.happened = True
        if not self._entered or self._over:
            # The vault is with another call, or with none.
            return
        if self._events is None:
            self._events = queue.SimpleQueue()
            # The main thread goes back to waiting for the reply, so another keeps the time.
            thread = threading.Thread(target=self._pass_on, args=(self._events,), daemon=True)
            thread.start()
        self._events.put(True)

    def __enter__(self) -> "CallInterrupt":
        # Before anybody looks at `happened`: who presses from now on is heard by the vault.
        self._entered = True
        if threading.current_thread() is threading.main_thread():
            previous = _signal.getsignal(_signal.SIGINT)
            # Where SIGINT is ignored, or not Python's, it stays so.
            if callable(previous):
                self._previous = previous
                _signal.signal(_signal.SIGINT, self.on_interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        if self._events is not None:
            self._events.put(False)
        if self._previous is not None:
            _signal.signal(_signal.SIGINT, self._previous)

    def on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
        if self.in_user_code:
            self._previous(signum, frame)
        else:
            self.press()

    def _pass_on(self, events: "queue.SimpleQueue[bool]") -> None:
        deadline = time.monotonic() + INTERRUPT_TIMEOUT_S
        try:
            # One signal for each time the user asked: the package may have caught the first.
            while events.get(timeout=max(0.0, deadline - time.monotonic())) and not self._over:
                self._interrupt()
        except queue.Empty:
            if not self._over:
                self._kill()
