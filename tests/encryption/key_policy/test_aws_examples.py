"""The policies of the AWS documentation: who may do what, and what the tool says of them."""

import json

import pytest

from enclave_encryption.key_policy.findings import find_widening
from enclave_encryption.key_policy.policy_change import plan_change, release_principals
from enclave_encryption.key_policy.release_rule import RuleChange
from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import PolicyDocument, parse_policy
from tests.support.aws_key_policies import (
    EXAMPLES,
    KEY,
    PCR0,
    PCR1,
    PROCESSING,
    Ask,
    Example,
    allow,
)

IDS = [example.source for example in EXAMPLES]
examples = pytest.mark.parametrize("example", EXAMPLES, ids=IDS)


def parsed(example: Example) -> PolicyDocument:
    return parse_policy(text_of(example))


def text_of(example: Example) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(example.statements)})


def answer(policy: PolicyDocument, ask: Ask) -> bool:
    pcrs = None
    if ask.pcrs is not None:
        pcrs = {index: bytes.fromhex(value) for index, value in ask.pcrs.items()}
    request = kms_request(
        Caller.of(ask.who), ask.action, KEY, context=ask.context, pcrs=pcrs, more=ask.more
    )
    return policy.evaluate(request).allowed


@examples
def test_who_may_do_what(example: Example) -> None:
    policy = parsed(example)
    for ask in example.asks:
        assert answer(policy, ask) is ask.allowed, ask


@examples
def test_what_the_tool_says(example: Example) -> None:
    findings = find_widening(parsed(example), KEY, release_principals(parsed(example)))
    assert tuple(f.action for f in findings if f.statement) == example.around
    # None of the documentation's examples denies what is not attested.
    assert [f.action for f in findings if not f.statement] == ["kms:Decrypt", "kms:ReEncryptFrom"]


@examples
def test_the_tool_makes_a_release_of_it_that_only_enclaves_get(example: Example) -> None:
    change = RuleChange(pcr0=(PCR0,), principals=(PROCESSING,))
    narrowed = plan_change(text_of(example), KEY, change, narrow=True)
    assert narrowed.findings == ()
    policy = parse_policy(narrowed.after)
    assert answer(policy, Ask(True, PROCESSING, pcrs={0: PCR0})) is example.releasable
    for ask in (*example.asks, Ask(False, PROCESSING)):
        if ask.action in ("kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant"):
            assert not answer(policy, Ask(False, ask.who, ask.action, ask.context, more=ask.more))
        elif ask.allowed:  # everything else stays allowed
            assert answer(policy, ask), ask


def test_a_pcr_as_the_documentation_writes_it_matches_no_enclave() -> None:
    """With 0x in front, as in two of AWS's examples: KMS compares lower-case hex digits."""
    condition = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR1": f"0x{PCR1}"}}
    statement = allow(PROCESSING, "kms:Decrypt", condition)
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": statement}))
    assert not answer(policy, Ask(False, PROCESSING, pcrs={1: PCR1}))
