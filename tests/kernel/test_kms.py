"""Key release end to end: real software NSM, real local cloud, real boto3, real CMS."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_kernel.key_release_errors import (
    EnclaveClockError,
    KeyReleaseDeniedError,
    KeyReleaseError,
    KeyUnavailableError,
    KmsCredentialsError,
    PackageExpiredError,
)
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.messages import Credentials
from enclave_protocol.package_errors import PackageFormatError, PackageTamperedError
from enclave_protocol.package_header import (
    PackageHeader,
    decode_header,
    encode_header,
)
from tests.support.attestation_documents import make_documents
from tests.support.example_package import FILES, make_label
from tests.support.false_kms import false_kms
from tests.support.key_release import (
    ReleaseServices,
    check_one_line,
    release_services,
)
from tests.support.local_services import (
    HOST_CREDENTIALS,
    OWNER_CREDENTIALS,
    TEST_PCR0,
    local_cloud,
    release_policy,
    software_nsm,
)
from tests.support.process_memory import occurrences


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReleaseServices]:
    with release_services(tmp_path_factory.mktemp("services")) as services:
        yield services


def test_released_to_the_approved_enclave(services: ReleaseServices) -> None:
    header, data_key = services.package(release_policy(TEST_PCR0))
    released = services.release(header)
    assert isinstance(released, bytearray)
    assert released == data_key


def test_primitive_cms_is_opened_too(services: ReleaseServices, tmp_path: Path) -> None:
    with local_cloud(tmp_path, root_cert=services.nsm.root_cert, cms_shape="primitive") as cloud:
        other = replace(services, cloud=cloud)
        header, data_key = other.package(release_policy(TEST_PCR0))
        assert other.release(header) == data_key


def test_wrong_pcr0_in_the_policy(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy("0b" * 48))
    with pytest.raises(KeyReleaseDeniedError) as caught:
        services.release(header)
    check_one_line(caught.value, TEST_PCR0, header.kms_key_arn, "key policy")


def test_another_image_is_denied_and_named(services: ReleaseServices, tmp_path: Path) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    root_dir = services.directory / "root"
    with software_nsm(tmp_path, pcr0="0c" * 48, root_dir=root_dir) as other:
        with pytest.raises(KeyReleaseDeniedError) as caught:
            services.release(header, nsm=other)
        check_one_line(caught.value, "0c" * 48)


def test_debug_enclave_is_denied(services: ReleaseServices, tmp_path: Path) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    with (
        software_nsm(tmp_path, debug=True, root_dir=services.directory / "root") as debug,
        pytest.raises(KeyReleaseDeniedError, match="0" * 96),
    ):
        services.release(header, nsm=debug)


def test_without_recipient_the_policy_refuses(services: ReleaseServices) -> None:
    """What root on the parent instance tries: the same credentials, no attestation."""
    header, _ = services.package(release_policy(TEST_PCR0))
    host = services.cloud.host
    with pytest.raises(host.exceptions.ClientError, match="AccessDeniedException"):
        host.decrypt(
            CiphertextBlob=header.wrapped_key,
            KeyId=header.kms_key_arn,
            EncryptionContext=header.encryption_context,
        )


def test_the_owner_may_not_decrypt_either(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    with pytest.raises(KeyReleaseDeniedError):
        services.release(header, credentials=OWNER_CREDENTIALS)


def test_altered_label(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    label = msgspec.structs.replace(header.label, file_count=header.label.file_count + 1)
    altered = decode_header(encode_header(label, header.slot))
    with pytest.raises(PackageTamperedError) as caught:
        services.release(altered)
    check_one_line(caught.value, "altered")


@pytest.mark.parametrize("position", [0, 2, 10, -1])
def test_altered_wrapped_key(services: ReleaseServices, position: int) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    wrapped = bytearray(header.wrapped_key)
    wrapped[position] ^= 1
    with pytest.raises(PackageTamperedError):
        services.release(
            decode_header(
                encode_header(header.label, replace(header.slot, wrapped_key=bytes(wrapped)))
            )
        )


def test_wrapped_key_of_another_package_under_the_same_key(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    other, _ = services.package_under(header.kms_key_arn, name="other")
    with pytest.raises(PackageTamperedError):
        services.release(
            decode_header(
                encode_header(header.label, replace(header.slot, wrapped_key=other.wrapped_key))
            )
        )


def test_wrapped_key_of_another_kms_key(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    other, _ = services.package(release_policy(TEST_PCR0))
    with pytest.raises(PackageTamperedError):
        services.release(
            decode_header(
                encode_header(header.label, replace(header.slot, wrapped_key=other.wrapped_key))
            )
        )


def test_no_such_key(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    arn = header.kms_key_arn[:-12] + "0" * 12
    slot = replace(header.slot, kms_key_arn=arn)
    with pytest.raises(KeyUnavailableError, match=arn):
        services.release(decode_header(encode_header(header.label, slot)))


def test_key_slot_without_a_key_arn(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    slot = replace(header.slot, kms_key_arn="arn:aws:s3:::bucket")
    with pytest.raises(PackageFormatError):
        services.release(replace(header, slot=slot))


def test_disabled_and_deleted_keys(services: ReleaseServices) -> None:
    header, data_key = services.package(release_policy(TEST_PCR0))
    arn = header.kms_key_arn
    services.cloud.owner.disable_key(KeyId=arn)
    with pytest.raises(KeyUnavailableError, match="DisabledException"):
        services.release(header)
    services.cloud.owner.enable_key(KeyId=arn)
    assert services.release(header) == data_key
    services.cloud.owner.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
    with pytest.raises(KeyUnavailableError, match="KMSInvalidStateException"):
        services.release(header)


def test_unknown_and_temporary_credentials(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    for wrong in (
        Credentials("AKIAUNKNOWN000000000", "x" * 40),
        Credentials(HOST_CREDENTIALS.access_key_id, "x" * 40),
        msgspec.structs.replace(HOST_CREDENTIALS, session_token="expired"),
    ):
        with pytest.raises(KmsCredentialsError) as caught:
            services.release(header, credentials=wrong)
        check_one_line(caught.value, "renew them")
        assert wrong.secret_access_key not in str(caught.value)


def test_a_clock_that_is_wrong(services: ReleaseServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed for real, an hour ago: the local cloud refuses it as AWS does."""
    header, data_key = services.package(release_policy(TEST_PCR0))
    assert services.release(header) == data_key
    real: Any = vars(botocore.auth)["get_current_datetime"]
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda *a, **k: real(*a, **k) - timedelta(hours=1)
    )
    with pytest.raises(EnclaveClockError) as caught:
        services.release(header)
    check_one_line(caught.value, "clock", "chronyc")


