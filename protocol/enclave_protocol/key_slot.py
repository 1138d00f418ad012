"""The key slot: under which KMS key a package's data key is wrapped, and the wrapped key.

It is the only part of a package that may be replaced (`enclave-owner rekey`); what the data key
must be is in the label, and a slot that yields another opens nothing.

Source: docs/spec/encrypted_package.md, "Key slot".
"""

import re
import struct
from dataclasses import dataclass
from typing import Final

from enclave_protocol.package_errors import PackageFormatError

__all__ = [
    "MAX_KEY_SLOT_BYTES",
    "MAX_WRAPPED_KEY_BYTES",
    "MIN_KEY_SLOT_BYTES",
    "KeySlot",
    "decode_key_slot",
    "encode_key_slot",
]

MAX_WRAPPED_KEY_BYTES: Final = 6144
"""KMS accepts no longer CiphertextBlob."""
_LENGTH: Final = struct.Struct(">H")
_MAX_ARN_BYTES: Final = 256
_KEY_ARN: Final = re.compile(
    r"arn:aws[a-z-]{0,20}:kms:([a-z0-9-]{1,32}):\d{12}:key/[A-Za-z0-9-]{1,128}", re.ASCII
)
MIN_KEY_SLOT_BYTES: Final = _LENGTH.size + 2
MAX_KEY_SLOT_BYTES: Final = _LENGTH.size + _MAX_ARN_BYTES + MAX_WRAPPED_KEY_BYTES


@dataclass(frozen=True)
class KeySlot:
    """A wrapped data key.

    Attributes:
        kms_key_arn: Full ARN of the KMS key; a claim, as all of the slot is.
        wrapped_key: The data key as KMS wrapped it, 1 to 6144 bytes.
    """

    kms_key_arn: str
    wrapped_key: bytes

    @property
    def region(self) -> str:
        """The AWS region of the KMS key.

        Raises:
            PackageFormatError: `kms_key_arn` is not a key's ARN.
        """
        match = _KEY_ARN.fullmatch(self.kms_key_arn)
        if match is None:
            raise PackageFormatError(
                f"the package names the KMS key {self.kms_key_arn[:200]!r}, expected a key's ARN"
            )
        return match[1]


def encode_key_slot(slot: KeySlot) -> bytes:
    """Return the bytes of `slot`: u16 length of the ARN, the ARN, the wrapped key.

    Raises:
        PackageFormatError: It breaks a rule or limit.
    """
    _check(slot)
    arn = slot.kms_key_arn.encode()
    return _LENGTH.pack(len(arn)) + arn + slot.wrapped_key


def decode_key_slot(data: bytes) -> KeySlot:
    """Return the key slot that `data` is.

    Raises:
        PackageFormatError: It breaks a rule or limit.
    """
    if not MIN_KEY_SLOT_BYTES <= len(data) <= MAX_KEY_SLOT_BYTES:
        raise PackageFormatError(
            f"the key slot has {len(data)} bytes, expected {MIN_KEY_SLOT_BYTES} to "
            f"{MAX_KEY_SLOT_BYTES}"
        )
    (length,) = _LENGTH.unpack_from(data)
    arn, wrapped = data[_LENGTH.size :][:length], data[_LENGTH.size + length :]
    if len(arn) != length or not arn.isascii():
        raise PackageFormatError("the key slot's ARN is cut short, or no ASCII")
    slot = KeySlot(arn.decode("ascii"), bytes(wrapped))
    _check(slot)
    return slot


def _check(slot: KeySlot) -> None:
    _ = slot.region  # refuses what is no key ARN, and so one that is too long
    if not 1 <= len(slot.wrapped_key) <= MAX_WRAPPED_KEY_BYTES:
        raise PackageFormatError(
            f"the wrapped key has {len(slot.wrapped_key)} bytes, expected 1 to "
            f"{MAX_WRAPPED_KEY_BYTES}"
        )
