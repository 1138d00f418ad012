"""What Python does at the end of `__main__`, for code that runs in a process of another program.

Source: Python's library reference, `threading` (non-daemon threads) and `atexit`.
"""

import atexit
import threading

__all__ = ["end_main"]


def end_main() -> None:
    """Wait for the threads that are no daemons, then call what `atexit` was given."""
    # Pools first: their idle threads would be waited for, and end only when they are told.
    for call in reversed(getattr(threading, "_threading_atexits", ())):
        call()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
