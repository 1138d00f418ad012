"""A network namespace for the calling thread: addresses of any kind, and nothing else around."""

import fcntl
import socket
import struct
from typing import Final

from enclave_kernel.isolation.kernel_calls import system_call
from enclave_kernel.isolation.notebook_network import raise_loopback

__all__ = ["enter_own_network"]

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFADDR: Final = 0x8916
_ADDRESS_REQUEST: Final = struct.Struct("16sHH4s16x")


def enter_own_network(*addresses: str) -> None:
    """Move this thread, for good, into a network whose loopback interface has these addresses.

    Its later sockets are in there; other threads stay where they are. Needs root.
    """
    system_call("unshare", _CLONE_NEWNET)
    raise_loopback()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number, address in enumerate(("127.0.0.1", *addresses)):
            name = b"lo" if not number else b"lo:%d" % number
            packed = socket.inet_aton(address)
            request = _ADDRESS_REQUEST.pack(name, socket.AF_INET, 0, packed)
            fcntl.ioctl(sock, _SIOCSIFADDR, request)
