"""What a key release says to an endpoint, and what it makes of a false or a failing one."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_infra.local_cloud.cms_encoding import CmsShape, encrypt_cms
from enclave_kernel.key_release_errors import (
    EnclaveClockError,
    KeyReleaseDeniedError,
    KeyReleaseError,
    KmsCredentialsError,
    KmsThrottledError,
    KmsUnreachableError,
)
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.errors import EnclaveError
from enclave_protocol.kms_cms import CmsFormatError, CmsOpenError
from tests.support.false_kms import false_kms
from tests.support.key_release import (
    ReleaseServices,
    check_one_line,
    release_services,
)
from tests.support.local_services import TEST_PCR0, release_policy

_STRANGER = rsa.generate_private_key(65537, 2048).public_key()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReleaseServices]:
    with release_services(tmp_path_factory.mktemp("services")) as services:
        yield services


def test_kms_down(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    with pytest.raises(KmsUnreachableError) as caught:
        services.release(header, endpoint_url="http://127.0.0.1:1")
    check_one_line(caught.value, "http://127.0.0.1:1", "check the endpoint")


@pytest.mark.parametrize("url", ["nonsense", "http://"])
def test_impossible_endpoint(services: ReleaseServices, url: str) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    with pytest.raises(KmsUnreachableError):
        services.release(header, endpoint_url=url, clock=TrustedClock())


def test_what_is_sent(services: ReleaseServices) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    refusal = json.dumps({"__type": "AccessDeniedException", "message": "no"}).encode()
    with false_kms(400, refusal) as (url, asked):
        for _ in range(2):
            with pytest.raises(KeyReleaseDeniedError):
                services.release(header, endpoint_url=url, clock=TrustedClock())
    keys = set()
    for request in asked:
        body = request["body"]
        assert body["KeyId"] == header.kms_key_arn
        assert body["EncryptionContext"] == header.encryption_context
        recipient = body["Recipient"]
        assert recipient["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
        document = base64.b64decode(recipient["AttestationDocument"])
        keys.add(decode_signed_document(document).document.public_key)
        assert "/us-east-1/kms/aws4_request" in request["headers"]["Authorization"]
    assert len(asked) == len(keys) == 2  # a fresh key for every release


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (400, {"__type": "ExpiredTokenException", "message": "expired"}, KmsCredentialsError),
        (400, {"__type": "ThrottlingException", "message": "Rate exceeded"}, KmsThrottledError),
        (400, {"__type": "RequestExpired", "message": "Request has expired"}, EnclaveClockError),
        (
            400,
            {"__type": "InvalidSignatureException", "message": "Signature not yet current: x"},
            EnclaveClockError,
        ),
        (400, {"__type": "InvalidSignatureException", "message": "no match"}, KmsCredentialsError),
        (400, {"__type": "SomethingNew", "message": "two\nlines"}, KeyReleaseError),
        (500, {"__type": "KMSInternalException"}, KmsUnreachableError),
        (200, {"KeyId": "arn:aws:kms:us-east-1:1:key/other"}, KmsUnreachableError),
        (200, {"KeyId": None, "Plaintext": "AAAA"}, KmsUnreachableError),
        (200, {"KeyId": None}, CmsFormatError),
        (200, {"KeyId": None, "CiphertextForRecipient": "AAAA"}, CmsFormatError),
        (200, {"KeyId": None, "CiphertextForRecipient": "A"}, KmsUnreachableError),
        (
            200,
            {
                "KeyId": None,
                "CiphertextForRecipient": base64.b64encode(
                    encrypt_cms(_STRANGER, bytes(32), CmsShape.CONSTRUCTED)
                ).decode(),
            },
            CmsOpenError,
        ),
        (200, b"<html>", KmsUnreachableError),
    ],
)
def test_answers_of_a_false_or_failing_endpoint(
    services: ReleaseServices, status: int, answer: Any, error: type[EnclaveError]
) -> None:
    header, _ = services.package(release_policy(TEST_PCR0))
    if isinstance(answer, dict):
        known = {"KeyId": header.kms_key_arn} if answer.get("KeyId", 0) is None else {}
        answer = json.dumps(answer | known).encode()
    with false_kms(status, answer) as (url, asked), pytest.raises(error) as caught:
        services.release(header, endpoint_url=url, clock=TrustedClock())
    check_one_line(caught.value)
    assert len(asked) == (3 if error is KmsThrottledError or status == 500 else 1)
