"""A vault's walls, put up by the vault itself before it knows anything worth taking.

The standard library only, and no threads before or during: `unshare` moves just the caller.

Source: THREATS section C; docs/spec/vault_process.md, "Lockdown".
"""

import os
import resource
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError, prctl
from enclave_kernel.isolation.namespaces import unshare
from enclave_kernel.isolation.privileges import (
    be_killable,
    become_user,
    bound_capabilities,
    forbid_new_privileges,
    leave_session_keyring,
    lower_limit,
)
from enclave_kernel.isolation.seccomp import ARCHITECTURES, compile_filter, install_filter
from enclave_kernel.isolation.vault_syscalls import VAULT_SYSCALLS
from enclave_kernel.vault.own_processes import become_payload
from enclave_kernel.vault.own_root import enter_own_root
from enclave_kernel.vault.self_check import (
    MAX_FILES,
    Expected,
    check_before_filter,
    check_walls,
    control_groups_in_force,
    open_descriptors,
)

__all__ = ["LockdownError", "LockdownSpec", "Walls", "lock_down"]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

_HOSTNAME: Final = b"vault"
_MAX_TASKS: Final = 1024
_MAX_LOCKED_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class LockdownSpec:
    """What the supervisor decides about a vault process.

    Attributes:
        supervisor_pid: The parent whose death ends the vault.
        private_dir: Existing, empty directory; the mount point of the vault's root if `uid` is
            given.
        uid: User to become, which nothing else uses; None to stay who we are (development
            without root).
        gid: Group to become.
        memory_limit: Bytes of private memory, and of files in the tmpfs; None for no limit.
        native: The package may bring compiled code, and run it from its own folder.
        control_groups: Controllers that limit this process already, each with the end of its
            path in /proc/self/cgroup.
    """

    supervisor_pid: int
    private_dir: str
    uid: int | None = None
    gid: int | None = None
    memory_limit: int | None = None
    native: bool = False
    control_groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Walls:
    """What stands.

    Attributes:
        private_dir: The folder in which the vault may write.
        checked: What was put up and then read back or tried, in words for `enclave status`.
    """

    private_dir: Path
    checked: tuple[str, ...]


def lock_down(spec: LockdownSpec, *, keep: frozenset[int]) -> Walls:
    """Put up the walls, in this order, and check that they stand.

    As root this returns in another process than it was called in: see `own_processes`.

    Args:
        spec: The supervisor's specification.
        keep: Descriptors above 2 that stay open; all others are closed.

    Raises:
        EnclaveError: A step failed, or the result is not what it must be.
        OSError: The same.
    """
    # 1. Descriptors: nothing inherited, and 0 to 2 lead nowhere.
    _null_stdio()
    _close_others(keep)
    # 2. No survivor, no shared session, no inherited signal state.
    if os.getsid(0) != os.getpid():
        os.setsid()
    _die_with(spec.supervisor_pid)
    _reset_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # 3. Limits.
    os.umask(0o077)
    groups = control_groups_in_force(spec.control_groups)
    _set_limits(None if "memory" in groups else spec.memory_limit)
    expected = Expected(keep, groups, limited=spec.memory_limit is not None, native=spec.native)
    if spec.uid is None:
        # 9. No way back.
        forbid_new_privileges()
        _die_with(spec.supervisor_pid)
        prctl(_PR_SET_DUMPABLE, 0)
        # 11. Trust none of the above.
        return Walls(Path(spec.private_dir), check_walls(expected))
    return _lock_down_as_root(spec, spec.uid, expected)


def _lock_down_as_root(spec: LockdownSpec, uid: int, expected: Expected) -> Walls:
    gid = uid if spec.gid is None else spec.gid
    machine = os.uname().machine
    program = compile_filter(VAULT_SYSCALLS, machine) if machine in ARCHITECTURES else None
    expected = expected.as_root(uid, gid, filtered=program is not None)
    private: list[str] = []

    def prepare() -> None:
        # 7. A root of its own.
        private.append(
            enter_own_root(
                spec.private_dir,
                uid=uid,
                gid=gid,
                memory_limit=spec.memory_limit,
                native=spec.native,
            )
        )

    def drop(parent: int | None) -> None:
        # 8. Another user, without capabilities.
        become_user(uid, gid)
        # 9. No way back. The change of user cleared the death signal.
        forbid_new_privileges()
        _die_with(parent)
        prctl(_PR_SET_DUMPABLE, 0)
        check_before_filter()
        # 10. From here on, what is not on the list fails.
        if program is not None:
            install_filter(program)

    # 4. Namespaces, and keys: those of a session survive fork and change of user.
    expected = expected.with_namespaces(unshare(_HOSTNAME))
    be_killable()
    leave_session_keyring()
    # 5. What bounds all capabilities, while there is one that may say so.
    bound_capabilities()
    # 6. Three processes, see there; only the payload comes back.
    become_payload(prepare=prepare, drop=drop, keep=expected.descriptors)
    # 11. Trust none of the above.
    return Walls(Path(private[0]), check_walls(expected))


def _null_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor, inheritable=True)
    if null > 2:
        os.close(null)


def _close_others(keep: frozenset[int]) -> None:
    try:
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    except OSError:
        highest = max(open_descriptors())
    start = 3
    for descriptor in (*sorted(keep), highest + 1):
        os.closerange(start, descriptor)
        start = descriptor + 1


def _reset_signals() -> None:
    """Block none, and ignore none but those that Python itself does: exec passes both on."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _die_with(parent: int | None) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Out of a pid namespace's sight the parent is 0, dead or alive.
    if parent is not None and os.getppid() != parent:
        raise LockdownError("the supervisor died while the vault started")


def _set_limits(memory_limit: int | None) -> None:
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_MEMLOCK, _MAX_LOCKED_BYTES),
    ):
        lower_limit(kind, wanted)
    if os.geteuid() == 0:
        # Counted per user: only one that nothing else has can be limited like this.
        lower_limit(resource.RLIMIT_NPROC, _MAX_TASKS)
    if memory_limit is not None:
        # Private writable memory: an address-space limit would count mapped libraries, too.
        lower_limit(resource.RLIMIT_DATA, memory_limit)
