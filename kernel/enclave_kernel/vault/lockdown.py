"""A vault's walls, put up by the vault itself before it knows anything worth taking.

The standard library only, and no threads before or during: `unshare` moves just the caller.

Source: THREATS section C; docs/spec/vault_process.md, "Lockdown".
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave_kernel.vault.private_mounts import LockdownError, mount_own_view, system_call

__all__ = ["LockdownError", "LockdownSpec", "lock_down"]

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x40000000

_MAX_FILES: Final = 4096
_MAX_INODES: Final = 131_072
"""Twice what a package may hold in files: its folders and temporary files fit beside them."""


@dataclass(frozen=True)
class LockdownSpec:
    """What the supervisor decides about a vault process.

    Attributes:
        supervisor_pid: The parent whose death ends the vault.
        private_dir: Existing, empty directory; becomes a tmpfs of the vault's own if `uid` is
            given.
        uid: User to become, which nothing else uses; None to stay who we are (development
            without root).
        gid: Group to become.
        memory_limit: Bytes of private memory, and of files in the tmpfs; None for no limit.
    """

    supervisor_pid: int
    private_dir: str
    uid: int | None = None
    gid: int | None = None
    memory_limit: int | None = None


def lock_down(spec: LockdownSpec, *, keep: frozenset[int]) -> None:
    """Put up the walls, in this order, and check that they stand.

    Args:
        spec: The supervisor's specification.
        keep: Descriptors above 2 that stay open; all others are closed.

    Raises:
        LockdownError: A step failed, or the result is not what it must be.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # 1. Descriptors: nothing inherited, and 0 to 2 lead nowhere.
    _null_stdio()
    _close_others(keep)
    # 2. No survivor, no shared session, no inherited signal state.
    if os.getsid(0) != os.getpid():
        os.setsid()
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != spec.supervisor_pid:
        raise LockdownError("the supervisor died while the vault started")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # 3. Limits.
    os.umask(0o077)
    _set_limits(spec.memory_limit)
    if spec.uid is not None:
        # 4. Mounts, network and System V IPC of its own; files on a tmpfs that ends with it.
        _isolate(libc, spec)
        # 5. Another user.
        gid = spec.uid if spec.gid is None else spec.gid
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(spec.uid, spec.uid, spec.uid)
    # 6. No way back. The change of user cleared the death signal.
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != spec.supervisor_pid:
        raise LockdownError("the supervisor died while the vault started")
    # Our descriptors can be listed only while the process is dumpable.
    descriptors = _open_descriptors()
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    # 7. Trust none of the above.
    _check(libc, spec, descriptors, keep)


def _null_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor, inheritable=True)
    if null > 2:
        os.close(null)


def _open_descriptors() -> frozenset[int] | None:
    """Return the open descriptors, or None where the kernel does not let us list them."""
    try:
        listed = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return None
    # The listing's own descriptor is closed again by now.
    return frozenset(descriptor for descriptor in listed if _is_open(descriptor))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _close_others(keep: frozenset[int]) -> None:
    highest = max(_open_descriptors() or (), default=_MAX_FILES)
    start = 3
    for descriptor in (*sorted(keep), highest + 1):
        os.closerange(start, descriptor)
        start = descriptor + 1


def _set_limits(memory_limit: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if memory_limit is not None:
        # Private writable memory: an address-space limit would count mapped libraries, too.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))


def _isolate(libc: ctypes.CDLL, spec: LockdownSpec) -> None:
    system_call(libc, "unshare", _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC)
    gid = spec.uid if spec.gid is None else spec.gid
    size = "50%" if spec.memory_limit is None else str(spec.memory_limit)
    options = f"mode=0700,uid={spec.uid},gid={gid},size={size},nr_inodes={_MAX_INODES}"
    mount_own_view(libc, spec.private_dir, options, sys.path)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    system_call(libc, "prctl", option, ctypes.c_ulong(value), zero, zero, zero)


def _check(
    libc: ctypes.CDLL,
    spec: LockdownSpec,
    descriptors: frozenset[int] | None,
    keep: frozenset[int],
) -> None:
    wrong: list[str] = []
    if descriptors is not None and descriptors != keep | {0, 1, 2}:
        wrong.append(f"descriptors {sorted(descriptors)}")
    death_signal = ctypes.c_int(0)
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(death_signal), 0, 0, 0)
    if death_signal.value != signal.SIGKILL:
        wrong.append("no death signal")
    if libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        wrong.append("privileges can be gained")
    if libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        wrong.append("memory can be dumped")
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        wrong.append("core files")
    if spec.uid is not None:
        wrong += _wrong_identity(spec.uid, spec.uid if spec.gid is None else spec.gid)
    if wrong:
        raise LockdownError(f"the vault's walls do not stand: {', '.join(wrong)}")


def _wrong_identity(uid: int, gid: int) -> list[str]:
    wrong: list[str] = []
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
        wrong.append(f"user {os.getresuid()}, group {os.getresgid()}, groups {os.getgroups()}")
    with contextlib.suppress(OSError):
        os.setuid(0)
        wrong.append("root can be regained")
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("CapInh", "CapPrm", "CapEff", "CapAmb") and int(value, 16) != 0:
            wrong.append(f"capabilities {name}={value.strip()}")
    return wrong
