"""The system calls of a vault: an allow-list. Whatever is not here answers EPERM.

No socket, connect, bind, listen or accept; no exec; no ptrace or memory of others; no keys, BPF,
io_uring, userfaultfd, perf; no mounts, namespaces, devices; no change of user.

Source: THREATS C, "Vault filter"; docs/spec/vault_process.md, "System calls".
"""

from typing import Final

from enclave_kernel.isolation.seccomp import Condition, Policy

__all__ = ["VAULT_SYSCALLS"]

_MEMORY: Final = """
    brk madvise membarrier memfd_create mlock mlock2 mmap mprotect mremap msync munlock munmap
    get_mempolicy mbind set_mempolicy
"""
_FILES: Final = """
    access chdir chmod close close_range copy_file_range creat dup dup2 dup3 eventfd eventfd2
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait faccessat faccessat2
    fadvise64 fallocate fchdir fchmod fchmodat fcntl fdatasync fgetxattr flistxattr flock fstat
    fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr lgetxattr link linkat
    listxattr llistxattr lseek lstat mkdir mkdirat newfstatat open openat openat2 pipe pipe2 poll
    ppoll pread64 preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv rename renameat renameat2 rmdir select sendfile signalfd signalfd4 splice
    stat statfs statx symlink symlinkat sync_file_range tee timerfd_create timerfd_gettime
    timerfd_settime truncate umask unlink unlinkat utime utimensat utimes write writev
"""
_PROCESSES: Final = """
    alarm exit exit_group fork futex futex_waitv getcpu getitimer getpgid getpgrp getpid getppid
    getpriority getrlimit getrusage getsid gettid kill pause pidfd_open pidfd_send_signal prlimit64
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_setaffinity sched_yield set_robust_list set_tid_address setitimer setpgid setpriority
    setrlimit setsid sigaltstack tgkill timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime tkill vfork wait4 waitid
"""
_SYSTEM: Final = """
    capget clock_getres clock_gettime clock_nanosleep getegid geteuid getgid getgroups getrandom
    getresgid getresuid gettimeofday getuid nanosleep sysinfo time times uname
"""
_SOCKETPAIRS: Final = """
    getpeername getsockname getsockopt recvfrom recvmmsg recvmsg sendmsg shutdown
"""

_AF_UNIX: Final = 1
_NEW_NAMESPACES: Final = 0x7E020000
_PRCTL_OPTIONS: Final = frozenset(
    {
        2,  # PR_GET_PDEATHSIG
        3,  # PR_GET_DUMPABLE
        15,  # PR_SET_NAME
        16,  # PR_GET_NAME
        21,  # PR_GET_SECCOMP
        23,  # PR_CAPBSET_READ
        27,  # PR_GET_SECUREBITS
        29,  # PR_SET_TIMERSLACK
        30,  # PR_GET_TIMERSLACK
        39,  # PR_GET_NO_NEW_PRIVS
        41,  # PR_SET_THP_DISABLE
        42,  # PR_GET_THP_DISABLE
        51,  # PR_SVE_GET_VL
    }
)
_IOCTLS: Final = frozenset(
    {
        0x5401,  # TCGETS, which is isatty
        0x5413,  # TIOCGWINSZ
        0x541B,  # FIONREAD
        0x5421,  # FIONBIO
        0x5450,  # FIONCLEX
        0x5451,  # FIOCLEX
    }
)
_ARCH_PRCTL_OPTIONS: Final = frozenset(
    {
        # ARCH_SET_FS: a compiled program has a C library of its own, with its own thread's data.
        # It sets one register, which since Linux 5.9 a plain instruction does as well.
        0x1002,
        # ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM: matrix units.
        *(0x1021, 0x1022, 0x1023),
    }
)
_SOL_SOCKET: Final = 1
_SOCKET_OPTIONS: Final = frozenset({2, 7, 8, 16, 20, 21})
"""SO_REUSEADDR, SO_SNDBUF, SO_RCVBUF, SO_PASSCRED, SO_RCVTIMEO, SO_SNDTIMEO."""
_NONE: Final = frozenset({0})

VAULT_SYSCALLS: Final = Policy(
    allowed=frozenset(f"{_MEMORY} {_FILES} {_PROCESSES} {_SYSTEM} {_SOCKETPAIRS}".split()),
    conditional={
        "arch_prctl": (Condition(0, _ARCH_PRCTL_OPTIONS),),
        "clone": (Condition(0, _NONE, mask=_NEW_NAMESPACES),),
        "ioctl": (Condition(1, _IOCTLS),),
        "prctl": (Condition(0, _PRCTL_OPTIONS),),
        # To no address: a datagram socket of a pair could otherwise reach any other (S-12).
        "sendto": (Condition(4, _NONE), Condition(4, _NONE, high=True)),
        "setsockopt": (
            Condition(1, frozenset({_SOL_SOCKET})),
            Condition(2, _SOCKET_OPTIONS),
        ),
        "socketpair": (Condition(0, frozenset({_AF_UNIX})),),
    },
    # Its flags are in memory, where no filter sees them; the C library then uses clone.
    missing=frozenset({"clone3"}),
)
"""About 190 calls (x86_64). `sendmsg` can name an address in memory: the empty network and mount
namespaces are what keeps it from reaching anybody."""
