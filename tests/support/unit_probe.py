"""What a process can do under a unit's rules: run as the unit's program, it tries and prints.

Self-contained: it runs under the parent instance's Python, which has none of the tests' packages.
Prints one JSON object, the outcome by name: "yes", or the error's name.
"""

import ctypes
import errno
import functools
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

_NEWUSER, _SCHED_FIFO, _KEYCTL = 0x10000000, 1, {"x86_64": 250, "aarch64": 219}
_SELF = os.getpid()


def _write(path: str) -> Callable[[], object]:
    def attempt() -> None:
        file = Path(path) / f"probe-{_SELF}" if Path(path).is_dir() else Path(path)
        file.write_bytes(b"")
        file.unlink()

    return attempt


def _call(name: str, *arguments: object) -> Callable[[], object]:
    def attempt() -> None:
        if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return attempt


def _socket(family: int, kind: int) -> Callable[[], object]:
    return lambda: socket.socket(family, kind).close()


def _setuid_file() -> None:
    file = Path(f"/tmp/setuid-{_SELF}")  # noqa: S108 (the unit's own)
    file.touch()
    file.chmod(0o4755)


ATTEMPTS: dict[str, Callable[[], object]] = {
    **{f"write {path}": _write(path) for path in ("/run/enclave", "/var/lib/enclave", "/tmp")},  # noqa: S108
    **{f"write {path}": _write(path) for path in ("/etc", "/opt/enclave", "/usr/bin", "/var/tmp")},  # noqa: S108
    **{f"write {path}": _write(path) for path in ("/sys", "/dev/shm")},  # noqa: S108
    **{f"list {path}": functools.partial(os.listdir, path) for path in ("/home", "/root")},
    "see init": lambda: os.stat("/proc/1"),  # noqa: PTH116
    "see itself": lambda: os.stat(f"/proc/{_SELF}"),  # noqa: PTH116
    "see the machine's memory": lambda: os.stat("/proc/meminfo"),  # noqa: PTH116
    "open the enclave's device": lambda: os.open("/dev/nitro_enclaves", os.O_RDWR),
    "open another device": lambda: os.open("/dev/other", os.O_RDWR),
    "unix socket": _socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "vsock": _socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "internet socket": _socket(socket.AF_INET, socket.SOCK_STREAM),
    "netlink socket": _socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet socket": _socket(socket.AF_PACKET, socket.SOCK_RAW),
    "user namespace": _call("unshare", _NEWUSER),
    "trace": _call("ptrace", 0, 0, 0, 0),
    "key ring": _call("syscall", _KEYCTL.get(os.uname().machine, 0), 0, -3, 0),
    "become root": lambda: os.setuid(0),
    "change root": lambda: os.chroot("/"),
    "real time": lambda: os.sched_setscheduler(0, _SCHED_FIFO, os.sched_param(1)),
    "set-user-id file": _setuid_file,
    "code in writable memory": lambda: mmap.mmap(-1, 4096, prot=7),
}


def outcome(attempt: Callable[[], object]) -> str:
    """Return "yes", or the name of the error."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "yes"


if __name__ == "__main__":
    print(json.dumps({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}))  # noqa: T201
