"""The vault as a process: its walls seen from outside, its life and death."""

import contextlib
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import enclave_kernel
import enclave_protocol
from enclave_kernel.vault_process import VaultProcess, VaultStartError
from enclave_protocol.package_errors import PackageFormatError
from tests.support.vault_link import (
    ROOT,
    SYS_PATH,
    VaultLink,
    payload_pid,
    processes_of,
    runtime_dir,
    spawn_vault,
)
from tests.support.vault_packages import load_sealed, spy_package

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="a user of its own needs a root supervisor")


@pytest.fixture
def directory() -> Iterator[Path]:
    path = runtime_dir()
    yield path
    leftovers = list(path.iterdir())
    shutil.rmtree(path)
    assert not leftovers


@pytest.fixture
def vault(directory: Path) -> Iterator[VaultProcess]:
    vault = spawn_vault(directory)
    yield vault
    vault.kill()
    vault.wait()
    vault.session_socket.close()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@needs_root
def test_all_its_processes_are_a_user_of_its_own_without_privileges(vault: VaultProcess) -> None:
    pids = processes_of(vault.pid) | {vault.pid}
    assert len(pids) == 3
    for pid in pids:
        status = status_of(pid)
        (uid,) = set(status["Uid"].split())
        assert int(uid) >= 1_900_000 and set(status["Gid"].split()) == {uid}
        assert status["Groups"] == ""
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        assert {status[name] for name in names} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@needs_root
def test_its_namespaces_are_its_own(vault: VaultProcess) -> None:
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        links = {Path(f"/proc/{pid}/ns/{name}").readlink() for pid in processes_of(vault.pid)}
        assert len(links) == 1 and Path(f"/proc/self/ns/{name}").readlink() not in links
    assert "vault-" not in Path("/proc/self/mounts").read_text()


@needs_root
def test_no_mount_of_it_is_both_writable_and_executable(vault: VaultProcess) -> None:
    lines = Path(f"/proc/{payload_pid(vault.pid)}/mounts").read_text().splitlines()
    mounts = [(line.split()[1], set(line.split()[3].split(","))) for line in lines]
    writable = {target.partition("-")[0] for target, flags in mounts if "rw" in flags}
    assert writable == {"/vault", "/tmp", "/dev/shm", "/proc"}  # noqa: S108
    for target, flags in mounts:
        assert "nosuid" in flags, target
        assert "nodev" in flags or (target.startswith("/dev/") and "noexec" in flags), target
        assert "ro" in flags or "noexec" in flags, target


def test_it_says_what_it_found_standing(vault: VaultProcess) -> None:
    assert vault.walls[-1] == "memory closed to tracing and dumps, no new privileges"
    if IS_ROOT:
        assert vault.walls[:3] == (
            "user and group of its own",
            "no capabilities",
            "cgroup, ipc, mnt, net, pid, uts namespaces",
        )
        assert "system call allow-list" in vault.walls
    else:
        assert len(vault.walls) == 1


@needs_root
def test_only_its_descriptors_are_open(vault: VaultProcess) -> None:
    links = {
        int(entry.name): str(entry.readlink())
        for entry in Path(f"/proc/{payload_pid(vault.pid)}/fd").iterdir()
    }
    assert {links.pop(number) for number in (0, 1, 2)} == {"/dev/null"}
    assert len(links) == 2 and all(link.startswith("socket:") for link in links.values())


def test_nothing_about_it_is_in_its_environment_or_arguments(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LD_PRELOAD_X", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "TORCH_LOGS"):
        monkeypatch.setenv(name, "/nowhere")
    vault = spawn_vault(directory)
    try:
        command = Path(f"/proc/{vault.pid}/cmdline").read_bytes().split(b"\0")
        assert command[1:3] == [b"-I", b"-S"]
        assert all(part.isdigit() or not part for part in command[4:])
        if IS_ROOT:
            environ = Path(f"/proc/{vault.pid}/environ").read_bytes().strip(b"\0").split(b"\0")
            assert {entry.split(b"=")[0] for entry in environ} == {
                *(b"PATH", b"LANG", b"ORT_DISABLE_TELEMETRY")
            }
    finally:
        vault.kill()
        vault.wait()
        vault.session_socket.close()


def test_it_has_a_session_of_its_own_and_leaves_no_core(vault: VaultProcess) -> None:
    assert os.getsid(vault.pid) == vault.pid
    limits = Path(f"/proc/{vault.pid}/limits").read_text()
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]


def test_its_memory_is_closed_to_its_own_user(vault: VaultProcess) -> None:
    # PR_SET_DUMPABLE 0 makes root the owner of what /proc shows of it.
    assert Path(f"/proc/{vault.pid}/mem").stat().st_uid == 0
    assert stat.S_IMODE(Path(f"/proc/{vault.pid}/fd").stat().st_mode) == 0o500


def test_killed_it_is_gone_with_all_it_had(directory: Path) -> None:
    vault = spawn_vault(directory)
    vault.kill()
    death = vault.wait()
    assert death.returncode == -signal.SIGKILL
    assert death.reason == "it was unloaded or stopped"
    assert not Path(f"/proc/{vault.pid}").exists()
    assert not list(directory.iterdir())
    assert vault.session_socket.recv(1) == b""
    vault.session_socket.close()
    vault.kill()
    vault.interrupt()


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return not status_of(pid)["State"].startswith("Z")
    except OSError:
        return False


