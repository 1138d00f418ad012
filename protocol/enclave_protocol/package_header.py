"""The header: everything of an encrypted package before its body.

Layout, integers big-endian: 8 bytes magic, u16 version, u32 length of the label, u16 lengths of
signature, KMS key ARN and wrapped key; then these four. The body's key depends on the label; the
signature is of label and body; ARN and wrapped key can be replaced by whoever may unwrap the key.

Source: docs/spec/encrypted_package.md, "Header".
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from enclave_protocol.package_errors import PackageFormatError, PackageTruncatedError
from enclave_protocol.package_label import MAX_LABEL_BYTES, Label, decode_label, encode_label
from enclave_protocol.package_signature import (
    MAX_SIGNATURE_BYTES,
    PackageSignature,
    decode_signature,
    verify_signature,
)

__all__ = [
    "FORMAT_VERSION",
    "MAGIC",
    "MAX_HEADER_BYTES",
    "MAX_KEY_ARN_BYTES",
    "MAX_WRAPPED_KEY_BYTES",
    "PREAMBLE_BYTES",
    "PackageHeader",
    "body_context",
    "decode_header",
    "encode_header",
    "encryption_context",
    "header_size",
]

MAGIC: Final = b"\x89ENCPKG\n"
"""High bit and line feed: a transfer that mangles bytes mangles this, too (as in PNG)."""
FORMAT_VERSION: Final = 2
MAX_KEY_ARN_BYTES: Final = 210
"""The longest that the pattern of a key's ARN allows."""
MAX_WRAPPED_KEY_BYTES: Final = 6144
"""KMS accepts no longer CiphertextBlob."""

_PREAMBLE: Final = struct.Struct(">8sHIHHH")
PREAMBLE_BYTES: Final = _PREAMBLE.size
MAX_HEADER_BYTES: Final = (
    PREAMBLE_BYTES
    + MAX_LABEL_BYTES
    + MAX_SIGNATURE_BYTES
    + MAX_KEY_ARN_BYTES
    + MAX_WRAPPED_KEY_BYTES
)
_KEY_ARN: Final = re.compile(
    r"arn:aws[a-z-]{0,20}:kms:([a-z0-9-]{1,32}):\d{12}:key/[A-Za-z0-9-]{1,128}", re.ASCII
)


@dataclass(frozen=True)
class PackageHeader:
    """A decoded header.

    Attributes:
        label: A claim, until the body's key commitment verified.
        label_bytes: Its encoding.
        signature: The publisher's, not verified yet; None exactly if the label names no signer.
        kms_key_arn: The key that wrapped the data key; says where to ask, and vouches for nothing.
        wrapped_key: The data key as KMS wrapped it, 1 to 6144 bytes.
        raw: The whole header as it is in the file.
    """

    label: Label
    label_bytes: bytes
    signature: PackageSignature | None
    kms_key_arn: str
    wrapped_key: bytes
    raw: bytes

    @cached_property
    def context(self) -> bytes:
        """What the body is bound to."""
        return body_context(self.label_bytes)

    @property
    def encryption_context(self) -> dict[str, str]:
        """The encryption context KMS is called with for this package."""
        return encryption_context(self.label, self.label_bytes)

    @property
    def region(self) -> str:
        """The AWS region of the KMS key."""
        return _region(self.kms_key_arn)

    def verify_signature(self) -> None:
        """Verify the publisher's signature; a package that names no signer has none.

        Raises:
            PackageSignatureError: It is not of this label and body digest.
            PackageFormatError: The public key is none.
        """
        if self.label.signer is not None and self.signature is not None:
            verify_signature(self.label.signer, self.label_bytes, self.signature)


def body_context(label_bytes: bytes) -> bytes:
    """Return the context of the body of a package with this label: SHA-512, 64 bytes.

    The wrapped key is not in it: the body's key commitment says which data key is the right one.
    """
    version = FORMAT_VERSION.to_bytes(2, "big")
    return hashlib.sha512(MAGIC + version + label_bytes).digest()


def encryption_context(label: Label, label_bytes: bytes) -> dict[str, str]:
    """Return the KMS encryption context of a package with `label`, encoded as `label_bytes`.

    It puts the package's name and version into the owner's CloudTrail and key policy, and makes
    KMS itself refuse a wrapped key that was moved under another label.
    """
    return {
        "package": label.package.name,
        "version": label.package.version,
        "label-sha256": hashlib.sha256(label_bytes).hexdigest(),
    }


