"""Attacks on the kernel: privileges, file systems, rare calls, foreign ABIs, devices.

Sent as source to where they run (`places.payload`): the standard library and `attempt` only.
"""

import _thread
import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from typing import Any

from tests.redteam.attempt import (
    Outcomes,
    attempt,
    fate,
    in_child,
    open_only,
    packed,
    read_some,
    system_call,
)

NEW_USER, NEW_NET = 0x10000000, 0x40000000


# Section 10


def user_namespaces() -> Outcomes:
    """K-01: capabilities in a user namespace of one's own, three ways."""
    tried: Outcomes = {}
    attempt(tried, "unshare", lambda: in_child(lambda: system_call("unshare", NEW_USER)))

    def forked(make: Any) -> None:
        pid = make()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    flags = NEW_USER | int(signal.SIGCHLD)
    attempt(tried, "clone", lambda: forked(lambda: system_call("clone", flags, 0, 0, 0, 0)))
    arguments = packed(NEW_USER, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0)
    attempt(tried, "clone3", lambda: forked(lambda: system_call("clone3", arguments, 64)))
    return tried


def file_system_escapes() -> Outcomes:
    """K-02: mounts, roots, and files by handle."""
    tried: Outcomes = {}
    # A root that runs this without walls has a mount namespace for it.
    tmp, none = ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"none")
    kind = ctypes.c_char_p(b"tmpfs")
    attempt(tried, "mount", lambda: system_call("mount", none, tmp, kind, 0, 0))
    attempt(tried, "umount2", lambda: system_call("umount2", tmp, 2))
    attempt(tried, "chroot", lambda: in_child(lambda: system_call("chroot", tmp)))

    def pivot() -> None:
        system_call("mount", none, tmp, kind, 0, 0)
        os.chdir("/tmp")
        system_call("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))

    def enter() -> None:
        descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
        system_call("setns", descriptor, NEW_NET)

    attempt(tried, "setns", lambda: in_child(enter))

    def by_handle() -> None:
        handle = ctypes.create_string_buffer(struct.pack("=Ii", 120, 0), 128)
        mount_id = packed(0)
        system_call("name_to_handle_at", -100, tmp, handle, mount_id, 0)
        descriptor = os.open("/tmp", os.O_RDONLY)
        system_call("open_by_handle_at", descriptor, handle, os.O_RDONLY)

    attempt(tried, "open_by_handle_at", by_handle)
    attempt(tried, "fsopen", lambda: system_call("fsopen", kind, 0))
    attempt(tried, "open_tree", lambda: system_call("open_tree", -100, tmp, 0))
    # Last: it changes the root of whatever is in the mount namespace.
    attempt(tried, "pivot_root", lambda: in_child(pivot))
    return tried


def complex_interfaces() -> Outcomes:
    """K-03: large and young interfaces, where bugs live."""
    tried: Outcomes = {}
    array_map = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 8, 1), 128)
    attempt(tried, "bpf", lambda: system_call("bpf", 0, array_map, 72))
    attempt(tried, "userfaultfd", lambda: system_call("userfaultfd", 0))
    ring = ctypes.create_string_buffer(256)
    attempt(tried, "io_uring_setup", lambda: system_call("io_uring_setup", 4, ring))
    event = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 112, 0), 112)
    attempt(tried, "perf_event_open", lambda: system_call("perf_event_open", event, 0, -1, -1, 0))
    words = ctypes.c_char_p(b"user"), ctypes.c_char_p(b"redteam"), ctypes.c_char_p(b"x")
    attempt(tried, "add_key", lambda: system_call("add_key", *words, 1, -2))
    attempt(tried, "keyctl", lambda: system_call("keyctl", 0, -2, 1))
    attempt(tried, "personality", lambda: in_child(lambda: system_call("personality", 0x40000)))
    reading, writing = os.pipe()
    page = ctypes.create_string_buffer(16)
    vector = packed(ctypes.addressof(page), 16)
    attempt(tried, "vmsplice", lambda: system_call("vmsplice", writing, vector, 1, 0))
    os.close(reading)
    os.close(writing)
    if os.uname().machine == "x86_64":
        table = ctypes.create_string_buffer(64)
        attempt(tried, "modify_ldt", lambda: system_call("modify_ldt", 0, table, 64))
    return tried


