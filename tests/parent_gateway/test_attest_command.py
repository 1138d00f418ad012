"""`enclave attest`, and `enclave up --expect-pcr...`, against a real enclave."""

import base64
import json
import os
import signal
from datetime import UTC, datetime

import pytest

from enclave_parent_gateway.backends.local import LocalBackend
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.attestation_verify import verify_attestation
from tests.support.enclave_home import EnclaveHome, kernel, run_code, wait_until

OTHER = "0b" * 48


def test_for_people(enclave: EnclaveHome) -> None:
    result = enclave.run("attest")
    assert result.returncode == 0, result.stderr
    assert "NOT CONFIDENTIAL (local backend)" in result.stdout
    for name in ("certificate chain", "root", "signature", "time", "nonce", "image", "channel"):
        assert f"✓ {name}" in result.stdout
    assert enclave.status()["pcrs"]["0"] in result.stdout.replace("\n", "").replace(" ", "")


def test_for_machines(enclave: EnclaveHome) -> None:
    first, second = (json.loads(enclave.run("attest", "--json").stdout) for _ in range(2))
    assert first["nonce"] != second["nonce"]
    assert first["confidential"] is False
    assert first["pcrs"]["0"] == enclave.status()["pcrs"]["0"]
    assert first["expected_pcrs"] == {"0": [first["pcrs"]["0"]]}
    assert first["certificates_sha256"][0] == first["root_sha256"]
    assert first["channel_key_sha256"] in first["user_data"]
    assert all(check["passed"] for check in first["checks"])
    document = verify_attestation(
        base64.b64decode(first["document"]),
        root=LocalBackend().attestation_root(EnclavePaths.from_environment()),
        now=datetime.now(UTC),
        nonce=bytes.fromhex(first["nonce"]),
    )
    assert document.module_id == first["module_id"]


def test_without_an_enclave(own_home: EnclaveHome) -> None:
    result = own_home.run("attest")
    assert result.returncode == 1
    assert result.stderr == "Error: no enclave is up; type: enclave up\n"


def test_an_expectation_is_remembered_and_ends_the_session_of_another_image(
    own_home: EnclaveHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = own_home.run("up", "--expect-pcr0", OTHER)
    assert refused.returncode == 1
    assert "PCR0 is" in refused.stderr and OTHER in refused.stderr
    assert refused.stderr.count("\n") == 1
    # Nothing is left, and a notebook does not get around it.
    assert own_home.status()["state"] == "down"
    with pytest.raises(Exception, match=OTHER), kernel():
        pass
    assert own_home.run("up").returncode == 1
    # Old and new side by side.
    assert own_home.run("up", "--expect-pcr0", "default").returncode == 0
    mine = own_home.status()["pcrs"]["0"]
    assert own_home.run("up", "--expect-pcr0", OTHER, "--expect-pcr0", mine).returncode == 0
    with kernel() as (_, client):
        assert run_code(client, "print(6 * 7)") == "42\n"
    # A new gateway has not forgotten.
    os.kill(own_home.status()["pids"]["gateway"], signal.SIGKILL)
    assert wait_until(lambda: "gateway" not in own_home.status()["pids"])
    assert own_home.run("up").returncode == 0
    expected = json.loads(own_home.run("attest", "--json").stdout)["expected_pcrs"]
    assert expected == {"0": sorted([OTHER, mine])}
    # An enclave that runs is not used any longer than it is expected.
    refused = own_home.run("up", "--expect-pcr0", OTHER)
    assert refused.returncode == 1 and OTHER in refused.stderr
    assert wait_until(lambda: own_home.status()["state"] == "untrusted")
    assert OTHER in own_home.run("status").stdout
    assert OTHER in own_home.run("attest").stderr
    with pytest.raises(Exception, match=OTHER), kernel():
        pass
    assert own_home.run("up", "--expect-pcr0", mine).returncode == 0
    assert own_home.status()["state"] == "up"
    assert own_home.run("down").returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expect-pcr0", "xy"], "is not a value of PCR0"),
        (["--expect-pcr0", "ab" * 47], "is not a value of PCR0"),
        (["--expect-pcr0", "00" * 48], "debug mode"),
        (["--expect-pcr3", "/etc/passwd"], "give 96 hexadecimal digits"),
        (["--expect-pcr0", "/etc/passwd"], "cannot be measured"),
        (["--expect-pcr0", "default", "--expect-pcr0", "ab" * 48], "no other expectation"),
        (["--expect-pcr0", "default", "--expect-pcr8", "ab" * 48], "no other expectation"),
    ],
)
def test_what_is_no_expectation(own_home: EnclaveHome, options: list[str], message: str) -> None:
    result = own_home.run("up", *options)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert own_home.status()["state"] == "down"
    assert not list(own_home.runtime.rglob("expected_pcrs*"))
