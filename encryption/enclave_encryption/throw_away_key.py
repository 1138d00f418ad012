"""A key for one trial: no KMS knows it, and nobody but this process and its child has it."""

from collections.abc import Mapping

__all__ = ["ThrowAwayKey"]


class ThrowAwayKey:
    """Stands where a `KmsKey` stands; its package opens with `data_key` only.

    Attributes:
        arn: Of no key: the account does not exist.
        data_key: 32 bytes, once a package was encrypted.
    """

    def __init__(self) -> None:
        self.arn = "arn:aws:kms:us-east-1:000000000000:key/enclave-owner-try"
        self.data_key = b""

    def wrap(self, data_key: bytes | bytearray, _context: Mapping[str, str]) -> bytes:
        """Keep the data key, and return it not wrapped, for nobody will unwrap it."""
        self.data_key = bytes(data_key)
        return b"nobody unwraps this"
