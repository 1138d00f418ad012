"""Key policies against AWS's documented semantics, case by case."""

import json
from typing import Any

import pytest

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.identities import (
    HOST_ACCESS_KEY_ID,
    IDENTITIES,
    OWNER_ACCESS_KEY_ID,
)
from enclave_infra.local_cloud.key_policy import Decision, PolicyRequest, parse_policy

_OWNER = IDENTITIES[OWNER_ACCESS_KEY_ID]
_HOST = IDENTITIES[HOST_ACCESS_KEY_ID]
_ARN = "arn:aws:kms:us-east-1:111111111111:key/1234"
_ALLOW, _DENY, _DEFAULT = Decision.ALLOW, Decision.EXPLICIT_DENY, Decision.IMPLICIT_DENY
_PCR = "kms:RecipientAttestation:ImageSha384"
_KEYS = "kms:EncryptionContextKeys"


def _statement(**changes: Any) -> dict[str, Any]:
    base = {"Effect": "Allow", "Principal": {"AWS": _HOST.role_arn}, "Action": "kms:Decrypt"}
    merged = {**base, "Resource": "*", **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _decide(
    *statements: dict[str, Any], action: str = "kms:Decrypt", **context: list[str]
) -> Decision:
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))
    return policy.evaluate(PolicyRequest(_HOST, action, _ARN, context))


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([_statement()], _ALLOW),
        ([_statement(Effect="Deny")], _DENY),
        ([_statement(), _statement(Effect="Deny")], _DENY),
        ([_statement(Effect="Deny", Principal="*"), _statement()], _DENY),
        ([_statement(Effect="Deny", Action="kms:Encrypt"), _statement()], _ALLOW),
        ([_statement(Action="kms:Encrypt")], _DEFAULT),
        ([_statement(Action=["kms:Encrypt", "kms:Decrypt"])], _ALLOW),
        ([_statement(Action="kms:*")], _ALLOW),
        ([_statement(Action="kms:De*")], _ALLOW),
        ([_statement(Action="kms:Decryp?")], _ALLOW),
        ([_statement(Action="kms:Decrypt?")], _DEFAULT),
        ([_statement(Action="KMS:DECRYPT")], _ALLOW),
        ([_statement(Action="*")], _ALLOW),
        ([_statement(Action="s3:*")], _DEFAULT),
        ([_statement(Action=None, NotAction="kms:Encrypt")], _ALLOW),
        ([_statement(Action=None, NotAction="kms:De*")], _DEFAULT),
        ([_statement(Effect="Deny", Action=None, NotAction="kms:Decrypt"), _statement()], _ALLOW),
        ([_statement(Resource=_ARN)], _ALLOW),
        ([_statement(Resource="arn:aws:kms:*:111111111111:key/*")], _ALLOW),
        ([_statement(Resource=_ARN + "5")], _DEFAULT),
        ([_statement(Resource=["arn:aws:s3:::b", _ARN])], _ALLOW),
    ],
)
def test_effect_action_resource(statements: list[dict[str, Any]], expected: Decision) -> None:
    assert _decide(*statements) is expected


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        ("*", _ALLOW),
        ({"AWS": "*"}, _ALLOW),
        ({"AWS": _HOST.role_arn}, _ALLOW),
        ({"AWS": _HOST.session_arn}, _ALLOW),
        ({"AWS": "222222222222"}, _ALLOW),
        ({"AWS": "arn:aws:iam::222222222222:root"}, _ALLOW),
        ({"AWS": [_OWNER.role_arn, _HOST.role_arn]}, _ALLOW),
        ({"AWS": _OWNER.role_arn}, _DEFAULT),
        ({"AWS": "arn:aws:iam::111111111111:root"}, _DEFAULT),
        ({"AWS": "arn:aws:iam::222222222222:role/other"}, _DEFAULT),
        ({"AWS": "arn:aws:iam::222222222222:role/Enclave-Parent"}, _DEFAULT),
        ({"Service": "ec2.amazonaws.com"}, _DEFAULT),
        ({"Service": "ec2.amazonaws.com", "AWS": _HOST.role_arn}, _ALLOW),
    ],
)
def test_principal(principal: Any, expected: Decision) -> None:
    assert _decide(_statement(Principal=principal)) is expected


_A, _B = "a" * 96, "b" * 96


