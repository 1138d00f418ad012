"""The three processes of a vault: one outside its pid namespace, its init, and the payload.

The outer one is the supervisor's child: SIGTERM ends all through it, and it ends as the payload
did. Init is pid 1 inside: it reaps, and when it ends, the kernel kills whatever else is in the
namespace, a daemon of the package's included. Neither runs a line of a package.

Source: THREATS section C, steps 5, 13 and 14.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from enclave_kernel.isolation.kernel_calls import prctl

__all__ = ["become_payload"]

_PR_SET_PDEATHSIG: Final = 1
_STATUS_BYTES: Final = 4


def become_payload(
    *, prepare: Callable[[], None], drop: Callable[[int | None], None], keep: Iterable[int]
) -> None:
    """Fork twice and return as the payload, in a pid namespace that was unshared before.

    SIGTERM to the outer process ends all of them. The payload alone takes SIGINT.

    Args:
        prepare: Run by init as root: what takes privileges.
        drop: Run by init and by the outer process: gives them up and checks that. Gets the pid
            whose death is to end the caller, or None where that pid is out of sight.
        keep: The payload's descriptors, which the others close.

    Raises:
        LockdownError: Of `prepare` or `drop`, in the process that it happened in.
        OSError: A process cannot be made.
    """
    supervisor = os.getppid()
    outside, inside = socket.socketpair()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    init = os.fork()
    if init != 0:
        inside.close()
        _stay_outside(init, outside, lambda: drop(supervisor), keep)
    outside.close()
    # Had the outer process died before this, the handshake below would end us.
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    prepare()
    drop(None)
    # The outer process gives up root only now: until then its death must be able to end us.
    inside.sendall(b"1")
    if not inside.recv(1):
        os._exit(1)
    payload = os.fork()
    if payload != 0:
        _close(keep)
        _reap(payload, inside)
    inside.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _stay_outside(
    init: int, link: socket.socket, drop: Callable[[], None], keep: Iterable[int]
) -> NoReturn:
    if link.recv(1):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        drop()
        link.sendall(b"2")
    _close(keep)
    while True:
        if signal.sigwait((signal.SIGTERM, signal.SIGCHLD)) == signal.SIGTERM:
            os.kill(init, signal.SIGKILL)
        else:
            pid, status = os.waitpid(init, os.WNOHANG)
            if pid == init:
                _end_as(_payload_status(link, status))


def _payload_status(link: socket.socket, init_status: int) -> int:
    """Return what init told of the payload's end, or else its own."""
    with contextlib.suppress(OSError):
        told = link.recv(_STATUS_BYTES, socket.MSG_DONTWAIT)
        if len(told) == _STATUS_BYTES:
            return int.from_bytes(told, "big")
    return init_status


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _reap(payload: int, link: socket.socket) -> NoReturn:
    while True:
        signal.sigwait((signal.SIGCHLD,))
        pid = -1
        while pid != 0:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == payload:
                link.sendall(status.to_bytes(_STATUS_BYTES, "big"))
                # The kernel kills the rest.
                os._exit(0)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