def encode_header(
    label: Label,
    wrapped_key: bytes,
    *,
    kms_key_arn: str,
    signature: PackageSignature | None = None,
) -> bytes:
    """Return the header of a package.

    Raises:
        PackageFormatError: A part breaks a rule or limit, or a signature is there and no signer
            or the other way round.
    """
    label_bytes = encode_label(label)
    signed = b"" if signature is None else signature.encode()
    decode_signature(signed, label.signer)
    if not 1 <= len(wrapped_key) <= MAX_WRAPPED_KEY_BYTES:
        raise PackageFormatError(
            f"the wrapped key has {len(wrapped_key)} bytes, expected 1 to {MAX_WRAPPED_KEY_BYTES}"
        )
    _region(kms_key_arn)  # refuses what is no key's ARN
    arn = kms_key_arn.encode()
    preamble = _PREAMBLE.pack(
        MAGIC, FORMAT_VERSION, len(label_bytes), len(signed), len(arn), len(wrapped_key)
    )
    return preamble + label_bytes + signed + arn + wrapped_key


def header_size(preamble: bytes) -> int:
    """Return the size in bytes of the header that starts with `preamble`, at most 268 646.

    Args:
        preamble: At least the file's first 20 bytes.

    Raises:
        PackageTruncatedError: Fewer than 20 bytes, all of them right so far.
        PackageFormatError: Not an encrypted package, another version, a length over its limit.
    """
    return PREAMBLE_BYTES + sum(_lengths(preamble))


def decode_header(data: bytes) -> PackageHeader:
    """Return the header at the start of `data`; what follows it is ignored.

    Args:
        data: At least `header_size(data)` bytes.

    Raises:
        PackageTruncatedError: `data` ends within the header.
        PackageFormatError: Not an encrypted package, or a rule or limit is broken.
        PackageSignatureError: The label names a signer, and the signature is gone.
    """
    lengths = _lengths(data)
    size = PREAMBLE_BYTES + sum(lengths)
    if len(data) < size:
        raise PackageTruncatedError(
            f"the file ends within its header, after {len(data)} of {size} bytes: "
            "copy it again, whole"
        )
    parts = []
    place = PREAMBLE_BYTES
    for length in lengths:
        parts.append(bytes(data[place : place + length]))
        place += length
    label_bytes, signed, arn, wrapped_key = parts
    label = decode_label(label_bytes)
    signature = decode_signature(signed, label.signer)
    kms_key_arn = arn.decode("ascii", "replace")
    _region(kms_key_arn)
    return PackageHeader(
        label=label,
        label_bytes=label_bytes,
        signature=signature,
        kms_key_arn=kms_key_arn,
        wrapped_key=wrapped_key,
        raw=bytes(data[:size]),
    )


def _region(kms_key_arn: str) -> str:
    match = _KEY_ARN.fullmatch(kms_key_arn)
    if match is None:
        raise PackageFormatError(
            f"the header names the KMS key {kms_key_arn[:200]!a}, expected a key's ARN"
        )
    return match[1]


class _Lengths(NamedTuple):
    label: int
    signature: int
    key_arn: int
    wrapped_key: int


_LIMITS: Final = _Lengths(
    MAX_LABEL_BYTES, MAX_SIGNATURE_BYTES, MAX_KEY_ARN_BYTES, MAX_WRAPPED_KEY_BYTES
)
_LEAST: Final = _Lengths(2, 0, 1, 1)
_NAMES: Final = ("a label", "a signature", "a key ARN", "a wrapped key")


def _lengths(data: bytes) -> _Lengths:
    """Return the lengths of the header's parts, each within its limit."""
    if len(data) < PREAMBLE_BYTES and data[: len(MAGIC)] == MAGIC[: len(data)]:
        raise PackageTruncatedError(
            f"the file has only {len(data)} bytes of a header: copy it again, whole"
        )
    if data[: len(MAGIC)] != MAGIC:
        raise PackageFormatError(
            "not an encrypted package: make one with `enclave-owner encrypt -d DIR -k KEY_ID`"
        )
    _, version, *found = _PREAMBLE.unpack_from(data)
    if version != FORMAT_VERSION:
        raise PackageFormatError(
            f"format version {version}, expected {FORMAT_VERSION}: "
            + (
                "its owner has to encrypt it again with this version of `enclave-owner`"
                if version < FORMAT_VERSION
                else "update enclave-kernel"
            )
        )
    lengths = _Lengths(*found)
    for name, length, least, limit in zip(_NAMES, lengths, _LEAST, _LIMITS, strict=True):
        if not least <= length <= limit:
            raise PackageFormatError(
                f"the header announces {name} of {length} bytes, expected {least} to {limit}"
            )
    return lengths
