"""What every attack is written with: tries things and notes how each ended.

The standard library only: this file and the attacks' are sent, as source, into whatever process
is to attack (`places.payload`). An attempt that succeeds is "done"; one that fails is the name of
the error.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS: dict[str, int] = {}
"""Numbers of this machine's system calls; `places.payload` fills them in."""

Outcomes = dict[str, str]


def attempt(outcomes: Outcomes, name: str, action: Callable[..., Any], *arguments: Any) -> Any:
    """Do it, note how it ended, and return what it returned, or None."""
    try:
        value = action(*arguments)
    except OSError as error:
        outcomes[name] = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return None
    except Exception as error:
        outcomes[name] = type(error).__name__
        return None
    outcomes[name] = "done"
    return value


def system_call(name: str, *arguments: Any) -> int:
    """Call the kernel itself; integers are passed in all their 64 bits."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    LIBC.syscall.restype = ctypes.c_long
    result = int(LIBC.syscall(ctypes.c_long(NUMBERS[name]), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def open_only(path: str, flags: int) -> None:
    """Open a file and do nothing with it."""
    os.close(os.open(path, flags))


def in_child(action: Callable[..., Any], *arguments: Any) -> None:
    """Do it in a forked child, so that this process stays what it is; raises what it raised."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            action(*arguments)
            status = 0
        except OSError as error:
            status = min(error.errno or 255, 254)
        except BaseException:
            status = 255
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "in a child")


def fate(action: Callable[..., Any], *arguments: Any) -> int:
    """Do it in a forked child; return the child's exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            action(*arguments)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_some(path: str) -> bytes:
    """Return the first bytes of a file, which must have some; never waits for them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    if not data:
        raise FileNotFoundError(errno.ENODATA, "empty")
    return data


def packed(*values: int, form: str = "Q") -> Any:
    """Return a buffer of integers, to be pointed at."""
    return ctypes.create_string_buffer(struct.pack(f"={len(values)}{form}", *values))
