"""A package's owner at an enclave's own local cloud: keys, and the real `enclave-owner`."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.local_services import OWNER_CREDENTIALS, kms_client, release_policy

__all__ = ["PackageOwner", "open_folder", "write_package"]

_COMMAND = Path(sys.executable).parent / "enclave-owner"


class PackageOwner:
    """The owner's side.

    Args:
        endpoint_url: Where KMS is: `kms_endpoint_url` of `enclave status --json`.
    """

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url
        self.kms = kms_client(endpoint_url, OWNER_CREDENTIALS)

    def new_key(self, pcr0: str) -> str:
        """Return the ARN of a new key that is released to this PCR0 only."""
        arn: str = self.kms.create_key(Policy=release_policy(pcr0))["KeyMetadata"]["Arn"]
        return arn

    def approve(self, key_arn: str, pcr0: str) -> None:
        """Have the key released to this PCR0 from now on, and to no other."""
        policy = release_policy(pcr0)
        self.kms.put_key_policy(KeyId=key_arn, PolicyName="default", Policy=policy)

    def encrypt(self, folder: Path, key_arn: str, output: Path) -> Path:
        """Run `enclave-owner encrypt`; return `output`."""
        arguments = ["encrypt", "-d", str(folder), "-k", key_arn, "-o", str(output)]
        subprocess.run(
            [_COMMAND, *arguments, "--endpoint-url", self.endpoint_url],
            env={
                "PATH": os.environ["PATH"],
                "AWS_ACCESS_KEY_ID": OWNER_CREDENTIALS.access_key_id,
                "AWS_SECRET_ACCESS_KEY": OWNER_CREDENTIALS.secret_access_key,
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
        )
        return output


def write_package(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write these files below `folder`, which is made; return it."""
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return folder


@contextmanager
def open_folder() -> Iterator[Path]:
    """Return a new folder that every user may enter, which pytest's are not; it is removed."""
    folder = Path(tempfile.mkdtemp(prefix="encwork", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
