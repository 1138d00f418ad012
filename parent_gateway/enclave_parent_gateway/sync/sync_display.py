"""How `enclave sync` looks: a bar for the first pass, then one line that stays true."""

import time
from typing import TYPE_CHECKING, Final

from enclave_parent_gateway.sync.session import Progress
from enclave_protocol.plain_text import plain_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["SyncDisplay", "problem_lines"]

_INTERVAL_S: Final = 0.1
_LINE_INTERVAL_S: Final = 5.0
_MAX_PROBLEMS: Final = 20


def problem_lines(problems: dict[str, str]) -> list[str]:
    """Return what could not be brought, a line each, as it may be shown on a terminal."""
    lines = [f"not brought: {plain_text(rel)}: {reason}" for rel, reason in problems.items()]
    if len(lines) > _MAX_PROBLEMS:
        more = len(lines) - _MAX_PROBLEMS
        lines = [*lines[:_MAX_PROBLEMS], f"and {more} more; --json names all of them"]
    return lines


class SyncDisplay:
    """Shows a mirror's phases on a terminal, or as lines elsewhere.

    Args:
        console: Where to.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._shown_at = 0.0
        self._problems: dict[str, str] = {}

    def show(self, phase: str, progress: Progress) -> None:
        """Take note of how it goes."""
        now = time.monotonic()
        if phase != self._phase:
            self._enter(phase, progress)
        elif now - self._shown_at < _INTERVAL_S:
            return
        self._shown_at = now
        if self._bar is not None and self._task is not None:
            totals = progress.totals
            self._bar.update(
                self._task,
                total=max(totals.bytes, 1),
                completed=totals.bytes_done if totals.bytes else 1,
                description=f"{totals.files_done}/{totals.files} files",
            )
        self._tell_problems(progress)

    def _tell_problems(self, progress: Progress) -> None:
        if self._phase != "live" or progress.problems == self._problems:
            return
        new = {rel: why for rel, why in progress.problems.items() if rel not in self._problems}
        self._problems = dict(progress.problems)
        for line in problem_lines(new):
            self._console.print(line, style="yellow", markup=False)

    def _enter(self, phase: str, progress: Progress) -> None:
        self._phase = phase
        self.close()
        if phase == "first pass" and self._console.is_terminal:
            self._start_bar()
        elif phase == "first pass":
            self._console.print("bringing both sides together ...")
        elif phase == "live":
            self._console.print(
                f"In sync: {progress.entries} files and folders. Changes follow as they are made; "
                "Ctrl-C ends it."
            )
        elif phase == "waiting for the enclave":
            self._console.print("The enclave does not answer; waiting for it (enclave up).")

    def _start_bar(self) -> None:
        from rich.progress import (  # late: 0.1 s that a script can do without
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("looking", total=None)
        self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
