"""The image pipeline's buildspec, run step by step against the local cloud.

Key policy, environment and buildspec are those of the templates, as moto resolves them; wheels and
`enclave-image build` are the real ones, KMS and S3 the local cloud's. nitro-cli's blobs are not
here: files of random bytes under their names stand for kernel and driver, which are measured and
not run.
"""

import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_infra.image.image_view import view_image
from enclave_infra.local_cloud.identities import REGION
from enclave_protocol.eif import read_eif
from enclave_protocol.kms_cms import decrypt_cms
from enclave_protocol.messages import Credentials
from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents
from tests.support.buildspec_run import BuildspecRun, run_phase
from tests.support.built_image import IMAGES, LOCKS, built_image, debian_lock
from tests.support.codebuild_container import codebuild_environment, unpacked_tools
from tests.support.deployed_stack import DeployedStack, moto_account
from tests.support.kms_keys import error_code, root_file, spki
from tests.support.local_services import (
    HOST_CREDENTIALS,
    HOST_ROLE_ARN,
    OWNER_CREDENTIALS,
    OWNER_ROLE_ARN,
    LocalCloudProcess,
    local_cloud,
)

pytestmark = pytest.mark.timeout(900)

_TIMEOUT_S = 600.0
_OWNER, _HOST = (arn.split(":")[4] for arn in (OWNER_ROLE_ARN, HOST_ROLE_ARN))
_ROLE_NAME = OWNER_ROLE_ARN.rpartition("/")[2]
_MACHINE = platform.machine()
_KERNEL = {"x86_64": "bzImage", "aarch64": "Image"}[_MACHINE]
_NAME = f"enclave-base-{_MACHINE}.eif"
_CMDLINE = "reboot=k panic=30 pci=off nomodules console=ttyS0 root=/dev/ram0"
_BUCKET, _TOOLS_BUCKET, _BLOBS = "sharing", "owner-tools", "blobs.tar.gz"


@dataclass(frozen=True)
class Pipeline:
    """What CodeBuild would have: buildspec, environment, source and unpacked tools."""

    buildspec: str
    environment: dict[str, str]
    source: Path
    cloud: LocalCloudProcess

    def run(self, phase: str, first: str = "", count: int = 99, **changed: str) -> BuildspecRun:
        """Run `count` commands of a phase, from the one that has `first` in it."""
        document = yaml.safe_load(self.buildspec)
        commands = document["phases"][phase]["commands"]
        begin = next(number for number, command in enumerate(commands) if first in command)
        document["phases"][phase]["commands"] = commands[begin : begin + count]
        environment = {**self.environment, **changed}
        return run_phase(yaml.safe_dump(document), phase, environment, self.source, _TIMEOUT_S)


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
def base() -> Path:
    """The base image for a virtual machine, which other tests build, too."""
    return built_image()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    directory = tmp_path_factory.mktemp("source")
    shutil.copy(debian_lock(), directory / "debian.lock")
    return directory


@pytest.fixture(scope="module")
def kernel() -> bytes:
    return os.urandom(100_000)


@pytest.fixture(scope="module")
def blobs(kernel: bytes) -> bytes:
    """The tar file that the runbook makes of nitro-cli's folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in (
            (_KERNEL, kernel),
            ("cmdline", f"{_CMDLINE}\n".encode()),
            ("nsm.ko", os.urandom(10_000)),
        ):
            entry = tarfile.TarInfo(f"./{name}")
            entry.size, entry.uid = len(content), 1000
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _s3(cloud: LocalCloudProcess, credentials: Credentials) -> Any:
    return boto3.session.Session(
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        region_name=REGION,
    ).client("s3", endpoint_url=cloud.endpoint_url, config=Config(proxies={}))


def _deploy(template: str, **parameters: str) -> DeployedStack:
    with moto_account(_OWNER, REGION) as owner:
        return owner.deploy(template, **parameters)


@pytest.fixture(scope="module")
def key_arn(cloud: LocalCloudProcess) -> str:
    """A key released to an older image already; the pipeline's role may approve others."""
    stack = _deploy(
        "owner-key",
        AdminRoleArn=f"arn:aws:iam::{_OWNER}:role/key-admin",
        PipelineRoleName=_ROLE_NAME,
        ImageBuilderRoleName=_ROLE_NAME,
        ParentRoleArn=HOST_ROLE_ARN,
        ApprovedPcr0=PCR0.hex(),
    )
    policy = json.dumps(stack.resources["Key"]["KeyPolicy"])
    return cloud.owner.create_key(Policy=policy)["KeyMetadata"]["Arn"]


