"""The real `enclave-owner` as the owner of the local cloud runs it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.local_services import OWNER_CREDENTIALS

__all__ = ["OWNER_ENVIRONMENT", "enclave_owner"]

_COMMAND = Path(sys.executable).parent / "enclave-owner"
OWNER_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "AWS_ACCESS_KEY_ID": OWNER_CREDENTIALS.access_key_id,
    "AWS_SECRET_ACCESS_KEY": OWNER_CREDENTIALS.secret_access_key,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
    "COLUMNS": "200",
}


def enclave_owner(
    *arguments: str | Path, endpoint_url: str, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run one command at a local cloud; its exit code is for the caller to look at."""
    return subprocess.run(
        [_COMMAND, *arguments, "--endpoint-url", endpoint_url],
        env=OWNER_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