def administration() -> Outcomes:
    """K-04: what only an administrator may. The arguments are such that nothing comes of it."""
    tried: Outcomes = {}
    nowhere, nothing = ctypes.c_char_p(b"/redteam-nowhere"), ctypes.c_char_p(b"")
    calls: dict[str, tuple[Any, ...]] = {
        "init_module": (0, 0, nothing),
        "finit_module": (-1, nothing, 0),
        "delete_module": (nowhere, 0),
        "kexec_load": (0, 0, 0, 0xFFFF),
        "reboot": (0, 0, 0, 0),
        "settimeofday": (0, 0),
        "swapon": (nowhere, 0),
        "swapoff": (nowhere,),
        "syslog": (3, ctypes.create_string_buffer(16), 16),
        "sethostname": (ctypes.c_char_p(b"x" * 65), 65),
        "acct": (nowhere,),
    }
    if os.uname().machine == "x86_64":
        calls["iopl"] = (3,)
    for name, arguments in calls.items():
        attempt(tried, name, in_child, system_call, name, *arguments)
    return tried


def i386_socket(family: int) -> int:
    """K-05: socket by the entry of another ABI: mov eax, 359; mov ebx, family; ...; int 0x80."""
    code = b"\x53\xb8\x67\x01\x00\x00\xbb" + struct.pack("<I", family)
    code += b"\xb9\x01\x00\x00\x00\xba\x00\x00\x00\x00\xcd\x80\x5b\xc3"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def i386_fate() -> int:
    """K-05: what becomes of a process that does so."""
    return fate(i386_socket, 1)


def x32_socket() -> Outcomes:
    """K-06: the same by the x32 numbers."""
    tried: Outcomes = {}
    libc = ctypes.CDLL(None, use_errno=True)

    def call() -> None:
        if libc.syscall(ctypes.c_long(0x40000000 + 41), 1, 1, 0) < 0:
            raise OSError(ctypes.get_errno(), "x32")

    attempt(tried, "socket", call)
    return tried


def x32_fate() -> int:
    """K-06: what becomes of a process that does so."""
    return fate(x32_socket)


def wide_arguments(families: list[int]) -> Outcomes:
    """K-07, K-08, V-01, V-11, W-01: sockets of every family, also with bits the kernel ignores."""
    tried: Outcomes = {}
    for family in families:
        for kind in (1, 2, 3, 5):
            for high in (0, 1 << 32):
                name = f"{family} {kind}{' high' if high else ''}"

                def make(family: int = family, kind: int = kind, high: int = high) -> None:
                    os.close(system_call("socket", high | family, high | kind, 0))

                attempt(tried, name, make)
    return tried


def kernel_files(paths: list[str]) -> Outcomes:
    """K-09: read what shows the kernel's memory, log and layout."""
    tried: Outcomes = {}
    for path in paths:

        def look(path: str = path) -> None:
            if os.path.isdir(path):
                if not os.listdir(path):
                    raise OSError(2, "empty")
            else:
                read_some(path)

        attempt(tried, path, look)
    return tried


def make_devices() -> Outcomes:
    """K-10: make a device node of one's own and open it."""
    tried: Outcomes = {}
    for name, major, minor in (("mem", 1, 1), ("nsm", 10, 258), ("null", 1, 3)):

        def make(name: str = name, major: int = major, minor: int = minor) -> None:
            with tempfile.TemporaryDirectory() as folder:
                os.mknod(f"{folder}/{name}", 0o20600, os.makedev(major, minor))

        attempt(tried, f"mknod {name}", make)
    for path in ("/dev/nsm", "/dev/vsock", "/dev/mem", "/dev/ptmx"):
        attempt(tried, path, open_only, path, os.O_RDWR)
    return tried


def set_user_id_program(path: str) -> str:
    """K-11: run a program that is root's and set-user-id; what user it says it was."""
    try:
        done = subprocess.run([path, "-u"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        return type(error).__name__
    return done.stdout.strip()


def keystrokes() -> Outcomes:
    """K-13: push characters into a terminal."""
    tried: Outcomes = {}
    for name, number in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C), ("TIOCSCTTY", 0x540E)):
        attempt(tried, name, fcntl.ioctl, 0, number, b"x")
    character = ctypes.c_char_p(b"x")
    attempt(tried, "high TIOCSTI", system_call, "ioctl", 0, 1 << 32 | 0x5412, character)
    return tried


# Section 12


def fork_many(count: int) -> int:
    """X-01: fork until it fails or `count` are there; how many were."""
    pids: list[int] = []
    try:
        while len(pids) < count:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
    except OSError:
        pass
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return len(pids)


def thread_many(count: int) -> int:
    """X-01: the same with threads, which count as much and cost less."""
    before, done, made = len(os.listdir("/proc/self/task")), threading.Event(), 0
    threading.stack_size(2**16)
    with contextlib.suppress(RuntimeError):
        while made < count:
            _thread.start_new_thread(done.wait, ())
            made += 1
    done.set()
    threading.stack_size(0)
    while len(os.listdir("/proc/self/task")) > before:
        time.sleep(0.01)
    return made


