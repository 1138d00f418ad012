"""infra/cloudformation/image-pipeline.yaml, deployed against moto."""

import re
from collections.abc import Iterator

import pytest

from tests.support.deployed_pipeline import CONNECTION, KEY, OWNER, Pipeline, deployed_pipeline
from tests.support.deployed_stack import load_template

_CONTAINER = "public.ecr.aws/docker/library/debian@sha256:" + "1c" * 32
_COMMON = {
    "BlobsLocation": "owner-tools/blobs.tar.gz",
    "BlobsSha256": "2d" * 32,
    "BuildImage": _CONTAINER,
}
_SOURCES = {
    "CODECOMMIT": {
        "SourceLocation": "https://git-codecommit.eu-central-1.amazonaws.com/v1/repos/image",
        "KeyArn": KEY,
        "Requirements": "ours.lock",
    },
    "S3": {"SourceLocation": "owner-tools/tools.zip", "BuilderRoleName": "builder-from-s3"},
    "GITHUB": {
        "SourceLocation": "https://github.com/acme/image",
        "ConnectionArn": CONNECTION,
        "BuilderRoleName": "builder-from-github",
        "Architecture": "x86_64",
        "SourceVersion": "main",
        "Flavour": "datascience",
    },
}


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with deployed_pipeline("image", "ImageBuilderRoleArn", _SOURCES, **_COMMON) as pipeline:
        yield pipeline


@pytest.mark.parametrize(
    ("source", "more"),
    [
        (
            "CODECOMMIT",
            {
                f"arn:aws:codecommit:eu-central-1:{OWNER}:image": {"codecommit:GitPull"},
                KEY: {"kms:GetKeyPolicy", "kms:PutKeyPolicy"},
            },
        ),
        ("S3", {}),  # the source is the bundle of tools, which it reads anyway
        (
            "GITHUB",
            {CONNECTION: {"codeconnections:GetConnection", "codeconnections:GetConnectionToken"}},
        ),
    ],
)
def test_the_role_may_do_this_and_nothing_else(
    pipeline: Pipeline, source: str, more: dict[str, set[str]]
) -> None:
    """Above all: without KeyArn it has nothing to do with any key."""
    expected = {
        "arn:aws:s3:::sharing/images/*": {"s3:PutObject"},
        "arn:aws:s3:::owner-tools/blobs.tar.gz": {"s3:GetObject"},
        "arn:aws:s3:::owner-tools/tools.zip": {"s3:GetObject", "s3:GetObjectVersion"},
        **more,
    }
    pipeline.check_granted(source, expected)


def test_only_this_project_assumes_the_role(pipeline: Pipeline) -> None:
    pipeline.check_trust("S3", "builder-from-s3")


def test_log_group(pipeline: Pipeline) -> None:
    pipeline.check_log_group()


def test_project(pipeline: Pipeline) -> None:
    pipeline.check_projects()
    for stack in pipeline.stacks.values():
        assert stack.resources["Project"]["Environment"]["Image"] == _CONTAINER


@pytest.mark.parametrize(
    ("source", "container", "machine", "flavour", "key"),
    [
        ("CODECOMMIT", "ARM_CONTAINER", "aarch64", "base", KEY),
        ("S3", "ARM_CONTAINER", "aarch64", "base", ""),
        ("GITHUB", "LINUX_CONTAINER", "x86_64", "datascience", ""),
    ],
)
def test_the_machine_is_the_images(
    pipeline: Pipeline,
    source: str,
    container: str,
    machine: str,
    flavour: str,
    key: str,
) -> None:
    environment = pipeline.stacks[source].resources["Project"]["Environment"]
    variables = {found["Name"]: found["Value"] for found in environment["EnvironmentVariables"]}
    assert environment["Type"] == container
    assert (variables["MACHINE"], variables["FLAVOUR"]) == (machine, flavour)
    assert variables["KEY_ARN"] == key


def test_codebuild_takes_the_project(pipeline: Pipeline) -> None:
    pipeline.check_codebuild_takes_them()


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
