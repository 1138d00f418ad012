"""Taking out of a policy's statements what gets around attestation, and nothing else."""

from collections.abc import Iterable
from typing import Any

from enclave_encryption.key_policy.findings import Finding
from enclave_encryption.key_policy.kms_actions import KEY_ACTIONS
from enclave_protocol.policy.policy_document import PolicyDocument

__all__ = ["narrowed"]


def narrowed(
    statements: list[dict[str, Any]], policy: PolicyDocument, findings: Iterable[Finding]
) -> list[dict[str, Any]]:
    """Return `statements` with every action a finding is about left out.

    Patterns such as `kms:*` and NotAction become the actions they stand for today, those of the
    findings excepted; a statement of which nothing is left goes.

    Args:
        statements: As JSON has them.
        policy: The same, parsed.
        findings: What to take out; those about a missing statement are not for here.
    """
    taken: dict[str, set[str]] = {}
    for finding in findings:
        taken.setdefault(finding.statement, set()).add(finding.action)
    kept: list[dict[str, Any]] = []
    for raw, parsed in zip(statements, policy.statements, strict=True):
        out = taken.get(parsed.name)
        if out is None:
            kept.append(raw)
            continue
        actions = [a for a in KEY_ACTIONS if parsed.covers_action(a) and a not in out]
        if actions:
            kept.append(
                {
                    ("Action" if name == "NotAction" else name): (
                        actions if name in ("Action", "NotAction") else value
                    )
                    for name, value in raw.items()
                }
            )
    return kept
