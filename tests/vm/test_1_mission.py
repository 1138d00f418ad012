"""The mission in a virtual machine: the real image, booted, over real vsock."""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from enclave_infra.image.image_view import view_image
from enclave_parent_gateway.backends.qemu_machine import offers
from enclave_protocol.eif import read_eif
from tests.support.enclave_home import kernel, run_code
from tests.support.grader_package import publish_grader
from tests.support.notebook_cells import run_cell
from tests.support.package_owner import PackageOwner, write_package
from tests.support.vm_home import VmHome

pytestmark = pytest.mark.vm
_MANIFEST = """
[package]
name = "application"
version = "1.0"
[scripts]
classify = { file = "ml_algorithm.py", output = "text" }
"""
_PROGRAM_MANIFEST = """
[package]
name = "compiled"
version = "1.0"
[scripts]
digest = { file = "digest", output = "text" }
[policy]
native = true
"""
_SCRIPT = """
import argparse, os, sys
parser = argparse.ArgumentParser()
for option in ("-m", "-d", "-o"):
    parser.add_argument(option)
options = parser.parse_args()
factor = int(open(options.m).read())
os.makedirs(options.o, exist_ok=True)
for name in os.listdir(options.d):
    with open(os.path.join(options.o, name + ".out"), "w") as out:
        out.write(str(int(open(os.path.join(options.d, name)).read()) * factor))
sys.exit(7)
"""


def test_the_image_that_was_given_is_up(vm: VmHome) -> None:
    status = vm.status()
    with vm.image.open("rb") as file:
        eif = read_eif(file)
    pcr0 = eif.pcrs[0].hex()
    with kernel() as (_, client):
        machine = run_code(client, "import platform; print(platform.machine())").strip()
    assert machine == ("aarch64" if eif.arm64 else "x86_64")
    assert (status["state"], status["backend"], status["confidential"]) == ("up", "qemu", False)
    assert status["pcrs"]["0"] == pcr0
    attested = vm.run("attest", "--json")
    assert attested.returncode == 0, attested.stderr
    assert msgspec.json.decode(attested.stdout)["expected_pcrs"] == {"0": [pcr0]}
    assert "NOT CONFIDENTIAL (qemu backend)" in vm.run("status").stdout


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_which_devices_qemu_has(architecture: str) -> None:
    assert offers("virtio-rng-pci", architecture)
    assert not offers("virtio-rng", architecture)


def test_the_walls_of_vaults_and_notebooks_stand(vm: VmHome) -> None:
    with kernel() as (_, client):
        assert run_code(client, "import os; print(os.uname().release != '')").strip() == "True"
    isolation = vm.status()["isolation"]
    assert "vault: system call allow-list" in isolation
    assert "notebook: system call deny-list" in isolation
    assert "vault: cpu, memory, pids control group" in isolation
    assert not [line for line in isolation if "no boundary" in line]


def test_up_again_is_harmless(vm: VmHome) -> None:
    before = vm.status()["pids"]
    again = vm.up()
    assert again.returncode == 0, again.stderr
    assert "was up already" in again.stdout
    assert vm.status()["pids"] == before


