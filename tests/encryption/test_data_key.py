"""The owner's data key: of the key that was asked for, and gone when the file is written."""

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest

from enclave_encryption.data_key import DataKey, KmsKey
from enclave_encryption.errors import KmsError
from enclave_encryption.package_encryption import encrypt_package
from enclave_encryption.package_plan import PackagePlan, plan_package
from enclave_protocol.package_errors import PackageFormatError
from tests.support.example_package import FILES, MANIFEST
from tests.support.moto_kms import CREDENTIALS, REGION, answering_kms

ARN = f"arn:aws:kms:{REGION}:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER = f"arn:aws:kms:{REGION}:123456789012:key/99999999-12ab-34cd-56ef-1234567890ab"
KEY = bytes(range(32))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagePlan:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "source"
    for path, contents in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(contents)
    (folder / "enclave.toml").write_text(MANIFEST.format(name="credit-scorer"))
    return plan_package(folder)


def answer(key_id: str, wrapped: bytes = b"wrapped") -> dict[str, str]:
    return {
        "KeyId": key_id,
        "Plaintext": base64.b64encode(KEY).decode(),
        "CiphertextBlob": base64.b64encode(wrapped).decode(),
    }


class WatchedKey(KmsKey):
    """Keeps the data key that it gave away."""

    given: DataKey

    def generate_data_key(self, context: Mapping[str, str]) -> DataKey:
        self.given = super().generate_data_key(context)
        assert self.given.plaintext == KEY
        return self.given


def test_the_data_key_is_wiped(plan: PackagePlan, tmp_path: Path) -> None:
    with answering_kms(200, answer(ARN)) as url:
        key = WatchedKey(ARN, region=None, endpoint_url=url)
        encrypt_package(plan, key, tmp_path / "x", lambda _count: None)
    assert (tmp_path / "x").exists()
    assert key.given.plaintext == bytes(32)


def test_the_data_key_is_wiped_when_encrypting_fails(plan: PackagePlan, tmp_path: Path) -> None:
    with answering_kms(200, answer(ARN, bytes(70_000))) as url:
        key = WatchedKey(ARN, region=None, endpoint_url=url)
        with pytest.raises(PackageFormatError, match="wrapped key has 70000 bytes"):
            encrypt_package(plan, key, tmp_path / "x", lambda _count: None)
    assert key.given.plaintext == bytes(32)
    assert not (tmp_path / "x").exists()


def test_a_data_key_of_another_key_is_refused(plan: PackagePlan, tmp_path: Path) -> None:
    """The label would name a key that cannot open the file."""
    with answering_kms(200, answer(OTHER)) as url:
        key = KmsKey(ARN, region=None, endpoint_url=url)
        with pytest.raises(KmsError, match=f"answered for key {OTHER}, asked was {ARN}"):
            encrypt_package(plan, key, tmp_path / "x", lambda _count: None)
    assert not (tmp_path / "x").exists()
