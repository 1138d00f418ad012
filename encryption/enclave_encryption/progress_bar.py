"""A progress bar for what takes longer than a second."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

__all__ = ["progress_bar"]

_PROGRESS_AFTER_S = 1.0
"""What is over sooner needs no bar."""


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what advances a bar that shows up on a terminal's stderr after a second.

    Args:
        what: What is being done, for people.
        total: Bytes.
    """
    console = Console(stderr=True)
    progress = Progress(
        what,
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = progress.add_task("", total=total)
    started = time.monotonic()
    shown = False

    def advance(count: int) -> None:
        """Count `count` more bytes as done."""
        nonlocal shown
        progress.advance(task, count)
        if not shown and console.is_terminal and time.monotonic() - started > _PROGRESS_AFTER_S:
            shown = True
            progress.start()

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
