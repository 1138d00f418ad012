"""Ways around attestation, one by one: each is found, and what is none is not."""

import json
from typing import Any

import pytest

from enclave_encryption.key_policy.findings import find_widening
from enclave_encryption.key_policy.narrowing import narrowed
from enclave_protocol.policy.policy_document import parse_policy

KEY = "arn:aws:kms:us-east-1:111111111111:key/1234"
REPLICABLE = "arn:aws:kms:us-east-1:111111111111:key/mrk-1234"
OWNER = "arn:aws:iam::111111111111:role/owner"
OWN_ROOT = "arn:aws:iam::111111111111:root"
PARENT = "arn:aws:iam::222222222222:role/parent"
IMAGE = "kms:RecipientAttestation:ImageSha384"
PCR = "kms:RecipientAttestation:PCR"
GOOD, OTHER, ZEROS = "a1" * 48, "b2" * 48, "00" * 48
DENIED = ["kms:Decrypt", "kms:ReEncryptFrom"]


def allow(action: Any = "kms:Decrypt", principal: Any = PARENT, **condition: Any) -> dict[str, Any]:
    named = principal if principal == "*" else {"AWS": principal}
    statement = {"Sid": "It", "Effect": "Allow", "Principal": named, "Action": action}
    return {**statement, "Resource": "*", **({"Condition": condition} if condition else {})}


def deny(action: Any = DENIED, principal: Any = "*", **condition: Any) -> dict[str, Any]:
    condition = condition or {"StringNotEqualsIgnoreCase": {IMAGE: GOOD}}
    statement = {"Sid": "No", "Effect": "Deny", "Principal": principal, "Action": action}
    return {**statement, "Resource": "*", "Condition": condition}


RELEASE = allow(StringEqualsIgnoreCase={IMAGE: GOOD}) | {"Sid": "Release"}
DENY = deny()


def found(*statements: dict[str, Any], key: str = KEY) -> list[tuple[str, str]]:
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))
    return [(f.statement.strip('"'), f.action) for f in find_widening(policy, key, (PARENT,))]


@pytest.mark.parametrize(
    "condition",
    [
        {"StringEquals": {IMAGE: GOOD}},
        {"StringEqualsIgnoreCase": {IMAGE: [GOOD, OTHER]}},
        {"StringLike": {IMAGE: GOOD}},
        {"StringEquals": {f"{PCR}0": GOOD}},
        {"StringEquals": {IMAGE.upper(): GOOD}},
        {"StringEquals": {f"{PCR}8": GOOD}},
        {"StringEquals": {f"{PCR}1": GOOD, f"{PCR}2": OTHER}},
        {"ForAnyValue:StringEquals": {IMAGE: GOOD}},
        {"StringEquals": {IMAGE: GOOD}, "StringLike": {f"{PCR}1": "*"}},
        {"StringEquals": {IMAGE: GOOD, "kms:EncryptionContext:package": "x"}},
        # True for an absent key, but the key has to be there.
        {"StringEqualsIfExists": {IMAGE: GOOD}, "Null": {IMAGE: "false"}},
        {"ForAllValues:StringEquals": {IMAGE: GOOD}, "Null": {IMAGE: False}},
        # What cannot be judged only narrows further.
        {"StringEquals": {IMAGE: GOOD}, "StringMatches": {"a:b": "c"}},
    ],
)
def test_attested_statements(condition: dict[str, Any]) -> None:
    assert found(allow(**condition), DENY) == []
    assert found(allow("kms:*", **condition), DENY) == [("It", "kms:PutKeyPolicy")]


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"StringEqualsIfExists": {IMAGE: GOOD}},
        {"StringEqualsIgnoreCaseIfExists": {IMAGE: GOOD}},
        {"ForAllValues:StringEquals": {IMAGE: GOOD}},
        {"StringEqualsIfExists": {IMAGE: GOOD}, "Null": {f"{PCR}1": "false"}},
        {"StringEqualsIfExists": {IMAGE: GOOD}, "Null": {IMAGE: "true"}},
        {"StringLike": {IMAGE: "*"}},
        {"StringLike": {IMAGE: [GOOD, "a?*"]}},
        {"StringNotEquals": {IMAGE: OTHER}},
        {"StringNotLike": {IMAGE: "b*"}},
        {"Null": {IMAGE: "true"}},
        {"Null": {IMAGE: "false"}},
        {"StringEquals": {IMAGE: ZEROS}},
        {"StringEquals": {IMAGE: [GOOD, ZEROS]}},
        {"StringEquals": {f"{PCR}3": GOOD}},
        {"StringEquals": {f"{PCR}4": GOOD}},
        {"StringEquals": {f"{PCR}1": GOOD}},
        {"StringEquals": {f"{PCR}2": GOOD}},
        {"StringEquals": {f"{PCR}1": GOOD}, "StringEqualsIfExists": {f"{PCR}2": GOOD}},
        {"StringMatches": {IMAGE: GOOD}},
        {"StringEquals": {IMAGE: "${aws:PrincipalTag/image}"}},
        {"StringEquals": {"kms:ViaService": "ec2.us-east-1.amazonaws.com"}},
        {"StringEquals": {"kms:EncryptionContext:package": "x"}},
    ],
)
def test_conditions_that_demand_no_image(condition: dict[str, Any]) -> None:
    assert found(allow(**condition), DENY) == [("It", "kms:Decrypt")]


