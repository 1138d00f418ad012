"""Key policies against AWS's documented semantics, case by case."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.policy_document import Outcome, parse_policy
from enclave_protocol.policy.policy_error import PolicyError
from enclave_protocol.policy.statement import PolicyRequest
from enclave_protocol.policy.wildcards import wildcard_match

_OWNER_ROLE = "arn:aws:iam::111111111111:role/owner"
_HOST_ROLE = "arn:aws:iam::222222222222:role/enclave-parent"
_HOST_SESSION = "arn:aws:sts::222222222222:assumed-role/enclave-parent/i-1"
_HOST = Caller.of(_HOST_SESSION)
_ARN = "arn:aws:kms:us-east-1:111111111111:key/1234"
_ALLOW, _DENY, _DEFAULT = Outcome.ALLOW, Outcome.EXPLICIT_DENY, Outcome.IMPLICIT_DENY
_PCR = "kms:RecipientAttestation:ImageSha384"
_KEYS = "kms:EncryptionContextKeys"
_ARN_KEY = "aws:PrincipalArn"


def _statement(**changes: Any) -> dict[str, Any]:
    base = {"Effect": "Allow", "Principal": {"AWS": _HOST_ROLE}, "Action": "kms:Decrypt"}
    merged = {**base, "Resource": "*", **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _decide(
    *statements: dict[str, Any], action: str = "kms:Decrypt", **context: list[str]
) -> Outcome:
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))
    return policy.evaluate(PolicyRequest(_HOST, action, _ARN, context)).outcome


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
def test_effect_action_resource(statements: list[dict[str, Any]], expected: Outcome) -> None:
    assert _decide(*statements) is expected


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        ("*", _ALLOW),
        ({"AWS": "*"}, _ALLOW),
        ({"AWS": _HOST_ROLE}, _ALLOW),
        ({"AWS": _HOST_SESSION}, _ALLOW),
        ({"AWS": "222222222222"}, _ALLOW),
        ({"AWS": "arn:aws:iam::222222222222:root"}, _ALLOW),
        ({"AWS": [_OWNER_ROLE, _HOST_ROLE]}, _ALLOW),
        ({"AWS": _OWNER_ROLE}, _DEFAULT),
        ({"AWS": "arn:aws:iam::111111111111:root"}, _DEFAULT),
        ({"AWS": "arn:aws:iam::222222222222:role/other"}, _DEFAULT),
        ({"AWS": "arn:aws:iam::222222222222:role/Enclave-Parent"}, _DEFAULT),
        ({"Service": "ec2.amazonaws.com"}, _DEFAULT),
        ({"Service": "ec2.amazonaws.com", "AWS": _HOST_ROLE}, _ALLOW),
    ],
)
def test_principal(principal: Any, expected: Outcome) -> None:
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
        # ARNs: a wildcard stays within its component, the last one may have colons
        ({"ArnEquals": {_ARN_KEY: _HOST_ROLE}}, {_ARN_KEY: [_HOST_ROLE]}, True),
        ({"ArnLike": {_ARN_KEY: "arn:aws:iam::*:role/*"}}, {_ARN_KEY: [_HOST_ROLE]}, True),
        ({"ArnEquals": {_ARN_KEY: "arn:aws:iam::2*:role/e*"}}, {_ARN_KEY: [_HOST_ROLE]}, True),
        ({"ArnLike": {_ARN_KEY: "arn:*:role/enclave-parent"}}, {_ARN_KEY: [_HOST_ROLE]}, False),
        ({"ArnLike": {_ARN_KEY: "arn:aws:iam::1*:role/*"}}, {_ARN_KEY: [_HOST_ROLE]}, False),
        ({"ArnNotLike": {_ARN_KEY: "arn:aws:iam::1*:*"}}, {_ARN_KEY: [_HOST_ROLE]}, True),
        ({"ArnNotEquals": {_ARN_KEY: _HOST_ROLE}}, {}, True),
        ({"ArnEquals": {_ARN_KEY: _HOST_ROLE}}, {}, False),
        # Numbers, dates, networks, bytes
        ({"NumericLessThan": {"a:n": "3600"}}, {"a:n": ["300"]}, True),
        ({"NumericLessThan": {"a:n": "300"}}, {"a:n": ["300"]}, False),
        ({"NumericGreaterThanEquals": {"a:n": "3e2"}}, {"a:n": ["300"]}, True),
        ({"NumericEquals": {"a:n": "x"}}, {"a:n": ["x"]}, False),
        ({"NumericNotEquals": {"a:n": "1"}}, {"a:n": ["2"]}, True),
        ({"DateGreaterThan": {"a:t": "2024-01-01T00:00:00Z"}}, {"a:t": ["2026-01-01"]}, True),
        ({"DateLessThan": {"a:t": "2024-01-01T00:00:00Z"}}, {"a:t": ["1800000000"]}, False),
        ({"DateEquals": {"a:t": "yesterday"}}, {"a:t": ["yesterday"]}, False),
        ({"IpAddress": {"a:ip": ["10.0.0.0/8", "fd00::/8"]}}, {"a:ip": ["10.9.8.7"]}, True),
        ({"IpAddress": {"a:ip": "10.0.0.0/8"}}, {"a:ip": ["11.0.0.1"]}, False),
        ({"NotIpAddress": {"a:ip": "10.0.0.0/8"}}, {"a:ip": ["11.0.0.1"]}, True),
        ({"BinaryEquals": {"a:b": "QUI="}}, {"a:b": ["QUI="]}, True),
        ({"BinaryEquals": {"a:b": "QUI="}}, {"a:b": ["QUM="]}, False),
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


@pytest.mark.parametrize(
    "condition",
    [
        {"StringMatches": {_PCR: _A}},
        {"stringequals": {_PCR: _A}},
        {"StringEquals": {_PCR: "${aws:PrincipalTag/pcr0}"}},
        {"StringNotEquals": {_PCR: "${aws:PrincipalTag/pcr0}"}},
    ],
)
def test_what_cannot_be_judged_counts_against_the_request(condition: dict[str, Any]) -> None:
    unknown = _statement(Condition=condition)
    assert _decide(unknown) is _DEFAULT
    assert _decide(_statement(), unknown) is _ALLOW
    assert _decide(_statement(), unknown | {"Effect": "Deny"}) is _DENY
    # ... but a condition beside it that is false settles the matter.
    settled = {**condition, "Null": {_PCR: "false"}}
    assert _decide(_statement(), _statement(Effect="Deny", Condition=settled)) is _ALLOW
    text = json.dumps({"Version": "2012-10-17", "Statement": [_statement(Sid="x") | unknown]})
    decision = parse_policy(text).evaluate(PolicyRequest(_HOST, "kms:Decrypt", _ARN, {}))
    assert [statement.name for statement in decision.unjudged] == ['"x"']


def test_before_2012_a_dollar_is_a_dollar() -> None:
    statement = _statement(Condition={"StringEquals": {_PCR: "${a}"}})
    for version in ({"Version": "2008-10-17"}, {}):
        policy = parse_policy(json.dumps({**version, "Statement": [statement]}))
        request = PolicyRequest(_HOST, "kms:Decrypt", _ARN, {_PCR.lower(): ["${a}"]})
        assert policy.evaluate(request).allowed


def test_not_principal() -> None:
    """A Deny spares only whom it lists with account, role and session, as AWS says."""
    root, other = "arn:aws:iam::222222222222:root", "arn:aws:iam::222222222222:role/other"

    def decide(effect: str, *listed: str) -> Outcome:
        names = {"AWS": list(listed)}
        return _decide(_statement(), _statement(Effect=effect, Principal=None, NotPrincipal=names))

    assert decide("Deny", root, _HOST_ROLE, _HOST_SESSION) is _ALLOW
    assert decide("Deny", "222222222222", _HOST_ROLE, _HOST_SESSION) is _ALLOW
    assert decide("Deny", _HOST_ROLE, _HOST_SESSION) is _DENY
    assert decide("Deny", root, _HOST_ROLE) is _DENY
    assert decide("Deny", root, other) is _DENY
    # An Allow for everybody else is never followed.
    allow = _statement(Principal=None, NotPrincipal={"AWS": other})
    assert _decide(allow) is _DEFAULT


def test_a_decision_names_its_statement_and_says_when_iam_has_the_last_word() -> None:
    delegating = _statement(Sid="Account", Principal={"AWS": "222222222222"})
    direct = _statement(Sid="Role")
    deny = _statement(Sid="No", Effect="Deny", Action="kms:Encrypt")

    def decide(*statements: dict[str, Any], action: str = "kms:Decrypt") -> tuple[str, bool]:
        policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))
        decision = policy.evaluate(PolicyRequest(_HOST, action, _ARN, {}))
        return decision.statement.name if decision.statement else "", decision.delegated

    assert decide(delegating) == ('"Account"', True)
    assert decide(delegating, direct) == ('"Role"', False)
    assert decide(delegating, direct, deny, action="kms:Encrypt") == ('"No"', False)
    assert decide(direct, action="kms:Encrypt") == ("", False)
    assert decide(_statement(Principal="*")) == ("statement 1", False)


@pytest.mark.parametrize(
    ("name", "kind", "arn", "account"),
    [
        (_HOST_ROLE, "AWS", _HOST_ROLE, "222222222222"),
        (_HOST_SESSION, "AWS", _HOST_ROLE, "222222222222"),
        ("123456789012", "AWS", "arn:aws:iam::123456789012:root", "123456789012"),
        (
            "arn:aws-us-gov:iam::123456789012:user/a/b",
            "AWS",
            "arn:aws-us-gov:iam::123456789012:user/a/b",
            "123456789012",
        ),
        ("ec2.amazonaws.com", "Service", "ec2.amazonaws.com", ""),
    ],
)
def test_callers(name: str, kind: str, arn: str, account: str) -> None:
    caller = Caller.of(name)
    assert (caller.kind, caller.arn, caller.account) == (kind, arn, account)


@pytest.mark.parametrize(
    "name",
    [
        *("", "*", "alice", "12345678901", "arn:aws:s3:::b", "arn:aws:iam::123456789012:role/"),
        "arn:aws:iam::123456789012:assumed-role/a/b",
        "arn:aws:sts::123456789012:role/a",
    ],
)
def test_what_is_no_caller(name: str) -> None:
    with pytest.raises(PolicyError):
        Caller.of(name)


def test_services_are_named_as_services() -> None:
    service = Caller.of("ec2.amazonaws.com")

    def decide(principal: Any) -> bool:
        text = json.dumps({"Version": "2012-10-17", "Statement": _statement(Principal=principal)})
        request = PolicyRequest(service, "kms:Decrypt", _ARN, {})
        return parse_policy(text).evaluate(request).allowed

    assert decide({"Service": "ec2.amazonaws.com"})
    assert decide("*")
    assert not decide({"Service": "s3.amazonaws.com"})
    assert not decide({"AWS": "*"})
    assert not decide({"Federated": "ec2.amazonaws.com"})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_JSON, st.sampled_from(["Sid", "Effect", "Principal", "Action", "Resource", "Condition"]))
def test_anything_else_in_a_statement_is_refused_or_judged(value: Any, element: str) -> None:
    text = json.dumps({"Version": "2012-10-17", "Statement": _statement(**{element: value})})
    try:
        policy = parse_policy(text)
    except PolicyError as error:
        assert "\n" not in str(error)
    else:
        policy.evaluate(PolicyRequest(_HOST, "kms:Decrypt", _ARN, {}))


@given(st.text(max_size=200) | _JSON.map(json.dumps))
def test_anything_else_for_a_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(text)


@pytest.mark.parametrize("text", ["[" * 30_000, '{"a":' * 5_000, "1" * 30_000, "\ud800"])
def test_hostile_json(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(text)


def test_hostile_wildcards_take_no_time() -> None:
    pattern = "a*" * 8000 + "b"
    assert not wildcard_match(pattern, "a" * 8000)
    assert wildcard_match(pattern, "a" * 8000 + "b")


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        *(("", "", True), ("*", "", True), ("**", "x", True), ("?", "", False)),
        *(("a*c", "abbc", True), ("a*c", "abcd", False), ("a*b*c", "axbxbxc", True)),
        *(("*a", "ba", True), ("*ab", "aab", True), ("a?c", "abc", True), ("a?", "a", False)),
        *(("[a]", "a", False), ("a.c", "abc", False), ("a*", "a\nb", True)),
    ],
)
def test_wildcards(pattern: str, value: str, matches: bool) -> None:
    assert wildcard_match(pattern, value) is matches


def test_one_statement_may_stand_alone() -> None:
    text = json.dumps({"Version": "2012-10-17", "Id": "x", "Statement": _statement(Sid="one")})
    assert parse_policy(text).evaluate(PolicyRequest(_HOST, "kms:Decrypt", _ARN, {})).allowed


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
        _statement(NotPrincipal={"AWS": "*"}),
        _statement(NotAction="kms:*"),
        _statement(Action=None),
        _statement(Action=7),
        _statement(Resource=None),
        _statement(NotResource="*"),
        _statement(Resource="arn:aws:kms:*:${aws:PrincipalAccount}:key/*"),
        _statement(Sid=7),
        _statement(Condition=[]),
        _statement(Condition={"StringEquals": _PCR}),
        _statement(Condition={"StringEquals": {_PCR: 7}}),
        _statement(Condition={"StringEquals": {_PCR: []}}),
        _statement(Condition={"ForSomeValues:StringEquals": {_PCR: _A}}),
        _statement(Condition={"NullIfExists": {_PCR: "true"}}),
        _statement(Condition={"Null": {_PCR: "maybe"}}),
        _statement(Condition={"StringEquals": {_PCR: None}}),
        _statement(Condition={"StringEquals": {_PCR: [["a"]]}}),
        '{"Version": "2012-10-17", "Version": "2012-10-17", "Statement": []}',
    ],
)
def test_malformed_policies_are_refused(document: Any) -> None:
    if isinstance(document, dict):
        if "Statement" not in document:
            document = {"Version": "2012-10-17", "Statement": [document]}
        document = json.dumps(document)
    with pytest.raises(PolicyError):
        parse_policy(document)


def test_a_policy_has_at_most_32_kib() -> None:
    with pytest.raises(PolicyError, match="32 KiB"):
        parse_policy(" " * (32 * 1024 + 1))
