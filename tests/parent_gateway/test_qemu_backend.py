"""What `enclave up --backend qemu` checks before it starts anything; the machine is in tests/vm."""

import platform
from pathlib import Path

import pytest

from enclave_parent_gateway.backends.qemu_machine import (
    ACCELERATORS,
    NSM_DEVICE,
    machine_command,
)
from tests.support.eif_files import CMDLINE, KERNEL, RAMDISK, eif
from tests.support.enclave_home import EnclaveHome

_IMAGE = eif([(KERNEL, b"k"), (CMDLINE, b"quiet"), (RAMDISK, b"r" * (40 << 20))])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.eif"
    path.write_bytes(_IMAGE)
    return path


def _refused(home: EnclaveHome, *options: str, **environ: str) -> str:
    """Return the one line with which `up` ends; nothing was started."""
    result = home.run("up", "--backend", "qemu", *options, **environ)
    assert result.returncode == 1, result.stdout
    assert home.processes() == {} and not (home.runtime / "vm").exists()
    (line,) = result.stderr.splitlines()
    assert not (home.runtime / "enclave.json").exists()
    return line


def test_no_image(own_home: EnclaveHome) -> None:
    assert "which image? Type: enclave up --backend qemu --image" in _refused(own_home)


def test_what_is_no_image(own_home: EnclaveHome, tmp_path: Path) -> None:
    (tmp_path / "b.eif").write_bytes(b"x" * 1000)
    assert "is no enclave image" in _refused(own_home, "--image", str(tmp_path / "b.eif"))
    assert "No such file" in _refused(own_home, "--image", str(tmp_path / "c.eif"))


def test_too_little_memory(own_home: EnclaveHome, image: Path) -> None:
    line = _refused(own_home, "--image", str(image), "--memory", "100")
    assert "needs 164 MiB" in line and "--memory 164" in line


@pytest.mark.parametrize("options", [["--debug-mode"], ["--cid", "5"]])
def test_options_of_another_backend(own_home: EnclaveHome, image: Path, options: list[str]) -> None:
    assert "go with --backend nitro" in _refused(own_home, "--image", str(image), *options)


def test_an_accelerator_that_there_is_none_of(own_home: EnclaveHome, image: Path) -> None:
    line = _refused(own_home, "--image", str(image), ENCLAVE_QEMU_ACCELERATOR="magic")
    assert "'magic', expected tcg or kvm" in line


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_programs_that_are_not_installed(
    own_home: EnclaveHome, tmp_path: Path, architecture: str
) -> None:
    image = _image_for(architecture, tmp_path)
    line = _refused(own_home, "--image", str(image), PATH="/nonexistent")
    assert f"qemu-system-{architecture} and vhost-device-vsock cannot be found" in line
    package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[architecture]
    assert f"Debian's packages {package} and vhost-device-vsock (docs/qemu.md" in line


def test_hardware_runs_no_image_for_another_processor(
    own_home: EnclaveHome, tmp_path: Path
) -> None:
    (other,) = {"x86_64", "aarch64"} - {platform.machine()}
    image = _image_for(other, tmp_path)
    line = _refused(own_home, "--image", str(image), ENCLAVE_QEMU_ACCELERATOR="kvm")
    assert f"the image is for {other}, and KVM runs none but {platform.machine()} here" in line
    assert "ENCLAVE_QEMU_ACCELERATOR=tcg enclave up --backend qemu" in line


def _image_for(architecture: str, folder: Path) -> Path:
    path = folder / f"{architecture}.eif"
    sections = [(KERNEL, b"k"), (CMDLINE, b"quiet"), (RAMDISK, b"r")]
    path.write_bytes(eif(sections, flags=int(architecture == "aarch64")))
    return path


@pytest.mark.parametrize("nsm", [False, True])
@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_machine_has_no_other_device(architecture: str, accelerator: str, nsm: bool) -> None:
    command = machine_command(
        Path("/run/a,b"),
        architecture=architecture,
        console=Path("/log"),
        memory_mib=512,
        cpus=2,
        cmdline="quiet",
        accelerator=accelerator,
        nsm=nsm,
    )
    assert command[0] == f"qemu-system-{architecture}"
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(command)
    devices = [command[n + 1].split(",")[0] for n, word in enumerate(command) if word == "-device"]
    assert devices == ["vhost-user-vsock-pci", "virtio-rng-pci", *([NSM_DEVICE] if nsm else [])]
    assert not {"-net", "-nic", "-netdev", "-drive", "-virtfs", "-monitor"} & set(command)
    # A comma in a path would begin another option.
    assert "socket,id=vsock,path=/run/a,,b/device.sock" in command
