"""A key policy that lets its owner re-encrypt one package's data key, for as long as that takes.

The owner's own policy forbids it at all other times: whoever may re-encrypt can decrypt.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from enclave_encryption.errors import KeyPolicyError, KmsError
from enclave_encryption.key_policy.key_admin import KeyAdmin
from enclave_encryption.key_policy.kms_actions import KEY_ACTIONS
from enclave_encryption.key_policy.release_rule import DENY_SID
from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.policy_document import load_policy, parse_policy
from enclave_protocol.policy.policy_error import PolicyError

__all__ = ["ALLOW_SID", "opened_policy", "rekey_window"]

ALLOW_SID: Final = "EnclaveRekey"
_DENY_OTHERS_SID: Final = "EnclaveRekeyDenyOthers"
_DENY_PRINCIPALS_SID: Final = "EnclaveRekeyDenyPrincipals"
_ACTION: Final = "kms:ReEncryptFrom"
_LABEL: Final = "label-sha256"
_PRINCIPAL: Final = "aws:PrincipalArn"


def opened_policy(text: str, principal: str, context: Mapping[str, str]) -> str:
    """Return the policy `text`, with `principal` let to re-encrypt what `context` names.

    The tool's Deny keeps covering everything else, and everybody else: other statements are left as
    they are, and one that leaves it to IAM policies who may re-encrypt lets nobody meanwhile.

    Args:
        text: The key policy.
        principal: ARN of who is to re-encrypt.
        context: The package's encryption context; its `label-sha256` names one file's label.

    Raises:
        PolicyError: `text` is no policy, or `principal` none.
    """
    policy = parse_policy(text)
    document, statements = _statements(text)
    key, label = f"kms:EncryptionContext:{_LABEL}", context[_LABEL]
    opened: list[dict[str, Any]] = []
    for statement, parsed in zip(statements, policy.statements, strict=True):
        if statement.get("Sid") != DENY_SID:
            opened.append(statement)
            continue
        # All that it denies but this one action, what an owner added included.
        denied = [a for a in KEY_ACTIONS if parsed.covers_action(a) and a != _ACTION]
        others = {name: value for name, value in statement.items() if name != "NotAction"}
        opened.append({**others, "Action": denied or ["kms:Decrypt"]})
        opened.append(_deny(_DENY_OTHERS_SID, {"StringNotEquals": {key: label}}))
        names = {"StringNotLike": {_PRINCIPAL: _names_of(principal)}}
        opened.append(_deny(_DENY_PRINCIPALS_SID, names))
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


def _statements(text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document = load_policy(text)
    found = document["Statement"]
    return document, [found] if type(found) is dict else list(found)


def closed_policy(text: str, before: str) -> str:
    """Return the policy `text`, opened and changed by somebody else since, without what opened it.

    Args:
        text: The key policy as it is now.
        before: As it was before it was opened.

    Raises:
        PolicyError: `text` is no policy.
    """
    document, statements = _statements(text)
    denied = {s["Sid"]: s for s in _statements(before)[1] if s.get("Sid") == DENY_SID}
    closed: list[dict[str, Any]] = []
    for statement in statements:
        if statement.get("Sid") in (ALLOW_SID, _DENY_OTHERS_SID, _DENY_PRINCIPALS_SID):
            continue
        if statement.get("Sid") in denied:
            actions = ("Action", "NotAction")
            kept = {name: value for name, value in statement.items() if name not in actions}
            own = denied[statement["Sid"]]
            statement = {**kept, **{name: own[name] for name in actions if name in own}}
        closed.append(statement)
    return json.dumps({**document, "Statement": closed})


def _restored(admin: KeyAdmin, opened: str, before: str) -> str:
    """Return what to put in the end: an image or package revoked meanwhile stays revoked."""
    try:
        current = admin.policy()
    except KmsError:
        return before
    if load_policy(current) in (load_policy(opened), load_policy(before)):
        return before
    return closed_policy(current, before)


def _deny(sid: str, condition: dict[str, Any]) -> dict[str, Any]:
    return {
        "Sid": sid,
        "Effect": "Deny",
        "Principal": "*",
        "Action": _ACTION,
        "Resource": "*",
        "Condition": condition,
    }


def _names_of(principal: str) -> list[str]:
    """Return patterns of the `aws:PrincipalArn` of `principal`: of a session it is the role's.

    A session's ARN does not hold its role's path, but no two roles of an account share a name.

    Raises:
        PolicyError: It is none.
    """
    arn = Caller.of(principal).arn
    before, role, name = arn.partition(":role/")
    return [arn, f"{before}{role}*/{name}"] if arn != principal and role else [arn]


@contextmanager
def rekey_window(admin: KeyAdmin, principal: str, context: Mapping[str, str]) -> Iterator[None]:
    """Open the key's policy for `principal` and `context`, and put it back, whatever happens.

    What somebody else changes in it meanwhile stays.

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
            admin.put_policy(_restored(admin, opened, before))
        except (KmsError, PolicyError) as error:
            raise KmsError(
                f"the key policy of {admin.arn} may still have the statement {ALLOW_SID}, which "
                f"lets {principal} re-encrypt this package's data key: {error}; take it out with: "
                f"enclave-owner key-policy -k {admin.arn} --narrow --apply"
            ) from error
