"""The filter of a notebook's processes, by an interpreter of filters."""

import pytest

from enclave_kernel.isolation.kernel_syscalls import KERNEL_SYSCALLS
from enclave_kernel.isolation.seccomp import (
    ARCHITECTURES,
    ENOSYS,
    EPERM,
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    compile_filter,
)
from tests.support.bpf_interpreter import seccomp_data, verdict

MACHINES = sorted(ARCHITECTURES)
REFUSED, MISSING = RET_ERRNO | EPERM, RET_ERRNO | ENOSYS
HIGH = 1 << 32
_NEVER = """
    ptrace process_vm_readv process_vm_writev kcmp perf_event_open pidfd_getfd process_madvise
    move_pages migrate_pages bpf userfaultfd keyctl add_key request_key io_uring_setup
    io_uring_enter io_uring_register unshare setns mount umount2 pivot_root chroot
    open_by_handle_at open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
    init_module finit_module delete_module kexec_load kexec_file_load reboot settimeofday
    clock_settime adjtimex clock_adjtime swapon swapoff syslog acct quotactl vmsplice
    sethostname setdomainname fanotify_init fanotify_mark vhangup
"""
_ALWAYS = """
    read write execve execveat connect bind listen accept4 fork vfork kill setuid prctl
    seccomp memfd_create sendmsg sendto shmget semget mq_open inotify_init1 setsockopt wait4
"""
"""Both written by hand, not taken from the list under test."""


def _verdict(machine: str, name: str, *arguments: int) -> int:
    architecture = ARCHITECTURES[machine]
    data = seccomp_data(architecture.numbers[name], architecture.audit_code, arguments)
    return verdict(compile_filter(KERNEL_SYSCALLS, machine), data)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", _NEVER.split())
def test_what_a_notebook_never_calls(machine: str, name: str) -> None:
    for arguments in ((), (HIGH,) * 6, (2**64 - 1,) * 6):
        assert _verdict(machine, name, *arguments) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", _ALWAYS.split())
def test_what_people_need(machine: str, name: str) -> None:
    if name in ARCHITECTURES[machine].numbers:
        for arguments in ((), (2**64 - 1,) * 6):
            assert _verdict(machine, name, *arguments) == RET_ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (1, 1, 0), RET_ALLOW),
        ("socket", (2, 2, 17), RET_ALLOW),
        ("socket", (10, 1, 6), RET_ALLOW),
        ("socket", (16, 3, 0), RET_ALLOW),
        ("socket", (16, 3, 9), REFUSED),
        ("socket", (16, 3, HIGH | 12), REFUSED),
        ("socket", (17, 3, 0), REFUSED),
        ("socket", (38, 5, 0), REFUSED),
        ("socket", (40, 1, 0), REFUSED),
        ("socket", (HIGH | 40, 1, 0), REFUSED),
        ("socket", (HIGH | 2, 1, 0), RET_ALLOW),
        ("socketpair", (1, 1, 0), RET_ALLOW),
        ("socketpair", (40, 1, 0), REFUSED),
        ("clone", (0x3D0F00,), RET_ALLOW),
        ("clone", (0x10000000,), REFUSED),
        ("clone", (HIGH | 0x20000000 | 17,), REFUSED),
        ("clone3", (0, 88), MISSING),
        ("ioctl", (0, 0x5401), RET_ALLOW),
        ("ioctl", (0, 0x5412), REFUSED),
        ("ioctl", (0, HIGH | 0x5412), REFUSED),
        ("ioctl", (0, 0x541C), REFUSED),
        ("mknodat", (3, 0, 0o010644), RET_ALLOW),
        ("mknodat", (3, 0, 0o020644), REFUSED),
        ("mknodat", (3, 0, 0o060644), REFUSED),
        ("openat2", (3, 0, 0, 24), MISSING),
        ("fchmodat", (3, 0, 0o1755), RET_ALLOW),
        ("fchmodat", (3, 0, 0o4755), REFUSED),
        ("fchmod", (3, 0o2755), REFUSED),
        ("fchmod", (3, HIGH | 0o4755), REFUSED),
        ("mknodat", (3, 0, 0o104755), REFUSED),
        ("openat", (3, 0, 0, 0o4755), RET_ALLOW),
        ("openat", (3, 0, 0o100, 0o644), RET_ALLOW),
        ("openat", (3, 0, 0o101, 0o4755), REFUSED),
        ("openat", (3, 0, 0o20200002, 0o2644), REFUSED),
        ("personality", (0xFFFFFFFF,), RET_ALLOW),
        ("personality", (0x0040000,), REFUSED),
    ],
)
def test_arguments_decide(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert _verdict(machine, name, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_foreign_abis_are_killed_and_new_calls_missing(machine: str) -> None:
    program = compile_filter(KERNEL_SYSCALLS, machine)
    own = ARCHITECTURES[machine]
    assert verdict(program, seccomp_data(20, 0x40000003)) == RET_KILL_PROCESS
    assert verdict(program, seccomp_data(0x40000000 | 41, own.audit_code)) == RET_KILL_PROCESS
    newer = max(own.numbers.values()) + 1
    assert verdict(program, seccomp_data(newer, own.audit_code)) == MISSING