@pytest.fixture(scope="module")
def pipeline(
    tmp_path_factory: pytest.TempPathFactory,
    cloud: LocalCloudProcess,
    key_arn: str,
    blobs: bytes,
    source: Path,
) -> Iterator[Pipeline]:
    """The container before its build; the builder's cache is that of other tests."""
    tools = tmp_path_factory.mktemp("tools")
    unpacked, digest = unpacked_tools(tools)
    _s3(cloud, HOST_CREDENTIALS).create_bucket(Bucket=_BUCKET)
    owner = _s3(cloud, OWNER_CREDENTIALS)
    owner.create_bucket(Bucket=_TOOLS_BUCKET)
    owner.put_object(Bucket=_TOOLS_BUCKET, Key=_BLOBS, Body=blobs)
    stack = _deploy(
        "image-pipeline",
        SharingBucket=_BUCKET,
        SharingBucketAccount=_HOST,
        KeyArn=key_arn,
        SourceType="S3",
        SourceLocation="owner-source/image.zip",
        DebianLock="debian.lock",
        BlobsLocation=f"{_TOOLS_BUCKET}/{_BLOBS}",
        BlobsSha256=sha256(blobs).hexdigest(),
        ToolsLocation=f"{_TOOLS_BUCKET}/tools.zip",
        ToolsSha256=digest,
        BuildImage=f"public.ecr.aws/docker/library/debian@sha256:{'1c' * 32}",
        Architecture="x86_64" if _MACHINE == "x86_64" else "arm64",
    )
    project = stack.resources["Project"]
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o711)  # apt's own user passes through
    (IMAGES / "packages").mkdir(mode=0o700, exist_ok=True)
    (home / ".cache").mkdir()
    (home / ".cache" / "enclave-image").symlink_to(IMAGES / "packages")
    environment = codebuild_environment(project, home, source, unpacked, cloud)
    yield Pipeline(project["Source"]["BuildSpec"], environment, source, cloud)
    for directory in (home, tools):
        shutil.rmtree(directory)  # too large to be kept as pytest keeps the rest


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


@pytest.fixture(scope="module")
def pcr0(built: BuildspecRun) -> str:
    return built.environment["PCR0"]


def _listed(cloud: LocalCloudProcess) -> set[str]:
    answer = _s3(cloud, HOST_CREDENTIALS).list_objects_v2(Bucket=_BUCKET)
    return {found["Key"] for found in answer.get("Contents", ())}


def _fetched(cloud: LocalCloudProcess, name: str) -> bytes:
    answer = _s3(cloud, HOST_CREDENTIALS).get_object(Bucket=_BUCKET, Key=name)
    data: bytes = answer["Body"].read()
    return data


def test_image_contents_list_and_pcrs_are_in_the_bucket(
    built: BuildspecRun, pcr0: str, cloud: LocalCloudProcess
) -> None:
    folder = f"images/{pcr0}"
    assert _listed(cloud) == {
        f"{folder}/{name}" for name in (_NAME, f"{_NAME}.spdx.json", f"{_NAME}.pcrs.json")
    }
    image = _fetched(cloud, f"{folder}/{_NAME}")
    assert sha256(image).hexdigest() in built.output
    pcrs = read_eif(io.BytesIO(image)).pcrs
    assert pcrs[0].hex() == pcr0
    told = json.loads(_fetched(cloud, f"{folder}/{_NAME}.pcrs.json"))
    measured = told["Measurements"]
    assert {i: measured[f"PCR{i}"] for i in range(3)} == {i: pcrs[i].hex() for i in range(3)}
    assert (told["ImageName"], told["EifVersion"]) == ("enclave-base", 4)
    packages = json.loads(_fetched(cloud, f"{folder}/{_NAME}.spdx.json"))["packages"]
    assert {"libc6", "numpy"} <= {package["name"] for package in packages}


