"""Ciphertext blobs of the local KMS: AES-256-GCM under a KMS key, bound to key and context.

moto's own blobs bind only the concatenation of names and values, so that {"ab": "c"} opens what
{"a": "bc"} closed. Layout: version byte, u16 length of the key ARN, ARN, 12 bytes nonce,
ciphertext with tag; associated data: ARN and context as canonical JSON.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave_infra.local_cloud.aws_errors import AwsError

__all__ = ["MAX_BLOB_BYTES", "key_arn_of", "unwrap", "wrap"]

MAX_BLOB_BYTES = 6144  # KMS's limit for CiphertextBlob
_PREFIX = struct.Struct(">BH")
_VERSION = 1
_NONCE_BYTES = 12


def _associated_data(arn: str, context: Mapping[str, str]) -> bytes:
    return json.dumps([arn, context], sort_keys=True, separators=(",", ":")).encode()


def _invalid() -> AwsError:
    return AwsError("InvalidCiphertextException", "")


def wrap(material: bytes, arn: str, context: Mapping[str, str], plaintext: bytes) -> bytes:
    """Encrypt `plaintext` (1 to 4096 bytes) under the key `arn` with its 32 bytes of material."""
    nonce = os.urandom(_NONCE_BYTES)
    sealed = AESGCM(material).encrypt(nonce, plaintext, _associated_data(arn, context))
    name = arn.encode()
    return _PREFIX.pack(_VERSION, len(name)) + name + nonce + sealed


def _split(blob: bytes) -> tuple[str, bytes]:
    if not _PREFIX.size < len(blob) <= MAX_BLOB_BYTES:
        raise _invalid()
    version, size = _PREFIX.unpack_from(blob)
    name = blob[_PREFIX.size : _PREFIX.size + size]
    if version != _VERSION or len(name) != size or not name.isascii():
        raise _invalid()
    return name.decode("ascii"), blob[_PREFIX.size + size :]


def key_arn_of(blob: bytes) -> str:
    """Return the ARN a blob claims to be encrypted under.

    Raises:
        AwsError: InvalidCiphertextException, not a blob of this KMS.
    """
    return _split(blob)[0]


def unwrap(materials: Sequence[bytes], arn: str, context: Mapping[str, str], blob: bytes) -> bytes:
    """Return the plaintext of `blob`.

    Args:
        materials: The key's, the newest first: what it had before a rotation still opens blobs.
        arn: The key's ARN.
        context: The encryption context.
        blob: As `wrap` made it.

    Raises:
        AwsError: InvalidCiphertextException: altered, another key or another context.
    """
    _, rest = _split(blob)
    nonce, sealed = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
    for material in materials:
        try:
            return AESGCM(material).decrypt(nonce, sealed, _associated_data(arn, context))
        except (InvalidTag, ValueError):
            continue
    raise _invalid()
