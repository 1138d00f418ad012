"""infra/cloudformation/owner-key.yaml, deployed against moto; its key policy evaluated."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.deployed_stack import DeployedStack, MotoAccount, load_template, moto_account
from tests.support.policy_decisions import Outcome, decide

_OWNER = "111111111111"
_ADMIN = f"arn:aws:iam::{_OWNER}:role/key-admin"
_PIPELINE = f"arn:aws:iam::{_OWNER}:role/enclave-encryptor"
_BUILDER = f"arn:aws:iam::{_OWNER}:role/enclave-image-builder"
_SOMEBODY = f"arn:aws:iam::{_OWNER}:role/somebody"
_PARENT = "arn:aws:iam::222222222222:role/parent"
_EVERYBODY = (_ADMIN, _PIPELINE, _SOMEBODY, _PARENT, _PARENT.replace("parent", "other"))
_OLD, _NEW, _OTHER, _DEBUG = "0a" * 48, "1b" * 48, "2c" * 48, "00" * 48
_ARN = f"arn:aws:kms:eu-central-1:{_OWNER}:key/k"


@pytest.fixture(scope="module")
def owner() -> Iterator[MotoAccount]:
    with moto_account(_OWNER) as account:
        yield account


@pytest.fixture(scope="module")
def stack(owner: MotoAccount) -> DeployedStack:
    return owner.deploy(
        "owner-key", AdminRoleArn=_ADMIN, ParentRoleArn=_PARENT, ApprovedPcr0=f"{_OLD},{_NEW}"
    )


@pytest.fixture(scope="module")
def policy(stack: DeployedStack) -> dict[str, Any]:
    found: dict[str, Any] = stack.resources["Key"]["KeyPolicy"]
    return found


@pytest.fixture(scope="module")
def closed(owner: MotoAccount) -> dict[str, Any]:
    """The policy of a key for which no image is approved yet."""
    stack = owner.deploy("owner-key", stack_name="closed", AdminRoleArn=_ADMIN)
    found: dict[str, Any] = stack.resources["Key"]["KeyPolicy"]
    return found


def _decrypt(policy: dict[str, Any], role: str, pcr0: str | None) -> Outcome:
    context = {"kms:RecipientAttestation:ImageSha384": pcr0} if pcr0 else {}
    return decide(policy, role, "kms:Decrypt", _ARN, context)


def test_the_key(owner: MotoAccount, stack: DeployedStack) -> None:
    kms = owner.client("kms")
    arn = stack.outputs["KeyArn"]
    assert arn.startswith(f"arn:aws:kms:{owner.region}:{_OWNER}:key/")
    # moto's CloudFormation keeps the policy as a value, where its KMS expects text.
    text = json.dumps(stack.resources["Key"]["KeyPolicy"])
    kms.put_key_policy(KeyId=arn, PolicyName="default", Policy=text)
    assert kms.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"]
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    assert (metadata["KeySpec"], metadata["KeyUsage"]) == ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
    assert stack.resources["Key"]["PendingWindowInDays"] == 30
    assert load_template("owner-key")["Resources"]["Key"]["DeletionPolicy"] == "Retain"


def test_approved_enclaves_of_the_parent_decrypt(policy: dict[str, Any]) -> None:
    for pcr0 in (_OLD, _NEW, _NEW.upper()):
        assert _decrypt(policy, _PARENT, pcr0) is Outcome.ALLOW


@pytest.mark.parametrize("pcr0", [None, _OTHER, _DEBUG, _OLD + _NEW, f"{_OLD},{_NEW}", ""])
@pytest.mark.parametrize("role", _EVERYBODY)
def test_nothing_else_decrypts(policy: dict[str, Any], role: str, pcr0: str | None) -> None:
    assert _decrypt(policy, role, pcr0) is Outcome.EXPLICIT_DENY


@pytest.mark.parametrize("role", sorted(set(_EVERYBODY) - {_PARENT}))
def test_an_approved_enclave_with_another_role_gets_nothing(
    policy: dict[str, Any], role: str
) -> None:
    assert _decrypt(policy, role, _OLD) is Outcome.IMPLICIT_DENY


def test_before_an_image_is_approved_nobody_decrypts(closed: dict[str, Any]) -> None:
    assert "EnclaveRelease" not in {statement["Sid"] for statement in closed["Statement"]}
    for role in _EVERYBODY:
        for pcr0 in (None, _OLD, _DEBUG):
            assert _decrypt(closed, role, pcr0) is Outcome.EXPLICIT_DENY


@pytest.mark.parametrize("role", _EVERYBODY)
def test_nobody_re_encrypts_or_grants(
    policy: dict[str, Any], closed: dict[str, Any], role: str
) -> None:
    for found in (policy, closed):
        assert decide(found, role, "kms:CreateGrant", _ARN) is Outcome.EXPLICIT_DENY
        assert decide(found, role, "kms:ReEncryptFrom", _ARN) is Outcome.EXPLICIT_DENY


def test_what_each_role_may(policy: dict[str, Any]) -> None:
    actions = [
        *("DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair", "ReEncryptTo"),
        *("CreateAlias", "DisableKey", "EnableKey", "EnableKeyRotation", "DisableKeyRotation"),
        *("GetKeyPolicy", "PutKeyPolicy", "ScheduleKeyDeletion", "ReplicateKey"),
    ]

    def may(role: str) -> set[str]:
        return {
            action
            for action in actions
            if decide(policy, role, f"kms:{action}", _ARN) is Outcome.ALLOW
        }

    assert may(_PIPELINE) == {"Encrypt"}
    assert may(_ADMIN) == {
        *("DescribeKey", "DisableKey", "EnableKey", "EnableKeyRotation", "GetKeyPolicy"),
        *("PutKeyPolicy", "ScheduleKeyDeletion"),
    }
    for role in (_PARENT, _SOMEBODY, _PIPELINE.replace(_OWNER, "222222222222")):
        assert may(role) == set()


def test_a_pipeline_that_approves_images_does_nothing_else(owner: MotoAccount) -> None:
    stack = owner.deploy(
        "owner-key",
        stack_name="with-builder",
        AdminRoleArn=_ADMIN,
        ImageBuilderRoleName=_BUILDER.rpartition("/")[2],
    )
    found = stack.resources["Key"]["KeyPolicy"]
    actions = [
        *("DescribeKey", "Encrypt", "GenerateDataKey", "ReEncryptTo", "DisableKey", "EnableKey"),
        *("GetKeyPolicy", "PutKeyPolicy", "ScheduleKeyDeletion", "ReplicateKey", "CreateAlias"),
    ]
    assert [a for a in actions if decide(found, _BUILDER, f"kms:{a}", _ARN) is Outcome.ALLOW] == [
        *("GetKeyPolicy", "PutKeyPolicy"),
    ]
    assert _decrypt(found, _BUILDER, _OLD) is Outcome.EXPLICIT_DENY
    for role in (_PIPELINE, _SOMEBODY, _PARENT, _BUILDER.replace(_OWNER, "222222222222")):
        assert decide(found, role, "kms:PutKeyPolicy", _ARN) is Outcome.IMPLICIT_DENY
    result = _tool(found)
    assert (result.returncode, json.loads(result.stdout)["findings"]) == (0, [])


def _tool(policy: dict[str, Any], *options: str) -> "subprocess.CompletedProcess[str]":
    """Run `enclave-owner key-policy` on a policy that it reads from stdin."""
    command = [sys.executable, "-m", "enclave_encryption", "key-policy", "-k", _ARN]
    return subprocess.run(
        [*command, "--policy", "-", "--json", *options],
        input=json.dumps(policy),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_owners_tool_finds_no_way_around(
    policy: dict[str, Any], closed: dict[str, Any]
) -> None:
    for found in (policy, closed):
        result = _tool(found)
        assert (result.returncode, json.loads(result.stdout)["findings"]) == (0, [])
    wider = {**policy["Statement"][0], "Sid": "Wider", "Action": "kms:CreateGrant"}
    result = _tool({**policy, "Statement": [*policy["Statement"], wider]})
    assert result.returncode == 1


def test_the_owners_tool_foretells_a_release(policy: dict[str, Any]) -> None:
    for pcr0, code in ((_OLD, 0), (_NEW, 0), (_OTHER, 1)):
        assert _tool(policy, "--check", "--pcr0", pcr0).returncode == code


def test_stack_and_tool_write_the_same(policy: dict[str, Any], closed: dict[str, Any]) -> None:
    """An owner approves by a parameter of the stack or with the tool, and may change over."""
    result = _tool(closed, "--pcr0", _OLD, "--add-pcr0", _NEW, "--principal", _PARENT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["policy"] == policy
    only_new = _tool(policy, "--remove-pcr0", _OLD)
    assert only_new.returncode == 0
    after = json.loads(only_new.stdout)["policy"]
    assert _decrypt(after, _PARENT, _NEW) is Outcome.ALLOW
    assert _decrypt(after, _PARENT, _OLD) is Outcome.EXPLICIT_DENY


def test_what_counts_as_a_list_of_images() -> None:
    pattern = load_template("owner-key")["Parameters"]["ApprovedPcr0"]["AllowedPattern"]
    for good in ("", _OLD, f"{_OLD},{_NEW}"):
        assert re.search(pattern, good), good
    for bad in (
        *(_DEBUG, f"{_OLD},{_DEBUG}", f"{_OLD}, {_NEW}", f"{_OLD},", f",{_OLD}", _OLD[:-1]),
        *("g" + _OLD[1:], _OLD + "0", "*", f"{_OLD},*", _OLD.replace("a", "A")),
    ):
        assert not re.search(pattern, bad), bad


def test_an_approved_image_needs_a_parent() -> None:
    (rule,) = load_template("owner-key")["Rules"].values()
    empty = {"Fn::Equals": [{"Ref": "ApprovedPcr0"}, ""]}
    assert rule["RuleCondition"] == {"Fn::Not": [empty]}
    (assertion,) = rule["Assertions"]
    assert assertion["Assert"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "ParentRoleArn"}, ""]}]}
