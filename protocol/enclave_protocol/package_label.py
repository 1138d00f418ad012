"""The label: what anyone may read about an encrypted package without a key.

A label is canonical JSON: one value has exactly one encoding, so its hash names its meaning.
It is authentic only once the body's key commitment verified; until then it is a claim.

Source: docs/spec/encrypted_package.md, "Label".
"""

from typing import Final

import msgspec

from enclave_protocol.data_key_commitment import COMMITMENT_PATTERN
from enclave_protocol.manifest import (
    NAME_PATTERN,
    VERSION_PATTERN,
    Exports,
    Manifest,
    Package,
    Policy,
    Script,
    check_manifest,
)
from enclave_protocol.package_errors import PackageError, PackageFormatError
from enclave_protocol.package_signature import Signer, check_signer
from enclave_protocol.plain_text import plain_text

__all__ = [
    "MAX_ARCHIVE_BYTES",
    "MAX_FILES",
    "MAX_LABEL_BYTES",
    "Label",
    "check_label",
    "decode_label",
    "encode_label",
]

MAX_LABEL_BYTES: Final = 256 * 1024
"""Holds thousands of exports with docs; small enough to buffer before anything verified."""
MAX_ARCHIVE_BYTES: Final = 2**40
"""1 TiB: more than any enclave has memory for."""
MAX_FILES: Final = 65_536
"""Bounds the reader's tables; large trees of small files belong into one data file."""


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in the file, what of it is reachable, which data key opens it, and who says so.

    Attributes:
        data_key_commitment: Of `data_key_commitment.py`, 64 lower-case hex digits.
        archive_bytes: Size of the plaintext archive.
        file_count: Number of files in it.
        signer: The publisher's key; None for a package that is not signed.
    """

    package: Package
    exports: Exports
    docs: dict[str, str]
    scripts: dict[str, Script]
    policy: Policy
    data_key_commitment: str
    archive_bytes: int
    file_count: int
    signer: Signer | None


def encode_label(label: Label) -> bytes:
    """Return the canonical encoding of `label`.

    Raises:
        PackageFormatError: `label` breaks a rule, or is longer than 256 KiB.
    """
    _check_identity(label)
    check_label(label)
    data = _encode(label)
    if len(data) > MAX_LABEL_BYTES:
        raise PackageFormatError(
            f"the label has {len(data)} bytes, at most {MAX_LABEL_BYTES}: shorten [docs]"
        )
    return data


def decode_label(data: bytes) -> Label:
    """Return the label that `data` encodes.

    Signatures and docs are left unparsed, for the enclave's root process decodes labels of
    strangers: whoever uses those calls `check_label` first.

    Raises:
        PackageFormatError: Longer than 256 KiB, not the canonical encoding of a label, or a
            value outside its rules.
    """
    if len(data) > MAX_LABEL_BYTES:
        raise PackageFormatError(f"the label has {len(data)} bytes, at most {MAX_LABEL_BYTES}")
    try:
        label = msgspec.json.decode(data, type=Label)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # msgspec repeats keys of the label, which nobody has checked yet.
        raise PackageFormatError(f"the label is malformed: {plain_text(str(error))}") from None
    if _encode(label) != data:
        raise PackageFormatError("the label is not in canonical form")
    _check_identity(label)
    return label


def check_label(label: Label) -> None:
    """Check what `decode_label` leaves unparsed: exports, signatures, docs, scripts, policy.

    Raises:
        PackageFormatError: One of them breaks a rule.
    """
    try:
        check_manifest(
            Manifest(label.package, label.exports, label.docs, label.scripts, label.policy)
        )
    except PackageError as error:
        raise PackageFormatError(f"the label is malformed: {error.reason}") from None
    if (label.exports.functions or label.exports.classes) and not label.package.module:
        raise PackageFormatError("the label exports names but no module")


def _encode(label: Label) -> bytes:
    return msgspec.json.encode(label, order="sorted")


def _check_identity(label: Label) -> None:
    package = label.package
    if not NAME_PATTERN.fullmatch(package.name) or not VERSION_PATTERN.fullmatch(package.version):
        raise PackageFormatError("the label has no valid package name and version")
    if not 1 <= label.file_count <= MAX_FILES:
        raise PackageFormatError(
            f"the label announces {label.file_count} files, expected 1 to {MAX_FILES}"
        )
    if not 0 < label.archive_bytes <= MAX_ARCHIVE_BYTES or label.archive_bytes % 512:
        raise PackageFormatError(
            f"the label announces an archive of {label.archive_bytes} bytes, expected a "
            f"multiple of 512 up to {MAX_ARCHIVE_BYTES}"
        )
    if not COMMITMENT_PATTERN.fullmatch(label.data_key_commitment):
        raise PackageFormatError("the label's data_key_commitment is not 64 hex digits")
    if label.signer is not None:
        check_signer(label.signer, package.publisher)
