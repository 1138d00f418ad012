"""A notebook's walls: put up around its first process by itself, then tried and read back.

The standard library only, no threads before or during.

Source: THREATS section C, "User's kernel"; docs/spec/kernel_process.md, "Walls".
"""

import os
import resource
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from enclave_kernel.isolation.kernel_calls import LockdownError, prctl
from enclave_kernel.isolation.kernel_syscalls import KERNEL_SYSCALLS
from enclave_kernel.isolation.namespaces import namespaces_of_this_process, unshare
from enclave_kernel.isolation.notebook_network import raise_loopback
from enclave_kernel.isolation.notebook_root import (
    HOME,
    WORKSPACE,
    NotebookRoot,
    enter_notebook_root,
)
from enclave_kernel.isolation.privileges import (
    be_killable,
    become_user,
    bound_capabilities,
    forbid_new_privileges,
    leave_session_keyring,
    lower_limit,
)
from enclave_kernel.isolation.seccomp import ARCHITECTURES, compile_filter, install_filter
from enclave_kernel.isolation.trials import breaches

__all__ = [
    "NotebookWalls",
    "WallsSpec",
    "check_notebook_walls",
    "open_to_own_tools",
    "put_up_notebook_walls",
]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SIGKILL: Final = 9
_HOSTNAME: Final = b"enclave"
_MAX_FILES: Final = 65_536
_MAX_TASKS: Final = 4_096
"""Processes and threads of one notebook: compilers and worker pools fit, a fork bomb ends there."""
_MAX_LOCKED_BYTES: Final = 8 * 1024 * 1024
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@dataclass(frozen=True)
class WallsSpec:
    """What the supervisor decides about a notebook's processes.

    Attributes:
        uid: A user that nothing else has, or will have in this boot.
        gid: Its group.
        folder: The notebook's folder on a developer's machine; None in an enclave.
        hidden: Folders with the enclave's state.
        code: Folders with the enclave's code, beside those of this interpreter.
        memory_limit: Bytes of its files; None for half of the memory.
        workspace: The enclave's workspace; None: it is not shown to this notebook.
    """

    uid: int
    gid: int
    folder: str | None
    hidden: tuple[str, ...]
    code: tuple[str, ...]
    memory_limit: int | None
    workspace: str | None = None


@dataclass(frozen=True)
class NotebookWalls:
    """What was put up.

    Attributes:
        spec: As asked for.
        left: Links of the namespaces it was in before.
        root: What it sees.
    """

    spec: WallsSpec
    left: frozenset[str]
    root: NotebookRoot


def put_up_notebook_walls(spec: WallsSpec) -> NotebookWalls:
    """Put up the walls around this process, pid 1 of its namespace, for good.

    Raises:
        EnclaveError: A step failed.
        OSError: The same.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise LockdownError(f"no system call filter is known for {machine}")
    program = _program(machine)
    # 1. Namespaces; the loopback interface, which a kernel's children and debugger need.
    left = unshare(_HOSTNAME, own_pids=True)
    raise_loopback()
    # 2. Keys and capabilities, while there is one that may say so.
    be_killable()
    leave_session_keyring()
    bound_capabilities()
    # 3. What it sees.
    root = enter_notebook_root(
        uid=spec.uid,
        gid=spec.gid,
        folder=spec.folder,
        hidden=spec.hidden,
        code=spec.code,
        memory_limit=spec.memory_limit,
        workspace=spec.workspace,
    )
    os.chdir("/")
    os.umask(0o022)
    # 4. Limits.
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_NPROC, _MAX_TASKS),
        (resource.RLIMIT_MEMLOCK, _MAX_LOCKED_BYTES),
    ):
        lower_limit(kind, wanted)
    # 5. Another user, without capabilities and without a way back.
    become_user(spec.uid, spec.gid)
    forbid_new_privileges()
    # The change of user cleared it. Init stays as closed as that left it: nobody in there is to
    # write into the memory of the process that speaks to the zygote.
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    prctl(_PR_SET_DUMPABLE, 0)
    # 6. What is on the list fails from here on.
    install_filter(program)
    return NotebookWalls(spec, left, root)


def open_to_own_tools() -> None:
    """Let this process, and what it starts, be looked at by a person's own tools again."""
    prctl(_PR_SET_DUMPABLE, 1)


def check_notebook_walls(walls: NotebookWalls) -> tuple[str, ...]:
    """Try and read back, in the process that will run the notebook; return what stands.

    Raises:
        LockdownError: Something is not as it must be; names all of it.
        OSError: /proc cannot be read.
    """
    status = _status()
    wrong = list(breaches())
    for name, number in (("Uid", walls.spec.uid), ("Gid", walls.spec.gid)):
        if status.get(name, "").split() != [str(number)] * 4:
            wrong.append(f"{name} {status.get(name)}")
    if status.get("Groups", "").strip():
        wrong.append(f"groups {status['Groups']}")
    wrong += [name for name in _CAPABILITIES if int(status.get(name, "1"), 16) != 0]
    if status.get("NoNewPrivs") != "1" or status.get("Seccomp") != "2":
        wrong.append("no filter, or privileges can be gained")
    wrong += sorted(walls.left & set(namespaces_of_this_process().values()))
    if os.getppid() != 1:
        wrong.append("no init of its own")
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        wrong.append("core files")
    wrong += _writable_mounts(walls)
    wrong += [path for path in walls.spec.hidden if _can_list(path)]
    if wrong:
        raise LockdownError(f"the notebook's walls do not stand: {', '.join(wrong)}")
    names = sorted({"pid", *(link.partition(":")[0] for link in walls.left)})
    return (
        "user and group of its own",
        "no capabilities, no new privileges",
        f"{', '.join(names)} namespaces",
        "read-only system, own /proc, /dev, /tmp and home",
        "system call deny-list",
    )


@cache
def _program(machine: str) -> bytes:
    return compile_filter(KERNEL_SYSCALLS, machine)


# The zygote imports this before it forks: no kernel compiles it again.
if os.uname().machine in ARCHITECTURES:
    _program(os.uname().machine)


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _writable_mounts(walls: NotebookWalls) -> list[str]:
    """Return the mounts that can be written to and are not the notebook's own."""
    own = {Path("/tmp"), Path("/var/tmp"), HOME.parent, Path("/dev/shm")}  # noqa: S108
    if walls.spec.workspace is not None:
        own.add(WORKSPACE)
    if walls.root.writable:
        own.add(Path(walls.root.folder))
    wrong: list[str] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        target = Path(line.split(" ")[1].encode().decode("unicode_escape"))
        if target in own or target.is_relative_to("/proc") or target.is_relative_to("/dev"):
            continue
        try:
            if not os.statvfs(target).f_flag & os.ST_RDONLY and os.access(target, os.W_OK):
                wrong.append(f"mount {target} is writable")
        except OSError:
            continue
    return wrong


def _can_list(path: str) -> bool:
    try:
        return any(Path(path).iterdir())
    except OSError:
        return False
