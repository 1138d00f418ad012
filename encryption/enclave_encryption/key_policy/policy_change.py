"""From one policy text to the next: change, narrow, deny the rest, judge."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from enclave_encryption.key_policy.attested import attested
from enclave_encryption.key_policy.findings import Finding, find_widening
from enclave_encryption.key_policy.narrowing import narrowed
from enclave_encryption.key_policy.release_rule import (
    DENY_SID,
    RuleChange,
    changed_statements,
    deny_statement,
    with_own_actions,
)
from enclave_protocol.policy.policy_document import PolicyDocument, load_policy, parse_policy

__all__ = ["PolicyChange", "plan_change", "release_principals", "shown_policy"]


@dataclass(frozen=True)
class PolicyChange:
    """A key policy before and after.

    Attributes:
        before, after: JSON, as KMS has it and as it is to have it.
        findings: Ways around attestation that `after` leaves.
    """

    before: str
    after: str
    findings: tuple[Finding, ...]

    @property
    def changes(self) -> bool:
        """Whether the two differ in more than white space."""
        return load_policy(self.before) != load_policy(self.after)


def plan_change(before: str, key_arn: str, change: RuleChange, *, narrow: bool) -> PolicyChange:
    """Return what `change` makes of a policy.

    Args:
        before: The policy's JSON.
        key_arn: ARN of its key.
        change: What to change.
        narrow: Take everything out that gets around attestation.

    Raises:
        PolicyError: `before` is no policy, or the result is over 32 KiB.
        KeyPolicyError: As `changed_statements`.
    """
    parse_policy(before)
    document = load_policy(before)
    found = document["Statement"]
    statements: list[dict[str, Any]] = [found] if type(found) is dict else found
    statements = changed_statements(statements, change)
    if narrow and statements:
        policy = _parsed(document, statements)
        findings = find_widening(policy, key_arn, release_principals(policy))
        statements = narrowed(statements, policy, findings)
    others = [statement for statement in statements if statement.get("Sid") != DENY_SID]
    own = [statement for statement in statements if statement.get("Sid") == DENY_SID]
    deny = with_own_actions(deny_statement(_parsed(document, others), key_arn), own)
    if own:
        statements = [deny if s.get("Sid") == DENY_SID else s for s in statements]
    else:
        statements = [*statements, deny]
    after = json.dumps({**document, "Statement": statements})
    policy = parse_policy(after)
    return PolicyChange(before, after, find_widening(policy, key_arn, release_principals(policy)))


def _parsed(document: dict[str, Any], statements: list[dict[str, Any]]) -> PolicyDocument:
    if not statements:
        return PolicyDocument(())
    return parse_policy(json.dumps({**document, "Statement": statements}))


def release_principals(policy: PolicyDocument) -> tuple[str, ...]:
    """Return the principals that a policy releases to in an enclave: the parent instances'."""
    names: Iterable[str] = (
        name
        for statement in policy.statements
        if statement.allows
        and statement.covers_action("kms:Decrypt")
        and attested(statement).guarded
        for kind, name in statement.principals
        if kind == "AWS" and name != "*" and not statement.except_principals
    )
    return tuple(dict.fromkeys(names))


def shown_policy(text: str) -> str:
    """Return a policy's JSON for people, one value a line."""
    return json.dumps(load_policy(text), indent=2, ensure_ascii=True)
