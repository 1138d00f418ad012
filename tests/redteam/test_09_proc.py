"""THREATS E.9: /proc, ptrace, and the memory of other processes.

Each attack is run by a plain process of the same user against a plain victim, which must work;
by a package in its vault and by a notebook against that victim; and by a plain process of the
vault's own user, as if the vault had no namespaces, against the vault.
"""

import socket
from pathlib import Path

import pytest

from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.places import Place, PlainPlace, achieved, newer_than_4_14

pytestmark = needs_root

_STATE = ["maps", "environ", "auxv", "syscall", "io", "pagemap", "stack", "wchan"]
_METADATA = ["cmdline", "status", "stat", "oom_score_adj"]


def vaults_user(arena: Arena) -> PlainPlace:
    """Return a process without walls of the same user as the arena's vault."""
    return arena.plain(Path(f"/proc/{arena.payload_pid}/fd").parent.stat().st_uid or _uid(arena))


def _uid(arena: Arena) -> int:
    lines = Path(f"/proc/{arena.payload_pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])


def test_p01_memory_through_procfs(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        arguments = victim.pid, victim.address, victim.secret
        control = arena.plain(victim.uid).run(attacks.memory_file, *arguments)
        assert control == {"read": "done", "write": "done"}
        outcome = hostile.run(attacks.memory_file, *arguments)
        assert outcome == {"read": "ENOENT", "write": "ENOENT"}
    against = arena.payload_pid, 4096, "00"
    assert achieved(vaults_user(arena).run(attacks.memory_file, *against)) == set()


def test_p02_memory_map_and_kernel_state(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.proc_files, victim.pid, _STATE)
        assert achieved(control) >= {"maps", "environ", "auxv", "io", "pagemap"}
        outcome = hostile.run(attacks.proc_files, victim.pid, _STATE)
        assert outcome == dict.fromkeys(_STATE, "ENOENT")
    closed = [name for name in _STATE if name != "wchan"]
    same_user = vaults_user(arena).run(attacks.proc_files, arena.payload_pid, closed)
    assert achieved(same_user) <= {"maps"} and "maps" not in achieved(same_user)


def test_p03_metadata(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.proc_files, victim.pid, _METADATA)
        assert achieved(control) == set(_METADATA)
        outcome = hostile.run(attacks.proc_files, victim.pid, _METADATA)
        assert outcome == dict.fromkeys(_METADATA, "ENOENT")
        assert hostile.run(attacks.proc_links, victim.pid)["task"] == "ENOENT"
    command = Path(f"/proc/{arena.payload_pid}/cmdline").read_bytes()
    assert not arena.marked.found_in_bytes(command) and b"vault-" not in command


def test_p04_links_and_descriptors(arena: Arena, hostile: Place) -> None:
    names = {"cwd", "root", "exe", "ns/mnt", "fd", "map_files", "root/tmp"}
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.proc_links, victim.pid)
        assert achieved(control) >= names - {"map_files"}
        outcome = hostile.run(attacks.proc_links, victim.pid)
        assert {outcome[name] for name in names} == {"ENOENT"}
    same_user = vaults_user(arena).run(attacks.proc_links, arena.payload_pid)
    assert achieved(same_user) & names == set()


@pytest.mark.parametrize("attack", [attacks.ptrace, attacks.ptrace_attach])
def test_p05_ptrace(arena: Arena, hostile: Place, attack: object) -> None:
    assert callable(attack)
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attack, victim.pid)
        if set(control.values()) == {"EPERM"} and Path("/proc/sys/kernel/yama").exists():
            control = arena.plain().run(attack, victim.pid)
        assert achieved(control)
        assert set(hostile.run(attack, victim.pid).values()) == {"EPERM"}
    assert set(vaults_user(arena).run(attack, arena.payload_pid).values()) == {"EPERM"}


