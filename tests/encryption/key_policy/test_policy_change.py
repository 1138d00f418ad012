"""Changing a key policy: images come and go, everything else stays."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from enclave_encryption.errors import KeyPolicyError
from enclave_encryption.key_policy.measurements import parse_context, parse_pcr
from enclave_encryption.key_policy.policy_change import plan_change, release_principals
from enclave_encryption.key_policy.policy_view import print_check, print_diff, print_findings
from enclave_encryption.key_policy.release_check import check_release, explained
from enclave_encryption.key_policy.release_rule import RuleChange
from enclave_encryption.rekey_window import opened_policy
from enclave_protocol.policy.caller import Caller
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import parse_policy
from enclave_protocol.policy.policy_error import PolicyError

KEY = "arn:aws:kms:us-east-1:111111111111:key/1234"
PARENT = "arn:aws:iam::222222222222:role/parent"
OWNER = "arn:aws:iam::111111111111:role/owner"
IMAGE = "kms:RecipientAttestation:ImageSha384"
OLD, NEW, THIRD, PCR8 = "a1" * 48, "b2" * 48, "c3" * 48, "d4" * 48
MANAGED: dict[str, Any] = {
    "Sid": "Admins",
    "Effect": "Allow",
    "Principal": {"AWS": OWNER},
    "Action": ["kms:Put*", "kms:Get*", "kms:Encrypt"],
    "Resource": "*",
    "Condition": {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}},
}


def policy(*statements: dict[str, Any], **more: Any) -> str:
    return json.dumps({"Version": "2012-10-17", **more, "Statement": list(statements)})


def changed(text: str, *, narrow: bool = False, **change: Any) -> str:
    return plan_change(text, KEY, RuleChange(**change), narrow=narrow).after


def by_sid(text: str) -> dict[str, dict[str, Any]]:
    return {statement["Sid"]: statement for statement in json.loads(text)["Statement"]}


def decides(text: str, pcr0: str | None, *, principal: str = PARENT, **context: str) -> bool:
    pcrs = {0: pcr0, 1: "e5" * 48, 8: PCR8} if pcr0 else {}
    checked = check_release(parse_policy(text), KEY, principal, pcrs, context)
    assert not checked.debug.allowed
    return checked.attested.allowed if pcr0 else checked.unattested.allowed


def released(text: str, **context: str) -> list[str]:
    return [pcr0 for pcr0 in (OLD, NEW, THIRD) if decides(text, pcr0, **context)]


FIRST = changed(policy(MANAGED, Id="mine"), pcr0=(OLD,), principals=(PARENT,))


def test_first_release() -> None:
    document = json.loads(FIRST)
    assert document["Id"] == "mine" and document["Statement"][0] == MANAGED
    assert list(by_sid(FIRST)) == ["Admins", "EnclaveRelease", "EnclaveDenyUnattested"]
    assert released(FIRST) == [OLD]
    assert not decides(FIRST, None)
    assert not decides(FIRST, OLD, principal=OWNER)
    assert release_principals(parse_policy(FIRST)) == (PARENT,)


def test_it_is_the_same_when_asked_again() -> None:
    again = plan_change(FIRST, KEY, RuleChange(pcr0=(OLD,)), narrow=True)
    assert not again.changes and not again.findings


def test_rolling_images_and_revocation() -> None:
    both = changed(FIRST, add_pcr0=(NEW,))
    assert released(both) == [OLD, NEW]
    assert released(changed(both, remove_pcr0=(OLD,))) == [NEW]
    assert released(changed(both, pcr0=(THIRD,))) == [THIRD]
    assert released(changed(FIRST, pcr0=(NEW, THIRD))) == [NEW, THIRD]
    swapped = changed(both, remove_pcr0=(OLD,), add_pcr0=(THIRD,))
    assert released(swapped) == [NEW, THIRD]
    assert by_sid(both)["Admins"] == MANAGED
    # The Deny lists the same images: what an IAM policy or a grant allows does not count.
    for text, images in ((both, [OLD, NEW]), (FIRST, OLD)):
        listed = by_sid(text)["EnclaveDenyUnattested"]["Condition"]["StringNotEqualsIgnoreCase"]
        assert listed == {IMAGE: images}


def test_what_the_owner_added_to_the_deny_stays() -> None:
    document = json.loads(FIRST)
    denies = document["Statement"][-1]
    denies["Action"] = [*denies["Action"], "kms:CreateGrant", "kms:GenerateDataKey*"]
    for change in (RuleChange(add_pcr0=(NEW,)), RuleChange(remove_pcr0=(OLD,))):
        after = plan_change(json.dumps(document), KEY, change, narrow=False).after
        assert by_sid(after)["EnclaveDenyUnattested"]["Action"] == denies["Action"]
    context = {"label-sha256": "0" * 64}
    opened = by_sid(opened_policy(json.dumps(document), OWNER, context))["EnclaveDenyUnattested"]
    assert {"kms:Decrypt", "kms:CreateGrant", "kms:GenerateDataKeyPair"} <= set(opened["Action"])
    assert "kms:ReEncryptFrom" not in opened["Action"]
    denies["NotAction"] = "kms:Encrypt"
    del denies["Action"]
    with pytest.raises(KeyPolicyError, match="another Sid"):
        changed(json.dumps(document), add_pcr0=(NEW,))


@pytest.mark.parametrize(
    "condition",
    [
        {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}},
        {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}},
        {"StringEquals": {"aws:PrincipalTag/team": "${aws:PrincipalTag/owner}"}},
        {"DateLessThan": {"aws:CurrentTime": "2099-01-01T00:00:00Z"}},
        {"Null": {"aws:SourceVpce": "false"}},
        {"StringEquals": {"kms:EncryptionContext:package": "scorer"}},
    ],
)
def test_a_check_is_not_fooled_by_what_it_does_not_simulate(condition: dict[str, Any]) -> None:
    statement = {"Sid": "Aside", "Effect": "Allow", "Principal": {"AWS": PARENT}}
    statement |= {"Action": "kms:Decrypt", "Resource": "*", "Condition": condition}
    release = by_sid(FIRST)["EnclaveRelease"]
    text = policy(release, statement)
    checked = check_release(parse_policy(text), KEY, PARENT, {0: OLD}, {})
    assert checked.attested.allowed and not checked.sound
    assert [s.name for s in checked.open_unattested] == ['"Aside"']
    assert [s.name for s in checked.open_debug] == ['"Aside"']
    output = io.StringIO()
    print_check(Console(file=output, width=200), checked)
    assert '✗ without attestation  may be allowed by "Aside"' in output.getvalue()
    # With the Deny, whatever it depends on, it is denied; and attestation conditions are settled.
    denied = policy(release, statement, by_sid(FIRST)["EnclaveDenyUnattested"])
    assert check_release(parse_policy(denied), KEY, PARENT, {0: OLD}, {}).sound
    both = {**condition, "StringEqualsIgnoreCase": {IMAGE: OLD}}
    narrow = policy(release, {**statement, "Condition": both})
    assert check_release(parse_policy(narrow), KEY, PARENT, {0: OLD}, {}).sound


def test_a_context_that_was_asked_about_is_settled() -> None:
    statement = {"Sid": "Aside", "Effect": "Allow", "Principal": {"AWS": PARENT}}
    statement |= {"Action": "kms:Decrypt", "Resource": "*"}
    statement["Condition"] = {"StringEquals": {"kms:EncryptionContext:package": "other"}}
    text = parse_policy(policy(by_sid(FIRST)["EnclaveRelease"], statement))
    assert check_release(text, KEY, PARENT, {0: OLD}, {"package": "scorer"}).sound
    assert not check_release(text, KEY, PARENT, {0: OLD}, {"package": "other"}).sound


def test_the_last_image_revoked_leaves_nobody() -> None:
    none = changed(FIRST, remove_pcr0=(OLD,))
    assert list(by_sid(none)) == ["Admins", "EnclaveDenyUnattested"]
    assert "Condition" not in by_sid(none)["EnclaveDenyUnattested"]
    assert released(none) == []
    with pytest.raises(KeyPolicyError, match="revoked already"):
        changed(none, remove_pcr0=(OLD,))
    with pytest.raises(KeyPolicyError, match="--principal"):
        changed(none, add_pcr0=(OLD,))


def test_revocation_reaches_statements_the_owner_wrote() -> None:
    own = {
        "Sid": "Mine",
        "Effect": "Allow",
        "Principal": {"AWS": PARENT},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": {"StringEqualsIgnoreCase": {IMAGE: [NEW.upper(), OLD]}},
    }
    both = changed(policy(own, MANAGED), pcr0=(OLD,), principals=(PARENT,))
    assert released(both) == [OLD, NEW]
    left = changed(both, remove_pcr0=(OLD,))
    assert released(left) == [NEW]
    assert by_sid(left)["Mine"]["Condition"] == {"StringEqualsIgnoreCase": {IMAGE: NEW.upper()}}
    assert "EnclaveRelease" not in by_sid(left)


def test_what_the_owner_added_to_the_rule_stays() -> None:
    document = json.loads(FIRST)
    rule = document["Statement"][1]
    rule["Condition"]["StringEquals"] = {"aws:SourceVpc": "vpc-1"}
    rule["Action"] = ["kms:Decrypt", "kms:DescribeKey"]
    after = by_sid(changed(json.dumps(document), add_pcr0=(NEW,), pcrs={8: (PCR8,)}))
    assert after["EnclaveRelease"]["Action"] == ["kms:Decrypt", "kms:DescribeKey"]
    assert after["EnclaveRelease"]["Condition"] == {
        "StringEqualsIgnoreCase": {
            IMAGE: [OLD, NEW],
            "kms:RecipientAttestation:PCR8": PCR8,
        },
        "StringEquals": {"aws:SourceVpc": "vpc-1"},
    }


def test_more_registers_and_the_encryption_context() -> None:
    context = {"package": ("scorer", "other"), "version": ("1.0",)}
    text = changed(FIRST, pcrs={8: (PCR8,)}, context=context)
    assert released(text) == []
    assert released(text, package="other", version="1.0") == [OLD]
    assert released(text, package="third", version="1.0") == []
    looser = changed(text, context={"version": ()}, pcrs={8: ("f6" * 48,)})
    assert released(looser, package="scorer") == []
    assert released(changed(looser, pcrs={8: ()}), package="scorer") == [OLD]


def test_several_rules() -> None:
    text = changed(
        FIRST, rule="Beta", pcr0=(NEW,), context={"package": ("beta",)}, principals=(OWNER,)
    )
    assert released(text) == [OLD]
    assert decides(text, NEW, principal=OWNER, package="beta")
    assert not decides(text, OLD, principal=OWNER, package="beta")
    assert released(changed(text, rule="Beta", pcr0=(THIRD,))) == [OLD]
    with pytest.raises(KeyPolicyError, match="letters and digits"):
        changed(text, rule="Be ta", pcr0=(NEW,))


def test_packages_and_versions_are_revoked() -> None:
    text = changed(FIRST, revoke=("scorer:1.0", "old", "scorer:1.0"))
    assert len(by_sid(text)) == 5
    assert released(text, package="scorer", version="1.1") == [OLD]
    assert released(text, package="scorer", version="1.0") == []
    assert released(text, package="old", version="7") == []
    assert released(changed(text, restore=("old",)), package="old", version="7") == [OLD]
    assert changed(text, restore=("old", "scorer:1.0")) == FIRST
    with pytest.raises(KeyPolicyError, match="not revoked"):
        changed(text, restore=("scorer",))
    for spec in ("", ":1", "a b", "a:", "a:1:2"):
        with pytest.raises(KeyPolicyError, match="NAME:VERSION"):
            changed(text, revoke=(spec,))


def test_beside_a_release_by_signer_the_deny_is_for_all_that_no_rule_releases_to() -> None:
    signer = {
        "Sid": "Signer",
        "Effect": "Allow",
        "Principal": {"AWS": PARENT},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": {"StringEquals": {"kms:RecipientAttestation:PCR8": PCR8}},
    }
    text = changed(policy(signer), pcr0=(OLD,), principals=(PARENT,))
    assert released(text) == [OLD, NEW, THIRD]  # each of them signed
    assert not decides(text, None)
    differ = by_sid(text)["EnclaveDenyUnattested"]["Condition"]["StringNotEqualsIgnoreCase"]
    assert differ == {"kms:RecipientAttestation:PCR8": PCR8, IMAGE: OLD}
    # What an IAM policy or a grant allows: neither without attestation nor to other images.
    root = {"Sid": "Root", "Effect": "Allow", "Principal": {"AWS": OWNER}, "Action": "kms:*"}
    wide = parse_policy(policy(*json.loads(text)["Statement"], {**root, "Resource": "*"}))
    for pcrs, allowed in (
        (None, False),
        ({0: NEW, 8: OLD}, False),
        ({0: NEW}, False),
        ({0: "00" * 48, 8: "00" * 48}, False),
        ({0: OLD}, True),
        ({0: NEW, 8: PCR8}, True),
    ):
        registers = None if pcrs is None else {n: bytes.fromhex(v) for n, v in pcrs.items()}
        request = kms_request(Caller.of(OWNER), "kms:Decrypt", KEY, pcrs=registers)
        assert wide.evaluate(request).allowed is allowed


def test_beside_a_release_by_kernel_and_ramdisks() -> None:
    measured = {f"kms:RecipientAttestation:PCR{n}": value for n, value in ((1, OLD), (2, NEW))}
    rule = {**by_sid(FIRST)["EnclaveRelease"], "Condition": {"StringEquals": measured}}
    after = by_sid(
        changed(policy({**rule, "Sid": "Mine"}), context={}, principals=(), revoke=("x",))
    )
    assert after["EnclaveDenyUnattested"]["Condition"] == {
        "StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR1": OLD}
    }


def test_narrowing_a_default_policy() -> None:
    root = {"Sid": "Root", "Effect": "Allow", "Principal": {"AWS": "111111111111"}}
    wide = policy(root | {"Action": "kms:*", "Resource": "*"})
    change = RuleChange(pcr0=(OLD,), principals=(PARENT,))
    assert len(plan_change(wide, KEY, change, narrow=False).findings) == 3
    narrow = plan_change(wide, KEY, change, narrow=True)
    assert narrow.findings == ()
    assert "kms:PutKeyPolicy" in by_sid(narrow.after)["Root"]["Action"]
    # Narrowing alone makes no release, and adds the Deny.
    alone = plan_change(wide, KEY, RuleChange(), narrow=True)
    assert list(by_sid(alone.after)) == ["Root", "EnclaveDenyUnattested"]


def test_one_statement_that_stands_alone() -> None:
    text = json.dumps({"Version": "2012-10-17", "Statement": MANAGED})
    assert list(by_sid(changed(text, pcr0=(OLD,), principals=(PARENT,)))) == list(by_sid(FIRST))


def test_what_makes_no_policy() -> None:
    with pytest.raises(PolicyError, match="32 KiB"):
        images = tuple(f"{number:096x}" for number in range(1, 400))
        changed(FIRST, pcr0=images)
    for text in ("{}", "[]", '{"Version": "2012-10-17", "Statement": [{"Sid": 1}]}'):
        with pytest.raises(PolicyError):
            changed(text, pcr0=(OLD,), principals=(PARENT,))


@pytest.mark.parametrize("text", ["", "a1" * 47, "a1" * 49, "g" * 96, "0x" + "a1" * 47])
def test_pcrs_that_are_none(text: str) -> None:
    with pytest.raises(KeyPolicyError, match="96 hex digits"):
        parse_pcr(text, 0)


def test_pcrs() -> None:
    assert parse_pcr(f" 0x{OLD.upper()}\n", 0) == OLD
    with pytest.raises(KeyPolicyError, match="debug mode"):
        parse_pcr("0" * 96, 0)


def test_contexts() -> None:
    assert parse_context(["a=1", "b=x=y", "a=2", "c="]) == {
        "a": ("1", "2"),
        "b": ("x=y",),
        "c": (),
    }
    for text in ("a", "=1", ""):
        with pytest.raises(KeyPolicyError):
            parse_context([text])


def test_checks_say_what_decided_and_what_they_could_not_judge() -> None:
    own = json.loads(FIRST)
    own["Statement"][1]["Condition"]["StringMatches"] = {"a:b": "c"}
    checked = check_release(parse_policy(json.dumps(own)), KEY, PARENT, {0: OLD}, {})
    assert not checked.attested.allowed and not checked.sound
    text = explained(checked.attested, checked)
    assert "no statement allows it" in text
    assert '"EnclaveRelease" (StringMatches on a:b)' in text
    checked = check_release(parse_policy(FIRST), KEY, PARENT, {0: OLD}, {})
    assert checked.sound
    text = explained(checked.attested, checked)
    assert text.startswith('allowed by "EnclaveRelease", if an IAM policy of account 222222222222')
    assert explained(checked.unattested, checked) == 'denied by "EnclaveDenyUnattested"'
    at_home = changed(FIRST, principals=(OWNER,))
    checked = check_release(parse_policy(at_home), KEY, OWNER, {0: OLD}, {})
    assert explained(checked.attested, checked) == 'allowed by "EnclaveRelease"'
    root = {**MANAGED, "Principal": {"AWS": "111111111111"}, "Action": "kms:*", "Condition": {}}
    checked = check_release(parse_policy(policy(root)), KEY, OWNER, {0: OLD}, {})
    assert "names the account" in explained(checked.attested, checked)
    assert not checked.sound and checked.debug.allowed
    by_place = {"StringEquals": {"kms:RecipientAttestation:PCR3": NEW}}
    placed = {**MANAGED, "Action": "kms:Decrypt", "Condition": by_place}
    checked = check_release(parse_policy(policy(placed)), KEY, OWNER, {0: OLD, 3: NEW}, {})
    assert checked.debug.allowed  # debug mode leaves PCR3 as it is
    with pytest.raises(PolicyError):
        check_release(parse_policy(FIRST), KEY, "AROAEXAMPLE", {0: OLD}, {})


def test_a_policy_is_a_strangers_text() -> None:
    """The policy of a key may come from anybody: it neither breaks lines nor drives a terminal."""
    hostile = "x\x1b]52;c;x\x07\r\n\u202e"
    statement = {**MANAGED, "Sid": hostile, "Action": "kms:Decrypt", "Principal": {"AWS": OWNER}}
    change = plan_change(
        policy(statement), KEY, RuleChange(pcr0=(OLD,), principals=(PARENT,)), narrow=False
    )
    output = io.StringIO()
    console = Console(file=output, width=80)
    print_diff(console, change)
    print_findings(console, change.findings)
    assert len(change.findings) == 1
    assert all(line.isprintable() for line in output.getvalue().splitlines())
    assert OLD in output.getvalue()
