"""The tool's own statements in a key policy: what releases to which image, and the Deny beside it.

Everything else in the policy is kept as it is, and so is what an owner added to these statements.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enclave_encryption.errors import KeyPolicyError
from enclave_encryption.key_policy.attested import attested, identity
from enclave_encryption.key_policy.findings import DENIED
from enclave_encryption.key_policy.revoked_packages import with_revoked, without_revoked
from enclave_protocol.policy.kms_request import IMAGE_KEY, PCR_KEY
from enclave_protocol.policy.policy_document import PolicyDocument

__all__ = [
    "DENY_SID",
    "RELEASE_SID",
    "RuleChange",
    "changed_statements",
    "deny_statement",
    "with_own_actions",
]

RELEASE_SID: Final = "EnclaveRelease"
DENY_SID: Final = "EnclaveDenyUnattested"
_RULE: Final = re.compile(r"[A-Za-z0-9]{0,64}")
_CONTEXT: Final = "kms:EncryptionContext:"
_EQUALS: Final = "StringEquals"
_EQUALS_HEX: Final = "StringEqualsIgnoreCase"


@dataclass(frozen=True)
class RuleChange:
    """What an owner asks for; what is not mentioned stays as it is.

    Attributes:
        rule: Which release statement, for keys with several; empty for the only one.
        pcr0: The images to release to, instead of those before; None keeps them.
        add_pcr0: Images to add.
        remove_pcr0: Images to revoke, in every statement of the policy.
        pcrs: Values for PCR1, 2, 3 or 8; none for a register removes its condition.
        context: Values by key of the encryption context; none removes a key's condition.
        revoke: Packages, `NAME` or `NAME:VERSION`, to release to nobody.
        restore: Such packages to release again.
        principals: ARNs of the roles whose credentials enclaves present; empty keeps them.
    """

    rule: str = ""
    pcr0: tuple[str, ...] | None = None
    add_pcr0: tuple[str, ...] = ()
    remove_pcr0: tuple[str, ...] = ()
    pcrs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    context: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    principals: tuple[str, ...] = ()
    revoke: tuple[str, ...] = ()
    restore: tuple[str, ...] = ()

    @property
    def sid(self) -> str:
        """The statement's Sid.

        Raises:
            KeyPolicyError: `rule` is not letters and digits.
        """
        if not _RULE.fullmatch(self.rule):
            raise KeyPolicyError(f"--rule {self.rule[:80]!r}: letters and digits only, at most 64")
        return RELEASE_SID + self.rule

    @property
    def widens(self) -> bool:
        """Whether somebody may get a data key who did not before."""
        return self.writes_rule or bool(self.restore)

    @property
    def asks(self) -> bool:
        """Whether anything is to change at all."""
        return self.widens or bool(self.remove_pcr0 or self.revoke)

    @property
    def writes_rule(self) -> bool:
        """Whether the release statement itself is to change, or to be made."""
        return bool(
            self.pcr0 is not None or self.add_pcr0 or self.pcrs or self.context or self.principals
        )


def changed_statements(
    statements: list[dict[str, Any]], change: RuleChange
) -> list[dict[str, Any]]:
    """Return `statements` with the release statement changed and revoked images taken out.

    The Deny is not yet adapted: that is `deny_statement`.

    Raises:
        KeyPolicyError: A first release statement without image or principal, or an image to be
            revoked that no statement lists; a package to be revoked that is none.
    """
    kept = [dict(statement) for statement in statements]
    kept = with_revoked(without_revoked(kept, change.restore), change.revoke)
    if change.remove_pcr0:
        kept = _without_images(kept, frozenset(change.remove_pcr0))
    if not change.writes_rule:
        return kept
    for index, statement in enumerate(kept):
        if statement.get("Sid") == change.sid:
            kept[index] = _with_rule(statement, change)
            return kept
    return [*kept, _with_rule(_new_rule(change), change)]


def _new_rule(change: RuleChange) -> dict[str, Any]:
    if not (change.pcr0 or change.add_pcr0):
        raise KeyPolicyError(
            f"the policy has no statement {change.sid}: name the image to release to with --pcr0"
        )
    if not change.principals:
        raise KeyPolicyError(
            f"the policy has no statement {change.sid} yet: say with --principal ARN whose AWS "
            "credentials the enclave presents, which is the parent instance's role"
        )
    return {
        "Sid": change.sid,
        "Effect": "Allow",
        "Principal": {},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": {},
    }


def _with_rule(statement: Mapping[str, Any], change: RuleChange) -> dict[str, Any]:
    condition = _copy(statement.get("Condition", {}))
    if change.pcr0 is not None or change.add_pcr0:
        before = change.pcr0 if change.pcr0 is not None else _listed(condition, IMAGE_KEY)
        _put(condition, _EQUALS_HEX, IMAGE_KEY, [*before, *change.add_pcr0])
    for index, values in change.pcrs.items():
        _put(condition, _EQUALS_HEX, f"{PCR_KEY}{index}", values)
    for key, values in change.context.items():
        _put(condition, _EQUALS, f"{_CONTEXT}{key}", values)
    result = {**statement, "Condition": condition}
    if change.principals:
        result["Principal"] = {"AWS": _one_or_list(change.principals)}
    return result


def _without_images(
    statements: list[dict[str, Any]], revoked: frozenset[str]
) -> list[dict[str, Any]]:
    """Take `revoked` out of every Allow that lists them; one that lists no other goes."""
    kept: list[dict[str, Any]] = []
    missing = set(revoked)
    names = {name.lower() for name in (IMAGE_KEY, f"{PCR_KEY}0")}
    for statement in statements:
        condition = _copy(statement.get("Condition", {}))
        emptied = False
        for keys in condition.values() if statement.get("Effect") == "Allow" else ():
            for key in [key for key in keys if key.lower() in names]:
                values = _strings(keys[key])
                left = [value for value in values if value.lower() not in revoked]
                missing -= {value.lower() for value in values}
                emptied = emptied or not left
                if left != values and left:
                    keys[key] = _one_or_list(left)
        if not emptied:
            kept.append({**statement, "Condition": condition} if condition else statement)
    if missing:
        raise KeyPolicyError(
            f"no statement of the policy releases to PCR0 {min(missing)}: it is revoked already"
        )
    return kept


def deny_statement(policy: PolicyDocument, key_arn: str) -> dict[str, Any]:
    """Return the Deny for everybody who is not one of the images that `policy` releases to.

    An explicit Deny comes before every Allow, wherever that is: key policy, IAM policy or grant.

    Args:
        policy: As it will be, its own Deny disregarded.
        key_arn: The key's ARN.
    """
    listed: dict[str, set[str]] = {}
    for statement in policy.statements:
        if (
            statement.allows
            and statement.covers_action("kms:Decrypt")
            and statement.covers_resource(key_arn)
            and attested(statement).guarded
        ):
            key, values = identity(statement)
            listed.setdefault(key, set()).update(values)
    deny: dict[str, Any] = {
        "Sid": DENY_SID,
        "Effect": "Deny",
        "Principal": "*",
        "Action": list(DENIED),
        "Resource": "*",
    }
    # Of several keys all have to differ: whoever one statement releases to is not denied.
    differ = {key: _one_or_list(sorted(values)) for key, values in listed.items() if values}
    if not differ:
        return deny  # nobody decrypts
    return deny | {"Condition": {"StringNotEqualsIgnoreCase": differ}}


def with_own_actions(deny: dict[str, Any], before: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Deny, which also denies what an owner added to it.

    Args:
        deny: Of `deny_statement`.
        before: The statements of its Sid that are there.

    Raises:
        KeyPolicyError: One denies all actions but some.
    """
    actions = list(deny["Action"])
    for statement in before:
        if statement.get("Effect") != "Deny":
            continue
        if "NotAction" in statement:
            raise KeyPolicyError(
                f"the policy's statement {DENY_SID} has a NotAction, which would be lost: give "
                "that Deny another Sid"
            )
        known = {action.lower() for action in actions}
        added = _strings(statement["Action"])
        actions += [action for action in dict.fromkeys(added) if action.lower() not in known]
    return {**deny, "Action": actions}


def _copy(condition: Any) -> dict[str, dict[str, Any]]:
    return {operator: dict(keys) for operator, keys in condition.items()}


def _strings(value: Any) -> list[str]:
    return [value] if type(value) is str else list(value)


def _listed(condition: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """The values of `key` under any operator."""
    return [
        value
        for keys in condition.values()
        for name, values in keys.items()
        if name.lower() == key.lower()
        for value in _strings(values)
    ]


def _put(
    condition: dict[str, dict[str, Any]], operator: str, key: str, values: Iterable[str]
) -> None:
    """Demand that `key` is one of `values`, and nothing else of it any more."""
    for name in list(condition):
        for found in [found for found in condition[name] if found.lower() == key.lower()]:
            del condition[name][found]
    chosen = list(dict.fromkeys(values))
    if chosen:
        condition.setdefault(operator, {})[key] = _one_or_list(chosen)
    for name in [name for name, keys in condition.items() if not keys]:
        del condition[name]


def _one_or_list(values: Iterable[str]) -> str | list[str]:
    found = list(values)
    return found[0] if len(found) == 1 else found
