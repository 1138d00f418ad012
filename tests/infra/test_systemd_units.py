"""infra/systemd: units that systemd takes, hardened, with the directories that our code takes."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_parent_gateway.runtime_dir import SYSTEM_RUNTIME, SYSTEM_STATE
from enclave_protocol.vsock_ports import SUPERVISOR_PORT
from tests.support.project_wheel import ROOT
from tests.support.under_unit import SYSTEMD_ANALYZE, allowed_calls, read_unit, under_unit

_FOLDER = ROOT / "infra" / "systemd"
_UNITS = ("enclave.service", "enclave-gateway.service")
_MOST_EXPOSURE = 2.0
"""systemd-analyze's figure, 0 to 10; an unhardened service has 9.6."""

with_systemd = pytest.mark.skipif(
    SYSTEMD_ANALYZE is None, reason="systemd is not here; type: .ci/apt-install systemd"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units as they are, but for the programs, which are not installed here."""
    for name in _UNITS:
        text = (_FOLDER / name).read_text()
        assert "/opt/enclave/bin/" in text
        text = re.sub(r"/opt/enclave/bin/\w+", shutil.which("true") or "/bin/true", text)
        (tmp_path / name).write_text(text)
    return tmp_path


@with_systemd
@pytest.mark.parametrize("unit", _UNITS)
def test_systemd_takes_them(folder: Path, unit: str) -> None:
    """All that it says about any of them would be printed: an unknown key, a bad value."""
    done = subprocess.run(
        [str(SYSTEMD_ANALYZE), "verify", "--man=no", "--recursive-errors=no", str(folder / unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@with_systemd
@pytest.mark.parametrize("unit", _UNITS)
def test_exposure(folder: Path, unit: str) -> None:
    command = [str(SYSTEMD_ANALYZE), "security", "--offline=true", "--no-pager"]
    done = subprocess.run(
        [*command, f"--threshold={_MOST_EXPOSURE * 10:.0f}", str(folder / unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert match is not None, done.stderr
    assert float(match[1]) <= _MOST_EXPOSURE and done.returncode == 0


@with_systemd
@pytest.mark.parametrize("unit", _UNITS)
def test_no_call_that_would_give_more_rights(unit: str) -> None:
    allowed = allowed_calls(read_unit(unit)["SystemCallFilter"])
    dangerous = (
        "ptrace process_vm_writev pidfd_getfd mount bpf kexec_load init_module setuid add_key"
    )
    assert allowed & set(dangerous.split()) == set()
    assert read_unit(unit)["RestrictNamespaces"] == ["yes"]
    assert {"socket", "pidfd_open", "prlimit64"} <= allowed


_PROBE = """
import mmap, os, socket
socket.getaddrinfo("localhost", 443, type=socket.SOCK_STREAM)
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_VSOCK):
    socket.socket(family).close()
for name, attempt in {
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "chroot": lambda: os.chroot("/"),
    "code in writable memory": lambda: mmap.mmap(-1, 4096, prot=7),
}.items():
    try:
        attempt()
    except OSError:
        continue
    print(name)
"""


@with_systemd
def test_what_the_gateways_rules_leave_of_a_process() -> None:
    """The same rules that tests/integration/test_shared_gateway.py runs a gateway under."""
    command = under_unit("enclave-gateway.service", [sys.executable, "-c", _PROBE])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("unit", _UNITS)
def test_an_unprivileged_user_of_its_own(unit: str) -> None:
    service = read_unit(unit)
    assert service["User"] == service["Group"] == ["enclave"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == [""]
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["ProtectSystem"] == ["strict"]


def test_only_one_of_them_has_the_device() -> None:
    gateway, enclave = read_unit("enclave-gateway.service"), read_unit("enclave.service")
    assert "SupplementaryGroups" not in gateway and "DeviceAllow" not in gateway
    assert gateway["PrivateDevices"] == ["yes"]
    assert enclave["SupplementaryGroups"] == ["ne"]
    assert enclave["DeviceAllow"] == ["/dev/nitro_enclaves rw"]
    assert enclave["DevicePolicy"] == ["closed"]


def test_the_gateway_tells_users_apart() -> None:
    """In a user namespace all of them would be nobody, and own each other's kernels."""
    assert "PrivateUsers" not in read_unit("enclave-gateway.service")


def test_it_looks_where_the_enclave_is() -> None:
    (gateway,) = read_unit("enclave-gateway.service")["ExecStart"]
    (enclave,) = read_unit("enclave.service")["ExecStart"]
    assert f"--endpoint vsock:${{ENCLAVE_CID}}:{SUPERVISOR_PORT} " in gateway
    assert f"--runtime-dir {SYSTEM_RUNTIME} --state-dir {SYSTEM_STATE} " in gateway
    assert "--cid ${ENCLAVE_CID} --no-gateway --wait" in enclave
    for unit in _UNITS:
        assert "ENCLAVE_CID=16" in read_unit(unit)["Environment"]


@pytest.mark.parametrize("unit", _UNITS)
def test_the_programs_know_their_options(unit: str) -> None:
    (line,) = read_unit(unit)["ExecStart"]
    program, *words = line.split()
    start = ["-m", "enclave_parent_gateway"] if program.endswith("/enclave") else []
    # Up to the first option of its own: -m MODULE, or the subcommand.
    start += words[: words.index("--runtime-dir")] if "--runtime-dir" in words else [words[0]]
    shown = subprocess.run(
        [sys.executable, *start, "--help"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    options = [word for word in words if word.startswith("--")]
    assert len(options) >= 5
    for option in options:
        assert re.search(rf"(?<!\S){option}\b", shown.stdout), option


def test_they_come_back() -> None:
    assert read_unit("enclave-gateway.service")["Restart"] == ["always"]
    assert read_unit("enclave.service")["Restart"] == ["on-failure"]
    # Its end must not be the enclave's.
    text = (_FOLDER / "enclave.service").read_text()
    assert not re.search("^(Requires|BindsTo|PartOf)=", text, re.MULTILINE)


def _installed(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not here; type: .ci/apt-install systemd")
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="users and owners are root's to make")
def test_user_and_directories(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for file in ("passwd", "group"):
        (tmp_path / "etc" / file).touch()
    root = f"--root={tmp_path}"
    sysusers, tmpfiles = _installed("systemd-sysusers"), _installed("systemd-tmpfiles")
    subprocess.run([sysusers, root, str(_FOLDER / "enclave.sysusers")], check=True, timeout=60)
    user = (tmp_path / "etc" / "passwd").read_text().strip().split(":")
    assert user[0] == "enclave" and user[5:] == ["/var/lib/enclave", "/usr/sbin/nologin"]
    subprocess.run(
        [tmpfiles, root, "--create", str(_FOLDER / "enclave.tmpfiles")], check=True, timeout=60
    )
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("run/enclave", "run/enclave/k", "run/enclave/log", "var/lib/enclave")
    }
    assert list(modes.values()) == [0o750, 0o750, 0o700, 0o750]
    for name in modes:
        assert (tmp_path / name).stat().st_uid == int(user[2])


def test_the_wheel_brings_them() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options.data_files"]["share/enclave/systemd"].split()
    assert set(listed) == {f"infra/systemd/{path.name}" for path in _FOLDER.iterdir()}
