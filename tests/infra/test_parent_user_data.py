"""The parent instance's user data, run as root on this machine, in a mount namespace of its own.

The script is the template's, unaltered. /etc, /opt and /home are copies or empty, so the machine
stays as it is. Stand-ins, which note that they were called: dnf, systemctl, aws and cfn-signal,
for what only Amazon Linux and AWS have; python3.12 is the tests' own version.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.parent_user_data import parent_user_data, write_parent_tools
from tests.support.project_wheel import ROOT

_PYTHON = Path(os.path.realpath(sys.executable))
pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"]).returncode != 0,
        reason="user data is root's, and needs mounts of its own here",
    ),
    pytest.mark.skipif(
        _PYTHON.is_relative_to("/opt") or _PYTHON.is_relative_to("/home"),
        reason="Python is where the script's own /opt and /home are to be",
    ),
]

# What the package aws-nitro-enclaves-cli brings: the group and the folder.
_DNF = 'groupadd --force ne && mkdir -p /etc/nitro_enclaves && test "$2" = install'
_AWS = 'test "$1 $2" = "s3 cp" && cp "$TOOLS" "$5"'
# As far as the script needs it: the files they read are tried in test_systemd_units.py.
_SYSUSERS = 'test -s "$1" && useradd --system --user-group enclave'
_TMPFILES = 'test "$1" = --create && test -s "$2"'
_SANDBOX = """
set -e
cp -a /etc/. {root}/etc
for folder in etc opt home; do mount --bind {root}/$folder /$folder; done
exec bash {root}/user-data
"""


@dataclass(frozen=True)
class Machine:
    """What is left after the script: its exit code, output, folders, and the stand-ins' calls."""

    exit_code: int
    output: str
    root: Path
    calls: list[str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    directory = tmp_path_factory.mktemp("tools")
    yield write_parent_tools(directory)
    shutil.rmtree(directory)


def _stand_in(path: Path, command: str = "true") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\necho "${{0##*/}} $*" >>"$CALLS"\n{command}\n')
    path.chmod(0o755)


def _run(root: Path, script: str, tools: Path) -> Machine:
    for folder in ("etc", "opt", "home", "tmp", "bin"):
        (root / folder).mkdir()
    _stand_in(root / "bin/dnf", _DNF)
    _stand_in(root / "bin/aws", _AWS)
    _stand_in(root / "bin/systemctl")
    _stand_in(root / "bin/systemd-sysusers", _SYSUSERS)
    _stand_in(root / "bin/systemd-tmpfiles", _TMPFILES)
    _stand_in(root / "opt/aws/bin/cfn-signal")
    (root / "bin/python3.12").symlink_to(_PYTHON)
    (root / "user-data").write_text(script)
    calls = root / "calls"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", _SANDBOX.format(root=shlex.quote(str(root)))],
        env={
            "PATH": f"{root}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TMPDIR": str(root / "tmp"),
            "CALLS": str(calls),
            "TOOLS": str(tools),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    return Machine(done.returncode, done.stdout, root, calls.read_text().splitlines())


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, bundle: tuple[Path, str]
) -> Iterator[Machine]:
    tools, digest = bundle
    root = tmp_path_factory.mktemp("machine")
    yield _run(root, parent_user_data(digest), tools)
    shutil.rmtree(root)


def test_it_succeeds_and_says_so(machine: Machine) -> None:
    assert machine.exit_code == 0, machine.output
    *others, signal = machine.calls
    assert others == [
        "dnf --assumeyes install aws-nitro-enclaves-cli python3.12",
        "systemctl enable --now nitro-enclaves-allocator.service",
        "aws s3 cp --only-show-errors s3://sharing/tools/parent.zip tools.zip",
        "systemd-sysusers /etc/sysusers.d/enclave.conf",
        "systemd-tmpfiles --create /etc/tmpfiles.d/enclave.conf",
        "systemctl daemon-reload",
        "systemctl enable enclave.service",
        "systemctl enable --now enclave-gateway.service",
    ]
    assert signal.startswith("cfn-signal --exit-code 0 --stack arn:aws:cloudformation:")
    assert signal.endswith(" --resource Instance --region eu-central-1")


def test_the_allocator_is_configured(machine: Machine) -> None:
    text = (machine.root / "etc/nitro_enclaves/allocator.yaml").read_text()
    assert yaml.safe_load(text) == {"memory_mib": 8192, "cpu_count": 4}


def test_commands_and_kernel_are_installed(machine: Machine) -> None:
    enclave = machine.root / "opt/enclave"
    assert (enclave / "bin/enclave").is_file()
    assert (enclave / "share/jupyter/kernels/enclave/kernel.json").is_file()
    assert "No broken requirements found." in machine.output


def test_the_notebooks_user_may_use_the_gateway_and_not_the_device(machine: Machine) -> None:
    lines = (machine.root / "etc/group").read_text().splitlines()
    members = {line.split(":")[0]: line.split(":")[3] for line in lines}
    assert members["enclave"] == "notebook" and members["ne"] == ""
    assert (machine.root / "home/notebook").is_dir()


def test_the_units_are_those_of_the_repository(machine: Machine) -> None:
    installed = {
        "enclave.service": "etc/systemd/system/enclave.service",
        "enclave-gateway.service": "etc/systemd/system/enclave-gateway.service",
        "enclave.sysusers": "etc/sysusers.d/enclave.conf",
        "enclave.tmpfiles": "etc/tmpfiles.d/enclave.conf",
    }
    for name, place in installed.items():
        file = machine.root / place
        assert file.read_text() == (ROOT / "infra" / "systemd" / name).read_text()
        assert file.stat().st_mode & 0o777 == 0o644
    program = machine.root / "opt/enclave/bin/enclave"
    assert program.is_file() and (machine.root / "opt/enclave/bin/python").exists()


def test_nothing_is_left_behind(machine: Machine) -> None:
    assert not list((machine.root / "tmp").iterdir())
    assert not Path("/etc/nitro_enclaves").exists()
    assert not Path("/opt/enclave").exists()


def test_other_tools_than_announced_fail_the_stack(
    bundle: tuple[Path, str], tmp_path: Path
) -> None:
    failed = _run(tmp_path, parent_user_data("0" * 64), bundle[0])
    shutil.rmtree(tmp_path / "etc")  # a copy of this machine's
    assert failed.exit_code == 1
    assert failed.calls[-1].startswith("cfn-signal --exit-code 1 ")
    assert not (tmp_path / "opt/enclave").exists()
