"""What a package sees of its own process."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vault_link import VaultLink, processes_of
from tests.support.vault_packages import load_sealed, spy_package

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a user of its own needs a root supervisor"
)


@pytest.fixture(scope="module")
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture(scope="module")
def spy(link: VaultLink, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_sealed(link, spy_package(), tmp_path_factory.mktemp("spy")).proxy


def test_its_environment_is_built_from_nothing(spy: Any) -> None:
    code = "import os, sys\nresult = [list(os.environ), sys.argv, sys.flags.isolated, os.getcwd()]"
    names, argv, isolated, cwd = spy.run(code)
    expected = {"HOME", "LANG", "LC_CTYPE", "ORT_DISABLE_TELEMETRY", "PATH", "TMPDIR"}
    assert set(names) <= expected
    assert argv == [""] and isolated == 1 and "/vault-" in cwd


@needs_root
def test_it_cannot_become_anything_else(spy: Any) -> None:
    code = """
import ctypes, os
result = []
for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("/"),
                lambda: open("/proc/self/mem", "rb"), lambda: open("/proc/1/mem", "rb"),
                lambda: open("/proc/self/environ", "rb"), lambda: os.mknod("x", 0o20600, 259)):
    try:
        attempt()
        result.append("possible")
    except OSError as error:
        result.append(None)
result.append(ctypes.CDLL(None).unshare(0x00020000))
"""
    assert spy.run(code) == [None] * 7 + [-1]


@needs_root
def test_its_large_files_are_in_huge_pages(spy: Any) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists():
        pytest.skip("this kernel has no huge pages for a tmpfs")
    code = "result = [line for line in open('/proc/self/mountinfo') if '/vault-' in line]"
    assert [line for line in spy.run(code) if "huge=within_size" in line]


@needs_root
def test_it_has_no_sockets(spy: Any) -> None:
    code = """
import socket
result = []
for family in (1, 2, 10, 16, 17, 38, 40):  # unix, inet, inet6, netlink, packet, alg, vsock
    for kind in (1, 2, 3):
        try:
            socket.socket(family, kind)
            result.append(family)
        except PermissionError:
            pass
try:
    socket.socketpair(2)
    result.append("socketpair")
except PermissionError:
    pass
one, other = socket.socketpair()
one.send(b"pairs work")
result.append(other.recv(10))
pair = socket.socketpair(1, socket.SOCK_DGRAM)[0]
try:
    pair.sendto(b"x", b"\\0probe")
except PermissionError:
    result.append("no address")
"""
    assert spy.run(code) == [b"pairs work", "no address"]


@needs_root
def test_its_files_are_on_its_own_tmpfs_where_nothing_executes(spy: Any) -> None:
    code = """
import os, subprocess, tempfile
path = os.path.join(tempfile.gettempdir(), "tool")
with open(path, "w") as file:
    file.write("#!/bin/sh\\n")
os.chmod(path, 0o700)
try:
    subprocess.run([path])
    result = "ran"
except PermissionError:
    result = os.stat(path).st_uid == os.getuid()
"""
    assert spy.run(code) is True


@needs_root
def test_signals_stay_inside(spy: Any) -> None:
    code = """
import os
for number in (9, 15, 19):
    os.kill(1, number)
result = [os.getpid(), os.getppid()]
for pid in (-1, 1000, 4194303):  # -1: all but itself and init, and there is nobody
    try:
        os.kill(pid, 9)
        result.append(pid)
    except ProcessLookupError:
        pass
"""
    assert spy.run(code) == [2, 1]


def test_nothing_of_it_outlives_it(spy: Any, link: VaultLink) -> None:
    (vault,) = link.vaults.values()
    # A child in its process group, as multiprocessing makes them; as root also a daemon, whose
    # parent is gone and whose session is its own.
    code = """
import os, time
if not os.fork():
    if os.getuid() > 1_000_000:
        os.setsid()
        if os.fork():
            os._exit(0)
    time.sleep(60)
"""
    before = processes_of(vault.pid)
    group = {vault.pid} if os.geteuid() else set()
    spy.run(code)
    after = wait_for(lambda: processes_of(vault.pid) - before or group)
    assert after
    spy._client.close()
    assert wait_for(lambda: not any(is_running(pid) for pid in after | before))


def wait_for(condition: Callable[[], Any], timeout_s: float = 5) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
