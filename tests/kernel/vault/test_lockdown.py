"""What a package sees of its own process."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed, spy_package

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a user of its own needs a root supervisor"
)


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with VaultLink() as link:
        yield load_sealed(link, spy_package(), tmp_path_factory.mktemp("spy")).proxy


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
                lambda: os.kill(1, 9), lambda: open("/proc/self/mem", "rb"),
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
def test_it_has_no_network(spy: Any) -> None:
    code = """
import socket
result = []
for target in (("127.0.0.1", 80), ("169.254.169.254", 80)):
    try:
        socket.create_connection(target, 1)
        result.append("reached")
    except OSError as error:
        result.append(error.errno)
result.append([name for _, name in socket.if_nameindex()])
"""
    first, second, interfaces = spy.run(code)
    assert first == second == 101  # ENETUNREACH
    assert set(interfaces) <= {"lo", "sit0", "tunl0", "ip6tnl0"}


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


def test_nothing_of_it_outlives_it(spy: Any) -> None:
    # A child in its process group, as multiprocessing makes them, is the supervisor's to kill.
    code = "import os, time\npid = os.fork()\nif not pid:\n    time.sleep(60)\nresult = pid"
    child = spy.run(code)
    assert os.getpgid(child) != os.getpgid(0)
    spy._client.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    pytest.fail("a child of the vault is still running")
