"""Runs a program as one of our systemd units would let it run, without systemd.

What is taken from the unit file: the system call filter, the address families, the limit of
descriptors, no memory both written and executed, no new privileges, the umask. The sets of system
calls are asked of `systemd-analyze`. Usage: python -m tests.support.under_unit UNIT COMMAND...
"""

import functools
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys

from enclave_kernel.isolation.kernel_calls import prctl
from enclave_kernel.isolation.seccomp import (
    ARCHITECTURES,
    Condition,
    Policy,
    compile_filter,
    install_filter,
)
from tests.support.project_wheel import ROOT

__all__ = ["SYSTEMD_ANALYZE", "read_unit", "under_unit"]

SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1


def under_unit(unit: str, command: list[str]) -> list[str]:
    """Return the command as it is run here under a unit's rules."""
    return [sys.executable, "-m", "tests.support.under_unit", unit, *command]


def read_unit(unit: str) -> dict[str, list[str]]:
    """Return the values of a unit's [Service] section, several of one key in their order."""
    text = (ROOT / "infra" / "systemd" / unit).read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "Service" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value.strip())
    return found


@functools.cache
def _sets() -> dict[str, frozenset[str]]:
    """Return every set of system calls that systemd knows, with the names in it."""
    printed = subprocess.run(
        [str(SYSTEMD_ANALYZE), "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    named: dict[str, set[str]] = {}
    current: set[str] = set()
    for line in printed.splitlines():
        if line.startswith("@"):
            current = named.setdefault(line.strip(), set())
        elif line.startswith("    ") and not line.strip().startswith("#"):
            current.add(line.strip())

    def names(of: str) -> set[str]:
        if not of.startswith("@"):
            return {of}
        return set().union(*(names(one) for one in named.get(of, ())))

    return {name: frozenset(names(name)) for name in named}


def allowed_calls(lines: list[str]) -> frozenset[str]:
    """Return what the lines of SystemCallFilter leave, as systemd.exec(5) has it."""
    allowed = set(_sets()["@default"])
    for line in lines:
        words = line.removeprefix("~").split()
        meant = set().union(*(_sets().get(word, {word}) for word in words))
        allowed = allowed - meant if line.startswith("~") else allowed | meant
    return frozenset(allowed)


def _install(unit: dict[str, list[str]]) -> None:
    os.umask(int(unit["UMask"][-1], 8))
    if "LimitNOFILE" in unit:
        # A container may have less to give.
        limit = min(int(unit["LimitNOFILE"][-1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if unit["MemoryDenyWriteExecute"][-1] == "yes":
        prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN)
    families = frozenset(
        int(getattr(socket, name)) for name in unit["RestrictAddressFamilies"][-1].split()
    )
    numbers = ARCHITECTURES[platform.machine()].numbers
    allowed = allowed_calls(unit["SystemCallFilter"]) & numbers.keys()
    # Calls newer than the table answer ENOSYS, as on older kernels.
    policy = Policy(
        allowed=frozenset(allowed) - {"socket"},
        conditional={"socket": (Condition(0, families),)},
    )
    install_filter(compile_filter(policy, platform.machine()))


def main() -> None:
    """Take the rules, then become the program."""
    unit, *command = sys.argv[1:]
    _install(read_unit(unit))
    os.execvp(command[0], command)  # noqa: S606 (a program of the tests)


if __name__ == "__main__":
    main()
