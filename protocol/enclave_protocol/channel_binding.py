"""What ties a control stream's TLS key to an attestation document: encoded here, verified here.

The enclave makes a TLS key at boot and shows a certificate of it that nobody signed. The document
carries a hash of that key in `user_data`, behind a label, so that it can serve no other purpose.
Source: docs/spec/control.md, "The attested channel".
"""

import hashlib
import hmac
from collections.abc import Mapping, Set
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_protocol.attestation_document import AttestationDocument
from enclave_protocol.attestation_errors import ChannelBindingError, PcrMismatchError
from enclave_protocol.attestation_verify import CERTIFICATE_ERRORS, verify_attestation

__all__ = [
    "CHALLENGE_BYTES",
    "MAX_DOCUMENT_AGE",
    "NOTEBOOK_USER_DATA",
    "channel_user_data",
    "check_pcrs",
    "public_key_of",
    "verify_channel",
]

CHALLENGE_BYTES: Final = 32
"""Length of the gateway's nonce."""
MAX_DOCUMENT_AGE: Final = timedelta(minutes=5)
"""The nonce makes it fresh; more than this is two clocks that disagree, as for one ahead."""
NOTEBOOK_USER_DATA: Final = b"enclave-kernel notebook v1\0"
"""`user_data` of a document that a notebook asked for: it must not pass for a channel's."""
_CHANNEL_LABEL: Final = b"enclave-kernel control stream v1\0"


def channel_user_data(public_key: bytes) -> bytes:
    """Return the `user_data` for a TLS key: the label, then 32 bytes of SHA-256.

    Args:
        public_key: SubjectPublicKeyInfo, DER.
    """
    return _CHANNEL_LABEL + hashlib.sha256(public_key).digest()


def public_key_of(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) of a peer's TLS certificate.

    Args:
        certificate: Untrusted DER; nothing but its key is looked at.

    Raises:
        ChannelBindingError: It cannot be read, or its key is not on P-256.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except CERTIFICATE_ERRORS as error:
        raise ChannelBindingError from error
    # One kind of key has one encoding: the hash cannot be of another one of the same key.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ChannelBindingError
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def verify_channel(
    document: bytes,
    *,
    certificate: bytes,
    nonce: bytes,
    root: bytes,
    now: datetime,
    pcrs: Mapping[int, Set[bytes]],
    allow_debug: bool = False,
) -> AttestationDocument:
    """Return the document's content if the peer of a TLS connection is the enclave expected.

    1. The six steps of `attestation_verify`: chain to the root, time, nonce, no debug mode.
    2. Every PCR that is expected has one of the values expected of it.
    3. It names no key to encrypt to, and the key it names for TLS is the one that the peer's
       certificate has, and with which the peer signed the handshake.

    Args:
        document: The peer's answer, untrusted.
        certificate: What the peer showed in the handshake, DER.
        nonce: What it was asked with, 32 fresh random bytes.
        root: The pinned root certificate, DER.
        now: With a time zone.
        pcrs: Values by index, 48 bytes each; PCR0 must be among them.
        allow_debug: Accept debug mode: of an enclave that its administrator started so, and of
            which nothing is expected. Nothing about such an enclave is proven.

    Raises:
        AttestationError: A subclass for the step that failed.
        ValueError: Nothing is expected of PCR0, or the nonce is too short to be one.
    """
    if not pcrs.get(0) or len(nonce) != CHALLENGE_BYTES:
        raise ValueError("a channel is verified with a value of PCR0 and a nonce of 32 bytes")
    content = verify_attestation(
        document,
        root=root,
        now=now,
        nonce=nonce,
        max_age=MAX_DOCUMENT_AGE,
        allow_debug=allow_debug,
    )
    check_pcrs(content, pcrs)
    wanted = channel_user_data(public_key_of(certificate))
    named = content.user_data or b""
    if content.public_key is not None or not hmac.compare_digest(named, wanted):
        raise ChannelBindingError
    return content


def check_pcrs(content: AttestationDocument, pcrs: Mapping[int, Set[bytes]]) -> None:
    """See that every PCR expected has one of its values.

    Raises:
        PcrMismatchError: One has another value, or none.
    """
    for index, values in sorted(pcrs.items()):
        actual = content.pcrs.get(index)
        if actual is None or actual not in values:
            raise PcrMismatchError(index, expected=values, actual=actual)