def descendants_of(pid: int) -> set[int]:
    """The living processes below a process, by our numbers."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int(status_of(int(folder.name))["PPid"])
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        parent = ahead.pop()
        below = [child for child, its in parents.items() if its == parent]
        found.update(below)
        ahead += below
    return {child for child in found if is_alive(child)}


@pytest.mark.parametrize(
    "first", ["pass", pytest.param("os.setsid()", marks=needs_root, id="daemon")]
)
def test_what_a_package_forked_is_gone_with_its_vault(tmp_path: Path, first: str) -> None:
    with VaultLink() as link:
        spy = load_sealed(link, spy_package(), tmp_path).proxy
        (vault_id, vault) = next(iter(link.vaults.items()))
        before = descendants_of(vault.pid)
        assert spy.run(
            f"import os, time\nresult = os.fork()\n"
            f"if not result:\n    {first}\n    while True: time.sleep(60)"
        )
        forked = descendants_of(vault.pid) - before
        assert len(forked) == 1
        link.unload(vault_id)
        assert link.death_reason(vault_id) == "it was unloaded or stopped"
        deadline = time.monotonic() + 5
        while any(map(is_alive, forked | before)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_alive, forked | before))


@pytest.mark.parametrize(
    ("signum", "reason"), [(signal.SIGKILL, "out of memory"), (signal.SIGSEGV, "SIGSEGV")]
)
def test_the_reason_of_its_death_is_told(
    directory: Path, signum: signal.Signals, reason: str
) -> None:
    vault = spawn_vault(directory)
    os.kill(vault.pid, signum)
    death = vault.wait()
    vault.session_socket.close()
    assert death.returncode == -signum and reason in death.reason


def test_it_ends_when_the_notebook_does(directory: Path) -> None:
    vault = spawn_vault(directory)
    package = spy_package()
    vault.start(package.header_raw, bytearray(package.key), now_ms=1)
    vault.session_socket.close()
    assert vault.wait().returncode == 0


def test_the_data_key_is_wiped_and_a_bad_header_refused(directory: Path) -> None:
    package = spy_package()
    for header, error in (
        (package.header_raw, None),
        (package.header_raw + b"\0", PackageFormatError),
        (b"nonsense" * 10, PackageFormatError),
    ):
        vault = spawn_vault(directory)
        key = bytearray(package.key)
        try:
            if error is None:
                vault.start(header, key, now_ms=1)
            else:
                with pytest.raises(error):
                    vault.start(header, key, now_ms=1)
            assert key == bytes(32)
        finally:
            vault.kill()
            vault.wait()
            vault.session_socket.close()


def test_a_vault_that_is_dead_cannot_be_started(directory: Path) -> None:
    package = spy_package()
    vault = spawn_vault(directory)
    os.kill(vault.pid, signal.SIGKILL)
    vault.wait()
    with pytest.raises(VaultStartError):
        vault.start(package.header_raw, bytearray(package.key), now_ms=1)
    vault.session_socket.close()


def test_it_dies_with_its_supervisor(directory: Path) -> None:
    parent_end, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        # A supervisor that is killed: it cannot clean up.
        vault = spawn_vault(directory)
        os.write(child_end, str(vault.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(child_end)
    vault_pid = int(os.read(parent_end, 20))
    os.close(parent_end)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{vault_pid}").exists() and time.monotonic() < deadline:
        if status_of(vault_pid)["State"].startswith("Z"):
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{vault_pid}").exists()
    # Only what the killed supervisor had no time for is left: an empty mount point.
    for folder in directory.iterdir():
        if IS_ROOT:
            folder.rmdir()
        else:
            shutil.rmtree(folder)


@needs_root
def test_code_in_a_closed_folder_is_reached_and_nothing_beside_it(tmp_path: Path) -> None:
    """The interpreter's packages below /root, say, with a supervisor that root started there."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret.txt").write_text("the user's own")
    for package in (enclave_kernel, enclave_protocol):
        source = Path(package.__path__[0])
        shutil.copytree(source, home / "deep" / "code" / source.name)
    runtime = home / "runtime"
    runtime.mkdir()
    home.chmod(0o700)
    ours = {str(Path(package.__path__[0]).parent) for package in (enclave_kernel, enclave_protocol)}
    sys_path = [str(home / "deep" / "code"), *(path for path in SYS_PATH if path not in ours)]
    vault = VaultProcess.spawn(
        uid=1_899_999, gid=None, runtime_dir=runtime, sys_path=sys_path, memory_limit=None
    )
    try:
        seen = Path(f"/proc/{vault.pid}/root{home}")
        assert {entry.name for entry in seen.iterdir()} == {"deep"}
        assert (seen / "deep" / "code" / "enclave_kernel" / "nsm.py").is_file()
        with pytest.raises(OSError, match="Read-only"):
            (seen / "deep" / "code" / "planted.py").write_text("")
        assert {entry.name for entry in home.iterdir()} == {"deep", "runtime", "secret.txt"}
    finally:
        vault.kill()
        vault.wait()
        vault.session_socket.close()
    assert not list(runtime.iterdir())


@needs_root
def test_packages_that_only_their_owner_may_read_are_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(VaultStartError, match=f"cannot read {closed}"):
        VaultProcess.spawn(
            uid=1_899_997,
            gid=None,
            runtime_dir=tmp_path,
            sys_path=[*SYS_PATH, str(closed)],
            memory_limit=None,
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["closed"]


def test_unreadable_packages_are_named(directory: Path) -> None:
    missing = str(ROOT / "no-such-folder")
    with pytest.raises(VaultStartError, match="no-such-folder"):
        VaultProcess.spawn(
            uid=1_899_998 if IS_ROOT else None,
            gid=None,
            runtime_dir=directory,
            sys_path=[*SYS_PATH, missing],
            memory_limit=None,
        )


def test_ctrl_c_while_it_starts_leaves_nothing(directory: Path) -> None:
    """As in `enclave-owner try`, whose own process starts it."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            spawn_vault(directory)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not list(directory.iterdir())
    assert children.read_text() == before
