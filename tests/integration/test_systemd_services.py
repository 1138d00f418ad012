"""The units of infra/systemd under a systemd that boots, installed as the parent instance's
template and the runbook install them, on stand-ins for nitro-cli and the hardware."""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.enclave_home import wait_until
from tests.support.parent_user_data import parent_user_data, write_parent_tools
from tests.support.project_wheel import ROOT
from tests.support.systemd_machine import SystemdMachine, can_boot, new_systemd_machine
from tests.support.systemd_parent import (
    ENCLAVE,
    STAND_IN,
    install_image,
    install_parent,
    pcr0_of_image,
)
from tests.support.user_notebook import UserNotebook

_PYTHON = "/opt/enclave/bin/python"
_HIDDEN = ("/home", "/root")  # the units' ProtectHome
pytestmark = [
    pytest.mark.skipif(
        not can_boot(),
        reason="only root boots systemd here; if it is not here, type: .ci/apt-install systemd",
    ),
    pytest.mark.skipif(
        any(
            Path(place).is_relative_to(hidden)
            for place in (ROOT, os.path.realpath(sys.executable))
            for hidden in _HIDDEN
        ),
        reason="the stand-ins run from this folder, and the units hide it",
    ),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    """A parent instance after its first boot: gateway, no image."""
    directory = tmp_path_factory.mktemp("tools")
    tools, digest = write_parent_tools(directory)
    with new_systemd_machine() as machine:
        install_parent(machine, parent_user_data(digest), tools)
        shutil.rmtree(directory)
        machine.check("useradd", "--create-home", "stranger")
        # For whom nobody opened it: under the same rules as the enclave's, with another number.
        machine.check("mknod", "--mode=0666", "/dev/other", "c", "10", "251")
        yield machine


@pytest.fixture
def enclave(machine: SystemdMachine) -> SystemdMachine:
    """The same with an image, and everything started as the runbook has it."""
    install_image(machine)
    machine.check("systemctl", "start", "enclave-gateway", "enclave")
    return machine


def _main_pid(machine: SystemdMachine, unit: str) -> int:
    return int(machine.property(unit, "MainPID"))


def _status(machine: SystemdMachine, user: str = "enclave") -> dict[str, object]:
    done = machine.run(ENCLAVE, "status", "--json", user=user)
    status: dict[str, object] = json.loads(done.stdout)
    return status


def _notebook(machine: SystemdMachine) -> UserNotebook:
    return UserNotebook(_PYTHON, lambda command: machine.popen(command, "notebook"))


def _journal(machine: SystemdMachine, unit: str) -> str:
    return machine.check("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


def _processes(machine: SystemdMachine) -> list[str]:
    """Return those of user enclave, but for the stand-in for the hardware."""
    uid = machine.check("id", "-u", "enclave").strip()
    found = []
    for process in machine.processes().values():
        with suppress(FileNotFoundError):
            if re.search(rf"^Uid:\t{uid}\t", (process / "status").read_text(), re.MULTILINE):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if "nitro_hardware" not in line]


def test_before_there_is_an_image(machine: SystemdMachine) -> None:
    """What the runbook checks right after the stack."""
    units = ("nitro-enclaves-allocator.service", "enclave-gateway.service")
    assert machine.check("systemctl", "is-active", *units) == "active\nactive\n"
    machine.check("systemctl", "start", "enclave")
    assert machine.property("enclave", "ConditionResult") == "no"
    assert machine.property("enclave", "ActiveState") == "inactive"
    shown = machine.check("/opt/enclave/bin/jupyter", "kernelspec", "list", user="notebook")
    assert re.search(r"^\s*enclave\s", shown, re.MULTILINE)
    done = machine.run(ENCLAVE, "status", user="notebook")
    assert done.returncode == 3, done
    time.sleep(1.5)  # after a second of silence a gateway takes an enclave for gone
    assert "has ended" not in _journal(machine, "enclave-gateway")


def test_what_the_gateways_process_is(enclave: SystemdMachine) -> None:
    """As the kernel says."""
    process = Path(f"/proc/{enclave.pid_outside(_main_pid(enclave, 'enclave-gateway'))}")
    lines = (process / "status").read_text().splitlines()
    found = {key: value.split() for key, value in (line.split(":", 1) for line in lines)}
    uid, gid = enclave.check("id", "-u", "enclave"), enclave.check("id", "-g", "enclave")
    assert found["Uid"] == uid.split() * 4 and uid != "0\n"
    assert found["Gid"] == gid.split() * 4 and found["Groups"] == gid.split()
    for sets in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[sets][0], 16) == 0
    assert (found["NoNewPrivs"], found["Seccomp"]) == (["1"], ["2"])
    assert found["Umask"] == ["0077"]
    limits = (process / "limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    options = {fields[4]: set(fields[5].split(",")) for fields in mounts}
    assert "ro" in options["/"]
    assert "rw" in options["/run/enclave"] and "rw" in options["/var/lib/enclave"]
    assert "ro" in options["/sys"] and "ro" in options["/home"]
    proc = next(fields[-1] for fields in mounts if fields[4] == "/proc")
    assert {"hidepid=invisible", "subset=pid"} <= set(proc.split(","))
    # What it asked for is in force, and nothing of it was left out for want of a right.
    said = [line for line in enclave.console().splitlines() if "enclave" in line]
    assert not [line for line in said if re.search("(?i)failed|ignoring|not supported", line)]


def _probe(machine: SystemdMachine, unit: str) -> dict[str, str]:
    """Return what a program can do under a unit's rules."""
    probe = ROOT / "tests" / "support" / "unit_probe.py"
    machine.path("/opt/enclave/unit_probe.py").write_bytes(probe.read_bytes())
    text = machine.path(f"/etc/systemd/system/{unit}.service").read_text().replace("\\\n", " ")
    command = f"ExecStart={_PYTHON} /opt/enclave/unit_probe.py"
    text = re.sub("^ExecStart=.*", command, text, flags=re.MULTILINE)
    text = re.sub("^Restart.*", "", text, flags=re.MULTILINE)
    text = text.replace("Type=notify", "Type=oneshot")
    machine.path(f"/run/systemd/system/probe-{unit}.service").write_text(text)
    machine.check("systemctl", "daemon-reload")
    machine.check("systemctl", "start", f"probe-{unit}")
    machine.check("journalctl", "--sync")
    line = _journal(machine, f"probe-{unit}").splitlines()[0]
    found: dict[str, str] = json.loads(line)
    return found


_BOTH = {
    "write /run/enclave": "yes",
    "write /var/lib/enclave": "yes",
    "write /tmp": "yes",
    "write /var/tmp": "yes",
    "write /dev/shm": "yes",
    "write /etc": "EROFS",
    "write /opt/enclave": "EROFS",
    "write /usr/bin": "EROFS",
    "write /sys": "EROFS",
    "list /home": "EACCES",
    "list /root": "EACCES",
    "see init": "ENOENT",
    "see itself": "yes",
    "unix socket": "yes",
    "vsock": "yes",
    "netlink socket": "EAFNOSUPPORT",
    "packet socket": "EAFNOSUPPORT",
    "user namespace": "EPERM",
    "trace": "EPERM",
    "key ring": "EPERM",
    "become root": "EPERM",
    "change root": "EPERM",
    "real time": "EPERM",
    "set-user-id file": "EPERM",
    "code in writable memory": "EPERM",
}
_NO_DRIVER = "ENODEV"


@pytest.mark.parametrize(
    ("unit", "own"),
    [
        (
            "enclave-gateway",
            {
                "see the machine's memory": "ENOENT",
                "open the enclave's device": "ENOENT",
                "open another device": "ENOENT",
                "internet socket": "yes",
            },
        ),
        (
            "enclave",
            {
                # nitro-cli reads what the allocator left.
                "see the machine's memory": "yes",
                "open the enclave's device": _NO_DRIVER,
                "open another device": "EPERM",
                "internet socket": "EAFNOSUPPORT",
            },
        ),
    ],
)
def test_what_a_process_of_a_unit_can_do(
    enclave: SystemdMachine, unit: str, own: dict[str, str]
) -> None:
    assert _probe(enclave, unit) == _BOTH | own


def test_without_the_rules_the_same_tries_succeed(machine: SystemdMachine) -> None:
    """Or the tries themselves would be wrong."""
    probe = ROOT / "tests" / "support" / "unit_probe.py"
    free = json.loads(machine.check("python3", probe))
    refused = {name for name, outcome in free.items() if outcome != "yes"}
    # Root of this machine has no driver either, and may lack real time; /sys is not its own.
    assert refused <= {
        "write /sys",
        "open the enclave's device",
        "open another device",
        "become root",
        "real time",
    }
    assert free["open the enclave's device"] == free["open another device"] == _NO_DRIVER


def test_a_user_of_the_group_and_a_stranger(enclave: SystemdMachine) -> None:
    assert _status(enclave, "notebook")["state"] == "up"
    shown = enclave.check(ENCLAVE, "status", user="enclave")
    assert pcr0_of_image() in shown and "as expected" in shown
    enclave.check(ENCLAVE, "attest", user="enclave")
    notebook = _notebook(enclave)
    assert notebook.run("print(6 * 7)") == "42\n"
    notebook.close()
    assert enclave.run(ENCLAVE, "status", user="stranger").returncode == 3  # has no enclave
    there = ("env", "ENCLAVE_RUNTIME_DIR=/run/enclave", ENCLAVE, "status")
    done = enclave.run(*there, user="stranger")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done
    for user in ("stranger", "notebook"):
        for path in ("/run/enclave/gateway.key", "/dev/nitro_enclaves"):
            assert enclave.run("dd", f"if={path}", "count=0", user=user).returncode != 0
    assert "sudo systemctl stop enclave" in enclave.run(ENCLAVE, "down", user="notebook").stderr


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_the_gateways_end_keeps_kernels(enclave: SystemdMachine, how: str) -> None:
    notebook = _notebook(enclave)
    notebook.run("x = 5; print(x)")
    before = _main_pid(enclave, "enclave-gateway"), _main_pid(enclave, "enclave")
    if how == "killed":
        os.kill(enclave.pid_outside(before[0]), signal.SIGKILL)
        assert wait_until(lambda: _main_pid(enclave, "enclave-gateway") not in (0, before[0]), 20)
    else:
        enclave.check("systemctl", "restart", "enclave-gateway")
        assert enclave.property("enclave-gateway", "Result") == "success"
    assert notebook.run("print(x)") == "5\n"
    after = _main_pid(enclave, "enclave-gateway"), _main_pid(enclave, "enclave")
    assert after[0] != before[0] and after[1] == before[1]
    notebook.close()


def _enclave_process(machine: SystemdMachine) -> int:
    """Return the pid, out here, of nitro-cli's process that holds the enclave."""
    entries = [json.loads(file.read_text()) for file in machine.path(STAND_IN).rglob("i-*.json")]
    assert len(entries) == 1
    return machine.pid_outside(entries[0]["ProcessID"])


@pytest.mark.parametrize("victim", ["the enclave", "enclave up"])
def test_the_enclaves_death(enclave: SystemdMachine, victim: str) -> None:
    """Notebooks are told within 2 s, and another enclave comes."""
    enclave.check("systemctl", "reset-failed", "enclave")
    notebook = _notebook(enclave)
    notebook.run("x = 5; print(x)")
    gateway, before = _main_pid(enclave, "enclave-gateway"), _main_pid(enclave, "enclave")
    main = enclave.pid_outside(before)
    os.kill(_enclave_process(enclave) if victim == "the enclave" else main, signal.SIGKILL)
    assert "The enclave has ended" in notebook.told(2.0)
    assert wait_until(lambda: enclave.property("enclave", "ActiveState") == "active", 30)
    assert _main_pid(enclave, "enclave") not in (0, before)
    assert _main_pid(enclave, "enclave-gateway") == gateway
    assert wait_until(lambda: _status(enclave)["state"] == "up", 30)
    notebook.restart()
    assert notebook.run("print('x' in globals())") == "False\n"
    notebook.close()


def test_another_image(enclave: SystemdMachine) -> None:
    install_image(enclave, b"second")
    enclave.check("systemctl", "restart", "enclave")
    shown = enclave.check(ENCLAVE, "status", user="enclave")
    assert pcr0_of_image(b"second") in shown and "as expected" in shown


def test_stop_leaves_nothing(enclave: SystemdMachine) -> None:
    notebook = _notebook(enclave)
    assert notebook.run("print(1)") == "1\n"
    units = ("enclave.service", "enclave-gateway.service")
    enclave.check("systemctl", "stop", *units)
    for unit in units:
        assert enclave.property(unit, "ActiveState") == "inactive"
        # In order, and not by TimeoutStopSec.
        assert enclave.property(unit, "Result") == "success"
    assert _processes(enclave) == []
    environment = f"ENCLAVE_NITRO_STAND_IN={STAND_IN}"
    assert json.loads(enclave.check("env", environment, "nitro-cli", "describe-enclaves")) == []
    # What stays: the key by which an enclave knows its gateway, a lock file, which is empty, and
    # of notebooks that are still open whose they are, and the keys to tell them what happened.
    left = {path.name for path in enclave.path("/run/enclave").iterdir()}
    assert left == {"gateway.key", "k", "lock", "log", "slot_owners.json"}
    assert not list(enclave.path("/run/enclave/log").iterdir())
    (voice,) = enclave.path("/run/enclave/k").iterdir()
    assert voice.suffix == ".voice" and voice.stat().st_mode & 0o777 == 0o600
    kept = {path.name for path in enclave.path("/var/lib/enclave").iterdir()}
    assert "enclave.eif" in kept and not [name for name in kept if name.endswith(".sock")]
    assert not list(enclave.path(STAND_IN).glob("*_901"))
    assert enclave.run(ENCLAVE, "status", user="notebook").returncode == 3
    notebook.close()


def test_at_every_boot(enclave: SystemdMachine) -> None:
    """Last: the machine is another one afterwards."""
    enclave.power_off()
    enclave.boot()
    units = ("enclave.service", "enclave-gateway.service", "nitro-enclaves-allocator.service")
    assert enclave.check("systemctl", "is-active", *units) == "active\n" * 3
    notebook = _notebook(enclave)
    assert notebook.run("print(6 * 7)") == "42\n"
    notebook.close()