def open_many(count: int) -> int:
    """X-03: open files until it fails or `count` are open; how many were."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
    found: list[int] = []
    try:
        while len(found) < count:
            found.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    finally:
        for descriptor in found:
            os.close(descriptor)
    return len(found)


def spin(processes: int, start: float, end: float) -> float:
    """X-05: compute with many processes, from one moment to another of the clock that all share.

    All on one processor: with others free, nobody would take anything away from anybody.
    Returns the seconds of processor time that they got together.
    """
    before = os.times()
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            # Some kernels share processors out among sessions.
            os.setsid()
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            while time.monotonic() < start:
                time.sleep(0.001)
            while time.monotonic() < end:
                sum(range(1000))
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    after = os.times()
    return after.children_user - before.children_user


def fill_files(folder: str, count: int) -> int:
    """X-04: make links until it fails or `count` are there; how many were."""
    made = 0
    base = tempfile.mkdtemp(dir=folder)
    try:
        while made < count:
            os.symlink("x", f"{base}/{made}")
            made += 1
    except OSError:
        pass
    finally:
        for number in range(made):
            os.unlink(f"{base}/{number}")
        os.rmdir(base)
    return made


def fill_bytes(folder: str, mebibytes: int) -> int:
    """X-04: write until it fails or this much is there; how many MiB were."""
    piece = bytes(2**20)
    written = 0
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            while written < mebibytes:
                file.write(piece)
                file.flush()
                written += 1
        except OSError:
            pass
    return written


def fill_memory_files(mebibytes: int) -> int:
    """X-06: memory in files without a name, which no limit of private memory counts."""
    descriptor = os.memfd_create("flood")
    for number in range(mebibytes):
        os.pwrite(descriptor, bytes(2**20), number * 2**20)
    return mebibytes


def fill_socket_buffers(pairs: int) -> int:
    """X-06: what lies in sockets and pipes that nobody reads; bytes."""
    kept, total = [], 0
    with contextlib.suppress(OSError):
        for _ in range(pairs):
            ours, theirs = socket.socketpair()
            kept.append((ours, theirs))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    total += ours.send(bytes(65536))
    return total


# Sections 20 and 21


def start_programs() -> Outcomes:
    """W-03: run a program, from a file and from memory."""
    tried: Outcomes = {}
    program = os.path.realpath("/proc/self/exe")
    with contextlib.suppress(OSError):
        program = os.readlink("/proc/self/exe")
    attempt(tried, "execve", lambda: in_child(lambda: os.execv(program, ["x", "-V"])))
    attempt(tried, "subprocess", lambda: subprocess.run(["/bin/sh", "-c", ":"], check=True))

    def from_memory() -> None:
        descriptor = os.memfd_create("program", 0)
        os.write(descriptor, b"#!/bin/sh\n")
        os.execve(descriptor, ["x"], {})

    attempt(tried, "memfd", lambda: in_child(from_memory))
    return tried


def regain() -> Outcomes:
    """W-04: become root, and take walls down."""
    tried: Outcomes = {}
    attempt(tried, "setuid", lambda: in_child(lambda: os.setuid(0)))
    attempt(tried, "setgid", lambda: in_child(lambda: os.setgid(0)))
    attempt(tried, "setgroups", lambda: in_child(lambda: os.setgroups([0])))
    attempt(tried, "unshare", lambda: in_child(lambda: system_call("unshare", NEW_NET)))
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    header = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(program)))
    attempt(tried, "seccomp", lambda: in_child(lambda: system_call("seccomp", 1, 0, header)))
    # PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAP_AMBIENT, PR_SET_PTRACER
    for name, option, value in (
        ("dumpable", 4, 1),
        ("filter", 22, 2),
        ("ambient", 47, 2),
        ("tracer", 0x59616D61, -1),
        ("death signal", 1, 0),
        ("subreaper", 36, 1),
    ):

        def change(option: int = option, value: int = value) -> None:
            system_call("prctl", option, value, header if option == 22 else 0, 0, 0)

        attempt(tried, name, in_child, change)
    attempt(tried, "raise limit", lambda: in_child(_raise_limit))
    return tried


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    system_call("prlimit64", 0, resource.RLIMIT_NOFILE, packed(soft, hard + 1), 0)


def files_out_there(paths: list[str]) -> Outcomes:
    """W-05, F-01, F-03: files that are there outside."""
    tried: Outcomes = {}
    for path in paths:
        attempt(tried, path, os.lstat, path)
    return tried


def is_tainted() -> bool:
    """Whether what this process dumped would be a core file."""
    return resource.getrlimit(resource.RLIMIT_CORE)[0] > 0