def test_the_image_is_the_owners_own(
    pcr0: str, cloud: LocalCloudProcess, base: Path, kernel: bytes, tmp_path: Path
) -> None:
    """From wheels in a container comes what a checkout builds: the same root file system."""
    path = tmp_path / "image.eif"
    path.write_bytes(_fetched(cloud, f"images/{pcr0}/{_NAME}"))
    view = view_image(path)
    ours = view_image(base)
    assert view.eif.pcrs[2] == ours.eif.pcrs[2]
    assert view.eif.pcrs[0] != ours.eif.pcrs[0]
    assert view.cmdline.split() == [*_CMDLINE.split()[:-1], "rdinit=/init"]
    (offset,) = (begin for kind, begin, _ in view.sections() if kind == 1)
    assert path.read_bytes()[offset : offset + len(kernel)] == kernel
    path.unlink()


def test_the_source_stays_as_it_was(built: BuildspecRun, source: Path) -> None:
    assert [path.name for path in source.iterdir()] == ["debian.lock"]


def test_old_and_new_image_get_data_keys_and_nobody_else(
    built: BuildspecRun, pcr0: str, key_arn: str, cloud: LocalCloudProcess, maker: DocumentMaker
) -> None:
    wrapped = cloud.owner.encrypt(KeyId=key_arn, Plaintext=b"k" * 32)["CiphertextBlob"]
    key = rsa.generate_private_key(65537, 2048)
    maker.now = datetime.now(UTC)

    def request(measured: bytes) -> dict[str, Any]:
        changed = {"pcrs": {0: measured}, "public_key": spki(key)}
        return {
            "CiphertextBlob": wrapped,
            "KeyId": key_arn,
            "Recipient": {
                "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                "AttestationDocument": maker.altered(lambda payload: payload | changed),
            },
        }

    for measured in (PCR0, bytes.fromhex(pcr0)):
        answer = cloud.host.decrypt(**request(measured))
        assert decrypt_cms(key, answer["CiphertextForRecipient"]) == b"k" * 32
        assert error_code(cloud.owner.decrypt, **request(measured)) == "AccessDeniedException"
    for other in (b"\2" * 48, bytes(48)):
        assert error_code(cloud.host.decrypt, **request(other)) == "AccessDeniedException"
    assert "without attestation  denied" in built.output


def _images(cloud: LocalCloudProcess, key_arn: str) -> list[str]:
    policy = cloud.owner.get_key_policy(KeyId=key_arn, PolicyName="default")["Policy"]
    (release,) = (s for s in json.loads(policy)["Statement"] if s["Sid"] == "EnclaveRelease")
    found: list[str] = release["Condition"]["StringEqualsIgnoreCase"][
        "kms:RecipientAttestation:ImageSha384"
    ]
    return found


def test_the_same_image_again_changes_nothing(
    installed: Pipeline, built: BuildspecRun, pcr0: str, key_arn: str, cloud: LocalCloudProcess
) -> None:
    again = replace(installed, environment=built.environment).run("build", "key-policy")
    assert again.complete, again.output
    assert _images(cloud, key_arn) == [PCR0.hex(), pcr0]


def test_without_a_key_it_approves_nothing(
    installed: Pipeline, built: BuildspecRun, key_arn: str, cloud: LocalCloudProcess
) -> None:
    other = "3e" * 48
    after = replace(installed, environment=built.environment)
    run = after.run("build", "key-policy", KEY_ARN="", PCR0=other)
    assert run.complete
    assert f"Not approved: enclave-owner key-policy -k KEY --add-pcr0 {other}" in run.output
    assert other not in _images(cloud, key_arn)


def test_a_key_whose_policy_does_not_name_the_role(
    installed: Pipeline, built: BuildspecRun, cloud: LocalCloudProcess
) -> None:
    hosts = cloud.host.create_key()["KeyMetadata"]["Arn"]
    after = replace(installed, environment=built.environment)
    run = after.run("build", "key-policy", KEY_ARN=hosts)
    assert not run.complete
    assert "kms:PutKeyPolicy" in run.output


def test_what_cannot_be_put_is_not_approved(
    installed: Pipeline, built: BuildspecRun, key_arn: str, cloud: LocalCloudProcess
) -> None:
    other = "4f" * 48
    after = replace(installed, environment=built.environment)
    work = f"{built.environment['WORK']}/out"
    small = Path(work, "small.eif")
    for name in (small.name, f"{small.name}.spdx.json", f"{small.name}.pcrs.json"):
        Path(work, name).write_bytes(b"x")
    after = replace(after, source=Path(work))
    run = after.run("build", "upload_file", NAME=small.name, PCR0=other, SHARING_BUCKET="gone")
    assert not run.complete
    assert len(run.steps) == 1
    assert "NoSuchBucket" in run.output
    assert other not in _images(cloud, key_arn)


