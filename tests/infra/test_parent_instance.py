"""infra/cloudformation/parent-instance.yaml, deployed against moto."""

import base64
import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from tests.support.deployed_stack import DeployedStack, MotoAccount, load_template, moto_account

_HOST = "222222222222"
_KEYS = [
    f"arn:aws:kms:eu-central-1:{account}:key/k" for account in ("111111111111", "333333333333")
]
_DIGEST = "0a" * 32


@pytest.fixture(scope="module")
def host() -> Iterator[MotoAccount]:
    with moto_account(_HOST) as account:
        yield account


@pytest.fixture(scope="module")
def stack(host: MotoAccount) -> DeployedStack:
    subnet = host.client("ec2").describe_subnets()["Subnets"][0]
    return host.deploy(
        "parent-instance",
        SubnetId=subnet["SubnetId"],
        VpcId=subnet["VpcId"],
        InstanceType="m7g.large",
        ImageId="/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64",
        EnclaveCpus="1",
        EnclaveMemoryMib="4096",
        OwnerKeyArns=",".join(_KEYS),
        SharingBucket="sharing",
        ToolsLocation="sharing/tools/parent.zip",
        ToolsSha256=_DIGEST,
    )


@pytest.fixture(scope="module")
def script(stack: DeployedStack) -> str:
    return base64.b64decode(stack.resources["Instance"]["UserData"]).decode()


def test_moto_makes_all_of_it(stack: DeployedStack) -> None:
    assert stack.not_made == frozenset()


def test_the_role_may_do_this_and_nothing_else(host: MotoAccount, stack: DeployedStack) -> None:
    role_arn = stack.outputs["ParentRoleArn"]
    statements = {statement.pop("Sid"): statement for statement in host.granted(role_arn)}
    assert {statement.pop("Effect") for statement in statements.values()} == {"Allow"}
    assert statements == {
        "AskForDataKeys": {"Action": "kms:Decrypt", "Resource": _KEYS},
        "ReadPackagesAndImages": {
            "Action": "s3:GetObject",
            "Resource": ["arn:aws:s3:::sharing/images/*", "arn:aws:s3:::sharing/packages/*"],
        },
        "ReadTools": {
            "Action": "s3:GetObject",
            "Resource": "arn:aws:s3:::sharing/tools/parent.zip",
        },
        "SessionManager": {
            "Action": [
                "ssm:UpdateInstanceInformation",
                *("ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel"),
                *("ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"),
            ],
            "Resource": "*",
        },
    }
    role = host.client("iam").get_role(RoleName=role_arn.rpartition("/")[2])["Role"]
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_nothing_comes_in(host: MotoAccount, stack: DeployedStack) -> None:
    (group_id,) = stack.resources["Instance"]["SecurityGroupIds"]
    (group,) = host.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert group["IpPermissions"] == []
    ports = {
        (rule["IpProtocol"], rule["FromPort"], rule["ToPort"])
        for rule in stack.resources["NoInbound"]["SecurityGroupEgress"]
    }
    assert ports == {("tcp", 443, 443)}
    assert "KeyName" not in stack.resources["Instance"]


def test_instance(host: MotoAccount, stack: DeployedStack) -> None:
    found = host.client("ec2").describe_instances(InstanceIds=[stack.outputs["InstanceId"]])
    (instance,) = found["Reservations"][0]["Instances"]
    assert instance["InstanceType"] == "m7g.large"
    assert instance["SubnetId"] == stack.resources["Instance"]["SubnetId"]
    profile = stack.resources["Instance"]["IamInstanceProfile"]
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
    # What moto's CloudFormation does not apply.
    properties = stack.resources["Instance"]
    assert properties["EnclaveOptions"] == {"Enabled": True}
    assert properties["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    (disk,) = properties["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] is True


def test_the_stack_waits_for_the_user_data(script: str) -> None:
    policy = load_template("parent-instance")["Resources"]["Instance"]["CreationPolicy"]
    assert policy == {"ResourceSignal": {"Timeout": "PT15M"}}
    lines = script.splitlines()
    assert lines[:2] == ["#!/bin/bash", "set -euo pipefail"]
    assert re.fullmatch(
        r"trap '/opt/aws/bin/cfn-signal --exit-code \$\? --stack \"arn:aws:cloudformation:\S+\" "
        r"--resource Instance --region \"eu-central-1\"' EXIT",
        lines[2],
    )


def test_user_data_is_a_script(script: str) -> None:
    """It is run in test_parent_user_data.py."""
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "${" not in script
    assert len(script) < 16384 * 3 // 4  # EC2's limit, before base64


def test_allocator_configuration(script: str) -> None:
    begin = script.index("allocator.yaml <<'END'\n") + len("allocator.yaml <<'END'\n")
    configuration = yaml.safe_load(script[begin : script.index("END\n", begin)])
    assert configuration == {"memory_mib": 4096, "cpu_count": 1}
