"""One virtual machine for all tests of this folder; `make test-vm` runs them.

Where it cannot come up the tests fail: nothing here is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.built_image import built_image
from tests.support.nsm_machine import install_nsm_tools, nsm_image, nsm_path
from tests.support.package_owner import PUBLISHER, PackageOwner, publisher_fingerprint
from tests.support.vm_home import VmHome, new_vm_home

_NSM = "nsm"


@pytest.fixture(scope="session", params=["x86_64", "aarch64", _NSM])
def machine(request: pytest.FixtureRequest) -> str:
    """The machine of the tests: a processor, or `nsm`, an x86_64 one with QEMU's NSM."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def image(machine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development image of the sources as they are, for the machine."""
    if machine != _NSM:
        return _development(machine)
    install_nsm_tools()
    return nsm_image(_development("x86_64"), tmp_path_factory.mktemp(_NSM))


def _development(architecture: str) -> Path:
    name = f"development-{architecture}"
    return built_image("--development", f"--arch={architecture}", name=name)


@pytest.fixture(scope="session")
def vm(machine: str, image: Path) -> Iterator[VmHome]:
    """An enclave that is up in a virtual machine; the environment of this process leads there."""
    with new_vm_home(image) as home, pytest.MonkeyPatch.context() as patch:
        if machine == _NSM:
            home.variables["PATH"] = nsm_path()
        for name, value in home.variables.items():
            patch.setenv(name, value)
        result = home.up()
        if result.returncode:
            pytest.fail(f"enclave up: {result.stderr}\n{home.run('logs').stdout}")
        home.run("trust", PUBLISHER, publisher_fingerprint()).check_returncode()
        yield home


@pytest.fixture(scope="session")
def project(vm: VmHome) -> Iterator[Path]:
    """A folder that is mirrored with the machine's workspace."""
    folder = vm.root / "project"
    folder.mkdir()
    with vm.sync(folder):
        yield folder


@pytest.fixture(scope="session")
def owner(vm: VmHome) -> PackageOwner:
    """An owner at the local cloud of this enclave."""
    return PackageOwner(vm.status()["kms_endpoint_url"])


@pytest.fixture(scope="session")
def key_arn(vm: VmHome, owner: PackageOwner) -> str:
    """A key that is released to this image only."""
    return owner.new_key(vm.status()["pcrs"]["0"])
