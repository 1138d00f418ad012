"""A KMS of the local cloud, enclaves of several images, and packages whose keys they ask for."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from enclave_encryption.key_policy.policy_change import plan_change
from enclave_encryption.key_policy.release_rule import RuleChange
from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.package_archive import FileData
from enclave_protocol.package_header import PackageHeader, decode_header
from enclave_protocol.package_reader import read_package
from tests.support.local_services import (
    HOST_CREDENTIALS,
    HOST_ROLE_ARN,
    LocalCloudProcess,
    SoftwareNsmProcess,
    local_cloud,
    software_nsm,
)
from tests.support.owner_tool import enclave_owner

__all__ = ["NEW_PCR0", "OLD_PCR0", "Release", "header_of", "running_release"]

OLD_PCR0, NEW_PCR0 = "0a" * 48, "0b" * 48


@dataclass(frozen=True)
class Release:
    """Enclaves `old`, `new` and `debug`, and the KMS that trusts them.

    Attributes:
        nsms: By name.
        cloud: The KMS.
        pool: RSA pairs.
        folder: For files.
    """

    nsms: dict[str, SoftwareNsmProcess]
    cloud: LocalCloudProcess
    pool: RsaPool
    folder: Path

    def owner(self, *arguments: str | Path, code: int = 0) -> str:
        """Run `enclave-owner`, which must end with `code`; return what it printed."""
        result = enclave_owner(*arguments, endpoint_url=self.cloud.endpoint_url)
        assert result.returncode == code, (result.stdout, result.stderr)
        return result.stdout + result.stderr

    def new_key(self) -> str:
        """Return the ARN of a key with KMS's default policy."""
        return self.cloud.owner.create_key()["KeyMetadata"]["Arn"]

    def release_key(self) -> str:
        """Return the ARN of a key that is released to the image `old` only."""
        arn = self.new_key()
        change = RuleChange(pcr0=(OLD_PCR0,), principals=(HOST_ROLE_ARN,))
        policy = plan_change(self.policy(arn), arn, change, narrow=True).after
        self.cloud.owner.put_key_policy(KeyId=arn, PolicyName="default", Policy=policy)
        return arn

    def policy(self, arn: str) -> str:
        """Return a key's policy as KMS has it."""
        return self.cloud.owner.get_key_policy(KeyId=arn, PolicyName="default")["Policy"]

    def encrypt(self, arn: str, name: str, text: str = "x = 1\n") -> Path:
        """Return an encrypted file of one module."""
        source = self.folder / name
        source.mkdir(exist_ok=True)
        (source / "module.py").write_text(text)
        output = self.folder / f"{name}.encrypted"
        self.owner("encrypt", "-d", source, "-k", arn, "-o", output)
        return output

    def release(self, header: PackageHeader, enclave: str = "old") -> bytearray:
        """Return the data key as the enclave gets it."""
        with NsmClient.open(self.nsms[enclave].endpoint) as client:
            return release_data_key(
                header,
                nsm=client,
                keys=self.pool,
                credentials=HOST_CREDENTIALS,
                endpoint_url=self.cloud.endpoint_url,
                clock=TrustedClock(),
            )

    def contents(self, file: Path | bytes, enclave: str = "old") -> bytes:
        """Return what is in a package, opened as an enclave opens it."""
        data = file if isinstance(file, bytes) else file.read_bytes()
        events = read_package(io.BytesIO(data), lambda header: self.release(header, enclave))
        return b"".join(bytes(event.data) for event in events if isinstance(event, FileData))


def header_of(file: Path) -> PackageHeader:
    """Return the header of an encrypted file."""
    return decode_header(file.read_bytes())


@contextmanager
def running_release(folder: Path) -> Iterator[Release]:
    """Run everything; it ends with the block."""
    root = folder / "root"
    with ExitStack() as stack:
        nsms = {}
        for name, pcr0 in (("old", OLD_PCR0), ("new", NEW_PCR0), ("debug", OLD_PCR0)):
            nsms[name] = stack.enter_context(
                software_nsm(
                    folder, pcr0=pcr0, debug=name == "debug", root_dir=root, name=f"{name}.sock"
                )
            )
        cloud = stack.enter_context(local_cloud(folder, root_cert=nsms["old"].root_cert))
        pool = stack.enter_context(RsaPool(2))
        yield Release(nsms, cloud, pool, folder)
