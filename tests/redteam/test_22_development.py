"""THREATS E.22: enclaves on a developer's machine, and how much of a boundary each of them is."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from enclave_kernel.vault_process import VaultStartError
from enclave_protocol.messages import EnclaveStatus, StatusRequest
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import achieved, spawner
from tests.support.enclave_home import EnclaveHome
from tests.support.supervisor_process import Refused, supervisor_process
from tests.support.vault_link import ROOT, spawn_vault

_DEVELOPER = 1_980_007
_CAP_SYS_ADMIN, _PR_CAPBSET_DROP = 21, 24
_AS_SOMEBODY = """
import json, sys, time
from pathlib import Path
from enclave_protocol.messages import StatusRequest
from tests.support.supervisor_process import supervisor_process
with supervisor_process(Path(sys.argv[1])) as supervisor, supervisor.control() as control:
    walls = ()
    while not any(wall.startswith("vault: ") and "not checked" not in wall for wall in walls):
        walls = control.request(StatusRequest()).isolation
        time.sleep(0.02)
    (vault,) = [
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if b"bootstrap.py" in entry.read_bytes()
        and entry.with_name("stat").read_text().split()[3] == str(supervisor.pid)
    ]
    print(json.dumps([list(walls), vault]), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Ordinary:
    """An enclave that somebody started who is not root.

    Attributes:
        isolation: What it says of itself.
        vault: Its spare vault's process.
    """

    isolation: list[str]
    vault: int


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Ordinary]:
    folder = Path(tempfile.mkdtemp(prefix="dev-", dir="/tmp"))
    os.chown(folder, _DEVELOPER, _DEVELOPER)
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", _AS_SOMEBODY, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        user=_DEVELOPER,
        group=_DEVELOPER,
        extra_groups=[],
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line and ROOT.is_relative_to(Path.home()):
                pytest.skip("nobody else may read this copy of the project")
            yield Ordinary(*json.loads(line))
        finally:
            process.stdin.close()
            process.wait(30)
            shutil.rmtree(folder)


@needs_root
def test_g01_root_reads_everything(modern: Arena, enclave: EnclaveHome) -> None:
    """On one's own machine: the recipe is the same, root is stronger, and it is said everywhere."""
    pid = modern.payload_pid
    start = int(Path(f"/proc/{pid}/maps").read_text().partition("-")[0], 16)
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(start)
        assert len(memory.read(4096)) == 4096
    assert "NOT CONFIDENTIAL" in enclave.run("status").stdout


@needs_root
def test_g03_without_root_there_is_no_boundary(ordinary: Ordinary, modern: Arena) -> None:
    """It claims no user of its own, and has none: signals reach the vault, its memory is closed."""
    told = "\n".join(ordinary.isolation)
    assert "no boundary without root" in told
    for claim in ("of its own", "namespaces", "read-only", "allow-list", "deny-list", "control gr"):
        assert claim not in told
    same_user = modern.plain(_DEVELOPER)
    with modern.victim(_DEVELOPER) as victim:
        arguments = victim.pid, victim.address, victim.secret
        assert achieved(same_user.run(attacks.memory_file, *arguments)) == {"read", "write"}
        assert achieved(same_user.run(attacks.ptrace, victim.pid))
    memory = same_user.run(attacks.memory_file, ordinary.vault, 4096, "00")
    assert set(memory.values()) == {"EACCES"}
    assert achieved(same_user.run(attacks.ptrace, ordinary.vault)) == set()
    assert achieved(same_user.run(attacks.tamper, ordinary.vault)) >= {"sched_setaffinity"}
    assert "kill" in achieved(same_user.run(attacks.send_signals, ordinary.vault))


def namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


@needs_root
def test_g04_g05_no_user_namespaces(arena: Arena, notebook: HostileNotebook) -> None:
    """Whoever owns one has all capabilities over what is in it: nothing here is in one."""
    for pid in (arena.payload_pid, notebook.vault_pid, notebook.pid):
        assert namespace(pid, "user") == namespace("self", "user")
        assert namespace(pid, "net") != namespace("self", "net")


@needs_root
def test_g08_where_walls_cannot_be_put_up() -> None:
    """In a container root may lack the right to mount: nothing runs with fewer walls than told."""
    with (
        spawner() as made,
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
    ):
        folder = Path(directory)
        folder.chmod(0o711)
        vault = made.do(spawn_vault, folder)
        vault.kill()
        vault.wait()
        vault.session_socket.close()
        libc = ctypes.CDLL(None)
        drop = ctypes.c_ulong(_CAP_SYS_ADMIN)
        assert made.do(libc.prctl, _PR_CAPBSET_DROP, drop, 0, 0, 0) == 0
        with pytest.raises(VaultStartError):
            made.do(spawn_vault, folder)
        running = supervisor_process(folder)
        supervisor = made.do(running.__enter__)
        try:
            with supervisor.control() as control:
                with pytest.raises(Refused):
                    control.request(supervisor.launch_request())
                status = control.request(StatusRequest())
                assert isinstance(status, EnclaveStatus)
                assert set(status.isolation) <= {
                    *("vault: not checked yet", "notebook: not checked yet"),
                    "memory limit per kernel",
                }
        finally:
            running.__exit__(None, None, None)
