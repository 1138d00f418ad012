"""Attacks on other processes: /proc, ptrace, memory, signals, sockets, shared memory.

Sent as source to where they run (`places.payload`): the standard library and `attempt` only.
"""

import array
import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import Any

from tests.redteam.attempt import (
    Outcomes,
    attempt,
    in_child,
    open_only,
    packed,
    read_some,
    system_call,
)

# Section 9: /proc, ptrace, memory of others


def memory_file(pid: int, address: int, secret: str) -> Outcomes:
    """P-01: read and write another process's memory through /proc."""
    tried: Outcomes = {}

    def read() -> None:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        if os.pread(descriptor, len(secret) // 2, address) != bytes.fromhex(secret):
            raise ValueError

    def write() -> None:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        os.pwrite(descriptor, bytes.fromhex(secret), address)

    attempt(tried, "read", read)
    attempt(tried, "write", write)
    return tried


def proc_files(pid: int, names: list[str]) -> Outcomes:
    """P-02, P-03: read files below /proc/PID."""
    tried: Outcomes = {}
    for name in names:
        attempt(tried, name, read_some, f"/proc/{pid}/{name}")
    return tried


def proc_links(pid: int) -> Outcomes:
    """P-03, P-04: follow what /proc/PID links to, list what it lists."""
    tried: Outcomes = {}
    for name in ("cwd", "root", "exe", "ns/mnt"):
        attempt(tried, name, os.readlink, f"/proc/{pid}/{name}")
    for name in ("fd", "map_files", "task", "root/tmp"):
        attempt(tried, name, os.listdir, f"/proc/{pid}/{name}")
    return tried


def ptrace(pid: int) -> Outcomes:
    """P-05: attach a debugger."""
    tried: Outcomes = {}
    seize, attach, detach = 0x4206, 16, 17
    if attempt(tried, "seize", lambda: system_call("ptrace", seize, pid, 0, 0)) is not None:
        # Ends with the child that holds it.
        return tried

    def attached() -> None:
        system_call("ptrace", attach, pid, 0, 0)
        os.waitpid(pid, 0x40000000)
        system_call("ptrace", detach, pid, 0, 0)

    attempt(tried, "attach", attached)
    return tried


def ptrace_attach(pid: int) -> Outcomes:
    """P-05, the older way."""
    tried: Outcomes = {}

    def attached() -> None:
        system_call("ptrace", 16, pid, 0, 0)
        os.waitpid(pid, 0x40000000)
        system_call("ptrace", 17, pid, 0, 0)

    attempt(tried, "attach", attached)
    return tried


def cross_copy(pid: int, address: int, secret: str) -> Outcomes:
    """P-06: process_vm_readv and process_vm_writev."""
    tried: Outcomes = {}
    size = len(secret) // 2
    buffer = ctypes.create_string_buffer(size)
    ours, theirs = packed(ctypes.addressof(buffer), size), packed(address, size)

    def read() -> None:
        system_call("process_vm_readv", pid, ours, 1, theirs, 1, 0)
        if buffer.raw != bytes.fromhex(secret):
            raise ValueError

    attempt(tried, "process_vm_readv", read)
    buffer.raw = bytes.fromhex(secret)
    attempt(
        tried,
        "process_vm_writev",
        lambda: system_call("process_vm_writev", pid, ours, 1, theirs, 1, 0),
    )
    return tried


def theft(pid: int) -> Outcomes:
    """P-07: another's descriptors, pages, and what tells of its layout."""
    tried: Outcomes = {}
    head, size = packed(0), packed(0)

    def steal() -> None:
        system_call("pidfd_getfd", system_call("pidfd_open", pid, 0), 0, 0)

    attempt(tried, "pidfd_getfd", steal)
    attempt(tried, "kcmp", lambda: system_call("kcmp", os.getpid(), pid, 0, 0, 0))
    attempt(tried, "get_robust_list", lambda: system_call("get_robust_list", pid, head, size))
    attempt(tried, "move_pages", lambda: system_call("move_pages", pid, 0, 0, 0, 0, 0))
    nodes = packed(1)
    attempt(tried, "migrate_pages", lambda: system_call("migrate_pages", pid, 8, nodes, nodes))

    def advise() -> None:
        descriptor = system_call("pidfd_open", pid, 0)
        system_call("process_madvise", descriptor, packed(0x1000, 0), 1, 20, 0)

    attempt(tried, "process_madvise", advise)
    return tried


def tamper(pid: int) -> Outcomes:
    """P-08: another's limits, processors and priority."""
    tried: Outcomes = {}
    old = packed(0, 0)
    attempt(tried, "prlimit64", lambda: system_call("prlimit64", pid, 7, 0, old))
    attempt(tried, "sched_setaffinity", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0)))
    attempt(tried, "setpriority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    return tried


def profile(pid: int) -> Outcomes:
    """P-09: count another's events."""
    tried: Outcomes = {}
    software, size = 1, 112
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", software, size, 0), size)
    # Only what happens in user mode: this much is allowed to everybody by most systems.
    struct.pack_into("=Q", attributes, 40, 1 << 5 | 1 << 6)
    attempt(
        tried,
        "perf_event_open",
        lambda: system_call("perf_event_open", attributes, pid, -1, -1, 0),
    )
    return tried


def own_memory() -> Outcomes:
    """P-10, F-01: a function that opens a path is given those of its own process."""
    tried: Outcomes = {}
    for path in ("/proc/self/mem", "/proc/self/task/1/mem", "/proc/1/mem", "/proc/thread-self/mem"):
        attempt(tried, path, open_only, path, os.O_RDONLY)
    for path in ("/proc/self/environ", "/proc/self/auxv", "/proc/self/syscall"):
        attempt(tried, path, read_some, path)
    return tried


def sockets_seen() -> list[str]:
    """P-12: names of Unix sockets, and lines about TCP ones."""
    seen = []
    with open("/proc/net/unix") as file:
        seen += [line.split()[-1] for line in file.read().splitlines()[1:] if len(line.split()) > 7]
    with open("/proc/net/tcp") as file:
        seen += file.read().splitlines()[1:]
    return seen


def control_plane(paths: list[str]) -> Outcomes:
    """P-13, K-14: open for writing what rules the kernel; nothing is written."""
    tried: Outcomes = {}
    for path in paths:
        attempt(tried, path, open_only, path, os.O_WRONLY)

    def protect_self() -> None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")

    attempt(tried, "oom_score_adj", lambda: in_child(protect_self))
    return tried


# Section 11: signals, IPC, what is inherited


def send_signals(pid: int) -> Outcomes:
    """S-01: every way to signal another process."""
    tried: Outcomes = {}
    number = int(signal.SIGUSR1)
    info = ctypes.create_string_buffer(struct.pack("=iii", number, 0, -1), 128)
    attempt(tried, "kill 0", lambda: os.kill(pid, 0))
    attempt(tried, "kill", lambda: os.kill(pid, number))
    attempt(tried, "tgkill", lambda: system_call("tgkill", pid, pid, number))
    attempt(tried, "tkill", lambda: system_call("tkill", pid, number))
    attempt(tried, "rt_sigqueueinfo", lambda: system_call("rt_sigqueueinfo", pid, number, info))

    def by_descriptor() -> None:
        descriptor = system_call("pidfd_open", pid, 0)
        system_call("pidfd_send_signal", descriptor, number, 0, 0)

    attempt(tried, "pidfd_send_signal", by_descriptor)
    return tried


def continue_it(pid: int) -> Outcomes:
    """S-02: SIGCONT, which Linux lets through between users of one session."""
    tried: Outcomes = {}
    attempt(tried, "SIGCONT", lambda: os.kill(pid, signal.SIGCONT))
    return tried


def signals_by_the_kernel(pid: int) -> Outcomes:
    """S-03: have the kernel send the signal."""
    tried: Outcomes = {}
    ours, theirs = socket.socketpair()
    number_of_owner, set_signal, o_async = 8, 10, 0o20000

    def own() -> None:
        fcntl.fcntl(ours, number_of_owner, pid)
        fcntl.fcntl(ours, set_signal, int(signal.SIGIO))
        fcntl.fcntl(ours, fcntl.F_SETFL, fcntl.fcntl(ours, fcntl.F_GETFL) | o_async)
        theirs.send(b"x")

    attempt(tried, "F_SETOWN", own)

    def timer() -> None:
        event = ctypes.create_string_buffer(struct.pack("=QiiI", 0, signal.SIGALRM, 4, pid), 64)
        timer_id = packed(0)
        system_call("timer_create", 1, event, timer_id)
        system_call("timer_settime", timer_id.raw[0], 0, packed(0, 0, 0, 1), 0)

    attempt(tried, "SIGEV_THREAD_ID", timer)
    return tried


def kill_all() -> Outcomes:
    """S-04: kill everything there is; what this process forked as well."""
    tried: Outcomes = {}
    child = os.fork()
    if child == 0:
        signal.pause()
    attempt(tried, "kill all", lambda: os.kill(-1, signal.SIGKILL))
    os.waitpid(child, 0)
    return tried


def abstract_sockets(name: str) -> Outcomes:
    """S-05: connect to an abstract socket of somebody's, and take a name."""
    tried: Outcomes = {}

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"\0{name}")

    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"\0{name}-squat")

    attempt(tried, "connect", connect)
    attempt(tried, "bind", bind)
    return tried


