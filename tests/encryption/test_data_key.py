"""The data key: wrapped by the key that was asked for, and gone when the file is written."""

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest

from enclave_encryption.data_key import KmsKey
from enclave_encryption.errors import KmsError
from enclave_encryption.package_encryption import encrypt_package
from enclave_encryption.package_plan import PackagePlan, plan_package
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.package_errors import PackageFormatError
from enclave_protocol.package_header import decode_header
from tests.support.example_package import FILES, MANIFEST
from tests.support.moto_kms import CREDENTIALS, REGION, answering_kms

ARN = f"arn:aws:kms:{REGION}:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER = f"arn:aws:kms:{REGION}:123456789012:key/99999999-12ab-34cd-56ef-1234567890ab"


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
        "CiphertextBlob": base64.b64encode(wrapped).decode(),
    }


class WatchedKey(KmsKey):
    """Keeps the data keys that it wrapped, as it got them and as they were then."""

    def __init__(self, url: str) -> None:
        super().__init__(ARN, region=None, endpoint_url=url)
        self.given: list[bytes | bytearray] = []
        self.seen: list[bytes] = []

    def wrap(self, data_key: bytes | bytearray, context: Mapping[str, str]) -> bytes:
        self.given.append(data_key)
        self.seen.append(bytes(data_key))
        return super().wrap(data_key, context)


def test_the_data_key_is_wiped(plan: PackagePlan, tmp_path: Path) -> None:
    with answering_kms(200, answer(ARN)) as url:
        key = WatchedKey(url)
        encrypt_package(plan, key, tmp_path / "x", lambda _count: None)
    label = decode_header((tmp_path / "x").read_bytes()).label
    assert label.data_key_commitment == commit_data_key(key.seen[0])
    assert key.given == [bytes(32)]


def test_every_file_has_its_own_data_key(plan: PackagePlan, tmp_path: Path) -> None:
    with answering_kms(200, answer(ARN)) as url:
        key = WatchedKey(url)
        for name in "abcde":
            encrypt_package(plan, key, tmp_path / name, lambda _count: None)
    assert len(set(key.seen)) == 5
    assert all(len(data_key) == 32 for data_key in key.seen)


def test_the_data_key_is_wiped_when_encrypting_fails(plan: PackagePlan, tmp_path: Path) -> None:
    with answering_kms(200, answer(ARN, bytes(70_000))) as url:
        key = WatchedKey(url)
        with pytest.raises(PackageFormatError, match="wrapped key has 70000 bytes"):
            encrypt_package(plan, key, tmp_path / "x", lambda _count: None)
    assert key.given == [bytes(32)] and key.seen != [bytes(32)]
    assert not (tmp_path / "x").exists()


def test_a_data_key_wrapped_by_another_key_is_refused(plan: PackagePlan, tmp_path: Path) -> None:
    """The file would name a key that cannot open it."""
    with answering_kms(200, answer(OTHER)) as url:
        key = KmsKey(ARN, region=None, endpoint_url=url)
        with pytest.raises(KmsError, match=f"answered for key {OTHER}, asked was {ARN}"):
            encrypt_package(plan, key, tmp_path / "x", lambda _count: None)
    assert not (tmp_path / "x").exists()