def test_other_blobs_than_announced_are_not_used(installed: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "tools").symlink_to(Path(installed.environment["WORK"]) / "tools")
    run = installed.run("install", 'cd "$WORK"', WORK=str(tmp_path), BLOBS_SHA256="0" * 64)
    assert not run.complete
    assert run.steps[-1].command.endswith('blobs.tar.gz" | sha256sum --check --strict')
    assert not (tmp_path / "blobs").exists()


def test_other_tools_than_announced_are_not_installed(pipeline: Pipeline) -> None:
    run = pipeline.run("install", TOOLS_SHA256="0" * 64)
    assert not run.complete
    assert run.steps[-1].command.endswith('requirements.txt" | sha256sum --check --strict')


_HASH = "--hash=sha256:" + "5a" * 32


@pytest.mark.parametrize(
    "text",
    [
        f"--no-binary :all:\nsix==1.17.0 \\\n    {_HASH}\n",
        f"six==1.17.0 --no-binary six \\\n    {_HASH}\n",
        f"--extra-index-url https://example.org\nsix==1.17.0 \\\n    {_HASH}\n",
        "-r /etc/other.txt\n",
        f"six @ https://example.org/six.tar.gz \\\n    {_HASH}\n",
        f"./six.tar.gz \\\n    {_HASH}\n",
        f"six>=1 \\\n    {_HASH}\n",
        "# a comment\x0b--no-binary :all:\n",  # a line's end to pip
        "# a comment\r--no-binary :all:\n",
        "# a comment\u2028--no-binary :all:\n",
        "\0",
    ],
)
def test_a_source_cannot_give_orders_to_pip(pipeline: Pipeline, tmp_path: Path, text: str) -> None:
    (tmp_path / "ours.lock").write_text(text, newline="")
    source = str(tmp_path)
    run = pipeline.run("build", count=1, CODEBUILD_SRC_DIR=source, REQUIREMENTS="ours.lock")
    assert not run.complete
    assert "ours.lock: no lock file" in run.output


@pytest.mark.parametrize("name", ["requirements-base.lock", "requirements-datascience.lock"])
def test_what_our_own_command_writes_is_a_lock_file(pipeline: Pipeline, name: str) -> None:
    run = pipeline.run("build", count=1, CODEBUILD_SRC_DIR=str(LOCKS), REQUIREMENTS=name)
    assert run.complete, run.output


def test_files_of_the_source_are_used(installed: Pipeline, tmp_path: Path) -> None:
    """Each stops the build if it is not there or not what it should be; nothing is put."""
    work = tmp_path / "work"
    (work / "out").mkdir(parents=True)
    for name in ("tools", "blobs"):
        (work / name).symlink_to(Path(installed.environment["WORK"]) / name)
    (tmp_path / "wrong.lock").write_text("amd64 root\n")
    changed = {"WORK": str(work), "CODEBUILD_SRC_DIR": str(tmp_path)}
    other = replace(installed, environment={**installed.environment, **changed})
    missing = other.run("build", REQUIREMENTS="gone.lock")
    assert not missing.complete
    assert f"'{tmp_path}/gone.lock' does not exist" in missing.output
    wrong = other.run("build", DEBIAN_LOCK="wrong.lock")
    assert not wrong.complete
    assert f"{tmp_path}/wrong.lock:1 is not" in wrong.output
    assert "Put s3://" not in missing.output + wrong.output


def test_what_a_bare_container_lacks_comes_from_debian(
    pipeline: Pipeline, base: Path, tmp_path: Path
) -> None:
    """apt-get is a stand-in here, which notes how it was called; the packages are Debian's."""
    calls = tmp_path / "calls"
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n')
    apt.chmod(0o755)
    (tmp_path / "bash").symlink_to("/bin/bash")
    run = pipeline.run("install", count=1, PATH=str(tmp_path))
    assert run.steps[0].exit_code == 0, run.output
    update, install = calls.read_text().splitlines()
    assert update == "--quiet update"
    *options, names = install.partition(" install ")
    assert options[0] == "--quiet --yes --no-install-recommends"
    known = subprocess.run(
        ["apt-cache", "madison", *names.split()], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split("|")[0].strip() for line in known.splitlines()} == set(names.split())
