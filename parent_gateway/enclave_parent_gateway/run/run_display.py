"""What `enclave run` shows: the script's text on its two streams, and how far things are.

The script's text is a stranger's: it is cleaned here once more. Everything of our own goes to
standard error, and a line that is written again only to a terminal.
"""

import sys
import time
from typing import BinaryIO, Final, TextIO

from enclave_protocol.output_text import output_text
from enclave_protocol.plain_text import plain_text
from enclave_protocol.run_messages import RunBar, RunText

__all__ = ["RunDisplay", "standard_streams"]

_REDRAW_S: Final = 0.1
_LINE_EVERY_S: Final = 5.0
_MAX_BARS: Final = 16
_BAR_CHARS: Final = 20


class RunDisplay:
    """Shows one run.

    Args:
        stdout: Where the script's stdout goes.
        stderr: Where its stderr goes, and what we have to say.
        quiet: Say nothing of our own but errors.
    """

    def __init__(self, stdout: BinaryIO, stderr: TextIO, *, quiet: bool = False) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._quiet = quiet
        self._terminal = stderr.isatty()
        self._bars: dict[int, RunBar] = {}
        self._drawn_at = 0.0
        self._drawn = False
        self._open_line = False
        self._began = time.monotonic()

    def text(self, message: RunText) -> None:
        """Write what the script wrote.

        Raises:
            BrokenPipeError: Nobody reads it any more.
        """
        data = output_text(message.text).encode("utf-8", "replace")
        self._clear()
        out = self._stdout if message.stream == "stdout" else self._stderr.buffer
        out.write(data)
        out.flush()
        self._open_line = not data.endswith(b"\n")

    def sending(self, done: int, total: int) -> None:
        """Show how much of package and files was sent."""
        share = min(1.0, done / total) if total else 1.0
        self._status(f"sending {share:4.0%} of {_size(total)}", f"{_drawn(share)}")

    def bar(self, message: RunBar) -> None:
        """Show the script's progress."""
        if message.state == 2:
            self._bars.pop(message.bar, None)
            return
        if message.bar in self._bars or len(self._bars) < _MAX_BARS:
            self._bars[message.bar] = message
        total = message.total
        if total and total > 0 and 0 <= message.done <= total:
            share = message.done / total
            numbers = "" if total == 1.0 else f" {message.done:g}/{total:g}"
            self._status(f"running {share:4.0%}{numbers}", _drawn(share))
        else:
            self._status(f"running, {message.done:g} done", "")

    def say(self, line: str) -> None:
        """Tell the user something, unless it is to be quiet."""
        if not self._quiet:
            self.tell(line)

    def tell(self, line: str) -> None:
        """Tell the user something in any case, in one line; parts may be a stranger's words."""
        self._clear()
        line = plain_text(line, limit=None)
        if self._open_line:
            # The script left its last line open: ours begins at the left.
            line = f"\n{line}" if self._terminal else line
            self._open_line = False
        self._stderr.write(f"{line}\n")
        self._stderr.flush()

    def finish(self) -> None:
        """Leave nothing of a status line behind."""
        self._clear()

    def _status(self, line: str, drawn: str) -> None:
        now = time.monotonic()
        if self._quiet or now - self._drawn_at < (_REDRAW_S if self._terminal else _LINE_EVERY_S):
            return
        if not self._terminal:
            # A log: nothing of what takes no time, and a line now and then.
            if now - self._began >= _LINE_EVERY_S:
                self._drawn_at = now
                self._stderr.write(f"{line}\n")
                self._stderr.flush()
            return
        self._drawn_at = now
        if self._open_line:
            return
        self._stderr.write(f"\r{line} {drawn}\x1b[K")
        self._stderr.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._stderr.write("\r\x1b[K")
            self._stderr.flush()
            self._drawn = False


def standard_streams(*, summary_on_stdout: bool) -> tuple[BinaryIO, TextIO]:
    """Return where the script's stdout goes, and the rest."""
    return (sys.stderr if summary_on_stdout else sys.stdout).buffer, sys.stderr


def _drawn(share: float) -> str:
    whole = int(share * _BAR_CHARS)
    return f"|{'█' * whole}{' ' * (_BAR_CHARS - whole)}|"


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
