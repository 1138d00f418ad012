"""The first process of a walled-off notebook: puts up the walls, forks the kernel, reaps.

Pid 1 of the notebook's pid namespace: when it ends, the kernel kills whatever is left in there. It
is the zygote's child; signals come to it, and it passes them on. It never runs a user's code.

Source: docs/spec/kernel_process.md, "Processes".
"""

import contextlib
import os
import signal
from typing import Final, NoReturn

from enclave_kernel.isolation.notebook_walls import (
    NotebookWalls,
    WallsSpec,
    open_to_own_tools,
    put_up_notebook_walls,
)

__all__ = ["become_walled_kernel"]

_STATUS_BYTES: Final = 4


def become_walled_kernel(spec: WallsSpec, status: int, keep_away: tuple[int, ...]) -> NotebookWalls:
    """Return in a child of this process that has the walls around it, to be the kernel.

    Args:
        spec: What the walls are to be.
        status: Where the kernel's wait status is written when it ended.
        keep_away: The kernel's descriptors, which this process closes.

    Raises:
        EnclaveError: The walls cannot be put up.
        OSError: The same.
    """
    walls = put_up_notebook_walls(spec)
    kernel = os.fork()
    if kernel != 0:
        for descriptor in keep_away:
            os.close(descriptor)
        _stay(kernel, status)
    os.close(status)
    os.setsid()
    open_to_own_tools()
    return walls


def _stay(kernel: int, status: int) -> NoReturn:
    """Pass on signals and reap until the kernel has ended. All signals are blocked here."""
    every = signal.valid_signals()
    while True:
        number = signal.sigwait(every)
        if number != signal.SIGCHLD:
            _pass_on(kernel, number)
            continue
        pid = -1
        while pid != 0:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == kernel:
                os.write(status, ended.to_bytes(_STATUS_BYTES, "big"))
                os._exit(0)


def _pass_on(kernel: int, number: int) -> None:
    try:
        os.killpg(kernel, number)
    except ProcessLookupError:
        # Between fork and setsid the group does not exist yet.
        with contextlib.suppress(ProcessLookupError):
            os.kill(kernel, number)
