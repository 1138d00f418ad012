"""A notebook's network: loopback alone, with one listener on it that leads to the egress proxy.

The listener is a socket of the notebook's network namespace that the supervisor holds: nothing of
the supervisor's is in there, and a notebook's processes reach nothing else.

Source: DESIGN section 7; network_namespaces(7), setns(2).
"""

import fcntl
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError, system_call

__all__ = ["PROXY_ADDRESS", "PROXY_ENVIRON", "listen_for_notebook", "raise_loopback"]

PROXY_ADDRESS: Final = ("127.0.0.1", 3128)
_URL: Final = "http://{}:{}".format(*PROXY_ADDRESS)
_NOT_PROXIED: Final = "localhost,127.0.0.1,::1"
# Both cases: curl takes http_proxy in lower case only, others look for the upper one.
PROXY_ENVIRON: Final = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _URL),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), _NOT_PROXIED),
}
"""What pip, boto3, requests and curl find the proxy by."""

_CLONE_NEWNET: Final = 0x40000000
_BACKLOG: Final = 512
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ: Final = struct.Struct("16sH22x")


def raise_loopback() -> None:
    """Bring `lo` up in this process's network namespace.

    Raises:
        OSError: This process may not, or there is none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(answer)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def listen_for_notebook(pid: int) -> socket.socket:
    """Return a listener at `PROXY_ADDRESS` in the network namespace of a notebook's process.

    Args:
        pid: A process behind its walls that nobody has reaped yet.

    Raises:
        EnclaveError: It has no network namespace of its own.
        OSError: The process is gone, or the address is taken in there.
    """
    outcome: list[socket.socket | BaseException] = []

    def listen() -> None:
        try:
            outcome.append(_listen_in_namespace_of(pid))
        except BaseException as error:
            outcome.append(error)

    # A thread of its own, which ends: one that entered a namespace is no good for anything else.
    # It starts no process, whose death signal would come with the thread's end (THREATS B.9).
    thread = threading.Thread(target=listen, name="notebook-network")
    thread.start()
    thread.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found


def _listen_in_namespace_of(pid: int) -> socket.socket:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs, ours = os.fstat(descriptor), Path("/proc/self/ns/net").stat()
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            raise LockdownError("the notebook has no network namespace of its own")
        system_call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind(PROXY_ADDRESS)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
