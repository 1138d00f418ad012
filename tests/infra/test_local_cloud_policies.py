"""The local cloud as boto3 sees it: the key policy on every operation."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents
from tests.support.kms_keys import error_code, host_may, new_key, root_file
from tests.support.local_services import (
    HOST_ROLE_ARN,
    OWNER_ROLE_ARN,
    LocalCloudProcess,
    local_cloud,
    release_policy,
)

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> DocumentMaker:
    return make_documents(tmp_path_factory.mktemp("nsm") / "root", datetime.now(UTC))


@pytest.fixture(scope="module")
def cloud(
    tmp_path_factory: pytest.TempPathFactory, maker: DocumentMaker
) -> Iterator[LocalCloudProcess]:
    directory = tmp_path_factory.mktemp("cloud")
    with local_cloud(directory, root_cert=root_file(directory, maker)) as running:
        yield running


# Policies on every operation


def _operations(client: "KMSClient", arn: str, blob: bytes) -> dict[str, Callable[[], object]]:
    return {
        "kms:Encrypt": lambda: client.encrypt(KeyId=arn, Plaintext=b"x"),
        "kms:Decrypt": lambda: client.decrypt(CiphertextBlob=blob),
        "kms:ReEncryptFrom": lambda: client.re_encrypt(CiphertextBlob=blob, DestinationKeyId=arn),
        "kms:GenerateDataKey": lambda: client.generate_data_key(KeyId=arn, KeySpec="AES_256"),
        "kms:GenerateDataKeyWithoutPlaintext": (
            lambda: client.generate_data_key_without_plaintext(KeyId=arn, KeySpec="AES_256")
        ),
        "kms:GenerateDataKeyPair": (
            lambda: client.generate_data_key_pair(KeyId=arn, KeyPairSpec="ECC_NIST_P256")
        ),
        "kms:DescribeKey": lambda: client.describe_key(KeyId=arn),
        "kms:GetKeyPolicy": lambda: client.get_key_policy(KeyId=arn, PolicyName="default"),
        "kms:PutKeyPolicy": lambda: client.put_key_policy(
            KeyId=arn, PolicyName="default", Policy=release_policy("00" * 48)
        ),
        "kms:CreateGrant": lambda: client.create_grant(
            KeyId=arn, GranteePrincipal=HOST_ROLE_ARN, Operations=["Decrypt"]
        ),
        "kms:ScheduleKeyDeletion": lambda: client.schedule_key_deletion(KeyId=arn),
        "kms:DisableKey": lambda: client.disable_key(KeyId=arn),
        "kms:EnableKey": lambda: client.enable_key(KeyId=arn),
        "kms:UpdateKeyDescription": (
            lambda: client.update_key_description(KeyId=arn, Description="mine")
        ),
        "kms:TagResource": (
            lambda: client.tag_resource(KeyId=arn, Tags=[{"TagKey": "a", "TagValue": "b"}])
        ),
        "kms:CreateAlias": lambda: client.create_alias(AliasName="alias/mine", TargetKeyId=arn),
    }


def test_nothing_is_allowed_to_whom_the_policy_does_not_name(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud)
    blob = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
    for action, call in _operations(cloud.host, arn, blob).items():
        assert error_code(call) == "AccessDeniedException", action


def test_a_deny_on_every_operation_is_honoured(cloud: LocalCloudProcess) -> None:
    for action in _operations(cloud.owner, "", b""):
        deny = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*"}
        allow = host_may("kms:*") | {"Principal": {"AWS": OWNER_ROLE_ARN}}
        policy = {"Version": "2012-10-17", "Statement": [deny, allow]}
        arn = new_key(cloud)
        blob = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
        cloud.owner.put_key_policy(
            KeyId=arn,
            PolicyName="default",
            Policy=json.dumps(policy),
            BypassPolicyLockoutSafetyCheck=True,
        )
        with pytest.raises(ClientError, match="explicit deny"):
            _operations(cloud.owner, arn, blob)[action]()


def test_management_stays_within_the_account(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud, host_may("kms:*"))
    assert error_code(cloud.host.describe_key, KeyId=arn) == ""
    assert error_code(cloud.host.disable_key, KeyId=arn) == "AccessDeniedException"
    # A grant may be made from another account, as at AWS.
    grant: dict[str, Any] = {
        "KeyId": arn,
        "GranteePrincipal": HOST_ROLE_ARN,
        "Operations": ["Decrypt"],
    }
    assert error_code(cloud.host.create_grant, **grant) == ""


def test_grants(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud)
    context = {"package": "scorer", "version": "1"}
    blob = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x", EncryptionContext=context)
    opened: dict[str, Any] = {
        "CiphertextBlob": blob["CiphertextBlob"],
        "EncryptionContext": context,
    }

    def grant(**more: Any) -> str:
        asked: dict[str, Any] = {"KeyId": arn, "GranteePrincipal": HOST_ROLE_ARN}
        return cloud.owner.create_grant(**{**asked, "Operations": ["Decrypt"], **more})["GrantId"]

    useless: dict[str, Any]
    for useless in (
        {"Operations": ["Encrypt"]},
        {"GranteePrincipal": OWNER_ROLE_ARN},
        {"Constraints": {"EncryptionContextEquals": {"package": "scorer"}}},
        {"Constraints": {"EncryptionContextSubset": {"package": "other"}}},
    ):
        grant(**useless)
        assert error_code(cloud.host.decrypt, **opened) == "AccessDeniedException", useless
    made = grant(Constraints={"EncryptionContextSubset": {"package": "scorer"}})
    assert cloud.host.decrypt(**opened)["Plaintext"] == b"x"
    cloud.owner.revoke_grant(KeyId=arn, GrantId=made)
    assert error_code(cloud.host.decrypt, **opened) == "AccessDeniedException"
    grant(Constraints={"EncryptionContextEquals": context})
    assert cloud.host.decrypt(**opened)["Plaintext"] == b"x"
    assert len(cloud.owner.list_grants(KeyId=arn)["Grants"]) == 5
    for wrong in ({"Operations": ["PutKeyPolicy"]}, {"GranteePrincipal": "somebody"}):
        asked: dict[str, Any] = {"KeyId": arn, "GranteePrincipal": HOST_ROLE_ARN}
        asked["Operations"] = ["Decrypt"]
        code = error_code(cloud.owner.create_grant, **{**asked, **wrong})
        assert code in ("ValidationException", "InvalidArnException")


def test_rotation(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud)
    before = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
    assert error_code(cloud.host.rotate_key_on_demand, KeyId=arn) == "AccessDeniedException"
    cloud.owner.rotate_key_on_demand(KeyId=arn)
    after = cloud.owner.encrypt(KeyId=arn, Plaintext=b"y")["CiphertextBlob"]
    assert cloud.owner.decrypt(CiphertextBlob=before)["Plaintext"] == b"x"
    assert cloud.owner.decrypt(CiphertextBlob=after)["Plaintext"] == b"y"
    assert len(cloud.owner.list_key_rotations(KeyId=arn)["Rotations"]) == 1
    cloud.owner.enable_key_rotation(KeyId=arn, RotationPeriodInDays=90)
    assert cloud.owner.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"]


def test_policies_are_read_back_replaced_and_checked(cloud: LocalCloudProcess) -> None:
    arn = new_key(cloud)
    new = release_policy(PCR0.hex())

    def put(policy: str, **options: Any) -> str:
        return error_code(
            cloud.owner.put_key_policy, KeyId=arn, PolicyName="default", Policy=policy, **options
        )

    assert put(new) == ""
    assert cloud.owner.get_key_policy(KeyId=arn, PolicyName="default")["Policy"] == new
    assert put("{}") == "MalformedPolicyDocumentException"
    locking = json.dumps({"Version": "2012-10-17", "Statement": [host_may("kms:*")]})
    assert put(locking) == "MalformedPolicyDocumentException"
    assert cloud.owner.get_key_policy(KeyId=arn, PolicyName="default")["Policy"] == new
    assert put(locking, BypassPolicyLockoutSafetyCheck=True) == ""
    assert put(new) == "AccessDeniedException"
    assert error_code(cloud.owner.create_key, Policy=locking) == "MalformedPolicyDocumentException"


def test_the_default_policy_opens_the_key_to_its_account_only(cloud: LocalCloudProcess) -> None:
    arn = cloud.owner.create_key()["KeyMetadata"]["Arn"]
    blob = cloud.owner.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
    assert cloud.owner.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    assert error_code(cloud.host.decrypt, CiphertextBlob=blob) == "AccessDeniedException"


def test_unknown_operations(cloud: LocalCloudProcess) -> None:
    code = error_code(
        cloud.owner.get_parameters_for_import,
        KeyId="x",
        WrappingAlgorithm="RSAES_OAEP_SHA_256",
        WrappingKeySpec="RSA_2048",
    )
    assert code == "UnsupportedOperationException"


def test_the_life_of_a_key(cloud: LocalCloudProcess) -> None:
    owner, arn = cloud.owner, new_key(cloud)
    owner.disable_key(KeyId=arn)
    assert error_code(owner.encrypt, KeyId=arn, Plaintext=b"x") == "DisabledException"
    owner.enable_key(KeyId=arn)
    schedule = owner.schedule_key_deletion
    assert error_code(schedule, KeyId=arn, PendingWindowInDays=6) == "ValidationException"
    schedule(KeyId=arn, PendingWindowInDays=7)
    for call in (owner.enable_key, owner.disable_key, schedule):
        assert error_code(call, KeyId=arn) == "KMSInvalidStateException"
    code = error_code(owner.encrypt, KeyId=arn, Plaintext=b"x")
    assert code == "KMSInvalidStateException"
    owner.cancel_key_deletion(KeyId=arn)
    owner.enable_key(KeyId=arn)
    assert owner.encrypt(KeyId=arn, Plaintext=b"x")["KeyId"] == arn
