"""A KMS on loopback: moto's own server, which checks encryption contexts but no key policies.

It runs in its own process: moto's state and its switch for IAM checks are global.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import botocore.session

from tests.support.false_kms import false_kms

REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the test closes it or dies
server.stop()
"""


@dataclass(frozen=True)
class MotoKms:
    """A running server with one symmetric key, also known as alias/packages."""

    endpoint_url: str
    key_id: str
    key_arn: str

    def new_signing_key(self, spec: str = "ECC_NIST_P384") -> str:
        """Return the ARN of a new asymmetric key."""
        answer = _client("kms", self.endpoint_url).create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY")
        arn: str = answer["KeyMetadata"]["Arn"]
        return arn

    def unwrap(self, wrapped: bytes, context: dict[str, str]) -> bytearray:
        answer = _client("kms", self.endpoint_url).decrypt(
            CiphertextBlob=wrapped, KeyId=self.key_arn, EncryptionContext=context
        )
        return bytearray(answer["Plaintext"])


def refusing_kms(code: str, message: str) -> AbstractContextManager[str]:
    """Yield the address of a KMS that answers every request with one error, in KMS's format.

    moto checks no policies for KMS in the way AWS answers: its refusals are XML.
    """
    return answering_kms(400, {"__type": code, "message": message})


@contextmanager
def answering_kms(status: int, answer: dict[str, str]) -> Iterator[str]:
    """Yield the address of an endpoint that answers every request with this."""
    with false_kms(status, json.dumps(answer).encode()) as (url, _):
        yield url


@contextmanager
def running_moto_kms() -> Iterator[MotoKms]:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            client = _client("kms", url)
            key = client.create_key()["KeyMetadata"]
            client.create_alias(AliasName="alias/packages", TargetKeyId=key["KeyId"])
            yield MotoKms(url, key["KeyId"], key["Arn"])
        finally:
            process.kill()


def _client(service: str, url: str) -> Any:
    session = botocore.session.get_session()
    return session.create_client(
        service,
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
