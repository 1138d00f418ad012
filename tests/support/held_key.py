"""A wrapping key held by the test: what KMS does with a data key, done with real AES-GCM.

The encryption context is the additional data, as in KMS: a wrapped key moved under another
label does not unwrap.
"""

import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave_protocol.package_errors import PackageTamperedError


class HeldKey:
    """Wraps and unwraps data keys under an encryption context."""

    def __init__(self) -> None:
        self._aead = AESGCM(secrets.token_bytes(32))

    def wrap(self, data_key: bytes, context: dict[str, str]) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._aead.encrypt(nonce, data_key, _aad(context))

    def unwrap(self, wrapped: bytes, context: dict[str, str]) -> bytearray:
        """Raise PackageTamperedError where KMS says InvalidCiphertextException."""
        try:
            return bytearray(self._aead.decrypt(wrapped[:12], wrapped[12:], _aad(context)))
        except (InvalidTag, ValueError):
            raise PackageTamperedError(
                "the wrapped key does not belong to this label: get the file again"
            ) from None


def _aad(context: dict[str, str]) -> bytes:
    return json.dumps(context, sort_keys=True).encode()
