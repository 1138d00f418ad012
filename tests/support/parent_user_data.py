"""The parent instance's user data, as its template resolves, and the tools that it installs."""

import base64
from pathlib import Path

from enclave_infra.tools_bundle import write_bundle
from tests.support.deployed_stack import moto_account
from tests.support.wheelhouse import fill_wheelhouse

__all__ = ["parent_user_data", "write_parent_tools"]


def write_parent_tools(directory: Path) -> tuple[Path, str]:
    """Make the bundle in an empty directory; return its file and SHA-256."""
    fill_wheelhouse(directory / "wheels", "parent")
    digest = write_bundle(directory / "wheels", directory / "tools.zip")
    return directory / "tools.zip", digest


def parent_user_data(tools_sha256: str) -> str:
    """Return the script for an instance with 4 CPUs and 8192 MiB for the enclave."""
    with moto_account("222222222222") as host:
        subnet = host.client("ec2").describe_subnets()["Subnets"][0]
        stack = host.deploy(
            "parent-instance",
            SubnetId=subnet["SubnetId"],
            VpcId=subnet["VpcId"],
            EnclaveCpus="4",
            EnclaveMemoryMib="8192",
            OwnerKeyArns="arn:aws:kms:eu-central-1:111111111111:key/k",
            SharingBucket="sharing",
            ToolsLocation="sharing/tools/parent.zip",
            ToolsSha256=tools_sha256,
        )
    return base64.b64decode(stack.resources["Instance"]["UserData"]).decode()
