"""Runs a compiled program of a package, in a process of its own.

A vault never replaces its process image (THREATS section C, step 13, and T-09): with exec a process
would be dumpable again, and the filter could not tell one program from another. So the program is
mapped into a fork of the vault's process, from the package's own folder, and takes it over; what it
may do is what the vault may do. Whatever becomes of it, the vault lives on to tell, and its output
passes the same filter as a script's.

Source: docs/decisions/programs_without_exec.md; docs/spec/scripts.md, "Programs".
"""

import codecs
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final, NoReturn, Self

from enclave_kernel.vault.program_start import Program, start_program

__all__ = ["run_program"]

_PORTION_BYTES: Final = 65536
_DRAIN_S: Final = 1.0
"""What the program left running may hold its output open; that is not waited for."""
_NOT_LOADABLE: Final = 126
"""What shells say of a file that is no program."""
_FIRST_OTHER: Final = 3


def run_program(program: Program, arguments: Sequence[str], *, output: str) -> NoReturn:
    """Run a program to its end.

    Args:
        program: What to run.
        arguments: Its `argv`, the name first.
        output: The script's policy: `text` passes what it prints to `sys.stdout`, `all` also what
            it writes to stderr to `sys.stderr`.

    Raises:
        SystemExit: With the program's exit code; 128 and the number of the signal that ended it,
            126 if it cannot be loaded.
    """
    shown = {1: sys.stdout.write} if output in ("text", "all") else {}
    if output == "all":
        shown[2] = sys.stderr.write
    pipes = {number: os.pipe() for number in shown}
    with _Interrupts() as interrupts:
        pid = interrupts.fork()
        if pid == 0:
            _become(program, arguments, {number: ends[1] for number, ends in pipes.items()})
        readers = []
        for number, write in shown.items():
            os.close(pipes[number][1])
            reader = threading.Thread(target=_pass_on, args=(pipes[number][0], write), daemon=True)
            reader.start()
            readers.append(reader)
        code = interrupts.wait()
    for reader in readers:
        reader.join(_DRAIN_S)
    raise SystemExit(code)


class _Interrupts:
    """Sends the vault's SIGINT on to the program, whenever it comes: to answer is the program's."""

    def __init__(self) -> None:
        self._pid = 0
        self._pending = False
        self._outer: Any = None

    def __enter__(self) -> Self:
        self._outer = signal.signal(signal.SIGINT, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._outer)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def fork(self) -> int:
        """Fork; the child has SIGINT blocked, so that one that comes early ends it later."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            return 0
        self._pid = pid
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if self._pending:
            os.kill(pid, signal.SIGINT)
        return pid

    def wait(self) -> int:
        """Return the child's exit code when it ends, as a shell tells it."""
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _pass_on(self, _signum: int, _frame: FrameType | None) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGINT)
        else:
            # There is no program yet: `fork` sends it on. Not both, as the program gets one.
            self._pending = True


def _pass_on(descriptor: int, write: Callable[[str], object]) -> None:
    # Signals are the main thread's.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := os.read(descriptor, _PORTION_BYTES):
        write(decoder.decode(data))
    write(decoder.decode(b"", final=True))
    os.close(descriptor)


def _become(program: Program, arguments: Sequence[str], streams: dict[int, int]) -> NoReturn:
    """Be the program; in the fork."""
    try:
        for number, descriptor in streams.items():
            os.dup2(descriptor, number)
        # The socket to the notebook, above all: what comes over it is not for the program.
        os.closerange(_FIRST_OTHER, os.sysconf("SC_OPEN_MAX"))
        start_program(program, arguments)
    finally:
        os._exit(_NOT_LOADABLE)