@pytest.mark.parametrize(
    ("condition", "context", "holds"),
    [
        # A key that is there
        ({"StringEquals": {_PCR: _A}}, {_PCR: [_A]}, True),
        ({"StringEquals": {_PCR: _A}}, {_PCR: [_B]}, False),
        ({"StringEquals": {_PCR: _A.upper()}}, {_PCR: [_A]}, False),
        ({"StringEqualsIgnoreCase": {_PCR: _A.upper()}}, {_PCR: [_A]}, True),
        ({"StringEquals": {_PCR.upper(): _A}}, {_PCR: [_A]}, True),
        ({"StringEquals": {_PCR: [_B, _A]}}, {_PCR: [_A]}, True),
        ({"StringNotEquals": {_PCR: _A}}, {_PCR: [_B]}, True),
        ({"StringNotEquals": {_PCR: [_A, _B]}}, {_PCR: [_B]}, False),
        ({"StringNotEqualsIgnoreCase": {_PCR: _A.upper()}}, {_PCR: [_A]}, False),
        ({"StringLike": {_PCR: "aa*"}}, {_PCR: [_A]}, True),
        ({"StringLike": {_PCR: "a" * 95 + "?"}}, {_PCR: [_A]}, True),
        ({"StringLike": {_PCR: "a"}}, {_PCR: [_A]}, False),
        ({"StringLike": {_PCR: "A*"}}, {_PCR: [_A]}, False),
        ({"StringLike": {_PCR: "a.*"}}, {_PCR: [_A]}, False),
        ({"StringNotLike": {_PCR: "b*"}}, {_PCR: [_A]}, True),
        ({"StringNotLike": {_PCR: "a*"}}, {_PCR: [_A]}, False),
        ({"StringEquals": {_PCR: "aa*"}}, {_PCR: [_A]}, False),
        # A key that is absent: only "is not" holds
        ({"StringEquals": {_PCR: _A}}, {}, False),
        ({"StringEqualsIgnoreCase": {_PCR: _A}}, {}, False),
        ({"StringLike": {_PCR: "*"}}, {}, False),
        ({"StringNotEquals": {_PCR: _A}}, {}, True),
        ({"StringNotLike": {_PCR: "*"}}, {}, True),
        ({"Bool": {"aws:SecureTransport": "false"}}, {}, False),
        ({"StringEqualsIfExists": {_PCR: _A}}, {}, True),
        ({"StringEqualsIfExists": {_PCR: _A}}, {_PCR: [_B]}, False),
        ({"StringNotEqualsIfExists": {_PCR: _A}}, {}, True),
        ({"StringNotEqualsIfExists": {_PCR: _A}}, {_PCR: [_A]}, False),
        ({"BoolIfExists": {"aws:SecureTransport": "true"}}, {}, True),
        ({"Null": {_PCR: "true"}}, {}, True),
        ({"Null": {_PCR: "true"}}, {_PCR: [_A]}, False),
        ({"Null": {_PCR: "false"}}, {_PCR: [_A]}, True),
        ({"Null": {_PCR: "false"}}, {}, False),
        ({"Null": {_PCR: False}}, {_PCR: [_A]}, True),
        ({"Bool": {"aws:SecureTransport": "False"}}, {"aws:SecureTransport": ["false"]}, True),
        ({"Bool": {"aws:SecureTransport": True}}, {"aws:SecureTransport": ["false"]}, False),
        # Operators and keys are joined by "and"
        ({"StringEquals": {_PCR: _A, "kms:CallerAccount": "1"}}, {_PCR: [_A]}, False),
        (
            {"StringEquals": {_PCR: _A}, "StringLike": {"kms:CallerAccount": "2*"}},
            {_PCR: [_A], "kms:CallerAccount": ["22"]},
            True,
        ),
        ({"StringEquals": {_PCR: _A}, "Null": {_PCR: "true"}}, {_PCR: [_A]}, False),
        # Set operators
        ({"ForAnyValue:StringEquals": {_KEYS: ["a", "b"]}}, {_KEYS: ["b", "c"]}, True),
        ({"ForAnyValue:StringEquals": {_KEYS: "a"}}, {_KEYS: ["b", "c"]}, False),
        ({"ForAnyValue:StringEquals": {_KEYS: "a"}}, {}, False),
        ({"ForAnyValue:StringNotEquals": {_KEYS: "a"}}, {}, False),
        ({"ForAnyValue:StringNotEquals": {_KEYS: "a"}}, {_KEYS: ["a", "b"]}, True),
        ({"ForAnyValue:StringNotEquals": {_KEYS: ["a", "b"]}}, {_KEYS: ["a", "b"]}, False),
        ({"ForAllValues:StringEquals": {_KEYS: ["a", "b"]}}, {_KEYS: ["a"]}, True),
        ({"ForAllValues:StringEquals": {_KEYS: ["a", "b"]}}, {_KEYS: ["a", "c"]}, False),
        ({"ForAllValues:StringEquals": {_KEYS: "a"}}, {}, True),
        ({"ForAllValues:StringLike": {_KEYS: "a*"}}, {_KEYS: ["a1", "a2"]}, True),
        ({"ForAllValues:StringNotEquals": {_KEYS: "a"}}, {_KEYS: ["b", "c"]}, True),
        ({"ForAllValues:StringNotEquals": {_KEYS: "a"}}, {_KEYS: ["a", "c"]}, False),
        ({"ForAnyValue:StringEqualsIfExists": {_KEYS: "a"}}, {}, True),
        # An unknown condition key is an absent one
        ({"StringEquals": {"aws:Nonsense": "x"}}, {_PCR: [_A]}, False),
        ({}, {}, True),
    ],
)
def test_conditions(condition: dict[str, Any], context: dict[str, Any], holds: bool) -> None:
    lower = {name.lower(): values for name, values in context.items()}
    allowed = _decide(_statement(Condition=condition), **lower)
    assert allowed is (_ALLOW if holds else _DEFAULT)
    denied = _decide(_statement(), _statement(Effect="Deny", Condition=condition), **lower)
    assert denied is (_DENY if holds else _ALLOW)


