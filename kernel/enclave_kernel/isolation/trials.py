"""Forbidden things, tried: whoever has walls around it tries them before it is trusted.

A trial never does harm where it succeeds: it opens and closes, or asks for something that the
kernel would refuse for another reason than the one that is to be seen. The standard library only.

Source: THREATS section E, rows A-01, K-01 to K-10, P-05 to P-09, V-01, S-08.
"""

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC
from enclave_kernel.isolation.seccomp import ARCHITECTURES

__all__ = ["breaches", "vault_breaches"]

_AF_VSOCK, _AF_PACKET, _AF_ALG, _NETLINK_AUDIT = 40, 17, 38, 9
_HIGH_HALF: Final = 1 << 32
_CHARACTER_DEVICE: Final = 0o020600
_MEM_DEVICE: Final = os.makedev(1, 1)
_NOWHERE: Final = -1
_NODES: Final = ("/dev/nsm", "/dev/vsock", "/dev/mem", "/dev/kmsg", "/dev/kvm")
_WRITABLE: Final = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")
_REFUSED_CALLS: Final[Mapping[str, tuple[int, ...]]] = {
    # With arguments that no kernel carries out; a filter answers before it looks at them.
    "add_key": (0, 0, 0, 0, 0),
    "bpf": (_NOWHERE, 0, 0),
    "io_uring_setup": (0, 0),
    "kcmp": (0, 0, _NOWHERE, 0, 0),
    "keyctl": (_NOWHERE, 0, 0, 0, 0),
    "mount": (0, 0, 0, 0, 0),
    "move_pages": (0, 0, 0, 0, 0, _NOWHERE),
    "open_by_handle_at": (_NOWHERE, 0, 0),
    "perf_event_open": (0, 0, _NOWHERE, _NOWHERE, _NOWHERE),
    "pidfd_getfd": (_NOWHERE, _NOWHERE, _NOWHERE),
    "pivot_root": (0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, _NOWHERE),
    "ptrace": (_NOWHERE, 0, 0, 0),
    "setns": (_NOWHERE, 0),
    "unshare": (0x10000000 | 1, 0),
    "userfaultfd": (_NOWHERE,),
}
"""By name, each with arguments that are nonsense."""


def breaches() -> tuple[str, ...]:
    """Return what should have been refused to this process, and was not."""
    trials: dict[str, Callable[[], bool]] = {
        "root can be regained": _regain_root,
        "a device can be made": _make_device,
        "a vsock opens": lambda: _opens_socket(_AF_VSOCK),
        "a vsock opens by the high half of a register": lambda: _opens_socket(
            _HIGH_HALF | _AF_VSOCK
        ),
        "a packet socket opens": lambda: _opens_socket(_AF_PACKET),
        "the kernel's cryptography opens": lambda: _opens_socket(_AF_ALG),
        "auditing opens": lambda: _opens_socket(socket.AF_NETLINK, _NETLINK_AUDIT),
    }
    for node in _NODES:
        trials[f"{node} opens"] = lambda node=node: _opens(node, os.O_RDWR)  # type: ignore[misc]
    for file in _WRITABLE:
        trials[f"{file} is writable"] = lambda file=file: _opens(file, os.O_WRONLY)  # type: ignore[misc]
    return (*(name for name, trial in trials.items() if trial()), *_system_call_breaches())


def vault_breaches() -> tuple[str, ...]:
    """Return the same for a vault, which may have no sockets and start no programs either."""
    found = list(breaches())
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        if _opens_socket(family):
            found.append(f"a socket of family {family.name} opens")
    if _starts_programs():
        found.append("a program can be started")
    return tuple(found)


def _system_call_breaches() -> tuple[str, ...]:
    """Return the names of forbidden system calls that the kernel looked into."""
    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        return ()
    found: list[str] = []
    for name, arguments in _REFUSED_CALLS.items():
        number = ctypes.c_long(architecture.numbers[name])
        result = LIBC.syscall(number, *(ctypes.c_long(item) for item in arguments))
        # EPERM is the filter's answer; ENOSYS: this kernel has no such call.
        if result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
            found.append(f"the system call {name} passes")
    return tuple(found)


def _starts_programs() -> bool:
    try:
        os.execve("/nowhere/at/all", ["nothing"], {})  # noqa: S606 (there is no such program)
    except PermissionError:
        return False
    except OSError:
        # It looked for the file: nothing stops it but that there is none.
        return True


def _regain_root() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True


def _make_device() -> bool:
    path = "/tmp/trial"  # noqa: S108 (a mount of its own)
    try:
        os.mknod(path, _CHARACTER_DEVICE, _MEM_DEVICE)
    except OSError:
        return False
    os.unlink(path)  # noqa: PTH108 (as little as can be)
    return True


def _opens(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _opens_socket(family: int, protocol: int = 0) -> bool:
    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        return False
    kind = socket.SOCK_RAW if family in (_AF_PACKET, socket.AF_NETLINK) else socket.SOCK_STREAM
    kind = socket.SOCK_SEQPACKET if family == _AF_ALG else kind
    descriptor = LIBC.syscall(
        ctypes.c_long(architecture.numbers["socket"]),
        ctypes.c_long(family),
        ctypes.c_long(kind),
        ctypes.c_long(protocol),
    )
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True
