"""The local cloud as boto3 sees it: signatures, persistence, process, S3."""

import base64
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from enclave_infra.local_cloud.identities import IDENTITIES, OWNER_ACCESS_KEY_ID
from enclave_infra.local_cloud.request_signature import SignedRequest, verify_signature
from enclave_protocol.messages import Credentials
from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents
from tests.support.kms_keys import error_code, new_key, root_file
from tests.support.local_services import (
    HOST_CREDENTIALS,
    OWNER_CREDENTIALS,
    LocalCloudProcess,
    kms_client,
    local_cloud,
    release_policy,
    service_process,
)

if TYPE_CHECKING:
    pass


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


# Signatures


def test_credentials(cloud: LocalCloudProcess) -> None:
    owner = IDENTITIES[OWNER_ACCESS_KEY_ID]
    wrong: list[tuple[Credentials, str]] = [
        (Credentials("AKIANOBODY0000000000", "x"), "UnrecognizedClientException"),
        (Credentials(owner.access_key_id, "x"), "InvalidSignatureException"),
        (
            Credentials(owner.access_key_id, owner.secret_access_key, "token"),
            "UnrecognizedClientException",
        ),
    ]
    for credentials, code in wrong:
        client = kms_client(cloud.endpoint_url, credentials)
        assert error_code(client.list_keys) == code


def test_unsigned_requests_are_refused(cloud: LocalCloudProcess) -> None:
    for path in ("/", "/moto-api/data.json", "/bucket/key", "/latest/meta-data/"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(cloud.endpoint_url + path)  # noqa: S310  # our own server
        assert caught.value.code == 403
        caught.value.close()


def _signed(body: bytes = b"{}") -> SignedRequest:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as BotoCredentials

    request = AWSRequest("POST", "http://localhost:1/", {"X-Amz-Target": "T.O"}, body)
    owner = IDENTITIES[OWNER_ACCESS_KEY_ID]
    keys = BotoCredentials(owner.access_key_id, owner.secret_access_key)
    SigV4Auth(keys, "kms", "us-east-1").add_auth(request)
    headers = {name.lower(): value for name, value in request.headers.items()}
    return SignedRequest("POST", "/", {**headers, "host": "localhost:1"}, body)


def test_what_a_signature_covers() -> None:
    from dataclasses import replace

    from enclave_infra.local_cloud.aws_errors import AwsError

    now, good = datetime.now(UTC), _signed()
    assert verify_signature(good, now=now).caller.role == "application-owner"
    altered = [
        replace(good, body=b"{ }"),
        replace(good, method="PUT"),
        replace(good, target="/other"),
        replace(good, headers={**good.headers, "x-amz-target": "T.P"}),
        replace(good, headers={**good.headers, "host": "localhost:2"}),
        replace(good, headers={**good.headers, "x-amz-content-sha256": "0" * 64}),
        replace(good, headers={**good.headers, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}),
    ]
    for request in altered:
        with pytest.raises(AwsError):
            verify_signature(request, now=now)
    for minutes in (-6, 6):
        with pytest.raises(AwsError, match="within 5 minutes"):
            verify_signature(good, now=now + timedelta(minutes=minutes))


# Persistence and process


def test_keys_survive_a_restart(tmp_path: Path, maker: DocumentMaker) -> None:
    root = root_file(tmp_path, maker)
    policy = release_policy(PCR0.hex())
    with local_cloud(tmp_path, root_cert=root) as first:
        arn = new_key(first)
        blob = first.owner.encrypt(KeyId=arn, Plaintext=b"x", EncryptionContext={"a": "b"})
        first.owner.create_alias(AliasName="alias/kept", TargetKeyId=arn)
        first.owner.rotate_key_on_demand(KeyId=arn)
        other = first.owner.create_key(Policy=policy, Description="second")["KeyMetadata"]
        first.owner.schedule_key_deletion(KeyId=other["Arn"], PendingWindowInDays=7)
    with local_cloud(tmp_path, root_cert=root) as second:
        opened = second.owner.decrypt(
            CiphertextBlob=blob["CiphertextBlob"], EncryptionContext={"a": "b"}
        )
        assert (opened["Plaintext"], opened["KeyId"]) == (b"x", arn)
        assert second.owner.encrypt(KeyId="alias/kept", Plaintext=b"y")["KeyId"] == arn
        kept = second.owner.describe_key(KeyId=other["Arn"])["KeyMetadata"]
        assert (kept["KeyState"], kept["Description"]) == ("PendingDeletion", "second")
        assert kept["CreationDate"] == other["CreationDate"]
        found = second.owner.get_key_policy(KeyId=other["Arn"], PolicyName="default")
        assert found["Policy"] == policy
        assert len(second.owner.list_keys()["Keys"]) == 2
    state = tmp_path / "cloud"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in state.iterdir()}
    assert modes == {"cloudtrail.jsonl": 0o600, "kms.json": 0o600, "lock": 0o600}


