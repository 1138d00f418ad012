"""`%pip`: pip in this notebook, and one line instead of its retries where a host is not allowed."""

import contextlib
import glob
import importlib
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from enclave_kernel.session.egress_hint import EgressRefusedError, refusal_in
from enclave_kernel.session.one_line import in_one_line

__all__ = ["PipMagic"]

_PORTION_BYTES: Final = 16 * 1024
_GRACE_S: Final = 5.0
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HELD_BACK: Final = "WARNING: Retrying"


@magics_class
class PipMagic(Magics):
    """pip for a notebook that reaches the network through the egress proxy only."""

    @line_magic
    def pip(self, line: str) -> None:
        """Run pip for this notebook.

        Usage:
          %pip install NAME ...

        The packages are there until the kernel ends. A host that is not allowed is refused at
        once; the line says what to type on the parent instance.
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"%pip: {error}") from None
        arguments = [match for word in words for match in _as_a_shell_would(word)]
        with in_one_line():
            code = _run([sys.executable, "-m", "pip", *arguments])
        importlib.invalidate_caches()
        if code == 0 and words[:1] == ["install"]:
            print(  # noqa: T201 (the cell's output)
                "Note: a package that was imported before stays as it was; installed packages are "
                "gone when the kernel ends."
            )


def _as_a_shell_would(word: str) -> list[str]:
    expanded = str(Path(word).expanduser()) if word.startswith("~") else word
    # A name with brackets, as requests[socks], is no pattern unless a file is called like that.
    return sorted(glob.glob(expanded)) or [expanded]  # noqa: PTH207 (a whole pattern, relative or not)


def _run(command: list[str]) -> int:
    """Run pip on a terminal of its own, so that its progress shows; return its exit code.

    Raises:
        EgressRefusedError: The proxy refuses a host; pip is ended instead of trying again.
    """
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, close_fds=True
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        for text in _lines_and_bars(ours):
            reason = refusal_in(text)
            if reason is not None:
                raise EgressRefusedError(f"pip cannot go on: {reason}")
            print(text, end="", flush=True)  # noqa: T201 (the cell's output)
        return process.wait()
    finally:
        os.close(ours)
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """See that it is gone, also when the cell was interrupted or pip was refused."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def _lines_and_bars(terminal: int) -> Iterator[str]:
    """Yield what is written to a terminal: at once, but a warning only when it is complete."""
    held = ""
    while True:
        try:
            data = os.read(terminal, _PORTION_BYTES)
        except OSError:
            # EIO: nobody holds the other end any more.
            data = b""
        held += data.decode("utf-8", "replace").replace("\r\n", "\n")
        lines, newline, rest = held.rpartition("\n")
        if newline:
            yield from (f"{line}\n" for line in lines.split("\n"))
        plain = _ESCAPES.sub("", rest)
        whole = not (plain.startswith(_HELD_BACK) or _HELD_BACK.startswith(plain))
        if rest and (whole or not data):
            yield rest
            rest = ""
        held = rest
        if not data:
            return
