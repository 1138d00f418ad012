"""infra/cloudformation/sharing-bucket.yaml, deployed against moto."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.deployed_stack import DeployedStack, MotoAccount, moto_account
from tests.support.policy_decisions import Outcome, decide

_HOST = "222222222222"
_PUBLISHER = "arn:aws:iam::111111111111:role/enclave-encryptor"
_BUILDER = "arn:aws:iam::111111111111:role/enclave-image-builder"
_SECURE = {"aws:SecureTransport": "true"}


@pytest.fixture(scope="module")
def host() -> Iterator[MotoAccount]:
    with moto_account(_HOST) as account:
        yield account


@pytest.fixture(scope="module")
def stack(host: MotoAccount) -> DeployedStack:
    return host.deploy("sharing-bucket", PublisherRoleArn=_PUBLISHER, OldVersionDays="7")


@pytest.fixture(scope="module")
def policy(stack: DeployedStack) -> dict[str, Any]:
    found: dict[str, Any] = stack.resources["BucketPolicy"]["PolicyDocument"]
    return found


def test_bucket(host: MotoAccount, stack: DeployedStack) -> None:
    name = stack.outputs["BucketName"]
    assert stack.outputs["BucketAccount"] == _HOST
    rules = host.client("s3").get_bucket_encryption(Bucket=name)
    (rule,) = rules["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    # moto's CloudFormation applies nothing but the encryption.
    bucket = stack.resources["Bucket"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert bucket["PublicAccessBlockConfiguration"] == dict.fromkeys(
        ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
    )
    old, broken = bucket["LifecycleConfiguration"]["Rules"]
    assert old["NoncurrentVersionExpiration"] == {"NoncurrentDays": 7}
    assert broken["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert {old["Status"], broken["Status"]} == {"Enabled"}


def test_the_policy_is_one_that_s3_takes(host: MotoAccount, policy: dict[str, Any]) -> None:
    """moto makes no bucket policies from templates; its S3 checks and keeps this one."""
    s3 = host.client("s3")
    s3.create_bucket(Bucket="policy", CreateBucketConfiguration={"LocationConstraint": host.region})
    s3.put_bucket_policy(Bucket="policy", Policy=json.dumps(policy))
    assert json.loads(s3.get_bucket_policy(Bucket="policy")["Policy"]) == policy


@pytest.mark.parametrize(
    ("role", "action", "path", "decision"),
    [
        (_PUBLISHER, "s3:PutObject", "packages/scorer-1.0.0.encrypted", Outcome.ALLOW),
        (_PUBLISHER, "s3:PutObject", "tools/parent.zip", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:PutObjectAcl", "packages/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:GetObject", "packages/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:GetObjectVersion", "packages/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:DeleteObject", "packages/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:DeleteObjectVersion", "packages/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER.replace("encryptor", "other"), "s3:PutObject", "packages/x", None),
        (_PUBLISHER.replace("1111", "3333"), "s3:PutObject", "packages/x", None),
        (f"arn:aws:iam::{_HOST}:role/parent", "s3:PutObject", "packages/x", None),
    ],
)
def test_the_publisher_puts_and_nothing_else(
    policy: dict[str, Any],
    stack: DeployedStack,
    role: str,
    action: str,
    path: str,
    decision: Outcome | None,
) -> None:
    arn = f"arn:aws:s3:::{stack.outputs['BucketName']}/{path}"
    expected = decision or Outcome.IMPLICIT_DENY
    assert decide(policy, role, action, arn, _SECURE) is expected


@pytest.mark.parametrize("action", ["s3:ListBucket", "s3:PutBucketPolicy", "s3:DeleteBucket"])
def test_the_publisher_has_nothing_on_the_bucket_itself(
    policy: dict[str, Any], stack: DeployedStack, action: str
) -> None:
    arn = f"arn:aws:s3:::{stack.outputs['BucketName']}"
    assert decide(policy, _PUBLISHER, action, arn, _SECURE) is Outcome.IMPLICIT_DENY


@pytest.mark.parametrize("path", ["", "/packages/x", "/tools/x"])
def test_without_tls_everybody_is_refused(
    policy: dict[str, Any], stack: DeployedStack, path: str
) -> None:
    arn = f"arn:aws:s3:::{stack.outputs['BucketName']}{path}"
    for role in (_PUBLISHER, f"arn:aws:iam::{_HOST}:role/admin"):
        for action in ("s3:PutObject", "s3:GetObject", "s3:ListBucket"):
            decision = decide(policy, role, action, arn, {"aws:SecureTransport": "false"})
            assert decision is Outcome.EXPLICIT_DENY


@pytest.fixture(scope="module")
def with_images(host: MotoAccount) -> DeployedStack:
    return host.deploy(
        "sharing-bucket",
        stack_name="with-images",
        PublisherRoleArn=_PUBLISHER,
        ImagePublisherRoleArn=_BUILDER,
    )


@pytest.mark.parametrize(
    ("role", "action", "path", "decision"),
    [
        (_BUILDER, "s3:PutObject", "images/0a/enclave.eif", Outcome.ALLOW),
        (_BUILDER, "s3:PutObject", "packages/x", Outcome.IMPLICIT_DENY),
        (_BUILDER, "s3:PutObject", "tools/x", Outcome.IMPLICIT_DENY),
        (_BUILDER, "s3:GetObject", "images/x", Outcome.IMPLICIT_DENY),
        (_BUILDER, "s3:DeleteObject", "images/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:PutObject", "images/x", Outcome.IMPLICIT_DENY),
        (_PUBLISHER, "s3:PutObject", "packages/x", Outcome.ALLOW),
        (_BUILDER.replace("1111", "3333"), "s3:PutObject", "images/x", Outcome.IMPLICIT_DENY),
    ],
)
def test_the_image_builder_puts_images_and_nothing_else(
    with_images: DeployedStack, role: str, action: str, path: str, decision: Outcome
) -> None:
    policy = with_images.resources["BucketPolicy"]["PolicyDocument"]
    arn = f"arn:aws:s3:::{with_images.outputs['BucketName']}/{path}"
    assert decide(policy, role, action, arn, _SECURE) is decision


def test_without_an_image_builder_nobody_puts_images(
    policy: dict[str, Any], stack: DeployedStack
) -> None:
    arn = f"arn:aws:s3:::{stack.outputs['BucketName']}/images/x"
    for role in (_BUILDER, _PUBLISHER):
        assert decide(policy, role, "s3:PutObject", arn, _SECURE) is Outcome.IMPLICIT_DENY
