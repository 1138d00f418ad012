"""A package that cannot be opened here: one line in the notebook says why, and no more."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until
from tests.support.grader_package import publish_grader
from tests.support.notebook_cells import finish_cell, one_line, run_cell, start_cell, vault_pids
from tests.support.package_owner import PackageOwner, open_folder


@dataclass(frozen=True)
class Shop:
    """An owner, the enclave the owner approved, and the user's folder."""

    owner: PackageOwner
    pcr0: str
    folder: Path


def shop_at(home: EnclaveHome, folder: Path) -> Shop:
    status = home.status()
    return Shop(PackageOwner(status["kms_endpoint_url"]), status["pcrs"]["0"], folder)


@pytest.fixture
def shop(enclave: EnclaveHome) -> Iterator[Shop]:
    with open_folder() as folder:
        yield shop_at(enclave, folder)


def refused(folder: Path, name: str = "grader.encrypted") -> str:
    """Load the file in a fresh kernel; return the one line it is refused with."""
    with kernel(cwd=str(folder)) as (_, client):
        line = one_line(run_cell(client, f"%load_encrypted {name} as grader"))
        assert "NameError" in run_code(client, "grader")
        assert "No encrypted package is loaded" in run_code(client, "%encrypted")
    return line


def test_another_pcr0_in_the_key_policy(shop: Shop) -> None:
    other = ("0" if shop.pcr0[0] != "0" else "1") + shop.pcr0[1:]
    arn = shop.owner.new_key(other)
    publish_grader(shop.owner, arn, shop.folder / "grader.encrypted")
    line = refused(shop.folder)
    assert line.startswith("KeyReleaseDeniedError: grader.encrypted: KMS refused the key ")
    assert f"whose PCR0 is {shop.pcr0};" in line
    assert arn in line
    assert other not in line


def test_the_owner_approves_the_enclave_later(shop: Shop) -> None:
    arn = shop.owner.new_key("ab" * 48)
    publish_grader(shop.owner, arn, shop.folder / "grader.encrypted")
    with kernel(cwd=str(shop.folder)) as (_, client):
        assert "KeyReleaseDeniedError" in one_line(
            run_cell(client, "%load_encrypted grader.encrypted")
        )
        shop.owner.approve(arn, shop.pcr0)
        assert run_cell(client, "%load_encrypted grader.encrypted").error is None
        assert run_code(client, "print(grader.best().bias)") == "6.0\n"


def test_a_key_that_is_disabled(shop: Shop) -> None:
    arn = shop.owner.new_key(shop.pcr0)
    publish_grader(shop.owner, arn, shop.folder / "grader.encrypted")
    shop.owner.kms.disable_key(KeyId=arn)
    line = refused(shop.folder)
    assert line.startswith(f"KeyUnavailableError: grader.encrypted: key {arn} is disabled")
    shop.owner.kms.enable_key(KeyId=arn)
    with kernel(cwd=str(shop.folder)) as (_, client):
        assert run_cell(client, "%load_encrypted grader.encrypted").error is None


def test_the_local_cloud_has_ended(own_home: EnclaveHome) -> None:
    assert own_home.run("up").returncode == 0
    with open_folder() as folder:
        shop = shop_at(own_home, folder)
        publish_grader(shop.owner, shop.owner.new_key(shop.pcr0), folder / "grader.encrypted")
        os.kill(own_home.status()["pids"]["cloud"], signal.SIGKILL)
        line = refused(folder)
        # Not a word about AWS: nothing is wrong with the user's own credentials.
        assert line == (
            "LoadRefusedError: grader.encrypted: the local cloud, which stands in for KMS, does "
            "not run; type: enclave down && enclave up"
        )
        assert own_home.run("down").returncode == 0
        assert own_home.run("up").returncode == 0
        with kernel(cwd=str(folder)) as (_, client):
            assert run_cell(client, "%load_encrypted grader.encrypted").error is None


def test_kms_hangs_and_the_user_does_not_wait(own_home: EnclaveHome) -> None:
    assert own_home.run("up").returncode == 0
    with open_folder() as folder:
        shop = shop_at(own_home, folder)
        publish_grader(shop.owner, shop.owner.new_key(shop.pcr0), folder / "grader.encrypted")
        cloud = own_home.status()["pids"]["cloud"]
        with kernel(cwd=str(folder)) as (manager, client):
            os.kill(cloud, signal.SIGSTOP)
            request = start_cell(client, "%load_encrypted grader.encrypted")
            time.sleep(1.5)
            began = time.monotonic()
            manager.interrupt_kernel()
            error = finish_cell(client, request, 10).error
            assert error is not None and error.name == "KeyboardInterrupt"
            assert time.monotonic() - began < 1
            os.kill(cloud, signal.SIGCONT)
            assert run_cell(client, "%load_encrypted grader.encrypted").error is None
            assert wait_until(lambda: len(vault_pids(own_home)) <= 2)


def test_what_is_no_package(shop: Shop) -> None:
    (shop.folder / "notes.txt").write_text("two\nlines\n")
    (shop.folder / "empty").touch()
    (shop.folder / "folder").mkdir()
    os.mkfifo(shop.folder / "fifo")
    for name, line in (
        ("missing.encrypted", "PackageFileError: missing.encrypted: no such file in "),
        ("notes.txt", "PackageFormatError: notes.txt: not an encrypted package: make one with "),
        ("empty", "PackageTruncatedError: empty: the file has only 0 bytes of a header: "),
        ("folder", "PackageFileError: folder: is a directory; expected a file that "),
        ("fifo", "PackageFileError: fifo: is not a regular file"),
    ):
        assert refused(shop.folder, name).startswith(line)
