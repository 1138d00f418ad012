"""One virtual machine for all tests of this folder; `make test-vm` runs them.

Where it cannot come up the tests fail: nothing here is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.built_image import built_image
from tests.support.package_owner import PUBLISHER, PackageOwner, publisher_fingerprint
from tests.support.vm_home import VmHome, new_vm_home


@pytest.fixture(scope="session", params=["x86_64", "aarch64"])
def image(request: pytest.FixtureRequest) -> Path:
    """The development image of the sources as they are, for each processor, one after the other."""
    name = f"development-{request.param}"
    return built_image("--development", f"--arch={request.param}", name=name)


@pytest.fixture(scope="session")
def vm(image: Path) -> Iterator[VmHome]:
    """An enclave that is up in a virtual machine; the environment of this process leads there."""
    with new_vm_home(image) as home, pytest.MonkeyPatch.context() as patch:
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