def shared_memory(key: int, name: str) -> Outcomes:
    """S-06: shared memory, semaphores and queues that somebody made."""
    tried: Outcomes = {}
    attempt(tried, "shmget", lambda: system_call("shmget", key, 4096, 0))
    attempt(tried, "semget", lambda: system_call("semget", key, 1, 0))
    attempt(tried, "msgget", lambda: system_call("msgget", key, 0))
    attempt(tried, "/dev/shm", lambda: read_some(f"/dev/shm/{name}"))

    def queue() -> None:
        descriptor = system_call("mq_open", ctypes.c_char_p(name.encode()), os.O_RDWR, 0, 0)
        os.close(descriptor)

    attempt(tried, "mq_open", queue)
    return tried


def connect_to(paths: list[str]) -> Outcomes:
    """S-07: connect to sockets in the file system, and put something in their places."""
    tried: Outcomes = {}
    for path in paths:

        def connect(path: str = path) -> None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)

        attempt(tried, f"connect {path}", connect)

        def squat(path: str = path) -> None:
            os.rename(path, f"{path}-moved")
            os.rename(f"{path}-moved", path)

        attempt(tried, f"squat {path}", squat)
    return tried


def keyring(description: str) -> Outcomes:
    """S-08: find a key that root left in its session keyring."""
    tried: Outcomes = {}
    search, session = 10, -3
    words = [ctypes.c_char_p(b"user"), ctypes.c_char_p(description.encode())]
    attempt(tried, "search", lambda: system_call("keyctl", search, session, *words, 0))
    attempt(tried, "request_key", lambda: system_call("request_key", *words, None, 0))
    return tried


