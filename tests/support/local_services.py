"""The software NSM and the local cloud as real processes, and clients for them.

    with software_nsm(tmp_path) as nsm, local_cloud(tmp_path, root_cert=nsm.root_cert) as cloud:
        cloud.owner.create_key(Policy=release_policy(nsm.pcr0))

Everything is stopped, and its sockets are gone, when the `with` block ends.
"""

import json
import os
import select
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from enclave_infra.local_cloud.identities import (
    HOST_ACCESS_KEY_ID,
    HOST_SECRET_ACCESS_KEY,
    IDENTITIES,
    OWNER_ACCESS_KEY_ID,
    OWNER_SECRET_ACCESS_KEY,
    REGION,
)
from enclave_protocol.messages import Credentials

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

__all__ = [
    "HOST_CREDENTIALS",
    "HOST_ROLE_ARN",
    "OWNER_CREDENTIALS",
    "OWNER_ROLE_ARN",
    "TEST_PCR0",
    "LocalCloudProcess",
    "SoftwareNsmProcess",
    "kms_client",
    "local_cloud",
    "release_policy",
    "service_process",
    "software_nsm",
]

TEST_PCR0 = "0a" * 48
OWNER_CREDENTIALS = Credentials(OWNER_ACCESS_KEY_ID, OWNER_SECRET_ACCESS_KEY)
HOST_CREDENTIALS = Credentials(HOST_ACCESS_KEY_ID, HOST_SECRET_ACCESS_KEY)
OWNER_ROLE_ARN = IDENTITIES[OWNER_ACCESS_KEY_ID].role_arn
HOST_ROLE_ARN = IDENTITIES[HOST_ACCESS_KEY_ID].role_arn
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class SoftwareNsmProcess:
    """A running software NSM; `endpoint` is what `NsmClient.open` takes."""

    pid: int
    socket: Path
    root_cert: Path
    pcr0: str

    @property
    def endpoint(self) -> str:
        return f"unix:{self.socket}"

    @property
    def root(self) -> bytes:
        """Its root certificate, DER."""
        return ssl.PEM_cert_to_DER_cert(self.root_cert.read_text())


@dataclass(frozen=True)
class LocalCloudProcess:
    """A running local cloud, with KMS clients of both identities."""

    pid: int
    endpoint_url: str
    owner: "KMSClient"
    host: "KMSClient"


def kms_client(endpoint_url: str, credentials: Credentials, region: str = REGION) -> "KMSClient":
    """Return a KMS client of one identity; nothing is retried."""
    return boto3.session.Session(
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token,
        region_name=region,
    ).client(
        "kms",
        endpoint_url=endpoint_url,
        config=Config(retries={"total_max_attempts": 1, "mode": "standard"}, proxies={}),
    )


@contextmanager
def service_process(
    module: str, arguments: Sequence[str], *, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Run `python -m module`, yield it with its ready line, and stop it with SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process, _ready_line(process, module)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()


def _ready_line(process: subprocess.Popen[bytes], module: str) -> dict[str, Any]:
    stream = process.stdout
    if stream is None:
        raise RuntimeError("stdout is a pipe")
    line = b""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(stream.fileno(), 4096) if ready else b""
        if not data:
            raise RuntimeError(f"{module} did not become ready: exit code {process.poll()}")
        line += data
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextmanager
def software_nsm(
    directory: Path,
    *,
    pcr0: str = TEST_PCR0,
    debug: bool = False,
    root_dir: Path | None = None,
    name: str = "nsm.sock",
) -> Iterator[SoftwareNsmProcess]:
    """Run a software NSM with this PCR0; its root is in `directory`/root unless given."""
    socket_path = directory / name
    arguments = ["--socket", str(socket_path), "--root-dir", str(root_dir or directory / "root")]
    arguments += ["--pcr0", pcr0, *(["--debug"] if debug else [])]
    with service_process("enclave_infra.software_nsm", arguments) as (process, ready):
        yield SoftwareNsmProcess(
            process.pid, socket_path, Path(ready["root_certificate"]), ready["pcr0"]
        )


@contextmanager
def local_cloud(
    directory: Path, *, root_cert: Path, cms_shape: str = "constructed", port: int = 0
) -> Iterator[LocalCloudProcess]:
    """Run a local cloud that trusts `root_cert`; its keys are kept in `directory`/cloud."""
    arguments = ["--root-cert", str(root_cert), "--state-dir", str(directory / "cloud")]
    arguments += ["--cms-shape", cms_shape, "--port", str(port)]
    with service_process("enclave_infra.local_cloud", arguments) as (process, ready):
        url = ready["endpoint_url"]
        owner = kms_client(url, OWNER_CREDENTIALS)
        host = kms_client(url, HOST_CREDENTIALS)
        try:
            yield LocalCloudProcess(process.pid, url, owner, host)
        finally:
            owner.close()
            host.close()


def release_policy(pcr0: str, *, with_attestation: bool = True) -> str:
    """Return the key policy an owner would write: decrypt only in the enclave with `pcr0`."""
    condition = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": pcr0}}
    release: dict[str, Any] = {
        "Sid": "ReleaseToEnclave",
        "Effect": "Allow",
        "Principal": {"AWS": HOST_ROLE_ARN},
        "Action": "kms:Decrypt",
        "Resource": "*",
    }
    if with_attestation:
        release["Condition"] = condition
    owner_actions = ["Encrypt", "GenerateDataKey*", "Describe*", "Get*", "List*", "Put*"]
    owner_actions += ["ScheduleKeyDeletion", "CancelKeyDeletion", "EnableKey", "DisableKey"]
    owner = {
        "Sid": "OwnerWrapsAndManages",
        "Effect": "Allow",
        "Principal": {"AWS": OWNER_ROLE_ARN},
        "Action": [f"kms:{action}" for action in [*owner_actions, "CreateAlias"]],
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [owner, release]})
