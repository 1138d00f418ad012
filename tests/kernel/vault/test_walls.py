"""A hostile package against the walls of a real vault. Each attempt first works without them."""

import _ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.isolation.control_groups import ControlGroupError, ControlGroups, GroupLimits
from enclave_kernel.session.package_failures import VaultDiedError
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed, spy_package

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="these walls need a root supervisor")

X86_64 = os.uname().machine == "x86_64"


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with VaultLink() as link:
        yield load_sealed(link, spy_package(), tmp_path_factory.mktemp("spy")).proxy


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Any]:
    """A vault that may die in the test."""
    with VaultLink() as link:
        yield load_sealed(link, spy_package(), tmp_path).proxy


def outside(code: str) -> str:
    """Run the same code as root and without walls; its result as text, or minus the signal."""
    completed = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(result)"], capture_output=True, text=True, timeout=30
    )
    if completed.returncode < 0:
        return str(completed.returncode)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_its_root_holds_what_the_interpreter_needs_and_cannot_be_written(spy: Any) -> None:
    code = """
import os
result = sorted(os.listdir("/")), sorted(os.listdir("/dev"))
for path in ("/x", "/dev/x", "/usr/lib/x", "/proc/sys/kernel/hostname", os.__file__):
    try:
        open(path, "a").close()
        result += (path,)
    except OSError:
        pass
"""
    root, devices = spy.run(code)
    assert devices == ["full", "null", "random", "shm", "urandom", "zero"]
    assert {"bin", "boot", "home", "media", "mnt", "run", "sbin", "srv", "sys", "var"}.isdisjoint(
        root
    )
    assert sum(name.startswith("vault-") for name in root) == 1


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/etc/shadow", "/sys/kernel", "/dev/tty", "/bin/sh", "/var/log"],
)
def test_what_is_out_there_is_not_in_here(spy: Any, path: str) -> None:
    code = f"import os\nresult = os.path.lexists({path!r}) and os.access({path!r}, os.F_OK)"
    assert outside(code) == "True"
    assert spy.run(code) is False


@pytest.mark.parametrize("name", ["kallsyms", "timer_list", "kcore", "sysrq-trigger", "keys"])
def test_proc_tells_nothing_of_the_kernel(spy: Any, name: str) -> None:
    if not Path(f"/proc/{name}").exists():
        pytest.skip(f"this kernel has no /proc/{name}")
    code = f"""
try:
    with open("/proc/{name}", "rb") as file:
        result = len(file.read(10))
except PermissionError:
    result = 0
"""
    if name not in ("sysrq-trigger", "kcore"):
        assert int(outside(code)) > 0
    assert spy.run(code) == 0


def test_it_sees_no_process_but_its_own(spy: Any) -> None:
    code = "import os\nresult = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())"
    assert len(outside(code).split(",")) > 3
    pids = spy.run(code)
    assert set(pids) <= {1, 2}


def test_its_temporary_files_are_limited_together_and_do_not_execute(spy: Any) -> None:
    code = """
import ctypes, os, shutil, _struct
result = [len({os.statvfs(p).f_fsid for p in ("/tmp", "/dev/shm", os.environ["HOME"])})]
result.append(os.statvfs("/tmp").f_files)
for place in ("/tmp", "/dev/shm", os.environ["HOME"]):
    path = place + "/library.so"
    shutil.copy(_struct.__file__ if hasattr(_struct, "__file__") else SOURCE, path)
    try:
        ctypes.CDLL(path)
        result.append(place)
    except OSError:
        pass
    os.unlink(path)
"""
    code = code.replace("SOURCE", repr(_ctypes.__file__))
    assert spy.run(code) == [1, 131_072]


def test_it_starts_no_program_and_still_forks(spy: Any) -> None:
    code = """
import os, sys, threading
result = []
pid = os.fork()
if not pid:
    try:
        os.execv("/proc/self/exe", ["python"])
    except PermissionError:
        os._exit(7)
    except OSError:
        os._exit(8)
result.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread = threading.Thread(target=result.append, args=("thread",))
thread.start()
thread.join()
"""
    assert spy.run(code) == [7, "thread"]


@pytest.mark.parametrize(
    "call",
    [
        "unshare(0x10000000)",
        "unshare(0x40000000)",
        "setns(0, 0)",
        "mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "umount2(b'/tmp', 2)",
        "chroot(b'/tmp')",
        "ptrace(0, 0, 0, 0)",
        "prctl(4, 1, 0, 0, 0)",
        "prctl(22, 1, 0, 0, 0)",
        "mknod(b'/tmp/x', 0o20600, 259)",
        "setresuid(0, 0, 0)",
        "personality(0x40000)",
        "shmget(1, 4096, 0o1600)",
    ],
)
def test_what_was_taken_cannot_be_taken_back(spy: Any, call: str) -> None:
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
result = [libc.{call}, ctypes.get_errno()]
"""
    assert spy.run(code) == [-1, 1]


def test_the_upper_half_of_an_argument_changes_nothing(spy: Any) -> None:
    code = """
import ctypes, os
number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
values = [ctypes.c_ulong(v) for v in (1 << 32 | 1, 1, 0)]
result = ctypes.CDLL(None).syscall(ctypes.c_long(number), *values)
"""
    assert int(outside(code)) >= 0
    assert spy.run(code) == -1


I386_CALL = """
import ctypes, mmap
# getpid (20) by the i386 entry: mov eax, 20; int 0x80; ret
machine_code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(machine_code)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""


@pytest.mark.skipif(not X86_64, reason="i386 is an ABI of x86_64")
def test_the_i386_entry_is_death(mortal: Any) -> None:
    if int(outside(I386_CALL)) <= 0:
        pytest.skip("this kernel has no i386 entry")
    with pytest.raises(VaultDiedError, match="SIGSYS"):
        mortal.run(I386_CALL)


def test_limits_and_keys(spy: Any) -> None:
    code = """
import resource as r
result = [r.getrlimit(getattr(r, "RLIMIT_" + n)) for n in
          ("CORE", "MSGQUEUE", "NOFILE", "NPROC", "MEMLOCK")]
files = []
try:
    while len(files) < 5000:
        files.append(open("/dev/null"))
except OSError as error:
    result.append(error.errno)
finally:
    for file in files:
        file.close()
"""
    limits = spy.run(code)
    assert limits[:2] == [(0, 0), (0, 0)] and limits[5] == 24
    assert limits[2] == (4096, 4096) and limits[3] == (1024, 1024) and limits[4] == (65536, 65536)


def test_a_vault_out_of_memory_dies_alone_and_says_why(spy: Any, tmp_path: Path) -> None:
    limit = 300 * 2**20
    try:
        groups = ControlGroups(f"enclave-walls-{os.getpid()}", GroupLimits(limit, tasks=64))
    except ControlGroupError as error:
        pytest.skip(str(error))
    try:
        with VaultLink(control_groups=groups) as link:
            small = load_sealed(link, spy_package(), tmp_path).proxy
            (vault,) = link.vaults.values()
            assert any("memory" in wall and "control group" in wall for wall in vault.walls)
            assert small.run("result = len(b'x' * (50 << 20))") == 50 << 20
            with pytest.raises(VaultDiedError, match="more than the 300 MiB of memory"):
                small.run("result = len(b'x' * (400 << 20))")
    finally:
        groups.close()
    assert spy.empty() is None
