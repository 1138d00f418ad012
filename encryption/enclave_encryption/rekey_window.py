"""A key policy that lets its owner re-encrypt one package's data key, for as long as that takes.

The owner's own policy forbids it at all other times: whoever may re-encrypt can decrypt.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from enclave_encryption.errors import KeyPolicyError, KmsError
from enclave_encryption.key_policy.key_admin import KeyAdmin
from enclave_encryption.key_policy.release_rule import DENY_SID
from enclave_protocol.policy.policy_document import load_policy, parse_policy

__all__ = ["ALLOW_SID", "opened_policy", "rekey_window"]

ALLOW_SID: Final = "EnclaveRekey"
_DENY_OTHERS_SID: Final = "EnclaveRekeyDenyOthers"
_ACTION: Final = "kms:ReEncryptFrom"
_LABEL: Final = "label-sha256"


def opened_policy(text: str, principal: str, context: Mapping[str, str]) -> str:
    """Return the policy `text`, with `principal` let to re-encrypt what `context` names.

    The tool's Deny keeps covering everything else; other statements are left as they are.

    Args:
        text: The key policy.
        principal: ARN of who is to re-encrypt.
        context: The package's encryption context; its `label-sha256` names one file's label.

    Raises:
        PolicyError: `text` is no policy.
    """
    parse_policy(text)
    document = load_policy(text)
    found = document["Statement"]
    statements: list[dict[str, Any]] = [found] if type(found) is dict else list(found)
    key, label = f"kms:EncryptionContext:{_LABEL}", context[_LABEL]
    opened: list[dict[str, Any]] = []
    for statement in statements:
        if statement.get("Sid") != DENY_SID:
            opened.append(statement)
            continue
        opened.append({**statement, "Action": "kms:Decrypt"})
        opened.append(
            {
                "Sid": _DENY_OTHERS_SID,
                "Effect": "Deny",
                "Principal": "*",
                "Action": _ACTION,
                "Resource": "*",
                "Condition": {"StringNotEquals": {key: label}},
            }
        )
    opened.append(
        {
            "Sid": ALLOW_SID,
            "Effect": "Allow",
            "Principal": {"AWS": principal},
            "Action": _ACTION,
            "Resource": "*",
            "Condition": {"StringEquals": {key: label}},
        }
    )
    after = json.dumps({**document, "Statement": opened})
    parse_policy(after)
    return after


@contextmanager
def rekey_window(admin: KeyAdmin, principal: str, context: Mapping[str, str]) -> Iterator[None]:
    """Open the key's policy for `principal` and `context`, and put it back, whatever happens.

    Raises:
        KmsError: The policy cannot be read, opened or put back; the error says which.
        KeyPolicyError: Somebody else changes it meanwhile.
    """
    before = admin.policy()
    opened = opened_policy(before, principal, context)
    if admin.policy() != before:
        raise KeyPolicyError("somebody is changing the key policy: try again")
    try:
        # Inside: an interruption may come when KMS took it and we do not know yet.
        admin.put_policy(opened)
        yield
    finally:
        try:
            admin.put_policy(before)
        except KmsError as error:
            raise KmsError(
                f"the key policy of {admin.arn} may still have the statement {ALLOW_SID}, which "
                f"lets {principal} re-encrypt this package's data key: {error}; take it out with: "
                f"enclave-owner key-policy -k {admin.arn} --narrow --apply"
            ) from error
