"""infra/cloudformation/image-pipeline.yaml, deployed against moto."""

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
_CONTAINER = "public.ecr.aws/docker/library/debian@sha256:" + "1c" * 32
_COMMON = {
    "SharingBucket": "sharing",
    "SharingBucketAccount": _HOST,
    "BlobsLocation": "owner-tools/blobs.tar.gz",
    "BlobsSha256": "2d" * 32,
    "ToolsLocation": "owner-tools/tools.zip",
    "ToolsSha256": "0a" * 32,
    "BuildImage": _CONTAINER,
}
_SOURCES = {
    "CODECOMMIT": {
        "SourceLocation": "https://git-codecommit.eu-central-1.amazonaws.com/v1/repos/image",
        "KeyArn": _KEY,
        "Requirements": "ours.lock",
    },
    "S3": {"SourceLocation": "owner-tools/tools.zip", "BuilderRoleName": "builder-from-s3"},
    "GITHUB": {
        "SourceLocation": "https://github.com/acme/image",
        "ConnectionArn": _CONNECTION,
        "BuilderRoleName": "builder-from-github",
        "Architecture": "x86_64",
        "SourceVersion": "main",
        "Flavour": "datascience",
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
            "image-pipeline",
            stack_name=f"image-{source.lower()}",
            SourceType=source,
            **_COMMON,
            **parameters,
        )
        for source, parameters in _SOURCES.items()
    }


@pytest.mark.parametrize(
    ("source", "more"),
    [
        (
            "CODECOMMIT",
            {
                f"arn:aws:codecommit:eu-central-1:{_OWNER}:image": {"codecommit:GitPull"},
                _KEY: {"kms:GetKeyPolicy", "kms:PutKeyPolicy"},
            },
        ),
        ("S3", {}),  # the source is the bundle of tools, which it reads anyway
        (
            "GITHUB",
            {_CONNECTION: {"codeconnections:GetConnection", "codeconnections:GetConnectionToken"}},
        ),
    ],
)
def test_the_role_may_do_this_and_nothing_else(
    owner: MotoAccount, stacks: dict[str, DeployedStack], source: str, more: dict[str, set[str]]
) -> None:
    """Above all: without KeyArn it has nothing to do with any key."""
    group = f"arn:aws:logs:eu-central-1:{_OWNER}:log-group:/aws/codebuild/image-"
    granted = by_resource(owner.granted(stacks[source].outputs["ImageBuilderRoleArn"]))
    (log,) = [found for found in granted if found.startswith(group)]
    assert granted.pop(log) == {"logs:CreateLogStream", "logs:PutLogEvents"}
    assert granted == {
        "arn:aws:s3:::sharing/images/*": {"s3:PutObject"},
        "arn:aws:s3:::owner-tools/blobs.tar.gz": {"s3:GetObject"},
        "arn:aws:s3:::owner-tools/tools.zip": {"s3:GetObject", "s3:GetObjectVersion"},
        **more,
    }


def test_only_this_project_assumes_the_role(
    owner: MotoAccount, stacks: dict[str, DeployedStack]
) -> None:
    role = owner.client("iam").get_role(RoleName="builder-from-s3")["Role"]
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
        assert project["Environment"]["Image"] == _CONTAINER
        assert project["SecondarySources"] == [
            {"Type": "S3", "Location": "owner-tools/tools.zip", "SourceIdentifier": "tools"}
        ]
    github, s3 = (stacks[name].resources["Project"] for name in ("GITHUB", "S3"))
    assert github["Source"]["Auth"] == {"Type": "CODECONNECTIONS", "Resource": _CONNECTION}
    assert github["SourceVersion"] == "main"
    assert "Auth" not in s3["Source"]
    assert "SourceVersion" not in s3


@pytest.mark.parametrize(
    ("source", "container", "machine", "flavour", "key"),
    [
        ("CODECOMMIT", "ARM_CONTAINER", "aarch64", "base", _KEY),
        ("S3", "ARM_CONTAINER", "aarch64", "base", ""),
        ("GITHUB", "LINUX_CONTAINER", "x86_64", "datascience", ""),
    ],
)
def test_the_machine_is_the_images(
    stacks: dict[str, DeployedStack],
    source: str,
    container: str,
    machine: str,
    flavour: str,
    key: str,
) -> None:
    environment = stacks[source].resources["Project"]["Environment"]
    variables = {found["Name"]: found["Value"] for found in environment["EnvironmentVariables"]}
    assert environment["Type"] == container
    assert (variables["MACHINE"], variables["FLAVOUR"]) == (machine, flavour)
    assert variables["KEY_ARN"] == key


def test_codebuild_takes_the_project(owner: MotoAccount, stacks: dict[str, DeployedStack]) -> None:
    """The same values through CodeBuild's API, whose shape boto3 checks, to moto's CodeBuild."""
    codebuild = owner.client("codebuild")
    for stack in stacks.values():
        project = api_names(stack.resources["Project"])
        project["source"]["buildspec"] = project["source"].pop("buildSpec")
        made = codebuild.create_project(**project)["project"]
        assert made["serviceRole"] == stack.outputs["ImageBuilderRoleArn"]


def test_both_pipelines_ask_the_same_of_a_source() -> None:
    ours, other = (load_template(name) for name in ("image-pipeline", "encryptor-pipeline"))
    assert ours["Rules"] == other["Rules"]
    for name in ("SourceType", "SourceLocation", "ConnectionArn", "ToolsLocation"):
        for key in ("AllowedPattern", "AllowedValues", "Default"):
            assert ours["Parameters"][name].get(key) == other["Parameters"][name].get(key)


@pytest.mark.parametrize("name", ["Requirements", "DebianLock"])
def test_files_stay_in_the_source(name: str) -> None:
    pattern = load_template("image-pipeline")["Parameters"][name]["AllowedPattern"]
    for good in ("", "ours.lock", "image/ours.lock", "our image/x.lock"):
        assert re.search(pattern, good), good
    for bad in ("/etc/passwd", "-r", "..", "../x", "a/../../x", "a;b", "a$(b)", 'a"b', "a\nb"):
        assert not re.search(pattern, bad), bad


def test_the_container_is_named_by_its_digest() -> None:
    pattern = load_template("image-pipeline")["Parameters"]["BuildImage"]["AllowedPattern"]
    assert re.search(pattern, _CONTAINER)
    for bad in (
        *("debian", "debian:bookworm", "public.ecr.aws/docker/library/debian:bookworm"),
        *(_CONTAINER[:-1], _CONTAINER.partition("/")[2] + "x", _CONTAINER.replace("1c", "1C")),
    ):
        assert not re.search(pattern, bad), bad
