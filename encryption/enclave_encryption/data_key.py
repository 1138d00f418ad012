"""A package's data key, wrapped by AWS KMS for the package's label."""

from collections.abc import Mapping

from enclave_encryption.errors import KmsError
from enclave_encryption.kms_connection import KmsConnection

__all__ = ["KmsKey"]


class KmsKey(KmsConnection):
    """The KMS key that wraps data keys.

    Args:
        key_id: Key id, alias (`alias/NAME`) or ARN.
        region: AWS region; None takes it from the ARN or the AWS configuration.
        endpoint_url: Another endpoint than AWS's own; None for AWS's.

    Raises:
        KmsError: No credentials or region, no such key, not allowed, not reachable.
    """

    rights = "kms:DescribeKey and kms:Encrypt"

    def wrap(self, data_key: bytes | bytearray, context: Mapping[str, str]) -> bytes:
        """Return `data_key` wrapped, bound to the encryption context `context`.

        Args:
            data_key: 32 bytes; the caller wipes them. Copies inside boto3 are beyond reach.
            context: The label's.

        Raises:
            KmsError: As for the class.
        """
        with self._errors():
            answer = self._client.encrypt(
                KeyId=self.arn, Plaintext=bytes(data_key), EncryptionContext=dict(context)
            )
        if answer["KeyId"] != self.arn:
            raise KmsError(f"KMS answered for key {answer['KeyId']}, asked was {self.arn}")
        return answer["CiphertextBlob"]
