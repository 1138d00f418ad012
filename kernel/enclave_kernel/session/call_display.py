"""What a call shows while it runs: its bars and its text, in the cell that called.

The vault has cleaned and bounded all of this; a package may have taken the vault over, so it is
done again here.
"""

import contextlib
import math
import secrets
import sys
import time
from dataclasses import dataclass
from typing import Final

from enclave_protocol.output_text import CALL_TEXT_CHARS, output_text
from enclave_protocol.vault_messages import FRACTION_BAR, Progress, Text

__all__ = ["CallDisplay"]

_REDRAW_S: Final = 0.05
"""Half of what a vault waits between two: the last one before a long wait is drawn."""
_MAX_LINES: Final = 16
_BAR_CHARS: Final = 10
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_MAX_NUMBER: Final = 1e15
"""Integers up to here are exact as float64, and fit into a line."""


@dataclass
class _Bar:
    began_at: float
    line: str = ""
    finished: bool = False


class CallDisplay:
    """Shows one call's output; used in the thread that called, which is how it finds its cell."""

    def __init__(self) -> None:
        self._bars: dict[int, _Bar] = {}
        self._room = CALL_TEXT_CHARS
        self._display_id: str | None = None
        self._drawn_at = -math.inf
        self._waiting = False

    def show(self, message: Progress | Text) -> None:
        """Show `message`, bars twenty times a second at most. Never raises an Exception."""
        # The frame is read, the call goes on: what is wrong with a display must not end it.
        with contextlib.suppress(Exception):
            if isinstance(message, Text):
                self._print(message)
            else:
                self._keep(message)
                self._draw()

    def finish(self) -> None:
        """Draw what was not drawn yet: the call is over."""
        if self._waiting:
            with contextlib.suppress(Exception):
                self._draw(now=True)

    def _print(self, message: Text) -> None:
        text = output_text(message.text[: self._room])
        self._room -= len(text)
        (sys.stderr if message.stream == "stderr" else sys.stdout).write(text)

    def _keep(self, message: Progress) -> None:
        bar = self._bars.get(message.bar)
        if bar is None:
            if len(self._bars) >= _MAX_LINES and not self._make_room():
                return
            bar = self._bars[message.bar] = _Bar(time.monotonic())
        if message.state == 2:
            del self._bars[message.bar]
        else:
            elapsed = time.monotonic() - bar.began_at
            if message.bar == FRACTION_BAR:
                bar.line = _share_line(message.done, elapsed)
            else:
                bar.line = _bar_line(message.done, message.total, message.rate, elapsed)
            bar.finished = message.state == 1
        self._waiting = True

    def _make_room(self) -> bool:
        for number, bar in self._bars.items():
            if bar.finished:
                del self._bars[number]
                return True
        return False

    def _draw(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._drawn_at < _REDRAW_S:
            return
        # Late: a process without a shell has no IPython, and nowhere to draw.
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.display import display

        self._waiting = False
        if not InteractiveShell.initialized():
            return
        update = self._display_id is not None
        self._display_id = self._display_id or secrets.token_hex(8)
        data = {"text/plain": "\n".join(bar.line for bar in self._bars.values())}
        options = {"raw": True, "display_id": self._display_id, "update": update}
        display(data, **options)  # type: ignore[no-untyped-call]
        self._drawn_at = time.monotonic()


def _bar_line(done: float, total: float | None, rate: float | None, elapsed_s: float) -> str:
    """Return the line that tqdm would draw of these numbers."""
    times = _duration(elapsed_s)
    speed = f"{_amount(rate)}it/s" if _is_shown(rate) and rate else "?it/s"
    if total is None or not _is_shown(total) or total <= 0 or not 0 <= done <= total:
        return f"{_amount(done)}it [{times}, {speed}]"
    share = done / total
    left = (total - done) / rate if rate and _is_shown(rate) and rate > 0 else None
    if left is None and share > 0:
        left = elapsed_s * (1 - share) / share
    remaining = "?" if left is None else _duration(left)
    counts = f"{_amount(done)}/{_amount(total)}"
    return f"{_drawn(share)} {counts} [{times}<{remaining}, {speed}]"


def _share_line(share: float, elapsed_s: float) -> str:
    """Return the line of `vault.progress`, which knows a share and nothing else."""
    share = min(1.0, max(0.0, share)) if _is_shown(share) else 0.0
    left = elapsed_s * (1 - share) / share if share else math.nan
    return f"{_drawn(share)} [{_duration(elapsed_s)}<{_duration(left)}]"


def _drawn(share: float) -> str:
    whole, eighths = divmod(int(share * _BAR_CHARS * 8), 8)
    drawn = ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR_CHARS)
    return f"{share:4.0%}|{drawn}|"


def _is_shown(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) <= _MAX_NUMBER


def _amount(value: float | None) -> str:
    """Return a number as short as it can be read: 42, 0.25, 12.5M."""
    if value is None or not _is_shown(value):
        return "?"
    if abs(value) >= 1e6:
        for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}" if value < 1e15 else f"{value:.3g}"
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _duration(seconds: float) -> str:
    if not _is_shown(seconds) or seconds < 0:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
