"""The few prctl and signal settings that processes inside the enclave give themselves."""

import ctypes
import os
import signal

__all__ = ["die_with_parent", "forbid_new_privileges", "forbid_ptrace_and_dumps", "reset_signals"]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that made it ends.

    Cleared by a change of ids: call it again afterwards (THREATS B.9). Ends this process at once
    when the parent is already gone.

    Raises:
        OSError: The kernel refused.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def forbid_new_privileges() -> None:
    """No setuid file and no file capability gives this process anything from now on."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def forbid_ptrace_and_dumps() -> None:
    """Keep same-uid processes from tracing or reading this one; write no core. Reset by exec."""
    _prctl(_PR_SET_DUMPABLE, 0)


def reset_signals() -> None:
    """Default handlers, nothing ignored, nothing blocked: what a program expects at its start."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(signum) is not None:
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
