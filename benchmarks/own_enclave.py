"""A local enclave of a benchmark's own, a kernel in it, and packages for it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from enclave_infra.local_cloud.identities import (
    HOST_ACCESS_KEY_ID,
    IDENTITIES,
    OWNER_ACCESS_KEY_ID,
    REGION,
)

__all__ = ["BenchmarkError", "command", "evaluate", "kernel_in", "own_enclave", "publish"]

BIN: Final = Path(sys.executable).parent
TIMEOUT_S: Final = 600.0


class BenchmarkError(Exception):
    """A command or a cell did not do what is measured."""


def command(*arguments: str, **environ: str) -> str:
    """Run a command of the virtual environment; return what it printed."""
    argv = [str(BIN / arguments[0]), *arguments[1:]]
    ended = subprocess.run(
        argv, env=os.environ | environ, stdout=subprocess.PIPE, check=True, text=True
    )
    return ended.stdout


@contextmanager
def own_enclave() -> Iterator[dict[str, Any]]:
    """Keep a local enclave up; return its status."""
    with tempfile.TemporaryDirectory(prefix="enclave-bench-", dir="/tmp") as runtime:
        os.environ |= {"ENCLAVE_RUNTIME_DIR": runtime, "AWS_EC2_METADATA_DISABLED": "true"}
        os.environ |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        try:
            sys.stderr.write(command("enclave", "up"))
            yield json.loads(command("enclave", "status", "--json"))
        finally:
            sys.stderr.write(command("enclave", "down"))


@contextmanager
def kernel_in(folder: Path) -> Iterator[BlockingKernelClient]:
    """Keep a kernel running that starts in a folder; return a client of it."""
    manager = KernelManager(kernel_name="enclave")
    manager.start_kernel(cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT_S)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def evaluate(client: BlockingKernelClient, expression: str, code: str = "") -> Any:
    """Run a cell and return the value of an expression behind it."""
    reply = client.execute_interactive(
        code,
        timeout=TIMEOUT_S,
        store_history=False,
        user_expressions={"value": f"__import__('json').dumps({expression})"},
        output_hook=lambda _: None,
    )["content"]
    result = reply.get("user_expressions", {}).get("value", {})
    if reply["status"] != "ok" or result.get("status") != "ok":
        raise BenchmarkError(f"the kernel answered {reply} to {expression}")
    text: str = result["data"]["text/plain"]
    return json.loads(text[1:-1].replace("\\'", "'"))


def _new_key(status: Mapping[str, Any]) -> str:
    owner, host = IDENTITIES[OWNER_ACCESS_KEY_ID], IDENTITIES[HOST_ACCESS_KEY_ID]
    condition = {"kms:RecipientAttestation:ImageSha384": status["pcrs"]["0"]}
    release = {"Action": "kms:Decrypt", "Condition": {"StringEqualsIgnoreCase": condition}}
    statements = [
        {"Principal": {"AWS": owner.role_arn}, "Action": "kms:*"},
        {"Principal": {"AWS": host.role_arn}, **release},
    ]
    whole = [{"Effect": "Allow", "Resource": "*", **statement} for statement in statements]
    kms = boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=status["kms_endpoint_url"],
        aws_access_key_id=owner.access_key_id,
        aws_secret_access_key=owner.secret_access_key,
    )
    policy = json.dumps({"Version": "2012-10-17", "Statement": whole})
    arn: str = kms.create_key(Policy=policy)["KeyMetadata"]["Arn"]
    return arn


def publish(status: Mapping[str, Any], source: Path, output: Path, *, signed: bool = True) -> None:
    """As the owner: encrypt a folder, signed, as packages are, or not."""
    owner = IDENTITIES[OWNER_ACCESS_KEY_ID]
    arguments = ["-d", str(source), "-k", _new_key(status), "-o", str(output)]
    if signed:
        key = Path(os.environ["ENCLAVE_RUNTIME_DIR"]) / "publisher.key"
        if not key.exists():
            command("enclave-owner", "keygen", "-o", str(key))
        arguments += ["--sign-with", str(key)]
    command(
        *("enclave-owner", "encrypt", *arguments),
        *("--region", REGION, "--endpoint-url", status["kms_endpoint_url"]),
        AWS_ACCESS_KEY_ID=owner.access_key_id,
        AWS_SECRET_ACCESS_KEY=owner.secret_access_key,
    )
