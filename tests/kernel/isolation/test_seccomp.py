"""The compiler against an interpreter, and against the kernel in a child."""

import ctypes
import os
import signal
from collections.abc import Callable

import pytest

from enclave_kernel.isolation.seccomp import (
    ARCHITECTURES,
    ENOSYS,
    EPERM,
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    Condition,
    Policy,
    SeccompError,
    compile_filter,
    install_filter,
)
from enclave_kernel.isolation.vault_syscalls import VAULT_SYSCALLS
from tests.support.bpf_interpreter import seccomp_data, verdict

MACHINES = sorted(ARCHITECTURES)
I386, ARM = 0x40000003, 0x40000028
REFUSED, MISSING = RET_ERRNO | EPERM, RET_ERRNO | ENOSYS
HIGH = 1 << 32
_NEVER = """
    socket connect bind listen accept accept4 execve execveat ptrace process_vm_readv
    process_vm_writev keyctl add_key request_key bpf io_uring_setup io_uring_enter
    io_uring_register userfaultfd perf_event_open mount umount2 pivot_root chroot unshare
    setns open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr mknodat setuid
    setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset seccomp
    name_to_handle_at open_by_handle_at init_module finit_module delete_module kexec_load
    kexec_file_load reboot settimeofday clock_settime swapon swapoff syslog personality kcmp
    pidfd_getfd process_madvise move_pages migrate_pages get_robust_list vmsplice sethostname
    setdomainname shmget semget msgget mq_open sendmmsg fanotify_init inotify_init1 acct
    quotactl memfd_secret landlock_create_ruleset
"""
"""Written by hand, not taken from the list under test."""


