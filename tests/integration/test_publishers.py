"""Who made a package, through a real enclave: first use, a changed key, and nobody's signature."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from enclave_encryption.publisher_keys import load_key, make_key
from tests.support.enclave_home import EnclaveHome, kernel, new_home, run_code
from tests.support.notebook_cells import one_line, run_cell
from tests.support.package_owner import PackageOwner, open_folder, write_package

_MANIFEST = """
[package]
name = "tiny"
version = "{version}"
module = "tiny"
publisher = "{publisher}"
[exports]
functions = {{ answer = "answer()" }}
"""
_FILES = {"tiny.py": "def answer():\n    return 42\n", "say.py": "print('said')\n"}
_SCRIPT = '[scripts]\nsay = { file = "say.py" }\n'
ACME = "ACME Analytics"


class Bench:
    """An enclave of its own, whose user has pinned nothing yet, and a notebook in it."""

    def __init__(self, home: EnclaveHome, folder: Path, client: BlockingKernelClient) -> None:
        status = home.status()
        self.home = home
        self.folder = folder
        self.client = client
        self.owner = PackageOwner(status["kms_endpoint_url"])
        self.key_arn = self.owner.new_key(status["pcrs"]["0"])

    def new_key(self, name: str) -> Path:
        make_key(self.folder / name, None, force=False)
        return self.folder / name

    def publish(self, name: str, key: Path, *, publisher: str = ACME, version: str = "1") -> str:
        manifest = _MANIFEST.format(publisher=publisher, version=version) + _SCRIPT
        source = write_package(self.folder / f"{name}-source", {"enclave.toml": manifest, **_FILES})
        self.owner.encrypt(source, self.key_arn, self.folder / f"{name}.encrypted", sign_with=key)
        return load_key(key, None).signer.fingerprint

    def publish_unsigned(self, name: str) -> None:
        """A folder of scripts without an enclave.toml has nobody to sign for."""
        source = write_package(self.folder / f"{name}-source", _FILES)
        self.owner.encrypt(source, self.key_arn, self.folder / f"{name}.encrypted")

    def load(self, line: str) -> str:
        cell = run_cell(self.client, f"%load_encrypted {line}")
        return cell.printed

    def refused(self, line: str) -> str:
        return one_line(run_cell(self.client, line))

    def pins(self) -> dict[str, str]:
        listed = json.loads(self.home.run("trust", "--json").stdout)
        return {pin["publisher"]: pin["fingerprint"] for pin in listed}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with new_home() as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        home.run("up").check_returncode()
        with open_folder() as folder, kernel(cwd=str(folder)) as (_, client):
            yield Bench(home, folder, client)
        home.run("down")


def test_first_use_then_pinned_then_changed_then_accepted(bench: Bench) -> None:
    acme, thief = bench.new_key("acme.key"), bench.new_key("thief.key")
    known = bench.publish("tiny", acme)
    line = f'Publisher "{ACME}", key {known}'
    assert bench.pins() == {}
    shown = bench.load("tiny.encrypted").splitlines()
    assert shown[:2] == ["Loaded tiny 1 as tiny: answer.", line] and shown[2].startswith("NEW")
    assert bench.pins() == {ACME: known}
    assert bench.load("tiny.encrypted").splitlines()[1:] == [f"{line} (pinned)."]
    # The same name, as people read it, with another key.
    for publisher in (ACME, "acme  ANALYTICS"):
        found = bench.publish("forged", thief, publisher=publisher)
        for magic in ("%load_encrypted forged.encrypted", "%run_encrypted forged.encrypted say"):
            refusal = bench.refused(magic)
            assert refusal.startswith("PublisherChangedError: forged.encrypted: ")
            assert known in refusal and found in refusal
            assert refusal.endswith(f"enclave trust {shlex.quote(publisher)} {found}")
            assert "--unsigned" not in refusal
            assert bench.refused(f"{magic.split()[0]} --unsigned {magic.split(' ', 1)[1]}") == (
                refusal
            )
    assert bench.pins() == {ACME: known}
    # What the refusal says to type.
    assert bench.home.run("trust", *shlex.split(refusal)[-2:]).returncode == 0
    assert "(pinned)" in bench.load("forged.encrypted")
    assert bench.refused("%load_encrypted tiny.encrypted").startswith("PublisherChangedError")
    assert bench.home.run("trust", "--remove", ACME).returncode == 0
    assert "NEW" in bench.load("tiny.encrypted")
    assert bench.pins() == {ACME: known}
    assert run_code(bench.client, "print(tiny.answer())") == "42\n"


def test_another_publisher_is_another_pin(bench: Bench) -> None:
    other = bench.publish("other", bench.new_key("other.key"), publisher="Other; rm -rf /")
    assert "NEW" in bench.load("other.encrypted as other")
    assert bench.pins()["Other; rm -rf /"] == other


def test_a_key_that_was_not_released_is_not_pinned(bench: Bench) -> None:
    key = bench.new_key("early.key")
    bench.publish("early", key, publisher="Early")
    bench.owner.kms.disable_key(KeyId=bench.key_arn)
    try:
        assert bench.refused("%load_encrypted early.encrypted").startswith("KeyUnavailableError")
    finally:
        bench.owner.kms.enable_key(KeyId=bench.key_arn)
    assert "Early" not in bench.pins()


def test_what_nobody_signed_takes_a_flag(bench: Bench) -> None:
    bench.publish_unsigned("plain")
    for magic in ("%load_encrypted plain.encrypted as p", "%run_encrypted plain.encrypted say"):
        line = bench.refused(magic)
        assert line.startswith("UnsignedPackageError: plain.encrypted: is not signed")
        assert "--unsigned" in line
    shown = bench.load("plain.encrypted as p --unsigned")
    assert shown.endswith("NOT SIGNED: anybody can have made it.\n")
    cell = run_cell(bench.client, "%run_encrypted --unsigned plain.encrypted say")
    assert cell.printed.splitlines() == ["NOT SIGNED: anybody can have made it.", "said"]


def test_pins_that_cannot_be_read_accept_nothing(bench: Bench) -> None:
    path = bench.home.runtime / "state" / "publishers.json"
    kept = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(kept[:-2])
    try:
        line = bench.refused("%load_encrypted tiny.encrypted")
        assert "holds no pinned keys" in line and str(path) in line
    finally:
        path.write_bytes(kept)
    assert "(pinned)" in bench.load("tiny.encrypted")
