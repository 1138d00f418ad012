"""The NSM of Linux's driver, which is QEMU's `virtio-nsm` here: signed by nobody, else the same.

That nobody but the enclave reaches it is among the rows of test_2_redteam.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_parent_gateway.backends.qemu_machine import NSM_DEVICE, offers
from tests.support.built_image import built_image
from tests.support.nsm_machine import nsm_image, nsm_path
from tests.support.vm_home import VmHome, new_vm_home

pytestmark = [
    pytest.mark.vm,
    pytest.mark.parametrize("machine", ["nsm"], indirect=True, scope="session"),
]


def test_the_machine_has_an_nsm(vm: VmHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nsm_path())
    assert offers(NSM_DEVICE, "x86_64")


def test_its_driver_is_loaded_and_gives_entropy(vm: VmHome) -> None:
    """A development image says that the documents are not its root's, and keeps its own NSM."""
    console = vm.console()
    (modules,) = [line for line in console.splitlines() if "enclave_kernel.boot: modules:" in line]
    assert "nsm.ko" in modules.split()
    assert "entropy from an NSM whose documents AWS has not signed" in console
    assert "NOT CONFIDENTIAL: a software NSM of this development image" in console
    attested = vm.run("attest")
    assert attested.returncode == 0, attested.stderr


@pytest.fixture
def production(image: object, tmp_path: Path) -> Iterator[VmHome]:
    with new_vm_home(nsm_image(built_image(), tmp_path)) as home:
        home.variables["PATH"] = nsm_path()
        yield home


def test_a_production_image_releases_no_key_on_it(production: VmHome) -> None:
    """Its documents are asked for, through the driver, and refused; nothing stays."""
    up = production.up()
    assert up.returncode == 1
    (line,) = up.stderr.strip().splitlines()
    assert "this machine's NSM is not a Nitro enclave's, and no key can be released here" in line
    assert production.processes() == {}
    assert production.status()["state"] == "down"