@pytest.mark.parametrize(
    ("prepare", "needle"),
    [
        (lambda state: state.mkdir(mode=0o755), "chmod 700"),
        (lambda state: (state.mkdir(0o700), (state / "kms.json").write_text("{")), "damaged"),
        (lambda state: (state.mkdir(0o700), (state / "kms.json").write_text("{}")), "damaged"),
    ],
)
def test_unusable_state(
    tmp_path: Path, maker: DocumentMaker, prepare: Callable[[Path], object], needle: str
) -> None:
    prepare(tmp_path / "cloud")
    done = _start(tmp_path, root_file(tmp_path, maker))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert needle in done.stderr


def _start(directory: Path, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "enclave_infra.local_cloud", "--root-cert", str(root)]
    command += ["--state-dir", str(directory / "cloud")]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_one_process_per_state_directory(tmp_path: Path, maker: DocumentMaker) -> None:
    root = root_file(tmp_path, maker)
    with local_cloud(tmp_path, root_cert=root):
        done = _start(tmp_path, root)
    assert done.returncode == 1
    assert "another local cloud" in done.stderr


def test_missing_root_certificate(tmp_path: Path) -> None:
    done = _start(tmp_path, tmp_path / "none.pem")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_ready_line_and_environment(tmp_path: Path, maker: DocumentMaker) -> None:
    arguments = ["--root-cert", str(root_file(tmp_path, maker))]
    arguments += ["--state-dir", str(tmp_path / "cloud")]
    module = "enclave_infra.local_cloud"
    with service_process(module, arguments, environment={"MOTO_ACCOUNT_ID": "9" * 12}) as (
        process,
        ready,
    ):
        assert ready["region"] == "us-east-1"
        assert ready["endpoint_url"].startswith("http://127.0.0.1:")
        credentials = Credentials(**ready["owner"])
        arn = kms_client(ready["endpoint_url"], credentials).create_key()["KeyMetadata"]["Arn"]
        assert ":111111111111:" in arn
        started = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 0
        assert time.monotonic() - started < 2


# S3


def test_s3(cloud: LocalCloudProcess) -> None:
    def s3(credentials: Credentials) -> Any:
        return boto3.session.Session(
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            region_name="us-east-1",
        ).client("s3", endpoint_url=cloud.endpoint_url, config=Config(proxies={}))

    owner = s3(OWNER_CREDENTIALS)
    owner.create_bucket(Bucket="packages")
    content = os.urandom(300_000)
    owner.put_object(Bucket="packages", Key="a b/ü+%.encrypted", Body=content)
    assert owner.list_objects_v2(Bucket="packages")["Contents"][0]["Key"] == "a b/ü+%.encrypted"
    got = owner.get_object(Bucket="packages", Key="a b/ü+%.encrypted")["Body"].read()
    assert got == content
    assert [bucket["Name"] for bucket in owner.list_buckets()["Buckets"]] == ["packages"]
    assert s3(HOST_CREDENTIALS).list_buckets()["Buckets"] == []
    nobody = s3(Credentials(OWNER_CREDENTIALS.access_key_id, "wrong"))
    code = error_code(nobody.get_object, Bucket="packages", Key="x")
    assert code == "SignatureDoesNotMatch"


def test_parallel_requests(cloud: LocalCloudProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    arn = new_key(cloud)

    def round_trip(number: int) -> bool:
        text = base64.b64encode(str(number).encode())
        blob = cloud.owner.encrypt(KeyId=arn, Plaintext=text)["CiphertextBlob"]
        return cloud.owner.decrypt(CiphertextBlob=blob)["Plaintext"] == text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(64)))
