"""What in a key policy would let somebody have the data key without attestation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from enclave_encryption.key_policy.attested import attested, denies_unattested
from enclave_encryption.key_policy.kms_actions import ESCAPES, PUT_KEY_POLICY, REPLICATE_KEY
from enclave_protocol.policy.caller import Caller, account_of
from enclave_protocol.policy.policy_document import PolicyDocument
from enclave_protocol.policy.policy_error import PolicyError
from enclave_protocol.policy.statement import Statement

__all__ = ["DENIED", "Finding", "find_widening"]

_DECRYPT: Final = "kms:Decrypt"
DENIED: Final = (_DECRYPT, "kms:ReEncryptFrom")
"""What the tool's own Deny covers. Grants cannot get around it: an explicit Deny comes first."""

_ANY_IMAGE: Final = {
    _DECRYPT: "decrypt the data key in an enclave of any image",
    "kms:CreateGrant": "hand out grants to decrypt in an enclave of any image",
}
"""What is left of an action where only requests without attestation are denied."""
_DENIES_UNATTESTED: Final = ": the Deny stops only requests without attestation document"


@dataclass(frozen=True)
class Finding:
    """One way around attestation.

    Attributes:
        statement: Name of the statement; empty when one is missing.
        action: What it allows.
        text: Who could do what, and why, for people.
    """

    statement: str
    action: str
    text: str

    def __str__(self) -> str:
        return f"{self.statement}: {self.text}" if self.statement else self.text


def find_widening(
    policy: PolicyDocument, key_arn: str, parents: Iterable[str] = ()
) -> tuple[Finding, ...]:
    """Return every way around attestation in `policy`; none means that only enclaves decrypt.

    Judged by the key policy alone, as far as it goes: who may rewrite it is trusted.

    Args:
        policy: The key's.
        key_arn: Its ARN; the account in it is the owner's.
        parents: Principals of parent instances (ARNs): nobody of them may rewrite the policy.
    """
    return tuple(_find(policy, key_arn, tuple(parents)))


def _find(policy: PolicyDocument, key_arn: str, parents: tuple[str, ...]) -> Iterator[Finding]:
    owner = key_arn.split(":")[4]
    held = frozenset(
        action
        for action in DENIED
        if any(denies_unattested(s, action, key_arn) for s in policy.statements)
    )
    images_only = any(
        denies_unattested(s, _DECRYPT, key_arn, other_images=True) for s in policy.statements
    )
    for statement in policy.statements:
        if not statement.allows or not statement.covers_resource(key_arn):
            continue
        yield from _escapes(statement, owner, key_arn, held, images_only=images_only)
        yield from _rewriting(statement, owner, parents)
    for action in DENIED:
        if action not in held:
            yield Finding(
                "",
                action,
                f"no statement denies {action} to everybody without an attestation document: IAM "
                "policies and grants can allow it",
            )


def _escapes(
    statement: Statement, owner: str, key_arn: str, held: frozenset[str], *, images_only: bool
) -> Iterator[Finding]:
    judged = attested(statement)
    # Only Decrypt takes an attestation document; for the others an attestation condition that
    # demands one is never true.
    if judged.guarded:
        return
    actions = dict(ESCAPES)
    if ":key/mrk-" in key_arn:
        actions[REPLICATE_KEY] = "make a replica of the key under a policy of their own"
    found = {action: text for action, text in actions.items() if statement.covers_action(action)}
    if not found:
        return
    why = f" ({'; '.join(judged.faults)})" if judged.faults else ""
    for action, consequence in found.items():
        # A grant is good for what it allows only where nothing denies that.
        stopped = action in held or (action == "kms:CreateGrant" and held == set(DENIED))
        now = ", once the Deny that stops it is gone" if stopped else ""
        if stopped and not images_only and action in _ANY_IMAGE:
            consequence, now = _ANY_IMAGE[action], _DENIES_UNATTESTED
        who = _who(statement, owner)
        yield Finding(statement.name, action, f"{action} lets {who} {consequence}{now}{why}")


def _who(statement: Statement, owner: str) -> str:
    if statement.except_principals:
        return "everybody but those it lists (NotPrincipal)"
    names = [name for _, name in statement.principals]
    if "*" in names:
        return "everybody whom no condition stops"
    shown = []
    for name in names:
        account = account_of(name)
        if name != account and not name.endswith(":root"):
            shown.append(name)
        elif account == owner:
            shown.append(
                "whomever an IAM policy of your account allows it (an account's root delegates to "
                "its IAM policies)"
            )
        else:
            shown.append(f"whomever the administrators of account {account} allow it")
    return " and ".join(shown)


def _one_name(principal: str) -> str:
    """Return one text for a role and all its sessions, whose ARNs do not hold the role's path."""
    try:
        arn = Caller.of(principal).arn
    except PolicyError:
        return principal
    before, role, rest = arn.partition(":role/")
    return f"{before}{role}{rest.rpartition('/')[2]}"


def _rewriting(statement: Statement, owner: str, parents: tuple[str, ...]) -> Iterator[Finding]:
    if not statement.covers_action(PUT_KEY_POLICY):
        return
    names = {name for _, name in statement.principals}
    hosts = {_one_name(name) for name in parents}
    # Of a service, an identity provider or a unique id it is not known whose it is.
    suspects = sorted(n for n in names if account_of(n) != owner or _one_name(n) in hosts)
    if statement.except_principals:
        suspects = ["everybody but those it lists (NotPrincipal)"]
    for name in suspects:
        yield Finding(
            statement.name,
            PUT_KEY_POLICY,
            f"{PUT_KEY_POLICY} lets {'everybody' if name == '*' else name} replace this policy",
        )
