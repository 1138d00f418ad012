"""A gateway that root made for a group: users of it, strangers, and each other's kernels.

Directories as infra/systemd/enclave.tmpfiles makes them, and the gateway as its own user, under the
system call filter and the other rules of its unit.
"""

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_parent_gateway.errors import RuntimeDirError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from tests.support.enclave_home import wait_until
from tests.support.nitro_home import NitroHome
from tests.support.project_wheel import ROOT
from tests.support.sealed_package import seal_package
from tests.support.under_unit import SYSTEMD_ANALYZE, under_unit
from tests.support.user_notebook import UserNotebook

_GATEWAY, _GROUP, _ANNA, _BERT, _STRANGER = 64101, 64102, 64103, 64104, 64105


def _readable_for_others() -> bool:
    probe = [sys.executable, "-I", "-c", "import enclave_parent_gateway, zmq"]
    done = subprocess.run(probe, user=_ANNA, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not _readable_for_others(),
    reason="only root becomes other users, and these must be able to read this environment",
)


class Shared(NitroHome):
    """As systemd's units have it: /run/enclave and /var/lib/enclave under other names."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        root.chmod(0o755)
        self.runtime = Path(tempfile.mkdtemp(prefix="enclave-test-", dir="/run"))
        self.state = root / "state"
        for folder, mode in ((self.runtime, 0o750), (self.runtime / "k", 0o750)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
            os.chown(folder, _GATEWAY, _GROUP)
        (self.runtime / "log").mkdir(mode=0o700)
        os.chown(self.runtime / "log", _GATEWAY, _GROUP)
        self.state.mkdir()
        self.state.chmod(0o750)
        os.chown(self.state, _GATEWAY, _GROUP)
        os.chown(self.stand_in, _GATEWAY, _GROUP)
        self.variables |= {
            "ENCLAVE_RUNTIME_DIR": str(self.runtime),
            "ENCLAVE_STATE_DIR": str(self.state),
            "HOME": str(root / "home"),
        }
        (root / "home").mkdir()
        (root / "home").chmod(0o777)
        for name in ("jupyter", "ipython", "config"):
            (root / name).mkdir()
            (root / name).chmod(0o777)

    def popen(self, uid: int, command: list[str], *, group: bool = True) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            env=self.environ,
            user=uid,
            group=_GROUP if uid == _GATEWAY else uid,
            extra_groups=[_GROUP] if group else [],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if uid == _GATEWAY else subprocess.PIPE,
            text=True,
            cwd="/" if uid != _GATEWAY else ROOT,
        )

    def as_user(
        self, uid: int, *arguments: str, group: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        process = self.popen(uid, self.command(*arguments), group=group)
        out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def gateway(self) -> "subprocess.Popen[str]":
        """Start it as its unit does."""
        command = [sys.executable, "-I", "-m", "enclave_parent_gateway.gateway"]
        command += ["--runtime-dir", str(self.runtime), "--state-dir", str(self.state)]
        command += ["--endpoint", f"unix:{self.stand_in}/16_901", "--backend", "nitro"]
        if SYSTEMD_ANALYZE is not None:
            command = under_unit("enclave-gateway.service", command)
        process = self.popen(_GATEWAY, command)
        assert wait_until(lambda: (self.runtime / "gateway.sock").exists(), 20)
        return process


def _notebook(shared: Shared, uid: int) -> UserNotebook:
    return UserNotebook(sys.executable, lambda command: shared.popen(uid, list(command)))


def _kernels_seen_by(shared: Shared, uid: int) -> set[str]:
    done = shared.as_user(uid, "status", "--json")
    assert done.returncode == 0, done.stderr
    return {kernel["kernel_id"] for kernel in json.loads(done.stdout)["kernels"]}


@pytest.fixture
def shared() -> Iterator[Shared]:
    home = Shared(Path(tempfile.mkdtemp(prefix="enc", dir="/tmp")))
    gateway = home.gateway()
    machine = None
    try:
        arguments = ("--image", str(home.image), "--no-gateway", "--cid", "16", "--wait")
        machine = home.popen(_GATEWAY, home.command("up", *arguments))
        assert wait_until(lambda: home.as_user(_GATEWAY, "status").returncode == 0, 60), (
            machine.poll(),
            machine.communicate()[0] if machine.poll() is not None else "",
        )
        # On an instance it is AWS's, which everybody has.
        certificate = (home.stand_in / "root.pem").read_bytes()
        (home.stand_in / "root.pem").unlink()
        (home.stand_in / "root.pem").write_bytes(certificate)
        yield home
    finally:
        for process in (machine, gateway):
            if process is not None:
                process.terminate()
                process.communicate(timeout=30)
        left = home.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home.runtime, ignore_errors=True)
        shutil.rmtree(home.root, ignore_errors=True)
        assert not left


def test_users_of_one_gateway(shared: Shared) -> None:
    anna, bert = _notebook(shared, _ANNA), _notebook(shared, _BERT)
    assert anna.run("x = 1; print('anna')") == "anna\n"
    assert bert.run("print('x' in globals())") == "False\n"

    # Each sees their own kernels; the administrator all.
    seen = {uid: _kernels_seen_by(shared, uid) for uid in (_ANNA, _BERT, _GATEWAY)}
    assert seen[_ANNA] == {anna.info["id"]} and seen[_BERT] == {bert.info["id"]}
    assert seen[_GATEWAY] == seen[_ANNA] | seen[_BERT]

    # Nobody reaches another's kernel, neither its channels nor through the gateway.
    attack = f"""
import socket, sys
from pathlib import Path
from enclave_parent_gateway.api import *
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_protocol.messages import Done, Shutdown
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(10)
sock.connect({anna.info["ip"] + "-1"!r})
try:
    print("channel", sock.recv(100))
