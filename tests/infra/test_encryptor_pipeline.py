"""infra/cloudformation/encryptor-pipeline.yaml, deployed against moto."""

import re
from collections.abc import Iterator

import pytest

from tests.support.deployed_stack import (
    DeployedStack,
    MotoAccount,
    api_names,
    by_resource,
    load_template,
    moto_account,
)

_OWNER, _HOST = "111111111111", "222222222222"
_KEY = f"arn:aws:kms:eu-central-1:{_OWNER}:key/k"
_CONNECTION = f"arn:aws:codeconnections:eu-central-1:{_OWNER}:connection/0a1b"
_COMMON = {
    "KeyArn": _KEY,
    "SharingBucket": "sharing",
    "SharingBucketAccount": _HOST,
    "ToolsLocation": "owner-tools/tools.zip",
    "ToolsSha256": "0a" * 32,
}
_SOURCES = {
    "CODECOMMIT": {
        "SourceLocation": "https://git-codecommit.eu-central-1.amazonaws.com/v1/repos/scorer"
    },
    "S3": {"SourceLocation": "owner-source/scorer.zip", "PipelineRoleName": "enclave-from-s3"},
    "GITHUB": {
        "SourceLocation": "https://github.com/acme/scorer",
        "ConnectionArn": _CONNECTION,
        "PipelineRoleName": "enclave-from-github",
        "Architecture": "x86_64",
        "SourceVersion": "main",
        "Strict": "no",
    },
}


@pytest.fixture(scope="module")
def owner() -> Iterator[MotoAccount]:
    with moto_account(_OWNER) as account:
        yield account


@pytest.fixture(scope="module")
def stacks(owner: MotoAccount) -> dict[str, DeployedStack]:
    return {
        source: owner.deploy(
            "encryptor-pipeline",
            stack_name=f"encryptor-{source.lower()}",
            SourceType=source,
            **_COMMON,
            **parameters,
        )
        for source, parameters in _SOURCES.items()
    }


@pytest.mark.parametrize(
    ("source", "resource", "actions"),
    [
        (
            "CODECOMMIT",
            f"arn:aws:codecommit:eu-central-1:{_OWNER}:scorer",
            {"codecommit:GitPull"},
        ),
        (
            "S3",
            "arn:aws:s3:::owner-source/scorer.zip",
            {"s3:GetObject", "s3:GetObjectVersion"},
        ),
        (
            "GITHUB",
            _CONNECTION,
            {"codeconnections:GetConnection", "codeconnections:GetConnectionToken"},
        ),
    ],
)
def test_the_role_may_do_this_and_nothing_else(
    owner: MotoAccount,
    stacks: dict[str, DeployedStack],
    source: str,
    resource: str,
    actions: set[str],
) -> None:
    group = f"arn:aws:logs:eu-central-1:{_OWNER}:log-group:/aws/codebuild/encryptor-"
    granted = by_resource(owner.granted(stacks[source].outputs["PipelineRoleArn"]))
    (log,) = [found for found in granted if found.startswith(group)]
    assert granted.pop(log) == {"logs:CreateLogStream", "logs:PutLogEvents"}
    assert granted == {
        _KEY: {"kms:Encrypt"},
        "arn:aws:s3:::sharing/packages/*": {"s3:PutObject"},
        "arn:aws:s3:::owner-tools/tools.zip": {"s3:GetObject", "s3:GetObjectVersion"},
        resource: actions,
    }


def test_only_this_project_assumes_the_role(
    owner: MotoAccount, stacks: dict[str, DeployedStack]
) -> None:
    role = owner.client("iam").get_role(RoleName="enclave-from-s3")["Role"]
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "codebuild.amazonaws.com"}
    project = stacks["S3"].resources["Project"]["Name"]
    assert statement["Condition"]["StringEquals"] == {
        "aws:SourceAccount": _OWNER,
        "aws:SourceArn": f"arn:aws:codebuild:eu-central-1:{_OWNER}:project/{project}",
    }


def test_log_group(owner: MotoAccount, stacks: dict[str, DeployedStack]) -> None:
    groups = owner.client("logs").describe_log_groups()["logGroups"]
    kept = {group["logGroupName"]: group.get("retentionInDays") for group in groups}
    assert kept[f"/aws/codebuild/{stacks['S3'].resources['Project']['Name']}"] == 90


def test_project(stacks: dict[str, DeployedStack]) -> None:
    """moto's CloudFormation makes no CodeBuild projects: this is what the template resolves to."""
    for stack in stacks.values():
        assert stack.not_made == {"AWS::CodeBuild::Project"}
        project = stack.resources["Project"]
        assert project["Artifacts"] == {"Type": "NO_ARTIFACTS"}
        assert "PrivilegedMode" not in project["Environment"]
        assert project["SecondarySources"] == [
            {"Type": "S3", "Location": "owner-tools/tools.zip", "SourceIdentifier": "tools"}
        ]
    github, s3 = (stacks[name].resources["Project"] for name in ("GITHUB", "S3"))
    assert github["Source"]["Auth"] == {"Type": "CODECONNECTIONS", "Resource": _CONNECTION}
    assert github["SourceVersion"] == "main"
    assert "Auth" not in s3["Source"]
    assert "SourceVersion" not in s3
    assert (github["Environment"]["Type"], s3["Environment"]["Type"]) == (
        "LINUX_CONTAINER",
        "ARM_CONTAINER",
    )
    assert "x86_64" in github["Environment"]["Image"]
    assert "aarch64" in s3["Environment"]["Image"]


def test_codebuild_takes_the_project(owner: MotoAccount, stacks: dict[str, DeployedStack]) -> None:
    """The same values through CodeBuild's API, whose shape boto3 checks, to moto's CodeBuild."""

    codebuild = owner.client("codebuild")
    for stack in stacks.values():
        project = api_names(stack.resources["Project"])
        project["source"]["buildspec"] = project["source"].pop("buildSpec")
        made = codebuild.create_project(**project)["project"]
        assert made["serviceRole"] == stack.outputs["PipelineRoleArn"]


def test_a_repository_outside_aws_needs_a_connection() -> None:
    rules = load_template("encryptor-pipeline")["Rules"]
    inside = [{"Fn::Contains": [["CODECOMMIT", "S3"], {"Ref": "SourceType"}]}]
    none = {"Fn::Equals": [{"Ref": "ConnectionArn"}, ""]}
    needs, refuses = rules["ConnectionForRepositories"], rules["NoConnectionInsideAws"]
    assert needs["RuleCondition"] == {"Fn::Not": inside}
    assert needs["Assertions"][0]["Assert"] == {"Fn::Not": [none]}
    assert refuses["RuleCondition"] == inside[0]
    assert refuses["Assertions"][0]["Assert"] == none


def test_a_package_directory_stays_in_the_source() -> None:
    pattern = load_template("encryptor-pipeline")["Parameters"]["PackageDirectory"][
        "AllowedPattern"
    ]
    for good in (".", "scorer", "packages/scorer-1", "my package"):
        assert re.search(pattern, good), good
    for bad in ("", "/etc", "-d", "..", "../x", "a/../../x", "a;b", "a$(b)", 'a"b', "a\nb"):
        assert not re.search(pattern, bad), bad
