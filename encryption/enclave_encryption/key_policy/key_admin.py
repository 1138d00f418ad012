"""A KMS key's policy, read and replaced."""

from typing import Final

from enclave_encryption.errors import KeyPolicyError
from enclave_encryption.kms_connection import KmsConnection

__all__ = ["KeyAdmin"]

_POLICY: Final = "default"
"""The only name of a policy that KMS knows."""


class KeyAdmin(KmsConnection):
    """One KMS key.

    Args:
        key_id: Key id, alias (`alias/NAME`) or ARN.
        region: AWS region; None takes it from the ARN or the AWS configuration.
        endpoint_url: Another endpoint than AWS's own; None for AWS's.

    Raises:
        KmsError: No credentials or region, no such key, not allowed, not reachable.
    """

    rights = "kms:DescribeKey, kms:GetKeyPolicy and kms:PutKeyPolicy"

    def policy(self) -> str:
        """Return the key policy, JSON.

        Raises:
            KmsError: As for the class.
        """
        with self._errors():
            return self._client.get_key_policy(KeyId=self.arn, PolicyName=_POLICY)["Policy"]

    def replace_policy(self, before: str, after: str) -> None:
        """Put the policy `after` in the place of `before`.

        KMS itself refuses a policy under which the caller could not change it again.

        Raises:
            KeyPolicyError: The policy is not `before` any more.
            KmsError: As for the class.
        """
        if self.policy() != before:
            raise KeyPolicyError(
                "somebody changed the key policy meanwhile: look at the change again, then apply it"
            )
        self.put_policy(after)

    def put_policy(self, text: str) -> None:
        """Put a policy, whatever is there.

        Raises:
            KmsError: As for the class.
        """
        with self._errors():
            self._client.put_key_policy(KeyId=self.arn, PolicyName=_POLICY, Policy=text)
