"""What KMS would answer: a release to an enclave, and the same request without one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from enclave_encryption.key_policy.attested import is_attestation
from enclave_protocol.policy.caller import Caller, account_of
from enclave_protocol.policy.condition import Condition
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import Decision, Outcome, PolicyDocument
from enclave_protocol.policy.statement import PolicyRequest, Statement

__all__ = ["CheckedRelease", "check_release", "explained", "opening"]

_ACTION: Final = "kms:Decrypt"
_DEBUG_PCRS: Final = dict.fromkeys((0, 1, 2, 8), bytes(48))
"""What debug mode zeroes; PCR3 and PCR4 still name the parent."""


@dataclass(frozen=True)
class CheckedRelease:
    """Three answers to one principal.

    Attributes:
        principal: Its ARN.
        key_arn: The key's.
        attested: With the PCRs asked about.
        unattested: Without attestation document.
        debug: From an enclave in debug mode, whose PCRs are zeros.
        open_unattested, open_debug: Statements that allow these in some other request, whose
            address, time, encryption context or other keys are not the simulated one's.
    """

    principal: str
    key_arn: str
    attested: Decision
    unattested: Decision
    debug: Decision
    open_unattested: tuple[Statement, ...] = ()
    open_debug: tuple[Statement, ...] = ()

    @property
    def other_account(self) -> str:
        """The principal's account, if it is not the key's; empty otherwise."""
        account = account_of(self.principal)
        return "" if account == self.key_arn.split(":")[4] else account

    @property
    def sound(self) -> bool:
        """Whether only the attested request is allowed."""
        wide = self.unattested.allowed or self.debug.allowed
        return self.attested.allowed and not (wide or self.open_unattested or self.open_debug)


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

    def request(registers: Mapping[int, bytes] | None) -> PolicyRequest:
        return kms_request(caller, _ACTION, key_arn, context=context, pcrs=registers)

    registers = {index: bytes.fromhex(value) for index, value in pcrs.items()}
    debug = {**registers, **_DEBUG_PCRS}
    return CheckedRelease(
        principal,
        key_arn,
        policy.evaluate(request(registers)),
        policy.evaluate(request(None)),
        policy.evaluate(request(debug)),
        _openings(policy, request(None)),
        _openings(policy, request(debug)),
    )


def _openings(policy: PolicyDocument, request: PolicyRequest) -> tuple[Statement, ...]:
    """Return the statements that allow a request of the same caller and attestation.

    Nothing of it is taken to be as simulated but what is the caller's, the attestation's, or in
    the encryption context asked about; and what cannot be judged counts as allowed.
    """
    if any(not statement.allows and statement.applies(request) for statement in policy.statements):
        return ()
    return tuple(
        statement
        for statement in policy.statements
        if statement.allows
        and statement.covers_action(request.action)
        and statement.covers_resource(request.resource)
        and statement.names(request.caller)
        and all(_may_hold(condition, request) for condition in statement.conditions)
        and not statement.applies(request)
    )


def _may_hold(condition: Condition, request: PolicyRequest) -> bool:
    settled = condition.key in request.keys or is_attestation(condition)
    return not settled or condition.holds(request.keys) is not False


def opening(statements: tuple[Statement, ...]) -> str:
    """Return for people what a request that is denied here may be allowed by."""
    names = ", ".join(statement.name for statement in statements)
    keys = sorted({c.key for s in statements for c in s.conditions if not is_attestation(c)})
    return f"may be allowed by {names}, which depends on {', '.join(keys) or 'who asks'}"


def explained(decision: Decision, checked: CheckedRelease) -> str:
    """Return a decision for people: what it is, and by which statement.

    Args:
        decision: One of `checked`.
        checked: Whose it is.
    """
    name = decision.statement.name if decision.statement else ""
    unknown = ", ".join(
        f"{statement.name} ({', '.join(statement.unknowns)})" for statement in decision.unjudged
    )
    aside = f"; cannot be judged here, and counted as a denial: {unknown}" if unknown else ""
    if decision.outcome is Outcome.ALLOW:
        if checked.other_account:
            return (
                f"allowed by {name}, if an IAM policy of account {checked.other_account} allows "
                "it, too: the key is another account's"
            )
        if decision.delegated:
            return (
                f"allowed by {name}, if an IAM policy allows it, too: the statement names the "
                "account, not the principal"
            )
        return f"allowed by {name}"
    if decision.outcome is Outcome.EXPLICIT_DENY:
        return f"denied by {name}{aside}"
    return f"denied: no statement allows it{aside}"
