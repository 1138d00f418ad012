"""A publisher's key that stays in KMS: ECDSA on P-384, or Ed25519 where KMS offers it.

Source: KMS API reference, GetPublicKey and Sign; docs/decisions/publisher_signature.md.
"""

from typing import ClassVar, Final

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from enclave_encryption.errors import KmsError
from enclave_encryption.kms_connection import KmsConnection
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_signature import (
    ECDSA_P384,
    ED25519,
    Algorithm,
    Signer,
    check_signer,
)

__all__ = ["KmsSigningKey"]

# (key spec, signing algorithm, ours): nothing else is signed with, whatever KMS offers.
_KNOWN: Final[tuple[tuple[str, str, Algorithm], ...]] = (
    ("ECC_NIST_P384", "ECDSA_SHA_384", ECDSA_P384),
    ("ECC_NIST_EDWARDS25519", "ED25519_SHA_512", ED25519),
)
_P384_BYTES: Final = 48


class KmsSigningKey(KmsConnection):
    """An asymmetric KMS key for SIGN_VERIFY.

    Args:
        key_id: Key id, alias (`alias/NAME`) or ARN.
        region: AWS region; None takes it from the ARN or the AWS configuration.
        endpoint_url: Another endpoint than AWS's own; None for AWS's.

    Raises:
        KmsError: No such key, not allowed, not reachable, or a key of another kind.
    """

    key_specs: ClassVar[tuple[str, ...]] = tuple(spec for spec, _, _ in _KNOWN)
    use: ClassVar[str] = "signing: it has to be ECC_NIST_P384 or ECC_NIST_EDWARDS25519, SIGN_VERIFY"
    rights: ClassVar[str] = "kms:DescribeKey, kms:GetPublicKey and kms:Sign"

    def __init__(self, key_id: str, *, region: str | None, endpoint_url: str | None) -> None:
        super().__init__(key_id, region=region, endpoint_url=endpoint_url)
        with self._errors():
            metadata = self._client.describe_key(KeyId=self.arn)["KeyMetadata"]
            answer = self._client.get_public_key(KeyId=self.arn)
        spec = str(metadata.get("KeySpec"))
        offered: list[str] = [str(entry) for entry in metadata.get("SigningAlgorithms", [])]
        for known, kms_algorithm, algorithm in _KNOWN:
            if spec == known and kms_algorithm in offered:
                self._algorithm = kms_algorithm
                self.signer = Signer(algorithm, answer["PublicKey"].hex())
                break
        else:
            raise KmsError(f"key {key_id} is {spec}, which is not for {self.use}")
        try:
            check_signer(self.signer, "publisher")
        except EnclaveError as error:
            raise KmsError(f"KMS answered with a public key that is none: {error}") from None

    def sign(self, message: bytes) -> bytes:
        """Return the signature as it is in the file.

        Raises:
            KmsError: KMS did not sign.
        """
        with self._errors():
            answer = self._client.sign(
                KeyId=self.arn,
                Message=message,
                MessageType="RAW",
                SigningAlgorithm=self._algorithm,  # type: ignore[arg-type]  # one of _KNOWN
            )
        value = bytes(answer["Signature"])
        if self.signer.algorithm == ED25519:
            return value
        try:
            r, s = decode_dss_signature(value)
            return r.to_bytes(_P384_BYTES, "big") + s.to_bytes(_P384_BYTES, "big")
        except (ValueError, OverflowError):
            raise KmsError("KMS answered with a signature that is none") from None
