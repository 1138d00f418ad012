"""The vault's own look at its walls: what is read back or tried, and in which words it is told.

Nothing is claimed here that this process did not just see.

Source: THREATS section C, step 12; docs/spec/vault_process.md, "Self-check".
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LIBC, LockdownError, prctl
from enclave_kernel.isolation.namespaces import namespaces_of_this_process
from enclave_kernel.isolation.trials import vault_breaches
from enclave_kernel.vault.own_root import PACKAGE_FOLDER

__all__ = [
    "MAX_FILES",
    "Expected",
    "check_before_filter",
    "check_walls",
    "control_groups_in_force",
    "missing_walls",
    "open_descriptors",
]

MAX_FILES: Final = 4096
_PR_GET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_GET_NO_NEW_PRIVS = 2, 3, 39
_WRITABLE: Final = ("/dev/shm", "/tmp")  # noqa: S108 (mounts of its own)
_PROC_SUFFIXES: Final = ("hidepid=2", "hidepid=invisible")
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_OWN_USER: Final = "user and group of its own"
_NO_CAPABILITIES: Final = "no capabilities"
_OWN_ROOT: Final = "read-only root, own /proc, /dev and /tmp"
_FILTER: Final = "system call allow-list"
_CLOSED: Final = "memory closed to tracing and dumps, no new privileges"
_GROUP: Final = "control group"
_IN_AN_ENCLAVE: Final = (
    _OWN_USER,
    _NO_CAPABILITIES,
    "namespaces",
    _OWN_ROOT,
    _FILTER,
    _CLOSED,
    _GROUP,
)


@dataclass(frozen=True)
class Expected:
    """What the walls must be.

    Attributes:
        descriptors: Open ones, above 2.
        groups: Controllers in force.
        limited: There is a limit of memory.
        native: Files in the package's folder may be run.
        uid: The vault's own user; None without root, and then all below is as it was.
        gid: Its group.
        filtered: There is a filter for this machine.
        left: Links of the namespaces it must have left.
    """

    descriptors: frozenset[int]
    groups: frozenset[str]
    limited: bool
    native: bool = False
    uid: int | None = None
    gid: int | None = None
    filtered: bool = False
    left: frozenset[str] = frozenset()

    def as_root(self, uid: int, gid: int, *, filtered: bool) -> "Expected":
        """Return the same with what takes root."""
        return replace(self, uid=uid, gid=gid, filtered=filtered)

    def with_namespaces(self, left: frozenset[str]) -> "Expected":
        """Return the same with namespaces that it must have left."""
        return replace(self, left=left)


def check_walls(expected: Expected) -> tuple[str, ...]:
    """Return what stands, in words for `enclave status`.

    Raises:
        LockdownError: Something is not as expected; names all of it.
        OSError: /proc cannot be read.
    """
    wrong = _wrong_process(expected)
    checked = [_CLOSED]
    if expected.groups:
        checked.append(f"{', '.join(sorted(expected.groups))} {_GROUP}")
    if expected.limited and "memory" not in expected.groups:
        checked.append("limit of private memory")
    if expected.uid is not None:
        status = _status()
        wrong += _wrong_identity(status, expected)
        wrong += _wrong_namespaces(expected.left)
        wrong += _wrong_mounts(native=expected.native)
        if expected.filtered:
            wrong += vault_breaches()
        names = sorted(link.partition(":")[0] for link in expected.left)
        checked = [
            _OWN_USER,
            _NO_CAPABILITIES,
            f"{', '.join(names)} namespaces",
            _OWN_ROOT,
            *([_FILTER] if expected.filtered else []),
            *checked,
        ]
    if wrong:
        raise LockdownError(f"the vault's walls do not stand: {', '.join(wrong)}")
    return tuple(checked)


def missing_walls(standing: Sequence[str]) -> tuple[str, ...]:
    """Return what stands around a vault in an enclave and does not here.

    Args:
        standing: From `check_walls`.
    """
    return tuple(wall for wall in _IN_AN_ENCLAVE if not any(wall in line for line in standing))


def check_before_filter() -> None:
    """Try what the filter would hide, and read what it keeps from being read.

    Raises:
        LockdownError: Root can be regained, or the process would outlive its parent.
    """
    with contextlib.suppress(OSError):
        os.setuid(0)
        raise LockdownError("the vault's walls do not stand: root can be regained")
    if _death_signal() != signal.SIGKILL:
        raise LockdownError("the vault's walls do not stand: no death signal")


def control_groups_in_force(asked: Mapping[str, str]) -> frozenset[str]:
    """Return the controllers that limit this process.

    Args:
        asked: Controllers and the ends of their paths.

    Raises:
        LockdownError: One of them does not.
    """
    if not asked:
        return frozenset()
    found: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one group for all of them, and names none.
        found.update(dict.fromkeys(controllers.split(","), path))
    for controller, end in asked.items():
        if not found.get(controller, found.get("", "")).endswith(end):
            raise LockdownError(f"the vault is not in its {controller} control group")
    return frozenset(asked)


def open_descriptors() -> frozenset[int]:
    """Return the open descriptors below `MAX_FILES`. Asks the kernel, and needs no /proc."""
    poll = select.poll()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if limit == resource.RLIM_INFINITY else min(limit, MAX_FILES)
    for descriptor in range(most):
        poll.register(descriptor, 0)
    closed = {descriptor for descriptor, event in poll.poll(0) if event & select.POLLNVAL}
    return frozenset(range(most)) - closed


def _wrong_process(expected: Expected) -> list[str]:
    wrong: list[str] = []
    descriptors = open_descriptors()
    if descriptors != expected.descriptors | {0, 1, 2}:
        wrong.append(f"descriptors {sorted(descriptors)}")
    # With a pid namespace the two other processes have it, and this one ends with them.
    if expected.uid is None and _death_signal() != signal.SIGKILL:
        wrong.append("no death signal")
    if expected.uid is not None and (os.getpid(), os.getppid()) != (2, 1):
        wrong.append("no init of its own")
    if prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        wrong.append("privileges can be gained")
    if prctl(_PR_GET_DUMPABLE) != 0:
        wrong.append("memory can be dumped")
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        wrong.append("core files")
    return wrong


def _death_signal() -> int:
    number = ctypes.c_int(0)
    zero = ctypes.c_ulong(0)
    LIBC.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number), zero, zero, zero)
    return number.value


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _wrong_identity(status: Mapping[str, str], expected: Expected) -> list[str]:
    wrong = [
        f"{name} {status.get(name)}"
        for name, number in (("Uid", expected.uid), ("Gid", expected.gid))
        if status.get(name, "").split() != [str(number)] * 4
    ]
    if status.get("Groups", "").strip():
        wrong.append(f"groups {status['Groups']}")
    with contextlib.suppress(OSError):
        os.setuid(0)
        wrong.append("root can be regained")
    wrong += [
        f"{name} {status.get(name)}"
        for name in _CAPABILITIES
        if int(status.get(name, "1"), 16) != 0
    ]
    if expected.filtered and status.get("Seccomp") != "2":
        wrong.append(f"filter mode {status.get('Seccomp')}")
    return wrong


def _wrong_namespaces(left: frozenset[str]) -> list[str]:
    return sorted(left & set(namespaces_of_this_process().values()))


def _wrong_mounts(*, native: bool) -> list[str]:
    """Each mount must be closed to writing, but the private folder; and to set-user-id files.

    What can be written cannot be run, but for the folder of a package with compiled code.
    """
    wrong: list[str] = []
    proc = ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split(" ")
        flags = set(options.split(","))
        writable = target in _WRITABLE or target.startswith("/vault-") or target == "/proc"
        own = native and target.startswith("/vault-") and target.endswith(f"/{PACKAGE_FOLDER}")
        kept = "ro" in flags or (writable and ("noexec" in flags or own))
        if "nosuid" not in flags or not kept:
            wrong.append(f"mount {target} {options}")
        if kind == "proc" and target == "/proc":
            proc = options
    if not proc.endswith(_PROC_SUFFIXES):
        wrong.append(f"/proc {proc}")
    return wrong
