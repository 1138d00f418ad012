"""The system calls of a notebook's processes: all that the table knows, less a deny-list.

A person works in there, with compilers, debuggers of their own, subprocesses and sockets; so what
is refused is what reaches other processes, or much of the kernel.

Source: THREATS C, "User's kernel"; docs/spec/kernel_process.md, "System calls".
"""

from typing import Final

from enclave_kernel.isolation.seccomp import ARCHITECTURES, Condition, Policy

__all__ = ["KERNEL_SYSCALLS"]

_OTHER_PROCESSES: Final = """
    kcmp migrate_pages move_pages perf_event_open pidfd_getfd process_madvise process_mrelease
    process_vm_readv process_vm_writev ptrace
"""
_MUCH_OF_THE_KERNEL: Final = """
    add_key bpf io_uring_enter io_uring_register io_uring_setup keyctl lookup_dcookie modify_ldt
    request_key userfaultfd vmsplice
"""
_FILE_SYSTEMS: Final = """
    chroot fanotify_init fanotify_mark fsconfig fsmount fsopen fspick mount mount_setattr move_mount
    name_to_handle_at open_by_handle_at open_tree pivot_root setns umount2 unshare
"""
_MACHINE: Final = """
    acct adjtimex clock_adjtime clock_settime create_module delete_module finit_module
    get_kernel_syms init_module ioperm iopl kexec_file_load kexec_load nfsservctl query_module
    quotactl quotactl_fd reboot sethostname setdomainname settimeofday swapoff swapon syslog sysfs
    _sysctl uselib ustat vhangup
"""
_OUT_OF_SIGHT: Final = frozenset({"clone3", "openat2"})
"""Their flags are in memory, where no filter sees them; the C library uses older ones."""

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _NETLINK_ROUTE = 1, 2, 10, 16, 0
_NEW_NAMESPACES: Final = 0x7E020000
_FILE_TYPE: Final = 0o170000
_REGULAR_FILES: Final = frozenset({0, 0o100000, 0o010000, 0o140000})
"""Of mknod: plain files, FIFOs and sockets, no devices."""
_SET_IDS: Final = 0o6000
"""A set-user-id file in a folder shared with the machine would be its owner's, root's even."""
_O_CREAT, _O_TMPFILE_BIT = 0o100, 0o20000000
_KEYSTROKES: Final = frozenset({0x5412, 0x541C})
"""TIOCSTI and TIOCLINUX: they type for somebody else (THREATS K-13)."""
_USUAL_PERSONALITIES: Final = frozenset({0, 0xFFFFFFFF})

_CONDITIONAL: Final = {
    "clone": (Condition(0, frozenset({0}), mask=_NEW_NAMESPACES),),
    "ioctl": (Condition(1, _KEYSTROKES, refuse=True),),
    "chmod": (Condition(1, frozenset({0}), mask=_SET_IDS),),
    "creat": (Condition(1, frozenset({0}), mask=_SET_IDS),),
    "fchmod": (Condition(1, frozenset({0}), mask=_SET_IDS),),
    "fchmodat": (Condition(2, frozenset({0}), mask=_SET_IDS),),
    "mknod": (Condition(1, _REGULAR_FILES, mask=_FILE_TYPE | _SET_IDS),),
    "mknodat": (Condition(2, _REGULAR_FILES, mask=_FILE_TYPE | _SET_IDS),),
    "personality": (Condition(0, _USUAL_PERSONALITIES),),
}
_ALTERNATIVES: Final = {
    # Without a file to make, the mode is whatever was in the register.
    "open": (
        (Condition(1, frozenset({0}), mask=_O_CREAT | _O_TMPFILE_BIT),),
        (Condition(2, frozenset({0}), mask=_SET_IDS),),
    ),
    "openat": (
        (Condition(2, frozenset({0}), mask=_O_CREAT | _O_TMPFILE_BIT),),
        (Condition(3, frozenset({0}), mask=_SET_IDS),),
    ),
    "socket": (
        (Condition(0, frozenset({_AF_UNIX, _AF_INET, _AF_INET6})),),
        # Addresses and routes; other kinds of it talk to auditing and filtering.
        (Condition(0, frozenset({_AF_NETLINK})), Condition(2, frozenset({_NETLINK_ROUTE}))),
    ),
    "socketpair": ((Condition(0, frozenset({_AF_UNIX})),),),
}
_DENIED: Final = frozenset(
    f"{_OTHER_PROCESSES} {_MUCH_OF_THE_KERNEL} {_FILE_SYSTEMS} {_MACHINE}".split()
)
_KNOWN: Final = frozenset(name for table in ARCHITECTURES.values() for name in table.numbers)

KERNEL_SYSCALLS: Final = Policy(
    allowed=_KNOWN - _DENIED - _OUT_OF_SIGHT - _CONDITIONAL.keys() - _ALTERNATIVES.keys(),
    conditional=_CONDITIONAL,
    alternatives=_ALTERNATIVES,
    missing=_OUT_OF_SIGHT,
)
"""Calls newer than the table answer ENOSYS: nobody has looked at them."""
