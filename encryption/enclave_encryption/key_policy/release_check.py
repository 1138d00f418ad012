"""What KMS would answer: a release to an enclave, and the same request without one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import Decision, Outcome, PolicyDocument

__all__ = ["CheckedRelease", "check_release", "explained"]

_ACTION: Final = "kms:Decrypt"
_DEBUG_PCRS: Final = dict.fromkeys(range(16), bytes(48))


@dataclass(frozen=True)
class CheckedRelease:
    """Three answers to one principal.

    Attributes:
        principal: Its ARN.
        attested: With the PCRs asked about.
        unattested: Without attestation document.
        debug: From an enclave in debug mode, whose PCRs are zeros.
    """

    principal: str
    attested: Decision
    unattested: Decision
    debug: Decision

    @property
    def sound(self) -> bool:
        """Whether only the attested request is allowed."""
        return self.attested.allowed and not (self.unattested.allowed or self.debug.allowed)


def check_release(
    policy: PolicyDocument,
    key_arn: str,
    principal: str,
    pcrs: Mapping[int, str],
    context: Mapping[str, str],
) -> CheckedRelease:
    """Simulate kms:Decrypt.

    Args:
        policy: The key's.
        key_arn: Its ARN.
        principal: ARN of the parent instance's role.
        pcrs: Hex, by register; the others are not in the request.
        context: The package's encryption context.

    Raises:
        PolicyError: `principal` is none.
    """
    caller = Caller.of(principal)

    def ask(registers: Mapping[int, bytes] | None) -> Decision:
        return policy.evaluate(
            kms_request(caller, _ACTION, key_arn, context=context, pcrs=registers)
        )

    registers = {index: bytes.fromhex(value) for index, value in pcrs.items()}
    return CheckedRelease(principal, ask(registers), ask(None), ask(_DEBUG_PCRS))


def explained(decision: Decision, account: str) -> str:
    """Return a decision for people: what it is, and by which statement.

    Args:
        decision: Of an evaluation.
        account: The caller's, which IAM policies are of.
    """
    name = decision.statement.name if decision.statement else ""
    unknown = ", ".join(
        f"{statement.name} ({', '.join(statement.unknowns)})" for statement in decision.unjudged
    )
    aside = f"; cannot be judged here, and counted as a denial: {unknown}" if unknown else ""
    if decision.outcome is Outcome.ALLOW:
        if decision.delegated:
            return (
                f"allowed by {name}, if an IAM policy of account {account} allows it, too: the "
                "statement names the account, not the principal"
            )
        return f"allowed by {name}"
    if decision.outcome is Outcome.EXPLICIT_DENY:
        return f"denied by {name}{aside}"
    return f"denied: no statement allows it{aside}"
