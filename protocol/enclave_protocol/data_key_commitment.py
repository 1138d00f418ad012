"""What a label says its data key is, without giving it away.

A label, and with it a publisher's signature, so means exactly one data key: whoever does not
know that key can put no other body under the label, under whichever KMS key.

Source: docs/spec/encrypted_package.md, "Data key commitment".
"""

import hmac
import re
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from enclave_protocol.package_errors import PackageFormatError, PackageTamperedError

__all__ = ["COMMITMENT_PATTERN", "check_data_key", "commit_data_key"]

COMMITMENT_PATTERN: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEY_BYTES: Final = 32
_COMMITMENT_BYTES: Final = 32
_INFO: Final = b"enclave-package/v1/data-key-commitment"


def commit_data_key(data_key: bytes | bytearray | memoryview) -> str:
    """Return the commitment to `data_key`, 64 lower-case hex digits.

    HKDF-Expand: with 32 uniformly random bytes as the key it tells nothing about them, and its
    info string keeps it apart from what the body's keys are derived with.

    Args:
        data_key: 32 bytes.

    Raises:
        PackageFormatError: It is not 32 bytes.
    """
    if len(data_key) != _KEY_BYTES:
        raise PackageFormatError(f"the data key has {len(data_key)} bytes, expected {_KEY_BYTES}")
    derived = HKDFExpand(algorithm=SHA512(), length=_COMMITMENT_BYTES, info=_INFO).derive(data_key)
    return derived.hex()


def check_data_key(data_key: bytes | bytearray | memoryview, commitment: str) -> None:
    """Check that `data_key` is the one a label commits to.

    Raises:
        PackageTamperedError: It is another.
        PackageFormatError: It is not 32 bytes.
    """
    if not hmac.compare_digest(commit_data_key(data_key), commitment):
        raise PackageTamperedError(
            "the data key does not fit: the label or the wrapped key were altered, or belong to "
            "another file; get it again from its publisher"
        )