def inherited_descriptors() -> list[int]:
    """S-09: every open descriptor."""
    found = []
    for descriptor in range(4096):
        try:
            fcntl.fcntl(descriptor, fcntl.F_GETFD)
        except OSError:
            continue
        found.append(descriptor)
    return found


def inherited_state() -> dict[str, Any]:
    """S-10: what a process is born with."""
    mask = os.umask(0o77)
    os.umask(mask)
    return {
        "environ": sorted(os.environ),
        "umask": mask,
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "ignored": [
            int(number)
            for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM)
            if signal.getsignal(number) is signal.SIG_IGN
        ],
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "cwd": os.getcwd(),
    }


def datagrams(name: str) -> Outcomes:
    """S-12, W-02: a datagram socket of a pair, and an address of somebody else's."""
    tried: Outcomes = {}
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = f"\0{name}".encode()
    attempt(tried, "sendto", lambda: ours.sendto(b"sendto", address))
    attempt(tried, "sendmsg", lambda: ours.sendmsg([b"sendmsg"], [], 0, address))
    return tried


def telemetry(port: int, socket_path: str) -> Outcomes:
    """O-06, W-15: tell somebody outside, by what libraries do it with."""
    import logging.handlers
    import smtplib
    import urllib.request

    tried: Outcomes = {}
    address = ("127.0.0.1", port)

    def log_by(make: Any) -> None:
        handler = make()
        # A handler tells nobody that it failed, unless asked.
        failed: list[Any] = []
        handler.handleError = failed.append
        handler.handle(logging.makeLogRecord({"msg": "users-data"}))
        connected = handler.sock if isinstance(handler, logging.handlers.SocketHandler) else True
        handler.close()
        if failed or connected is None:
            raise ValueError

    url = f"http://127.0.0.1:{port}/?users-data"
    attempt(tried, "http", lambda: urllib.request.urlopen(url, timeout=5).close())
    attempt(tried, "smtp", lambda: smtplib.SMTP(*address, timeout=5).close())
    attempt(tried, "socket log", log_by, lambda: logging.handlers.SocketHandler(*address))
    attempt(tried, "syslog", log_by, lambda: logging.handlers.SysLogHandler(socket_path))
    attempt(tried, "datagram log", log_by, lambda: logging.handlers.DatagramHandler(*address))
    return tried


