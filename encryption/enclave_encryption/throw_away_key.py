"""A key for one trial: no KMS knows it, and nobody but this process and its child has it."""

import secrets
from collections.abc import Mapping
from typing import Final

from enclave_encryption.data_key import DataKey

__all__ = ["ThrowAwayKey"]

_KEY_BYTES: Final = 32


class ThrowAwayKey:
    """Stands where a `KmsKey` stands; its packages open with `data_key` only.

    Attributes:
        arn: Of no key: the account does not exist.
        data_key: 32 bytes.
    """

    def __init__(self) -> None:
        self.arn = "arn:aws:kms:us-east-1:000000000000:key/enclave-owner-try"
        self.data_key = secrets.token_bytes(_KEY_BYTES)

    def generate_data_key(self, _context: Mapping[str, str]) -> DataKey:
        """Return the data key; it is not wrapped, for nobody will unwrap it."""
        return DataKey(bytearray(self.data_key), b"nobody unwraps this")
