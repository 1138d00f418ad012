"""A package's owner at an enclave's own local cloud: keys, and the real `enclave-owner`."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from enclave_encryption.publisher_keys import load_key, make_key
from tests.support.local_services import OWNER_CREDENTIALS, kms_client, release_policy

__all__ = [
    "PUBLISHER",
    "PackageOwner",
    "open_folder",
    "publisher_fingerprint",
    "publisher_key_file",
    "write_package",
]

PUBLISHER = "Test Publisher"

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

    def encrypt(
        self, folder: Path, key_arn: str, output: Path, *, sign_with: Path | None = None
    ) -> Path:
        """Run `enclave-owner encrypt`; return `output`.

        It is signed: with `sign_with`, or with the key of all tests in the name of `PUBLISHER`. A
        folder without an enclave.toml has no publisher, and is not.
        """
        arguments = ["encrypt", "-d", str(folder), "-k", key_arn, "-o", str(output)]
        if _name_publisher(folder):
            arguments += ["--sign-with", str(sign_with or publisher_key_file())]
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


@functools.cache
def publisher_key_file() -> Path:
    """Return the file with the one key that packages of these tests are signed with."""
    folder = Path(tempfile.mkdtemp(prefix="enclave-publisher-"))
    atexit.register(shutil.rmtree, folder)
    make_key(folder / "publisher.key", None, force=False)
    return folder / "publisher.key"


def publisher_fingerprint() -> str:
    """Return the fingerprint of that key."""
    return load_key(publisher_key_file(), None).signer.fingerprint


def _name_publisher(folder: Path) -> bool:
    """Name a publisher in the folder's enclave.toml if there is none; False without the file."""
    manifest = folder / "enclave.toml"
    if not manifest.exists():
        return False
    text = manifest.read_text()
    if "\npublisher" not in text:
        manifest.write_text(
            text.replace("[package]\n", f'[package]\npublisher = "{PUBLISHER}"\n', 1)
        )
    return True


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