def test_document_under_another_root(services: ReleaseServices, tmp_path: Path) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    with software_nsm(tmp_path) as stranger, pytest.raises(KeyReleaseError) as caught:
        services.release(header, nsm=stranger)
    check_one_line(caught.value, "ValidationException", "root")


@pytest.mark.parametrize("minutes", [6, 60])
def test_stale_document(services: ReleaseServices, minutes: int) -> None:
    """A captured document, replayed by the parent instance to KMS itself."""
    header, _ = services.package(release_policy(TEST_PCR0))
    key = rsa.generate_private_key(65537, 2048)
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # Made by the same root, at another time; only the age differs.
    for age, accepted in ((timedelta(), True), (timedelta(minutes=minutes), False)):
        maker = make_documents(services.directory / "root", datetime.now(UTC) - age)
        document = maker.document(public_key=spki)
        assert decode_signed_document(document).document.pcrs[0].hex() == TEST_PCR0
        request: Any = {
            "CiphertextBlob": header.wrapped_key,
            "KeyId": header.kms_key_arn,
            "EncryptionContext": header.encryption_context,
            "Recipient": {
                "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                "AttestationDocument": document,
            },
        }
        if accepted:
            answer = services.cloud.host.decrypt(**request)
            assert "Plaintext" not in answer
            assert answer["CiphertextForRecipient"]
        else:
            with pytest.raises(services.cloud.host.exceptions.ClientError, match="written at"):
                services.cloud.host.decrypt(**request)


def _expiring(services: ReleaseServices, expires: str) -> PackageHeader:
    policy = msgspec.structs.replace(make_label(FILES).policy, expires=expires)
    return services.package(release_policy(TEST_PCR0), usage=policy)[0]


@pytest.mark.parametrize("expires", ["2020-01-01T00:00:00Z", "2026-01-01T00:00:00+02:00"])
def test_an_expired_package_gets_no_key_and_kms_is_not_asked(
    services: ReleaseServices, expires: str
) -> None:
    header = _expiring(services, expires)
    with false_kms(200, b"{}") as (url, asked), pytest.raises(PackageExpiredError) as caught:
        services.release(header, endpoint_url=url)
    check_one_line(caught.value, f"expired at {expires}")
    assert not asked