def test_a_notebook_uses_an_encrypted_package(
    project: Path, owner: PackageOwner, key_arn: str
) -> None:
    """nbconvert in a mirrored folder; the key comes through attestation, the proxy and KMS."""
    publish_grader(owner, key_arn, project / "grader.encrypted")
    cells = [
        "import numpy as np\n%load_encrypted grader.encrypted",
        "print(grader.Grader(0.5).grade(np.array([[1.0, 0, 0], [0, 1, 1]])))",
        "open('result.txt', 'w').write(str(grader.mean([1, 2, 3])))",
    ]
    (project / "use.ipynb").write_text(_notebook(*cells))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    done = subprocess.run(
        [*command, str(project / "use.ipynb")], capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    executed = json.loads((project / "use.ipynb").read_text())
    outputs = [output for cell in executed["cells"] for output in cell["outputs"]]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "Loaded grader 1.4" in printed
    assert "[1.5 5.5]" in printed
    assert (project / "result.txt").read_text() == "2.0"


def _notebook(*sources: str) -> str:
    cells: list[dict[str, object]] = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for number, source in enumerate(sources)
    ]
    kernelspec = {"name": "enclave", "display_name": "enclave", "language": "python"}
    metadata = {"kernelspec": kernelspec}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def test_a_script_runs_from_the_command_line(
    vm: VmHome, project: Path, owner: PackageOwner, key_arn: str, tmp_path: Path
) -> None:
    """The AWS sample's command line, in the mirrored folder."""
    files = {"enclave.toml": _MANIFEST, "ml_algorithm.py": _SCRIPT, "model.txt": "3"}
    source = write_package(tmp_path / "application", files)
    owner.encrypt(source, key_arn, project / "application.encrypted")
    (project / "dataset").mkdir()
    (project / "dataset" / "a").write_text("14")
    command = ["run", "-f", "application.encrypted", "-s", "ml_algorithm.py"]
    command += ["-a", "-m model.txt -d /dataset/ -o /output/"]
    done = subprocess.run(
        vm.command(*command),
        cwd=project,
        env=vm.environ,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 7, done.stderr
    assert (project / "output" / "a.out").read_text() == "42"


def test_a_compiled_program_runs(
    vm: VmHome, project: Path, owner: PackageOwner, key_arn: str, tmp_path: Path
) -> None:
    """One of Debian's, for the machine's processor, which need not be this one's."""
    name = "usr/bin/sha256sum"
    program = view_image(vm.image).read_files(lambda path: path == name)[name]
    source = write_package(tmp_path / "compiled", {"enclave.toml": _PROGRAM_MANIFEST})
    (source / "digest").write_bytes(program)
    (source / "digest").chmod(0o755)
    owner.encrypt(source, key_arn, project / "compiled.encrypted")
    (project / "data.bin").write_bytes(bytes(range(256)) * 100)
    done = subprocess.run(
        vm.command("run", "-f", "compiled.encrypted", "-s", "digest", "-a", "/data.bin"),
        cwd=project,
        env=vm.environ,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == hashlib.sha256((project / "data.bin").read_bytes()).hexdigest()


def test_another_image_gets_no_key(project: Path, owner: PackageOwner) -> None:
    other = owner.new_key("0b" * 48)
    publish_grader(owner, other, project / "other.encrypted")
    with kernel(cwd=str(project)) as (_, client):
        error = run_cell(client, "%load_encrypted other.encrypted", 60).error
    assert error is not None and "PCR0" in error.value, error


def test_bytes_survive_the_way(vm: VmHome) -> None:
    """Large messages in both directions over vsock, which is said to corrupt large packets."""
    with kernel() as (_, client):
        code = "import hashlib, os, base64\ndata = os.urandom(6_000_000)\n"
        code += "print(base64.b64encode(data).decode())\nprint(hashlib.sha256(data).hexdigest())"
        text, digest = run_code(client, code, 120).split()
        raw = base64.b64decode(text)
        assert hashlib.sha256(raw).hexdigest() == digest
        there = f"text = {text[:4_000_000]!r}\nprint(hashlib.sha256(text.encode()).hexdigest())"
        expected = hashlib.sha256(text[:4_000_000].encode()).hexdigest()
        assert run_code(client, there, 120).strip() == expected


def test_a_kernel_restarts(vm: VmHome) -> None:
    with kernel() as (manager, client):
        assert run_code(client, "x = 1; print(x)").strip() == "1"
        for _ in range(2):
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            assert run_code(client, "print('x' in globals())").strip() == "False"


def test_a_notebook_is_not_spared_when_memory_runs_out(vm: VmHome) -> None:
    """The image's supervisor is (-1000); nothing that it starts for others stays so."""
    with kernel() as (_, client):
        code = "from pathlib import Path\npath = Path('/proc/self/oom_score_adj')\n"
        code += "print(path.read_text())\ntry:\n    path.write_text('-1')\n    print('spared')\n"
        code += "except PermissionError:\n    print('refused')"
        assert run_code(client, code).split() == ["0", "refused"]