def forged_credentials() -> Outcomes:
    """S-13: claim to be pid 1 and root."""
    tried: Outcomes = {}
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    forged = struct.pack("=iii", 1, 0, 0)
    message = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)]
    attempt(tried, "pid 1", lambda: ours.sendmsg([b"x"], message))
    return tried


def pass_descriptors(count: int) -> Outcomes:
    """M-08: send sockets in sockets until something gives."""
    tried: Outcomes = {}
    ours, _theirs = socket.socketpair()
    kept = []

    def send() -> None:
        for _ in range(count):
            kept.append(socket.socketpair())
            rights = array.array("i", [s.fileno() for s in kept[-1]])
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            for sock in kept[-1]:
                sock.close()

    ours.setblocking(False)
    attempt(tried, "in flight", send)
    return tried


def children() -> int:
    """How many processes this one sees."""
    return len([name for name in os.listdir("/proc") if name.isdigit()])


def plant_beside(name: str) -> Outcomes:
    """F-09: change a module that others import, or put something beside it; undone at once."""
    import importlib

    tried: Outcomes = {}
    found = importlib.import_module(name).__file__
    if found is None:
        return tried
    folder = os.path.dirname(found)

    def plant() -> None:
        path = f"{folder}/redteam_planted.pth"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)

    attempt(tried, "plant", plant)
    attempt(tried, "change", open_only, found, os.O_WRONLY)
    return tried


def load_library(path: str) -> Outcomes:
    """Z-08: make native code run from a file of one's own."""
    tried: Outcomes = {}
    with open(path, "rb") as file:
        code = file.read()

    def from_file() -> None:
        copy = "/tmp/library.so"
        with open(copy, "wb") as file:
            file.write(code)
        try:
            ctypes.CDLL(copy)
        finally:
            os.unlink(copy)

    def from_memory() -> None:
        descriptor = os.memfd_create("library")
        os.write(descriptor, code)
        ctypes.CDLL(f"/proc/self/fd/{descriptor}")

    attempt(tried, "file", from_file)
    attempt(tried, "memfd", from_memory)
    return tried