def test_the_trap_of_a_negated_condition() -> None:
    """A Deny that also asks for the key's presence misses callers without any attestation."""
    deny = _statement(Effect="Deny", Condition={"StringNotEquals": {_PCR: _A}})
    assert _decide(_statement(), deny) is _DENY
    deny = _statement(Effect="Deny", Condition={"StringNotEqualsIfExists": {_PCR: _A}})
    assert _decide(_statement(), deny) is _DENY
    deny = _statement(
        Effect="Deny", Condition={"StringNotEquals": {_PCR: _A}, "Null": {_PCR: "false"}}
    )
    assert _decide(_statement(), deny) is _ALLOW


def test_one_statement_may_stand_alone() -> None:
    text = json.dumps({"Version": "2012-10-17", "Id": "x", "Statement": _statement(Sid="one")})
    assert parse_policy(text).evaluate(PolicyRequest(_HOST, "kms:Decrypt", _ARN, {})) is _ALLOW


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"Version": "2012-10-17"}',
        '{"Version": "2012-10-17", "Statement": []}',
        {"Version": "2020-01-01", "Statement": [_statement()]},
        {"Version": "2012-10-17", "Statement": [_statement()], "More": 1},
        _statement(Effect="allow"),
        _statement(Effect=None),
        _statement(Principal=None),
        _statement(Principal="arn:aws:iam::222222222222:root"),
        _statement(Principal={"AWS": []}),
        _statement(Principal={"AWS": "enclave-parent"}),
        _statement(Principal={"AWS": "arn:aws:iam::222222222222:role/*"}),
        _statement(Principal={"aws": "*"}),
        _statement(Principal=None, NotPrincipal={"AWS": "*"}),
        _statement(Action=None),
        _statement(Action=7),
        _statement(NotAction="kms:Encrypt"),
        _statement(Resource=None),
        _statement(Resource=None, NotResource="*"),
        _statement(Condition=[]),
        _statement(Condition={"StringEquals": _PCR}),
        _statement(Condition={"StringEquals": {_PCR: 7}}),
        _statement(Condition={"StringEquals": {_PCR: []}}),
        _statement(Condition={"NumericEquals": {"a:b": "1"}}),
        _statement(Condition={"stringequals": {_PCR: _A}}),
        _statement(Condition={"ForSomeValues:StringEquals": {_PCR: _A}}),
        _statement(Condition={"NullIfExists": {_PCR: "true"}}),
        _statement(Condition={"Null": {_PCR: "maybe"}}),
        _statement(Condition={"StringEquals": {_PCR: "${aws:username}"}}),
        '{"Version": "2012-10-17", "Version": "2012-10-17", "Statement": []}',
    ],
)
def test_malformed_policies_are_refused(document: Any) -> None:
    if isinstance(document, dict):
        if "Statement" not in document:
            document = {"Version": "2012-10-17", "Statement": [document]}
        document = json.dumps(document)
    with pytest.raises(AwsError) as caught:
        parse_policy(document)
    assert caught.value.code == "MalformedPolicyDocumentException"


def test_a_policy_has_at_most_32_kib() -> None:
    with pytest.raises(AwsError, match="32 KiB"):
        parse_policy(" " * (32 * 1024 + 1))
