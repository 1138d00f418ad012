"""What can be done with a symmetric KMS key, and which of it gets around attestation.

Source: Service authorization reference, "Actions, resources, and condition keys for AWS Key
Management Service"; KMS developer guide, "Cryptographic attestation for AWS Nitro Enclaves": of
these only Decrypt, GenerateDataKey, GenerateDataKeyPair and GenerateRandom take a Recipient.
"""

from typing import Final

__all__ = ["ESCAPES", "KEY_ACTIONS", "PUT_KEY_POLICY", "REPLICATE_KEY"]

ESCAPES: Final = {
    "kms:Decrypt": "decrypt the data key outside of any enclave",
    "kms:ReEncryptFrom": (
        "have KMS wrap the data key anew under a key of their own, and decrypt it with that"
    ),
    "kms:CreateGrant": "hand out grants to decrypt, whose conditions know no attestation",
}
"""Action: what somebody who may do it without attestation can do."""

PUT_KEY_POLICY: Final = "kms:PutKeyPolicy"
REPLICATE_KEY: Final = "kms:ReplicateKey"
"""Of multi-Region keys: the replica's policy is whatever its maker writes."""

KEY_ACTIONS: Final = (
    "kms:CancelKeyDeletion",
    "kms:CreateAlias",
    "kms:CreateGrant",
    "kms:Decrypt",
    "kms:DeleteAlias",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListKeyRotations",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:ReplicateKey",
    "kms:RetireGrant",
    "kms:RevokeGrant",
    "kms:RotateKeyOnDemand",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdateKeyDescription",
    "kms:UpdatePrimaryRegion",
)
