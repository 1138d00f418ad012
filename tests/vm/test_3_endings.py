"""How an enclave in a virtual machine ends: as asked, by a crash, or before it began."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.built_image import built_image
from tests.support.enclave_home import kernel, run_code, wait_until
from tests.support.notebook_cells import run_cell
from tests.support.vm_home import VmHome, new_vm_home

# What happens here is the parent's part: the same for every processor.
pytestmark = [
    pytest.mark.vm,
    pytest.mark.parametrize("machine", ["x86_64"], indirect=True, scope="session"),
]
_QEMU = r"^qemu-system-x86_64 "
_DEVICE = r"^vhost-device-vsock "
_MACHINE = "backends.qemu_machine"


@pytest.fixture(scope="module")
def home(image: Path) -> Iterator[VmHome]:
    """A second enclave, whose end does not matter to other tests."""
    with new_vm_home(image) as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        yield home


def test_a_gateway_that_crashed_leaves_the_machine_and_its_kernels(vm: VmHome) -> None:
    with kernel() as (_, client):
        assert run_code(client, "x = 41; print(x)").strip() == "41"
        before = vm.status()["pids"]
        os.kill(before["gateway"], signal.SIGKILL)
        assert wait_until(lambda: vm.status()["state"] == "broken")
        again = vm.up()
        assert again.returncode == 0, again.stderr
        after = vm.status()["pids"]
        assert after["enclave"] == before["enclave"] and after["gateway"] != before["gateway"]
        assert run_cell(client, "print(x + 1)", 60).printed.strip() == "42"


def test_streams_of_kernels_that_ended_are_closed(vm: VmHome) -> None:
    """vhost-device-vsock knows no half-closed streams: none may stay open for that."""
    gateway = vm.status()["pids"]["gateway"]

    def descriptors() -> int:
        return len(list(Path(f"/proc/{gateway}/fd").iterdir()))

    with kernel() as (_, client):
        assert run_code(client, "print(1)").strip() == "1"
    assert wait_until(lambda: vm.status()["kernels"] == [])
    idle = descriptors()
    for _ in range(3):
        with kernel() as (_, client):
            assert run_code(client, "print(2)").strip() == "2"
    assert wait_until(lambda: descriptors() <= idle, 30), (idle, descriptors())


def test_down_after_a_crash_leaves_nothing(vm: VmHome) -> None:
    """Who watches the two programs was killed: they end with it."""
    _crash(vm, _MACHINE)
    _down(vm)


@pytest.fixture
def running(home: VmHome) -> VmHome:
    up = home.up()
    assert up.returncode == 0, up.stderr
    return home


def test_a_machine_that_crashed_is_noticed_and_replaced(running: VmHome) -> None:
    """Notebooks are told within 2 s, and `up` makes a new one of what is left."""
    _crash(running, _QEMU)
    again = running.up()
    assert again.returncode == 0, again.stderr
    with kernel() as (_, client):
        assert run_code(client, "print(5)").strip() == "5"
    _down(running)


def _crash(home: VmHome, victim: str) -> None:
    with kernel() as (manager, client):
        assert run_code(client, "print(4)").strip() == "4"
        killed = time.monotonic()
        os.kill(home.pid(victim), signal.SIGKILL)
        while manager.is_alive():
            assert time.monotonic() - killed < 2, "notebooks are told within 2 s"
            time.sleep(0.05)
    assert wait_until(lambda: set(home.status()["pids"]) <= {"gateway", "cloud"})
    for pattern in (_QEMU, _DEVICE, _MACHINE):
        with pytest.raises(LookupError, match=r"^0 processes"):
            home.pid(pattern)
    assert home.status()["state"] == "broken"


def _down(home: VmHome) -> None:
    began = time.monotonic()
    down = home.run("down")
    assert down.returncode == 0, down.stderr
    assert time.monotonic() - began < 20
    assert home.processes() == {}
    left = {str(path.relative_to(home.runtime)) for path in home.runtime.rglob("*")}
    kept = {path for path in left if path.split("/")[0] in ("state", "log")}
    # Locks, and a gateway key of this boot, not of this enclave.
    assert left - kept <= {"k", "lock", "starter.lock", "sync.lock", "gateway.key"}
    assert not [path for path in left if ".sock" in path or "eif" in path]


def test_a_production_image_has_no_nsm_here_and_ends(home: VmHome) -> None:
    """No NSM, no attestation, no key: it says so and does not come up; nothing of it is left."""
    production = built_image()
    up = home.up("--image", str(production))
    assert up.returncode == 1
    assert "NSM" in up.stderr or "/dev/nsm" in up.stderr, up.stderr
    assert len(up.stderr.strip().splitlines()) == 1
    assert home.processes() == {}
    assert not (home.runtime / "vm").exists()
    assert home.status()["state"] == "down"
