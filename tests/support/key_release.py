"""What a key release needs, real each: a software NSM, a local cloud, packages under its keys."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.errors import EnclaveError
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.messages import Credentials
from enclave_protocol.package_header import (
    PackageHeader,
    decode_header,
    encode_header,
    encryption_context,
)
from enclave_protocol.package_label import encode_label
from tests.support.example_package import FILES, make_label
from tests.support.local_services import (
    HOST_CREDENTIALS,
    LocalCloudProcess,
    SoftwareNsmProcess,
    local_cloud,
    software_nsm,
)

__all__ = ["ReleaseServices", "check_one_line", "release_services"]


@dataclass(frozen=True)
class ReleaseServices:
    nsm: SoftwareNsmProcess
    cloud: LocalCloudProcess
    pool: RsaPool
    directory: Path

    def package(self, policy: str, **label: Any) -> tuple[PackageHeader, bytes]:
        """What `enclave-owner encrypt` does up to the body."""
        arn = self.cloud.owner.create_key(Policy=policy)["KeyMetadata"]["Arn"]
        return self.package_under(arn, **label)

    def package_under(self, arn: str, **label: Any) -> tuple[PackageHeader, bytes]:
        key = secrets.token_bytes(32)
        usage = label.pop("usage", None)
        full = make_label(FILES, data_key=key, **label)
        if usage is not None:
            full = msgspec.structs.replace(full, policy=usage)
        context = encryption_context(full, encode_label(full))
        answer = self.cloud.owner.encrypt(KeyId=arn, Plaintext=key, EncryptionContext=context)
        return decode_header(encode_header(full, KeySlot(arn, answer["CiphertextBlob"]))), key

    def release(
        self,
        header: PackageHeader,
        *,
        nsm: SoftwareNsmProcess | None = None,
        credentials: Credentials = HOST_CREDENTIALS,
        endpoint_url: str | None = None,
        clock: TrustedClock | None = None,
    ) -> bytearray:
        with NsmClient.open((nsm or self.nsm).endpoint) as client:
            return release_data_key(
                header,
                nsm=client,
                keys=self.pool,
                credentials=credentials,
                endpoint_url=endpoint_url or self.cloud.endpoint_url,
                clock=clock or TrustedClock(),
            )


@contextmanager
def release_services(directory: Path) -> Iterator[ReleaseServices]:
    """Run them, with their files in `directory`."""
    with (
        software_nsm(directory) as nsm,
        local_cloud(directory, root_cert=nsm.root_cert) as cloud,
        RsaPool(2) as pool,
    ):
        yield ReleaseServices(nsm, cloud, pool, directory)


def check_one_line(error: EnclaveError, *needles: str) -> None:
    """Check that a person reads one line, and these words in it."""
    text = str(error)
    assert "\n" not in text
    for needle in needles:
        assert needle in text
