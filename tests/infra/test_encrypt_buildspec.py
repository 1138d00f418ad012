"""The encryptor pipeline's buildspec, run step by step against the local cloud.

Key policy, environment and buildspec are those of the templates, as moto resolves them; wheels
are the real ones, KMS and S3 the local cloud's. In the end the parent fetches the package, and
KMS releases its data key to an approved enclave and to nobody else.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_infra.local_cloud.identities import REGION
from enclave_protocol.kms_cms import decrypt_cms
from enclave_protocol.messages import Credentials
from enclave_protocol.package_reader import read_header
from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents
from tests.support.buildspec_run import BuildspecRun, run_phase
from tests.support.codebuild_container import codebuild_environment, unpacked_tools
from tests.support.deployed_stack import moto_account
from tests.support.kms_keys import error_code, root_file, spki
from tests.support.local_services import (
    HOST_CREDENTIALS,
    HOST_ROLE_ARN,
    OWNER_ROLE_ARN,
    LocalCloudProcess,
    local_cloud,
)

_OWNER, _HOST = (arn.split(":")[4] for arn in (OWNER_ROLE_ARN, HOST_ROLE_ARN))
_BUCKET = "sharing"
_SECRET = "b'canary-of-the-scorer'"
_MANIFEST = """
[package]
name = "scorer"
version = "1.0.0"
module = "scorer"
[exports]
functions = { score = "score(x)" }
"""


@dataclass(frozen=True)
class Pipeline:
    """What CodeBuild would have: buildspec, environment, source and unpacked tools."""

    buildspec: str
    environment: dict[str, str]
    source: Path
    cloud: LocalCloudProcess

    def run(self, phase: str, **changed: str) -> BuildspecRun:
        return run_phase(self.buildspec, phase, {**self.environment, **changed}, self.source)


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


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    directory = tmp_path_factory.mktemp("tools")
    yield unpacked_tools(directory)
    shutil.rmtree(directory)  # too large to be kept as pytest keeps the rest


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("source") / "packages" / "scorer"
    package.mkdir(parents=True)
    (package / "enclave.toml").write_text(_MANIFEST)
    (package / "scorer.py").write_text(f"_KEY = {_SECRET}\n\ndef score(x):\n    return len(_KEY)\n")
    return package.parents[1]


def _key_policy() -> dict[str, Any]:
    with moto_account(_OWNER, REGION) as owner:
        stack = owner.deploy(
            "owner-key",
            AdminRoleArn=OWNER_ROLE_ARN,
            PipelineRoleName=OWNER_ROLE_ARN.rpartition("/")[2],
            ParentRoleArn=HOST_ROLE_ARN,
            ApprovedPcr0=PCR0.hex(),
        )
    policy: dict[str, Any] = stack.resources["Key"]["KeyPolicy"]
    return policy


def _project(key_arn: str, tools_sha256: str) -> dict[str, Any]:
    with moto_account(_OWNER, REGION) as owner:
        stack = owner.deploy(
            "encryptor-pipeline",
            KeyArn=key_arn,
            SharingBucket=_BUCKET,
            SharingBucketAccount=_HOST,
            SourceType="S3",
            SourceLocation="owner-source/source.zip",
            PackageDirectory="packages/scorer",
            ToolsLocation="owner-tools/tools.zip",
            ToolsSha256=tools_sha256,
        )
    return stack.resources["Project"]


@pytest.fixture(scope="module")
def pipeline(
    tmp_path_factory: pytest.TempPathFactory,
    cloud: LocalCloudProcess,
    tools: tuple[Path, str],
    source: Path,
) -> Iterator[Pipeline]:
    directory, digest = tools
    key = cloud.owner.create_key(Policy=json.dumps(_key_policy()))["KeyMetadata"]
    project = _project(key["Arn"], digest)
    _s3(cloud, HOST_CREDENTIALS).create_bucket(Bucket=_BUCKET)
    home = tmp_path_factory.mktemp("home")
    environment = codebuild_environment(project, home, source, directory, cloud)
    yield Pipeline(project["Source"]["BuildSpec"], environment, source, cloud)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def installed(pipeline: Pipeline) -> Pipeline:
    """The pipeline after its install phase."""
    run = pipeline.run("install")
    assert run.complete, run.output
    return replace(pipeline, environment=run.environment)


@pytest.fixture(scope="module")
def built(installed: Pipeline) -> BuildspecRun:
    run = installed.run("build")
    assert run.complete, run.output
    return run


def _s3(cloud: LocalCloudProcess, credentials: Credentials) -> Any:
    return boto3.session.Session(
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        region_name=REGION,
    ).client("s3", endpoint_url=cloud.endpoint_url, config=Config(proxies={}))


def _fetched(cloud: LocalCloudProcess) -> bytes:
    s3 = _s3(cloud, HOST_CREDENTIALS)
    data: bytes = s3.get_object(Bucket=_BUCKET, Key="packages/scorer-1.0.0.encrypted")[
        "Body"
    ].read()
    return data


def test_tools_come_from_the_bundle_only(installed: Pipeline, tools: tuple[Path, str]) -> None:
    work = Path(installed.environment["WORK"])
    (package,) = work.glob("tools/lib/python3*/site-packages/enclave_encryption")
    assert not package.is_symlink()
    assert (work / "tools/bin/enclave-owner").is_file()
    assert "include-system-site-packages = false" in (work / "tools/pyvenv.cfg").read_text()


def test_the_package_is_in_the_bucket(
    built: BuildspecRun, cloud: LocalCloudProcess, source: Path
) -> None:
    data = _fetched(cloud)
    assert hashlib.sha256(data).hexdigest() in built.output
    label = read_header(io.BytesIO(data)).label
    assert (label.package.name, label.package.version) == ("scorer", "1.0.0")
    assert f"Put s3://{_BUCKET}/packages/scorer-1.0.0.encrypted" in built.output


def test_the_build_says_nothing_of_the_source(built: BuildspecRun, source: Path) -> None:
    assert _SECRET not in built.output
    assert sorted(path.name for path in source.rglob("*") if path.is_file()) == [
        *("enclave.toml", "scorer.py"),
    ]


def test_only_the_approved_enclave_gets_the_data_key(
    built: BuildspecRun, cloud: LocalCloudProcess, maker: DocumentMaker
) -> None:
    header = read_header(io.BytesIO(_fetched(cloud)))
    key = rsa.generate_private_key(65537, 2048)

    def recipient(document: bytes) -> dict[str, Any]:
        return {
            "Recipient": {
                "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                "AttestationDocument": document,
            }
        }

    request: Mapping[str, Any] = {
        "CiphertextBlob": header.wrapped_key,
        "KeyId": header.slot.kms_key_arn,
        "EncryptionContext": header.encryption_context,
    }
    maker.now = datetime.now(UTC)
    good = recipient(maker.document(public_key=spki(key)))
    changed = {"pcrs": {0: b"\2" * 48}, "public_key": spki(key)}
    other = recipient(maker.altered(lambda payload: payload | changed))
    assert error_code(cloud.host.decrypt, **request) == "AccessDeniedException"
    assert error_code(cloud.host.decrypt, **request, **other) == "AccessDeniedException"
    assert error_code(cloud.owner.decrypt, **request) == "AccessDeniedException"
    assert error_code(cloud.owner.decrypt, **request, **good) == "AccessDeniedException"
    answer = cloud.host.decrypt(**request, **good)
    assert len(decrypt_cms(key, answer["CiphertextForRecipient"])) == 32


def test_other_tools_than_announced_are_not_installed(pipeline: Pipeline) -> None:
    run = pipeline.run("install", TOOLS_SHA256="0" * 64)
    assert not run.complete
    assert run.steps[-1].command.endswith("sha256sum --check --strict")
    assert "FAILED" in run.output


def test_an_altered_wheel_is_not_installed(
    pipeline: Pipeline, tools: tuple[Path, str], tmp_path: Path
) -> None:
    altered = tmp_path / "tools"
    altered.mkdir()
    for path in tools[0].iterdir():
        (altered / path.name).symlink_to(path)
    wheel = next(altered.glob("six-*.whl"))
    data = bytearray(wheel.read_bytes())
    data[100] ^= 1
    wheel.unlink()
    wheel.write_bytes(data)
    run = pipeline.run("install", CODEBUILD_SRC_DIR_tools=str(altered))
    assert not run.complete
    assert "DO NOT MATCH THE HASHES" in run.output


def test_a_warning_fails_the_build_if_strict(installed: Pipeline, tmp_path: Path) -> None:
    package = tmp_path / "packages" / "scorer"
    package.mkdir(parents=True)
    (package / "enclave.toml").write_text(_MANIFEST.replace("1.0.0", "1.0.1"))
    (package / "scorer.py").write_text("def score(x):\n    return eval(x)\n")
    strict = installed.run("build", CODEBUILD_SRC_DIR=str(tmp_path), WORK=_again(installed, "1"))
    assert not strict.complete
    assert "encrypt $STRICT_OPTION" in strict.steps[-1].command
    loose = installed.run(
        "build", CODEBUILD_SRC_DIR=str(tmp_path), WORK=_again(installed, "2"), STRICT="no"
    )
    assert loose.complete, loose.output


def test_a_key_that_the_role_may_not_use(installed: Pipeline) -> None:
    other = installed.cloud.host.create_key()["KeyMetadata"]["Arn"]
    run = installed.run("build", KEY_ARN=other, WORK=_again(installed, "3"))
    assert not run.complete
    assert "may not use key" in run.output


def _again(installed: Pipeline, name: str) -> str:
    """Return another working directory with the same tools."""
    work = Path(installed.environment["HOME"]) / name
    work.mkdir()
    (work / "tools").symlink_to(Path(installed.environment["WORK"]) / "tools")
    return str(work)
