"""A verified attestation document as people and scripts are shown it. Values only."""

import hashlib
from typing import Any

from enclave_protocol.attestation_document import DIGEST, AttestationDocument

__all__ = ["document_fields", "pcr_meaning", "used_pcrs"]

_MEANINGS = {
    0: "the image",
    1: "its kernel, command line and first ramdisk",
    2: "its other ramdisks",
    3: "the parent instance's IAM role",
    4: "the parent instance's id",
    8: "the certificate the image was signed with",
}


def pcr_meaning(index: int) -> str:
    """Return what a PCR is a hash of. Source: FACTS, "Attestation document"."""
    return _MEANINGS.get(index, "reserved" if index < 16 else "chosen by the application")


def used_pcrs(document: AttestationDocument) -> dict[int, bytes]:
    """Return the PCRs that are not zero, and PCR0 in any case."""
    return {
        index: value for index, value in sorted(document.pcrs.items()) if index == 0 or any(value)
    }


def document_fields(document: AttestationDocument) -> dict[str, Any]:
    """Return what `enclave attest --json` and `%attest --json` print of a document.

    Binary values are lower-case hex, certificates their SHA-256, root first and leaf last.
    """

    def text(value: bytes | None) -> str | None:
        return None if value is None else value.hex()

    chain = (*document.cabundle, document.certificate)
    return {
        "module_id": document.module_id,
        "time": document.written.isoformat(),
        "digest": DIGEST,
        "pcrs": {str(index): value.hex() for index, value in sorted(document.pcrs.items())},
        "certificates_sha256": [hashlib.sha256(der).hexdigest() for der in chain],
        "nonce": text(document.nonce),
        "user_data": text(document.user_data),
        "public_key": text(document.public_key),
        "debug": document.is_debug,
    }
