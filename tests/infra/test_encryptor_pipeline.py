"""infra/cloudformation/encryptor-pipeline.yaml, deployed against moto."""

import re
from collections.abc import Iterator

import pytest

from tests.support.deployed_pipeline import CONNECTION, KEY, OWNER, Pipeline, deployed_pipeline
from tests.support.deployed_stack import load_template

_SOURCES = {
    "CODECOMMIT": {
        "SourceLocation": "https://git-codecommit.eu-central-1.amazonaws.com/v1/repos/scorer"
    },
    "S3": {"SourceLocation": "owner-source/scorer.zip", "PipelineRoleName": "enclave-from-s3"},
    "GITHUB": {
        "SourceLocation": "https://github.com/acme/scorer",
        "ConnectionArn": CONNECTION,
        "PipelineRoleName": "enclave-from-github",
        "Architecture": "x86_64",
        "SourceVersion": "main",
        "Strict": "no",
    },
}


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with deployed_pipeline("encryptor", "PipelineRoleArn", _SOURCES, KeyArn=KEY) as pipeline:
        yield pipeline


@pytest.mark.parametrize(
    ("source", "resource", "actions"),
    [
        (
            "CODECOMMIT",
            f"arn:aws:codecommit:eu-central-1:{OWNER}:scorer",
            {"codecommit:GitPull"},
        ),
        (
            "S3",
            "arn:aws:s3:::owner-source/scorer.zip",
            {"s3:GetObject", "s3:GetObjectVersion"},
        ),
        (
            "GITHUB",
            CONNECTION,
            {"codeconnections:GetConnection", "codeconnections:GetConnectionToken"},
        ),
    ],
)
def test_the_role_may_do_this_and_nothing_else(
    pipeline: Pipeline,
    source: str,
    resource: str,
    actions: set[str],
) -> None:
    expected = {
        KEY: {"kms:Encrypt"},
        "arn:aws:s3:::sharing/packages/*": {"s3:PutObject"},
        "arn:aws:s3:::owner-tools/tools.zip": {"s3:GetObject", "s3:GetObjectVersion"},
        resource: actions,
    }
    pipeline.check_granted(source, expected)


def test_only_this_project_assumes_the_role(pipeline: Pipeline) -> None:
    pipeline.check_trust("S3", "enclave-from-s3")


def test_log_group(pipeline: Pipeline) -> None:
    pipeline.check_log_group()


def test_project(pipeline: Pipeline) -> None:
    pipeline.check_projects()
    github, s3 = (pipeline.stacks[name].resources["Project"] for name in ("GITHUB", "S3"))
    assert (github["Environment"]["Type"], s3["Environment"]["Type"]) == (
        "LINUX_CONTAINER",
        "ARM_CONTAINER",
    )
    assert "x86_64" in github["Environment"]["Image"]
    assert "aarch64" in s3["Environment"]["Image"]


def test_codebuild_takes_the_project(pipeline: Pipeline) -> None:
    pipeline.check_codebuild_takes_them()


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
