"""The Nitro attestation document: a COSE_Sign1 array and its payload, decoded and encoded.

Decoding checks form only (steps 1 and 2 of the procedure in `attestation_verify`); a decoded
document is not yet believed. Encoding serves the software NSM.
Source: FACTS, "Attestation document"; RFC 9052 section 4.2.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import cbor2
import msgspec

from enclave_protocol.attestation_errors import AttestationFormatError
from enclave_protocol.strict_cbor import StrictCborError, decode_item, decode_map

__all__ = [
    "DIGEST",
    "MAX_DOCUMENT_BYTES",
    "MAX_FIELD_BYTES",
    "PCR_BYTES",
    "PCR_COUNT",
    "SIGNATURE_BYTES",
    "AttestationDocument",
    "SignedDocument",
    "decode_signed_document",
    "encode_payload",
    "encode_signed_document",
    "signature_input",
]

MAX_DOCUMENT_BYTES = 0x3000  # the NSM's largest response
MAX_FIELD_BYTES = 1024  # user_data, nonce, public_key: genuine documents exceed the written 512
PCR_COUNT = 32
PCR_BYTES = 48
DIGEST = "SHA384"
SIGNATURE_BYTES = 96  # ES384: r and s, 48 bytes each
_MAX_CERTIFICATE_BYTES = 1024
_MAX_CABUNDLE = 8  # Nitro sends 4
_MAX_MODULE_ID_BYTES = 256
_MAX_TIMESTAMP_MS = 253_402_300_799_999  # the last millisecond of year 9999
_COSE_SIGN1_TAG = 0xD2  # tag 18 in one byte; Nitro omits it
_PROTECTED_ES384 = {1: -35}
_REQUIRED = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
_OPTIONAL = ("public_key", "user_data", "nonce")


class AttestationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The payload that the NSM signs.

    `timestamp` is in milliseconds since 1970 (UTC); `pcrs` maps index 0..31 to 48 bytes;
    certificates are DER, `cabundle[0]` is the root.
    """

    module_id: str
    timestamp: int
    pcrs: dict[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None = None
    user_data: bytes | None = None
    nonce: bytes | None = None

    @property
    def written(self) -> datetime:
        """When the NSM wrote the document, UTC."""
        return datetime.fromtimestamp(self.timestamp / 1000, UTC)

    @property
    def is_debug(self) -> bool:
        """Whether the enclave runs in debug mode.

        Debug mode zeroes PCR0, 1, 2 and 8 and leaves 3 and 4; PCR0 alone decides, because no
        image measures to zero.
        """
        return not any(self.pcrs.get(0, b""))


class SignedDocument(msgspec.Struct, frozen=True):
    """A document with the exact bytes its signature covers; the signature is still unchecked."""

    protected: bytes
    payload: bytes
    signature: bytes
    document: AttestationDocument


def decode_signed_document(data: bytes) -> SignedDocument:
    """Decode a COSE_Sign1 attestation document, tagged (18) or not.

    Args:
        data: Untrusted bytes; more than 12 KiB are refused before decoding.

    Raises:
        AttestationFormatError: Not such a document; says which part.
    """
    if not 0 < len(data) <= MAX_DOCUMENT_BYTES:
        raise AttestationFormatError(
            f"attestation document has {len(data)} bytes, expected 1 to {MAX_DOCUMENT_BYTES}"
        )
    data = bytes(data)
    try:
        parts = decode_item(data[1:] if data[0] == _COSE_SIGN1_TAG else data)
    except StrictCborError as error:
        raise AttestationFormatError(f"attestation document: {error}") from error
    if type(parts) is not list or len(parts) != 4:
        raise AttestationFormatError("attestation document is not an array of 4 (COSE_Sign1)")
    protected, unprotected, payload, signature = parts
    if type(protected) is not bytes or _decode_protected(protected) != _PROTECTED_ES384:
        raise AttestationFormatError("protected header is not {1: -35} (ES384)")
    if type(unprotected) is not dict or unprotected:
        raise AttestationFormatError("unprotected header is not an empty map")
    if type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise AttestationFormatError(f"signature is not {SIGNATURE_BYTES} bytes")
    if type(payload) is not bytes:
        raise AttestationFormatError("payload is not a byte string")
    return SignedDocument(protected, payload, signature, _decode_payload(payload))


def _decode_protected(protected: bytes) -> Any:
    try:
        return decode_item(protected)
    except StrictCborError as error:
        raise AttestationFormatError(f"protected header: {error}") from error


def _decode_payload(payload: bytes) -> AttestationDocument:
    try:
        fields = decode_map(payload)
    except StrictCborError as error:
        raise AttestationFormatError(f"payload: {error}") from error
    missing = [name for name in _REQUIRED if name not in fields]
    unknown = [name for name in fields if name not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        raise AttestationFormatError(
            f"payload lacks {missing} and has unknown {[name[:40] for name in unknown[:4]]}"
        )
    module_id, timestamp = fields["module_id"], fields["timestamp"]
    if type(module_id) is not str or not 0 < len(module_id.encode()) <= _MAX_MODULE_ID_BYTES:
        raise AttestationFormatError("module_id is not a text of 1 to 256 bytes")
    if fields["digest"] != DIGEST:
        raise AttestationFormatError(f"digest is not {DIGEST}")
    if type(timestamp) is not int or not 0 < timestamp <= _MAX_TIMESTAMP_MS:
        raise AttestationFormatError("timestamp is not a positive number of milliseconds")
    cabundle = fields["cabundle"]
    if type(cabundle) is not list or not 0 < len(cabundle) <= _MAX_CABUNDLE:
        raise AttestationFormatError(f"cabundle is not a list of 1 to {_MAX_CABUNDLE} items")
    for certificate in (fields["certificate"], *cabundle):
        if type(certificate) is not bytes or not 0 < len(certificate) <= _MAX_CERTIFICATE_BYTES:
            raise AttestationFormatError("a certificate is not 1 to 1024 bytes")
    for name in _OPTIONAL:
        _check_optional(name, fields.get(name))
    return AttestationDocument(
        module_id=module_id,
        timestamp=timestamp,
        pcrs=_check_pcrs(fields["pcrs"]),
        certificate=fields["certificate"],
        cabundle=tuple(cabundle),
        public_key=fields.get("public_key"),
        user_data=fields.get("user_data"),
        nonce=fields.get("nonce"),
    )


def _check_pcrs(pcrs: Any) -> dict[int, bytes]:
    if type(pcrs) is not dict or not 0 < len(pcrs) <= PCR_COUNT:
        raise AttestationFormatError(f"pcrs is not a map of 1 to {PCR_COUNT} items")
    for index, value in pcrs.items():
        if type(index) is not int or not 0 <= index < PCR_COUNT:
            raise AttestationFormatError(f"PCR index {index!r:.20} is not within 0..31")
        if type(value) is not bytes or len(value) != PCR_BYTES:
            raise AttestationFormatError(f"PCR{index} is not {PCR_BYTES} bytes")
    if 0 not in pcrs:
        raise AttestationFormatError("pcrs has no PCR0, so the image is unknown")
    return dict(pcrs)


def _check_optional(name: str, value: Any) -> None:
    if value is not None and (type(value) is not bytes or len(value) > MAX_FIELD_BYTES):
        raise AttestationFormatError(f"{name} is neither null nor at most {MAX_FIELD_BYTES} bytes")


def encode_payload(document: AttestationDocument) -> bytes:
    """Return the CBOR payload, its fields in the order the NSM writes them."""
    fields: Mapping[str, object] = {
        "module_id": document.module_id,
        "digest": DIGEST,
        "timestamp": document.timestamp,
        "pcrs": dict(sorted(document.pcrs.items())),
        "certificate": document.certificate,
        "cabundle": list(document.cabundle),
        "public_key": document.public_key,
        "user_data": document.user_data,
        "nonce": document.nonce,
    }
    return cbor2.dumps(fields)


def signature_input(payload: bytes, protected: bytes | None = None) -> bytes:
    """Return the COSE Sig_structure: what ES384 signs (step 5).

    Args:
        payload: The CBOR payload.
        protected: The protected header as received; None: the only one there is.
    """
    header = cbor2.dumps(_PROTECTED_ES384) if protected is None else protected
    return cbor2.dumps(["Signature1", header, b"", payload])


def encode_signed_document(payload: bytes, signature: bytes) -> bytes:
    """Return the untagged COSE_Sign1 array as the NSM emits it.

    Args:
        payload: The CBOR payload.
        signature: 96 bytes, r then s, over `signature_input(payload)`.
    """
    return cbor2.dumps([cbor2.dumps(_PROTECTED_ES384), {}, payload, signature])
