"""The owner's key policy: whoever may call Decrypt, only one enclave image gets the answer."""

from typing import Any

__all__ = ["key_policy"]

_OWNER_ACTIONS = (
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GetKeyPolicy",
    "kms:PutKeyPolicy",
    "kms:ScheduleKeyDeletion",
)


def key_policy(*, owner_arn: str, user_arn: str, pcr0: str) -> dict[str, Any]:
    """Return a policy under which nobody decrypts outside the image measured as `pcr0`.

    The owner manages the key and encrypts with it, but has no Decrypt and no CreateGrant: either
    would be a way around the condition.

    Args:
        owner_arn: Who manages the key.
        user_arn: Whose AWS credentials the enclave presents.
        pcr0: SHA-384 of the enclave image, lower-case hex.
    """
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OwnerManagesAndEncrypts",
                "Effect": "Allow",
                "Principal": {"AWS": owner_arn},
                "Action": list(_OWNER_ACTIONS),
                "Resource": "*",
            },
            {
                "Sid": "OnlyThisEnclaveDecrypts",
                "Effect": "Allow",
                "Principal": {"AWS": user_arn},
                "Action": "kms:Decrypt",
                "Resource": "*",
                "Condition": {
                    "StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": pcr0}
                },
            },
        ],
    }