def test_expiry_goes_by_the_documents_time(services: ReleaseServices) -> None:
    """Once it was later, an older document makes nothing valid again."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    header = _expiring(services, tomorrow.isoformat(timespec="seconds"))
    clock = TrustedClock()
    assert services.release(header, clock=clock)
    later = TrustedClock(int(tomorrow.timestamp() * 1000))
    with pytest.raises(PackageExpiredError):
        services.release(header, clock=later)


@pytest.mark.parametrize("expires", ["soon", "2099-01-01T00:00:00"])
def test_an_expiry_that_is_none_is_refused(services: ReleaseServices, expires: str) -> None:
    header = _expiring(services, "2099-01-01T00:00:00Z")
    policy = msgspec.structs.replace(header.label.policy, expires=expires)
    label = msgspec.structs.replace(header.label, policy=policy)
    with pytest.raises(PackageFormatError, match="RFC 3339"):
        services.release(replace(header, label=label))


def test_every_release_is_in_the_owners_log(services: ReleaseServices) -> None:
    """As CloudTrail has it: which package and version, under which label, to which image."""
    header, _ = services.package(release_policy(TEST_PCR0), name="logged")
    denied, _ = services.package(release_policy("0b" * 48), name="denied")
    services.release(header)
    with pytest.raises(KeyReleaseDeniedError):
        services.release(denied)
    lines = (services.directory / "cloud" / "cloudtrail.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    first, second = [event for event in asked if event["eventName"] == "Decrypt"][-2:]
    label_hash = hashlib.sha256(header.label_bytes).hexdigest()
    assert first["requestParameters"] == {
        "keyId": header.kms_key_arn,
        "encryptionContext": {
            "package": "logged",
            "version": "1.2.0",
            "label-sha256": label_hash,
        },
    }
    seen = first["additionalEventData"]["recipient"]["attestationDocumentEnclaveImageDigest"]
    assert seen == TEST_PCR0 and "errorCode" not in first
    assert second["errorCode"] == "AccessDeniedException"
    assert second["requestParameters"]["encryptionContext"]["package"] == "denied"
    for secret in (header.wrapped_key, HOST_CREDENTIALS.secret_access_key.encode()):
        assert base64.b64encode(secret).decode() not in "".join(lines)


def test_a_wrapped_value_that_is_no_data_key(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    answer = services.cloud.owner.encrypt(
        KeyId=header.kms_key_arn,
        Plaintext=bytes(31),
        EncryptionContext=header.encryption_context,
    )
    with pytest.raises(PackageTamperedError, match="31 bytes, expected 32"):
        services.release(
            decode_header(
                encode_header(header.label, KeySlot(header.kms_key_arn, answer["CiphertextBlob"]))
            )
        )


_RELEASER = """
import sys
from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.messages import Credentials
from enclave_protocol.package_header import decode_header
endpoint, url, key, secret, header = sys.argv[1:]
with NsmClient.open(endpoint) as nsm, RsaPool(1) as pool:
    released = release_data_key(decode_header(bytes.fromhex(header)), nsm=nsm, keys=pool,
        credentials=Credentials(key, secret), endpoint_url=url, clock=TrustedClock())
    print("released", flush=True)
    sys.stdin.readline()
    released[:] = bytes(len(released))
    print("wiped", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another process's memory needs root")
def test_the_one_copy_of_the_key_is_the_one_to_wipe(services: ReleaseServices) -> None:
    header, data_key = services.package(release_policy(TEST_PCR0))
    credentials = HOST_CREDENTIALS.access_key_id, HOST_CREDENTIALS.secret_access_key
    arguments = [services.nsm.endpoint, services.cloud.endpoint_url, *credentials, header.raw.hex()]
    with subprocess.Popen(
        [sys.executable, "-c", _RELEASER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line, expected in ((b"released\n", 1), (b"wiped\n", 0)):
            assert process.stdout.readline() == line
            for part in (data_key[:16], data_key[16:]):
                assert occurrences(process.pid, part) == expected
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert process.returncode == 0


def test_the_environment_is_not_read(services: ReleaseServices, tmp_path: Path) -> None:
    """Variables and files that redirect, impersonate or break an ordinary AWS client."""
    header, data_key = services.package(release_policy(TEST_PCR0))
    config = tmp_path / "config"
    config.write_text("[default]\nendpoint_url = http://127.0.0.1:1\nregion = mars-1\n")
    script = """
import sys
from enclave_kernel.kms import _client, release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
assert "boto3" not in sys.modules, "boto3 is to be imported at the first release"
from enclave_protocol.messages import Credentials
from enclave_protocol.package_header import decode_header
endpoint, url, key, secret, header = sys.argv[1:]
public = _client("eu-west-1", Credentials(key, secret), None).meta.endpoint_url
assert public == "https://kms.eu-west-1.amazonaws.com", public
with NsmClient.open(endpoint) as nsm, RsaPool(1) as pool:
    print(release_data_key(decode_header(bytes.fromhex(header)), nsm=nsm, keys=pool,
        credentials=Credentials(key, secret), endpoint_url=url, clock=TrustedClock()).hex())
"""
    hostile = {
        "AWS_PROFILE": "no-such-profile",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(config),
        "AWS_ACCESS_KEY_ID": "AKIASTRANGER",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_SESSION_TOKEN": "x",
        "AWS_DEFAULT_REGION": "mars-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1",
        "AWS_CA_BUNDLE": "/nonexistent",
        "REQUESTS_CA_BUNDLE": "/nonexistent",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_DATA_PATH": str(tmp_path),
        "HTTP_PROXY": "http://127.0.0.1:1",
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }
    credentials = HOST_CREDENTIALS.access_key_id, HOST_CREDENTIALS.secret_access_key
    arguments = [services.nsm.endpoint, services.cloud.endpoint_url, *credentials, header.raw.hex()]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **hostile},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == data_key.hex(), done.stderr
