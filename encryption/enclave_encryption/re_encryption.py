"""A wrapped data key under another KMS key, without its plaintext."""

from collections.abc import Mapping

from enclave_encryption.errors import KmsError
from enclave_encryption.kms_connection import KmsConnection

__all__ = ["ReEncryption"]


class ReEncryption(KmsConnection):
    """The KMS key a data key is wrapped under, for wrapping it anew under another."""

    rights = "kms:ReEncryptFrom"

    def rewrap(self, wrapped: bytes, context: Mapping[str, str], destination: str) -> bytes:
        """Return `wrapped` under the key `destination`; the plaintext never leaves KMS.

        Args:
            wrapped: Under this key.
            context: The package's encryption context, the same before and after.
            destination: ARN of a key in the same region.

        Raises:
            KmsError: As for `KmsConnection`.
        """
        with self._errors():
            answer = self._client.re_encrypt(
                CiphertextBlob=wrapped,
                SourceKeyId=self.arn,
                SourceEncryptionContext=dict(context),
                DestinationKeyId=destination,
                DestinationEncryptionContext=dict(context),
            )
        if answer["KeyId"] != destination:
            raise KmsError(f"KMS answered for key {answer['KeyId']}, asked was {destination}")
        return answer["CiphertextBlob"]
