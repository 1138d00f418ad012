"""The few prctl and signal settings that processes inside the enclave give themselves."""

import ctypes
import os
import select
import signal

__all__ = ["die_with_parent", "die_with_pipe", "reset_signals"]

_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that made it ends.

    Cleared by a change of ids: call it again afterwards (THREATS B.9). Ends this process at once
    when the parent is already gone.

    Raises:
        OSError: The kernel refused.
    """
    _arm_death_signal()
    if os.getppid() != parent_pid:
        os._exit(1)


def die_with_pipe(descriptor: int) -> None:
    """The same where the parent is out of sight, in another pid namespace.

    Args:
        descriptor: The writing end of a pipe that only the parent reads.

    Raises:
        OSError: The kernel refused.
    """
    _arm_death_signal()
    poll = select.poll()
    poll.register(descriptor, 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        os._exit(1)


def _arm_death_signal() -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")


def reset_signals() -> None:
    """Default handlers, nothing ignored, nothing blocked: what a program expects at its start."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(signum) is not None:
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
