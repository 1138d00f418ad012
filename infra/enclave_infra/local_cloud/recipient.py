"""The `Recipient` parameter: an attestation document in, condition keys and a public key out."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_protocol.attestation_document import MAX_DOCUMENT_BYTES
from enclave_protocol.attestation_errors import AttestationError
from enclave_protocol.attestation_verify import verify_attestation

__all__ = ["MAX_AGE", "Recipient", "RecipientVerifier"]

MAX_AGE = timedelta(minutes=5)  # a document serves one call, made at once
_KEY_BITS = 2048
_ALGORITHM = "RSAES_OAEP_SHA_256"


@dataclass(frozen=True)
class Recipient:
    """A verified enclave: the key to encrypt for, and its PCRs."""

    public_key: rsa.RSAPublicKey
    pcrs: Mapping[int, bytes]


class RecipientVerifier:
    """Checks documents under one root.

    Args:
        root: The root certificate, DER.
        clock: Returns the time, with time zone.
    """

    def __init__(self, root: bytes, clock: Callable[[], datetime]) -> None:
        self._root = root
        self._clock = clock

    def verify(self, parameter: Any) -> Recipient:
        """Return the enclave that `parameter` proves; a debug one has zero PCRs, as with KMS.

        Raises:
            AwsError: ValidationException, naming what is wrong.
        """
        if type(parameter) is not dict or parameter.get("KeyEncryptionAlgorithm") != _ALGORITHM:
            raise _invalid(f"Recipient.KeyEncryptionAlgorithm is not {_ALGORITHM}")
        encoded = parameter.get("AttestationDocument")
        if type(encoded) is not str or len(encoded) > 2 * MAX_DOCUMENT_BYTES:
            raise _invalid("Recipient.AttestationDocument is missing or too long")
        try:
            content = verify_attestation(
                base64.b64decode(encoded, validate=True),
                root=self._root,
                now=self._clock(),
                allow_debug=True,
                max_age=MAX_AGE,
            )
        except (AttestationError, binascii.Error) as error:
            raise _invalid(f"Recipient.AttestationDocument: {error}") from error
        try:
            key = serialization.load_der_public_key(content.public_key or b"")
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _invalid("the attestation document's public_key is no DER SPKI") from error
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != _KEY_BITS:
            raise _invalid(f"the attestation document's public_key is not RSA-{_KEY_BITS}")
        return Recipient(key, content.pcrs)


def _invalid(reason: str) -> AwsError:
    return AwsError("ValidationException", reason)