@pytest.mark.parametrize(
    ("action", "actions"),
    [
        ("kms:Decrypt", ["Decrypt"]),
        ("KMS:decrypt", ["Decrypt"]),
        ("kms:De*", ["Decrypt"]),
        ("kms:ReEncrypt*", ["ReEncryptFrom"]),
        ("kms:ReEncryptTo", []),
        ("kms:CreateGrant", ["CreateGrant"]),
        ("kms:Create*", ["CreateGrant"]),
        ("kms:*", ["Decrypt", "ReEncryptFrom", "CreateGrant", "PutKeyPolicy"]),
        ("*", ["Decrypt", "ReEncryptFrom", "CreateGrant", "PutKeyPolicy"]),
        (["kms:Encrypt", "kms:DescribeKey", "kms:GenerateDataKey*"], []),
        ("kms:Put*", ["PutKeyPolicy"]),
        ("s3:*", []),
    ],
)
def test_actions_of_a_parent(action: Any, actions: list[str]) -> None:
    assert found(allow(action), RELEASE, DENY) == [("It", f"kms:{name}") for name in actions]


@pytest.mark.parametrize("principal", [PARENT, OWNER, OWN_ROOT, "111111111111", "*"])
def test_whoever_it_is(principal: str) -> None:
    """Also the owner, and its account: what one may do, stolen credentials may."""
    assert ("It", "kms:Decrypt") in found(allow(principal=principal), RELEASE, DENY)


def test_who_may_replace_the_policy() -> None:
    for principal in (OWNER, OWN_ROOT, "111111111111"):
        assert found(allow("kms:PutKeyPolicy", principal), RELEASE, DENY) == []
    elsewhere = "arn:aws:iam::222222222222:root"
    for principal in (PARENT, "*", elsewhere, "222222222222", "arn:aws:iam::333333333333:user/x"):
        findings = found(allow("kms:PutKeyPolicy", principal), RELEASE, DENY)
        assert findings == [("It", "kms:PutKeyPolicy")], principal


@pytest.mark.parametrize(
    "principal",
    [
        {"Service": "cloudformation.amazonaws.com"},
        {"Federated": "arn:aws:iam::222222222222:saml-provider/x"},
        {"AWS": "AROAEXAMPLEEXAMPLE"},
        {"AWS": "arn:aws:sts::222222222222:assumed-role/parent/i-0123456789abcdef0"},
    ],
)
def test_who_may_replace_it_under_another_name(principal: dict[str, str]) -> None:
    statement = allow("kms:PutKeyPolicy") | {"Principal": principal}
    assert found(statement, RELEASE, DENY) == [("It", "kms:PutKeyPolicy")]


def test_a_parent_of_the_owners_account_in_a_session() -> None:
    parent = OWN_ROOT.replace(":root", ":role/hosts/parent")
    session = "arn:aws:sts::111111111111:assumed-role/parent/i-1"
    for named, known in ((session, parent), (parent, session), (parent, parent)):
        text = json.dumps({"Statement": [allow("kms:PutKeyPolicy", named), RELEASE, DENY]})
        (finding,) = find_widening(parse_policy(text), KEY, (known,))
        assert finding.action == "kms:PutKeyPolicy"
    text = json.dumps({"Statement": [allow("kms:PutKeyPolicy", OWNER), RELEASE, DENY]})
    assert find_widening(parse_policy(text), KEY, (parent, session)) == ()


def test_a_deny_for_the_unattested_only_stops_no_other_image() -> None:
    wide = allow("kms:*", OWN_ROOT)
    for denies, stopped in ((DENY, True), (deny(Null={IMAGE: "true"}), False)):
        text = json.dumps({"Statement": [wide, RELEASE, denies]})
        texts = {f.action: str(f) for f in find_widening(parse_policy(text), KEY)}
        for action in ("kms:Decrypt", "kms:CreateGrant"):
            assert ("in an enclave of any image" in texts[action]) is not stopped
            assert ("once the Deny that stops it is gone" in texts[action]) is stopped
        # It takes no attestation document, so the Deny always stops it.
        assert "once the Deny" in texts["kms:ReEncryptFrom"]


