"""Process 1: starts the supervisor, reaps what is left to it, and ends the enclave with it."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC

__all__ = ["end_enclave", "run_supervisor"]

_RB_AUTOBOOT: Final = 0x01234567
_OOM_ADJUSTMENT: Final = Path("/proc/self/oom_score_adj")
_NEVER: Final = "-1000"
_ENVIRON: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "TZ": "UTC",
}


def run_supervisor(arguments: Sequence[str]) -> int:
    """Run `python -m enclave_kernel` with these arguments until it ends.

    Orphans of the enclave become children of process 1: they are reaped on the way.

    Returns:
        Its exit code; negative for a signal.
    """
    pid = os.fork()
    if pid == 0:
        _become_supervisor(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        # SIGINT comes from Ctrl-Alt-Del, where there is such a thing.
        signal.signal(number, lambda *_: os.kill(pid, signal.SIGTERM))
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _become_supervisor(arguments: Sequence[str]) -> None:
    try:
        os.setsid()
        # The last one to go where memory runs out; whoever it starts for others takes it back.
        _OOM_ADJUSTMENT.write_text(_NEVER)
        command = [sys.executable, "-I", "-m", "enclave_kernel", *arguments]
        os.execve(sys.executable, command, _ENVIRON)  # noqa: S606 (no shell is wanted)
    finally:
        os._exit(127)


def end_enclave() -> None:
    """Restart the machine, which for an enclave or a VM of ours is its end; process 1 only."""
    os.sync()
    LIBC.reboot(ctypes.c_int(_RB_AUTOBOOT))
