"""The header: everything of an encrypted package before its body.

Layout, integers big-endian: 8 bytes magic, u16 version, u16 length of the key slot, u16 length of
the signature, u32 length of the label, the label, the signature, the key slot. The body's keys
depend on the label; the signature is of label and body; the key slot can be replaced.

Source: docs/spec/encrypted_package.md, "Header".
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from enclave_protocol.key_slot import (
    MAX_KEY_SLOT_BYTES,
    MIN_KEY_SLOT_BYTES,
    KeySlot,
    decode_key_slot,
    encode_key_slot,
)
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
    "PREAMBLE_BYTES",
    "PackageHeader",
    "body_context",
    "decode_header",
    "encode_header",
    "encryption_context",
    "header_size",
    "header_with_slot",
]

MAGIC: Final = b"\x89ENCPKG\n"
"""High bit and line feed: a transfer that mangles bytes mangles this, too (as in PNG)."""
FORMAT_VERSION: Final = 1
_PREAMBLE: Final = struct.Struct(">8sHHHI")
_BOUND: Final = struct.Struct(">8sHI")
PREAMBLE_BYTES: Final = _PREAMBLE.size
MAX_HEADER_BYTES: Final = (
    PREAMBLE_BYTES + MAX_LABEL_BYTES + MAX_SIGNATURE_BYTES + MAX_KEY_SLOT_BYTES
)


@dataclass(frozen=True)
class PackageHeader:
    """A decoded header.

    Attributes:
        label: A claim, until the body's key commitment verified.
        label_bytes: Its encoding.
        signature: The publisher's, not verified yet; None exactly if the label names no signer.
        slot: Whatever it says, it yields the label's data key or opens nothing.
        raw: The whole header as it is in the file.
    """

    label: Label
    label_bytes: bytes
    signature: PackageSignature | None
    slot: KeySlot
    raw: bytes

    @cached_property
    def context(self) -> bytes:
        """What the body is bound to."""
        return body_context(self.label_bytes)

    @property
    def kms_key_arn(self) -> str:
        """Full ARN of the KMS key that the data key is wrapped under."""
        return self.slot.kms_key_arn

    @property
    def region(self) -> str:
        """AWS region of the KMS key."""
        return self.slot.region

    @property
    def wrapped_key(self) -> bytes:
        """The data key as KMS wrapped it, 1 to 6144 bytes."""
        return self.slot.wrapped_key

    @property
    def encryption_context(self) -> dict[str, str]:
        """The encryption context KMS is called with for this package."""
        return encryption_context(self.label, self.label_bytes)

    def verify_signature(self) -> None:
        """Verify the publisher's signature; a package that names no signer has none.

        Raises:
            PackageSignatureError: It is not of this label and body digest.
            PackageFormatError: The public key is none.
        """
        if self.label.signer is not None and self.signature is not None:
            verify_signature(self.label.signer, self.label_bytes, self.signature)


def body_context(label_bytes: bytes) -> bytes:
    """Return the context of the body of a package with this label: SHA-512, 64 bytes."""
    bound = _BOUND.pack(MAGIC, FORMAT_VERSION, len(label_bytes)) + label_bytes
    return hashlib.sha512(bound).digest()


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


def encode_header(label: Label, slot: KeySlot, signature: PackageSignature | None = None) -> bytes:
    """Return the header of a package.

    Raises:
        PackageFormatError: A part breaks a rule or limit, or there is a signature and no signer.
        PackageSignatureError: There is a signer and no signature.
    """
    label_bytes = encode_label(label)
    decode_signature(b"" if signature is None else signature.encode(), label.signer)
    return header_with_slot(label_bytes, slot, signature)


def header_with_slot(
    label_bytes: bytes, slot: KeySlot, signature: PackageSignature | None
) -> bytes:
    """Return a header with a label that is encoded already, such as another header's.

    Args:
        label_bytes: The label.
        slot: Where the data key is.
        signature: The label's; the same for every slot.

    Raises:
        PackageFormatError: `slot` breaks a rule or limit.
    """
    slot_bytes = encode_key_slot(slot)
    signed = b"" if signature is None else signature.encode()
    preamble = _PREAMBLE.pack(MAGIC, FORMAT_VERSION, len(slot_bytes), len(signed), len(label_bytes))
    return preamble + label_bytes + signed + slot_bytes


def header_size(preamble: bytes) -> int:
    """Return the size in bytes of the header that starts with `preamble`, at most 268 692.

    Args:
        preamble: At least the file's first 18 bytes.

    Raises:
        PackageTruncatedError: Fewer than 18 bytes, all of them right so far.
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
    label_length, signature_length, slot_length = _lengths(data)
    label_end = PREAMBLE_BYTES + label_length
    slot_at = label_end + signature_length
    size = slot_at + slot_length
    if len(data) < size:
        raise PackageTruncatedError(
            f"the file ends within its header, after {len(data)} of {size} bytes: "
            "copy it again, whole"
        )
    label_bytes = bytes(data[PREAMBLE_BYTES:label_end])
    label = decode_label(label_bytes)
    return PackageHeader(
        label=label,
        label_bytes=label_bytes,
        signature=decode_signature(bytes(data[label_end:slot_at]), label.signer),
        slot=decode_key_slot(bytes(data[slot_at:size])),
        raw=bytes(data[:size]),
    )


def _lengths(data: bytes) -> tuple[int, int, int]:
    """Return the lengths of label, signature and key slot, within their limits."""
    if len(data) < PREAMBLE_BYTES and data[: len(MAGIC)] == MAGIC[: len(data)]:
        raise PackageTruncatedError(
            f"the file has only {len(data)} bytes of a header: copy it again, whole"
        )
    if data[: len(MAGIC)] != MAGIC:
        raise PackageFormatError(
            "not an encrypted package: make one with `enclave-owner encrypt -d DIR -k KEY_ID`"
        )
    _, version, slot_bytes, signature_bytes, label_bytes = _PREAMBLE.unpack_from(data)
    if version != FORMAT_VERSION:
        raise PackageFormatError(
            f"format version {version}, expected {FORMAT_VERSION}: update enclave-kernel"
        )
    if not MIN_KEY_SLOT_BYTES <= slot_bytes <= MAX_KEY_SLOT_BYTES:
        raise PackageFormatError(
            f"the header announces a key slot of {slot_bytes} bytes, "
            f"expected {MIN_KEY_SLOT_BYTES} to {MAX_KEY_SLOT_BYTES}"
        )
    if signature_bytes > MAX_SIGNATURE_BYTES:
        raise PackageFormatError(
            f"the header announces a signature of {signature_bytes} bytes, "
            f"at most {MAX_SIGNATURE_BYTES}"
        )
    if not 2 <= label_bytes <= MAX_LABEL_BYTES:
        raise PackageFormatError(
            f"the header announces a label of {label_bytes} bytes, expected 2 to {MAX_LABEL_BYTES}"
        )
    return label_bytes, signature_bytes, slot_bytes