def test_all_but_some() -> None:
    """NotAction and NotPrincipal allow whatever they do not list."""
    others = allow(principal=OWN_ROOT)
    del others["Action"]
    assert found(others | {"NotAction": "kms:Decrypt"}, RELEASE, DENY) == [
        ("It", "kms:ReEncryptFrom"),
        ("It", "kms:CreateGrant"),
    ]
    harmless = {"NotAction": ["kms:Decrypt", "kms:ReEncrypt*", "kms:CreateGrant"]}
    assert found(others | harmless, RELEASE, DENY) == []
    everybody = allow()
    del everybody["Principal"]
    everybody["NotPrincipal"] = {"AWS": PARENT}
    assert found(everybody, RELEASE, DENY) == [("It", "kms:Decrypt")]
    everybody["Action"] = "kms:PutKeyPolicy"
    assert found(everybody, RELEASE, DENY) == [("It", "kms:PutKeyPolicy")]


def test_replicas_have_policies_of_their_own() -> None:
    statement = allow("kms:ReplicateKey", OWNER)
    assert found(statement, RELEASE, DENY) == []
    assert found(statement, RELEASE, DENY, key=REPLICABLE) == [("It", "kms:ReplicateKey")]


def test_other_resources_do_not_matter() -> None:
    other = allow() | {"Resource": "arn:aws:kms:us-east-1:111111111111:key/other"}
    assert found(other, RELEASE, DENY) == []


@pytest.mark.parametrize(
    ("denies", "missing"),
    [
        ([], DENIED),
        ([DENY], []),
        ([deny("kms:*")], []),
        ([deny(principal={"AWS": "*"})], []),
        ([deny("kms:Decrypt"), deny("kms:ReEncrypt*")], []),
        ([deny("kms:Decrypt")], ["kms:ReEncryptFrom"]),
        ([deny(Null={IMAGE: "true"})], []),
        ([deny(StringNotLike={IMAGE: "a1*"})], []),
        ([deny(StringNotEqualsIfExists={IMAGE: GOOD})], []),
        # Each of these misses somebody.
        ([deny(principal={"AWS": PARENT})], DENIED),
        ([deny(principal={"AWS": OWN_ROOT})], DENIED),
        ([deny(StringNotEquals={IMAGE: GOOD}, Null={IMAGE: "false"})], DENIED),
        ([deny(StringEquals={IMAGE: OTHER})], DENIED),
        ([deny(StringNotEquals={IMAGE: GOOD, "aws:PrincipalArn": OWNER})], DENIED),
        ([deny(Null={IMAGE: "true"}, Bool={"aws:PrincipalIsAWSService": "false"})], DENIED),
        ([deny(StringMatches={IMAGE: GOOD})], DENIED),
        ([DENY | {"Resource": "arn:aws:kms:us-east-1:111111111111:key/other"}], DENIED),
    ],
)
def test_a_deny_for_everybody_else(denies: list[dict[str, Any]], missing: list[str]) -> None:
    assert found(RELEASE, *denies) == [("", action) for action in missing]


def test_texts_say_who_and_why() -> None:
    statements = [allow(principal=OWN_ROOT), RELEASE, DENY]
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": statements}))
    (finding,) = find_widening(policy, KEY)
    assert "an account's root delegates to its IAM policies" in str(finding)
    assert "once the Deny that stops it is gone" in str(finding)
    statements[0] = allow(StringEqualsIfExists={IMAGE: GOOD})
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": statements[:2]}))
    finding = find_widening(policy, KEY)[0]
    assert PARENT in str(finding) and "StringEqualsIfExists" in str(finding)
    assert "without attestation document" in str(finding)
    assert "Deny" not in str(finding)


def test_narrowing_takes_out_just_that() -> None:
    wide = allow("kms:*", OWN_ROOT) | {"Sid": "Root"}
    useless = allow("kms:Decrypt", OWNER) | {"Sid": "Useless"}
    others = allow(principal=OWNER) | {"Sid": "Others", "NotAction": "kms:Decrypt"}
    del others["Action"]
    statements = [wide, useless, RELEASE, others, DENY]
    text = json.dumps({"Version": "2012-10-17", "Statement": statements})
    policy = parse_policy(text)
    left = narrowed(statements, policy, find_widening(policy, KEY, (PARENT,)))
    assert [statement["Sid"] for statement in left] == ["Root", "Release", "Others", "No"]
    assert left[1] == RELEASE and left[3] == DENY
    assert found(*left) == []
    for statement in (left[0], left[2]):
        assert "NotAction" not in statement
        assert {"kms:PutKeyPolicy", "kms:Encrypt", "kms:DescribeKey"} <= set(statement["Action"])
        assert not {"kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant"} & set(
            statement["Action"]
        )