def test_p06_cross_process_copy(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        arguments = victim.pid, victim.address, victim.secret
        control = arena.plain(victim.uid).run(attacks.cross_copy, *arguments)
        assert achieved(control) == {"process_vm_readv", "process_vm_writev"}
        outcome = hostile.run(attacks.cross_copy, *arguments)
        assert set(outcome.values()) == {"EPERM"}
    against = arena.payload_pid, 4096, "00"
    assert set(vaults_user(arena).run(attacks.cross_copy, *against).values()) == {"EPERM"}


def test_p07_descriptors_pages_and_layout(arena: Arena, hostile: Place) -> None:
    names = {"pidfd_getfd", "kcmp", "get_robust_list", "move_pages", "migrate_pages"}
    names |= {"process_madvise"}
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.theft, victim.pid)
        newer = newer_than_4_14("pidfd_getfd", "process_madvise") if arena.old_kernel else set()
        # A machine with one NUMA node may have no calls for pages.
        must = {"pidfd_getfd", "kcmp", "get_robust_list"} - newer
        assert achieved(control) >= must
        assert {control[name] for name in newer} <= {"ENOSYS"}
        outcome = hostile.run(attacks.theft, victim.pid)
        assert set(outcome) == names and achieved(outcome) == set()
        assert set(outcome.values()) <= {"EPERM", "ESRCH", "EINVAL", "ENOSYS"}
    same_user = vaults_user(arena).run(attacks.theft, arena.payload_pid)
    assert achieved(same_user) & {"pidfd_getfd", "kcmp", "get_robust_list"} == set()


def test_p08_limits_and_scheduling(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        control = arena.plain(victim.uid).run(attacks.tamper, victim.pid)
        assert achieved(control) == {"prlimit64", "sched_setaffinity", "setpriority"}
        outcome = hostile.run(attacks.tamper, victim.pid)
        assert set(outcome.values()) == {"ESRCH"}


def test_p09_profiling(arena: Arena, hostile: Place) -> None:
    with arena.victim() as victim:
        control = arena.plain().run(attacks.profile, victim.pid)
        assert achieved(control) == {"perf_event_open"}
        assert hostile.run(attacks.profile, victim.pid) == {"perf_event_open": "EPERM"}
    same_user = vaults_user(arena).run(attacks.profile, arena.payload_pid)
    assert set(same_user.values()) <= {"EACCES", "EPERM"}


def test_p10_its_own_memory_by_path(arena: Arena) -> None:
    """A vault's own memory, through a function that opens what its user names."""
    control = arena.plain(1_980_000).run(attacks.own_memory)
    assert achieved(control) >= {"/proc/self/mem", "/proc/self/environ"}
    outcome = arena.vault.run(attacks.own_memory)
    assert achieved(outcome) == set()
    assert set(outcome.values()) <= {"EACCES", "ENOENT", "EPERM"}


def test_p12_other_sockets(arena: Arena, hostile: Place) -> None:
    name = "\0redteam-p12"
    with socket.socket(socket.AF_UNIX) as outside, socket.socket() as tcp:
        outside.bind(name)
        outside.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        port = f":{tcp.getsockname()[1]:04X} "
        control = arena.plain().run(attacks.sockets_seen)
        assert "@redteam-p12" in control and any(port in line for line in control)
        seen = hostile.run(attacks.sockets_seen)
    assert "@redteam-p12" not in seen and not any(port in line for line in seen)
    if hostile is arena.vault:
        assert seen == []


def test_p13_procfs_as_control_plane(arena: Arena, hostile: Place) -> None:
    paths = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname"]
    control = arena.plain().run(attacks.control_plane, paths)
    # A container's root may lack what -1000 takes, and a kernel may have no sysrq.
    assert achieved(control) >= {path for path in paths if Path(path).exists()}
    outcome = hostile.run(attacks.control_plane, paths)
    # What is masked is /dev/null: opening that hurts nobody.
    assert achieved(outcome) <= {"/proc/sysrq-trigger"}
    assert outcome["oom_score_adj"] in ("EACCES", "EPERM")