def verdict_of(machine: str, name: str, *arguments: int) -> int:
    architecture = ARCHITECTURES[machine]
    program = compile_filter(VAULT_SYSCALLS, machine)
    data = seccomp_data(architecture.numbers[name], architecture.audit_code, arguments)
    return verdict(program, data)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_has_the_verdict_of_the_list(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    program = compile_filter(VAULT_SYSCALLS, machine)
    names = {number: name for name, number in architecture.numbers.items()}
    for number in range(max(names) + 1):
        name = names.get(number, "")
        if name in VAULT_SYSCALLS.conditional:
            continue
        expected = RET_ALLOW if name in VAULT_SYSCALLS.allowed else REFUSED
        expected = MISSING if name == "clone3" else expected
        for arguments in ((), (2**64 - 1,) * 6):
            data = seccomp_data(number, architecture.audit_code, arguments)
            assert verdict(program, data) == expected, name or number


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", _NEVER.split())
def test_what_a_vault_never_calls(machine: str, name: str) -> None:
    for arguments in ((), (HIGH,) * 6, (HIGH | 40, 1, 0)):
        assert verdict_of(machine, name, *arguments) == REFUSED


def test_of_the_processor_a_program_sets_its_threads_register_only() -> None:
    set_gs, set_fs, set_cpuid, shadow_stack = 0x1001, 0x1002, 0x1012, 0x5001
    assert verdict_of("x86_64", "arch_prctl", set_fs, 2**47) == RET_ALLOW
    for option in (set_gs, set_cpuid, shadow_stack, 0):
        assert verdict_of("x86_64", "arch_prctl", option) == REFUSED


def test_device_nodes_cannot_be_made_the_old_way() -> None:
    for name in ("mknod", "modify_ldt", "iopl", "ioperm", "uselib", "create_module"):
        assert verdict_of("x86_64", name) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_foreign_abis_are_killed(machine: str) -> None:
    program = compile_filter(VAULT_SYSCALLS, machine)
    own = ARCHITECTURES[machine].audit_code
    others = {I386, ARM, 0, *(other.audit_code for other in ARCHITECTURES.values())} - {own}
    for number in (0, 1, 20, 41, 359):
        for audit_code in others:
            assert verdict(program, seccomp_data(number, audit_code)) == RET_KILL_PROCESS
        # x32: the 64-bit architecture, and a bit in the number.
        for bit in (0x40000000, 0x80000000, 0xC0000000):
            assert verdict(program, seccomp_data(bit | number, own)) == RET_KILL_PROCESS


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_newer_than_the_table_are_missing(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    program = compile_filter(VAULT_SYSCALLS, machine)
    for number in (max(architecture.numbers.values()) + 1, 460, 2**20, 2**30 - 1):
        assert verdict(program, seccomp_data(number, architecture.audit_code)) == MISSING


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socketpair", (1, 1, 0), RET_ALLOW),
        ("socketpair", (HIGH | 1, 2, 0), RET_ALLOW),
        ("socketpair", (2, 1, 0), REFUSED),
        ("socketpair", (40, 1, 0), REFUSED),
        ("socketpair", (HIGH | 40, 1, 0), REFUSED),
        ("clone", (0x3D0F00,), RET_ALLOW),
        ("clone", (signal.SIGCHLD,), RET_ALLOW),
        *(("clone", (HIGH | flag | 17,), REFUSED) for flag in (0x10000000, 0x20000, 0x40000000)),
        *(("clone", (1 << shift,), REFUSED) for shift in (17, 25, 26, 27, 28, 29, 30)),
        ("ioctl", (0, 0x5401), RET_ALLOW),
        ("ioctl", (0, 0x5412), REFUSED),  # TIOCSTI
        ("ioctl", (0, HIGH | 0x5412), REFUSED),
        ("ioctl", (0, 0x541C), REFUSED),  # TIOCLINUX
        ("ioctl", (0x5401, 0x8933), REFUSED),
        ("prctl", (15,), RET_ALLOW),
        ("prctl", (4, 1), REFUSED),  # PR_SET_DUMPABLE
        ("prctl", (HIGH | 4, 1), REFUSED),
        ("prctl", (22, 2), REFUSED),  # PR_SET_SECCOMP
        ("prctl", (1, 0), REFUSED),  # PR_SET_PDEATHSIG
        ("sendto", (3, 0x7000, 8, 0, 0, 0), RET_ALLOW),
        ("sendto", (3, 0x7000, 8, 0, 0x7000, 110), REFUSED),
        ("sendto", (3, 0x7000, 8, 0, HIGH, 110), REFUSED),
        ("setsockopt", (3, 1, 7), RET_ALLOW),
        ("setsockopt", (3, 1, 26), REFUSED),  # SO_ATTACH_FILTER
        ("setsockopt", (3, 41, 7), REFUSED),
    ],
)
def test_arguments_decide(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert verdict_of(machine, name, *arguments) == expected


def test_conditions_are_all_to_hold() -> None:
    many = frozenset(range(0, 600, 2))
    policy = Policy(
        frozenset(), {"prctl": (Condition(0, many), Condition(1, frozenset({1}), mask=0x7))}
    )
    architecture = ARCHITECTURES["x86_64"]
    # 300 values do not fit into a conditional jump: refused, not compiled to something else.
    with pytest.raises(SeccompError, match="values"):
        compile_filter(policy, "x86_64")
    few = Condition(0, frozenset(range(0, 100, 2)))
    policy = Policy(frozenset(), {"prctl": (few, Condition(1, frozenset({1}), mask=0x7))})
    program = compile_filter(policy, "x86_64")
    for option in range(101):
        for value in (0, 1, 9, 10):
            passes = option % 2 == 0 and option < 100 and value & 7 == 1
            number = architecture.numbers["prctl"]
            data = seccomp_data(number, architecture.audit_code, (option, value))
            assert verdict(program, data) == (RET_ALLOW if passes else REFUSED)


def test_contradictions_and_misspellings_are_refused() -> None:
    for policy in (
        Policy(frozenset({"raed"})),
        Policy(frozenset({"read"}), missing=frozenset({"read"})),
    ):
        with pytest.raises(SeccompError):
            compile_filter(policy, "x86_64")
    with pytest.raises(SeccompError, match="riscv64"):
        compile_filter(VAULT_SYSCALLS, "riscv64")


def in_child(action: Callable[[], int], *, filtered: bool) -> int:
    """Return what `action` returned in a child of its own, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
            if filtered:
                install_filter(compile_filter(VAULT_SYSCALLS, os.uname().machine))
            status = action()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def errno_of(name: str, *arguments: int) -> Callable[[], int]:
    number = ARCHITECTURES[os.uname().machine].numbers[name]
    return errno_of_number(number, *arguments)


def errno_of_number(number: int, *arguments: int) -> Callable[[], int]:
    def action() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        values = [ctypes.c_ulong(argument) for argument in arguments]
        return 0 if libc.syscall(ctypes.c_long(number), *values) >= 0 else ctypes.get_errno()

    return action


@pytest.mark.parametrize("arguments", [(1, 1, 0), (HIGH | 1, 1, 0), (2, 2, 0)])
def test_the_kernel_refuses_sockets(arguments: tuple[int, ...]) -> None:
    action = errno_of("socket", *arguments)
    assert in_child(action, filtered=False) == 0
    assert in_child(action, filtered=True) == EPERM


def test_the_kernel_hides_clone3() -> None:
    # Without the filter the kernel looks at the arguments, and dislikes their size.
    assert in_child(errno_of("clone3", 0, 0), filtered=False) in (22, ENOSYS)
    assert in_child(errno_of("clone3", 0, 0), filtered=True) == ENOSYS


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86_64")
def test_the_kernel_kills_for_x32() -> None:
    getpid = errno_of_number(0x40000000 + 39)
    assert in_child(getpid, filtered=False) in (0, ENOSYS)
    assert in_child(getpid, filtered=True) == -signal.SIGSYS


def test_a_filter_is_for_good() -> None:
    action = errno_of("prctl", 22, 0, 0)
    assert in_child(action, filtered=True) == EPERM


def test_it_is_refused_where_privileges_can_still_be_gained() -> None:
    with pytest.raises(SeccompError):
        install_filter(b"nonsense")
