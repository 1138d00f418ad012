"""Giving up privileges for good: capabilities, users, keys, limits.

The standard library only.

Source: THREATS section C, steps 7 to 10; capabilities(7), credentials(7), keyrings(7).
"""

import ctypes
import errno
import os
import resource
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC, LockdownError, prctl, system_call
from enclave_kernel.isolation.seccomp import ARCHITECTURES

__all__ = [
    "be_killable",
    "become_user",
    "become_user_with",
    "bound_capabilities",
    "forbid_new_privileges",
    "leave_session_keyring",
    "lower_limit",
]

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_KEEPCAPS = 24, 28, 8
_SECUREBITS: Final = 0b1110_1011
"""NOROOT and NO_CAP_AMBIENT_RAISE, both locked; KEEP_CAPS and NO_SETUID_FIXUP locked as off."""
_CAPABILITY_VERSION_3: Final = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1


def forbid_new_privileges() -> None:
    """Have no exec ever give this process, or its children, more than it has."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def become_user(uid: int, gid: int) -> None:
    """Be this user and group and nobody else, without any capability.

    It clears the death signal, and makes the process not dumpable (THREATS B.9).

    Raises:
        LockdownError: Capabilities cannot be dropped.
        OSError: The ids cannot be taken.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _drop_capabilities()


def become_user_with(uid: int, gid: int, capabilities: tuple[int, ...]) -> None:
    """Be this user and group, with these capabilities and no others, now or after an exec.

    Raises:
        LockdownError: Capabilities cannot be dropped.
        OSError: The ids cannot be taken.
    """
    # An exec gives nothing back: the bounding set is empty, and nothing is inheritable.
    _drop_bounding_set()
    prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl(_PR_SET_KEEPCAPS, 0)
    _drop_capabilities(sum(1 << number for number in capabilities))


def bound_capabilities() -> None:
    """Lock the securebits and empty the bounding set, while there is a capability that may."""
    prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    _drop_bounding_set()


def lower_limit(kind: int, wanted: int) -> None:
    """Lower a resource limit, soft and hard, to `wanted` or to what the hard limit is."""
    _, hard = resource.getrlimit(kind)
    value = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(kind, (value, value))


def leave_session_keyring() -> None:
    """Take an empty session keyring: the old one survives fork and a change of user."""
    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        return
    number = ctypes.c_long(architecture.numbers["keyctl"])
    try:
        system_call("syscall", number, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except LockdownError as error:
        # A kernel without keys has none to share.
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENOSYS:
            raise


def be_killable(path: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Take back what an image's supervisor has: that the kernel never kills it for memory.

    While the capability is there: so the lowest value that the process, and whatever it forks, may
    ever set again is ours. Before another /proc is mounted, in which it may not be.

    Raises:
        LockdownError: The kernel refuses.
    """
    try:
        if int(path.read_text()) < 0:
            path.write_text("0")
    except OSError as error:
        raise LockdownError(f"the process cannot be made killable for memory: {error}") from error


def _drop_bounding_set() -> None:
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            # One more than the kernel has.
            if error.errno != errno.EINVAL or capability == 0:
                raise
            return


def _drop_capabilities(kept: int = 0) -> None:
    """Drop all capabilities but those whose bits are in `kept`, of the first 32."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective and permitted; then those past 32.
    left = (ctypes.c_uint32 * 6)(kept, kept)
    if LIBC.capset(header, left) != 0:
        code = ctypes.get_errno()
        raise LockdownError(f"capabilities cannot be dropped: {os.strerror(code)}")