except ConnectionResetError:
    print("channel", b"")
slot = {anna.info["id"].rpartition("-")[0]!r}
launch = Launch(slot, b"k" * 32, "hmac-sha256", "/", {{}})
for request in (SignalSlot({anna.info["id"]!r}, 9), ForgetKernel(slot), launch, Shutdown(),
                PollKernel({anna.info["id"]!r}), KeepRunning(1.0), HoldSlot(slot)):
    try:
        ask_blocking(Path({str(shared.runtime / "gateway.sock")!r}), request, Done)
        print("DONE", type(request).__name__)
    except Exception as error:
        print(type(request).__name__, getattr(error, "kind", type(error).__name__))
"""
    tried = shared.popen(_BERT, [sys.executable, "-c", attack])
    out, err = tried.communicate(timeout=60)
    lines = out.splitlines()
    assert lines[0] == "channel b''", out + err
    assert len(lines) == 8 and all(line.endswith(" NotPermittedError") for line in lines[1:]), out
    assert anna.run("print(x)") == "1\n"

    # A user's commands say who may.
    for command, hint in (
        ("up", "sudo systemctl start enclave"),
        ("down", "sudo systemctl stop enclave"),
        ("logs", "sudo journalctl -u enclave-gateway"),
        ("trust", "sudo -u enclave enclave trust"),
    ):
        done = shared.as_user(_ANNA, command)
        assert done.returncode == 1 and hint in done.stderr, done
        assert done.stderr.count("\n") == 1
    denied = shared.as_user(_ANNA, "proxy", "allow", "pypi")
    assert denied.returncode == 1
    assert shared.as_user(_ANNA, "attest").returncode == 0
    for notebook in (anna, bert):
        notebook.close()
    assert not list((shared.runtime / "k").iterdir())


def test_a_script_of_a_user(shared: Shared) -> None:
    """Up to the release of the key: there is no KMS here."""
    manifest = '[package]\nname = "app"\nversion = "1"\n[scripts]\nrun = { file = "run.py" }\n'
    package = seal_package({"run.py": "print(1)"}, manifest).write(shared.root / "app.encrypted")
    package.chmod(0o644)
    done = shared.as_user(_ANNA, "run", "-f", str(package), "-s", "run", "--unsigned", "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["ended"]) == (125, "failed"), done.stderr
    assert summary["error"] not in ("NotPermittedError", "KernelLaunchError", "SessionLostError")
    assert "app.encrypted: " in summary["reason"]
    assert _kernels_seen_by(shared, _GATEWAY) == set()
    assert not list((shared.runtime / "k").iterdir())


def test_a_killed_gateway_still_knows_whose_kernels_they_are(shared: Shared) -> None:
    anna = _notebook(shared, _ANNA)
    assert anna.run("x = 1; print(1)") == "1\n"
    pids = [pid for pid, line in shared.processes().items() if ".gateway " in line]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    again = shared.gateway()
    try:
        assert wait_until(lambda: shared.as_user(_GATEWAY, "status").returncode == 0, 20)
        assert anna.run("print(x)") == "1\n"
        assert _kernels_seen_by(shared, _ANNA) == {anna.info["id"]}
        assert _kernels_seen_by(shared, _BERT) == set()
        anna.close()
    finally:
        again.terminate()
        again.communicate(timeout=30)


def test_strangers_have_no_way_in(shared: Shared) -> None:
    done = shared.as_user(_STRANGER, "status", group=False)
    assert done.returncode != 0
    assert "up" not in done.stdout
    for path in (shared.runtime, shared.runtime / "k", shared.state):
        assert stat.S_IMODE(path.stat().st_mode) == 0o750
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in shared.runtime.iterdir()}
    assert modes["gateway.sock"] == 0o660 and modes["enclave.json"] == 0o640
    assert modes["log"] == 0o700
    # What is not for the group: nothing else of the gateway's has a bit for it.
    shared_names = {"gateway.sock", "enclave.json", "k"}
    assert not [name for name, mode in modes.items() if mode & 0o077 and name not in shared_names]


@pytest.mark.parametrize("mode", [0o770, 0o755, 0o751, 0o710])
def test_only_a_directory_that_the_group_can_only_enter(
    mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="enclave-test-", dir="/run"))
    try:
        os.chown(folder, _GATEWAY, _GROUP)
        folder.chmod(mode)
        monkeypatch.setenv("ENCLAVE_RUNTIME_DIR", str(folder))
        with pytest.raises(RuntimeDirError, match=f"belongs to uid {_GATEWAY}"):
            EnclavePaths.from_environment()
        folder.chmod(0o750)
        assert EnclavePaths.from_environment().owner == _GATEWAY
    finally:
        folder.rmdir()


def test_nobody_but_root_makes_a_shared_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp, and in directories of other users, an attacker could."""
    with tempfile.TemporaryDirectory(prefix="enc", dir="/tmp") as outer:
        folder = Path(outer) / "run"
        for parent_owner in (_ANNA, 0):
            # The second: root's own, but below /tmp, where others may make directories.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            folder.chmod(0o750)
            os.chown(folder, _GATEWAY, _GROUP)
            os.chown(outer, parent_owner, parent_owner)
            monkeypatch.setenv("ENCLAVE_RUNTIME_DIR", str(folder))
            with pytest.raises(RuntimeDirError, match="belongs to uid"):
                EnclavePaths.from_environment()
        os.chown(outer, 0, 0)


def test_this_machine_has_no_such_users() -> None:
    """Or these tests would run as somebody."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    assert not taken & {_GATEWAY, _ANNA, _BERT, _STRANGER}
    assert (ROOT / "infra" / "systemd").is_dir()
