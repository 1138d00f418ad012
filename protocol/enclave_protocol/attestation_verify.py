"""Verification of an attestation document: bytes, root and clock in, a believed document out."""

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509 import verification

from enclave_protocol.attestation_document import (
    AttestationDocument,
    SignedDocument,
    decode_signed_document,
    signature_input,
)
from enclave_protocol.attestation_errors import (
    AttestationChainError,
    AttestationSignatureError,
    AttestationTimeError,
    DebugModeError,
    NonceMismatchError,
    PcrMismatchError,
    UntrustedRootError,
)

__all__ = ["CERTIFICATE_ERRORS", "CLOCK_SKEW", "verify_attestation"]

CLOCK_SKEW = timedelta(minutes=5)  # how far the document's clock may be ahead of ours
_COORDINATE_BYTES = 48  # P-384
_MAX_INTERMEDIATES = 8
# All that cryptography has for a certificate it cannot read; they share no base class. The
# built-in ones come from its constructors of names and extensions, which it calls as it reads.
CERTIFICATE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    InternalError,
    UnsupportedAlgorithm,
    verification.VerificationError,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def verify_attestation(
    document: bytes,
    *,
    root: x509.Certificate | bytes,
    now: datetime,
    nonce: bytes | None = None,
    pcrs: Mapping[int, bytes] | None = None,
    allow_debug: bool = False,
    max_age: timedelta | None = None,
) -> AttestationDocument:
    """Return the content of `document` after all six steps; every step raises its own error.

    1. Decode the COSE_Sign1 array strictly.
    2. Decode the payload strictly; check every field's type and size.
    3. `cabundle[0]` is the pinned root, byte for byte.
    4. The chain root -> ... -> leaf is valid at `now`, every key P-384, in the order given.
    5. The leaf's key signed the payload (ES384).
    6. Time, nonce, PCRs, debug mode.

    Args:
        document: Untrusted bytes, at most 12 KiB.
        root: The pinned root certificate, object or DER.
        now: The verifier's clock; must carry a time zone.
        nonce: Bytes the document must repeat; None: not asked for.
        pcrs: Required values by index, 48 bytes each; None: the caller decides afterwards.
        allow_debug: Accept an enclave in debug mode; never for key release.
        max_age: Oldest acceptable document; None: as long as its leaf lives (3 h).

    Raises:
        AttestationError: A subclass for the step that failed.
        ValueError: `now` has no time zone.

    Source: FACTS, "Attestation document"; aws-nitro-enclaves-nsm-api, attestation_process.md.
    """
    if now.tzinfo is None:
        raise ValueError("now has no time zone; pass datetime.now(UTC)")
    now = now.astimezone(UTC)
    root_der = (
        root if isinstance(root, bytes) else root.public_bytes(encoding=serialization.Encoding.DER)
    )
    signed = decode_signed_document(document)  # steps 1 and 2
    content = signed.document
    _verify_root(content, root_der)  # step 3
    leaf = _verify_chain(content, now)  # step 4
    _verify_signature(signed, leaf)  # step 5
    _verify_claims(content, now, nonce, pcrs, allow_debug, max_age)  # step 6
    return content


def _verify_root(content: AttestationDocument, root_der: bytes) -> None:
    """Step 3."""
    if not hmac.compare_digest(content.cabundle[0], root_der):
        raise UntrustedRootError(
            expected=_fingerprint(root_der), actual=_fingerprint(content.cabundle[0])
        )


def _fingerprint(der: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()


def _verify_chain(content: AttestationDocument, now: datetime) -> ec.EllipticCurvePublicKey:
    """Step 4: return the leaf's key."""
    try:
        chain = [
            x509.load_der_x509_certificate(der) for der in (*content.cabundle, content.certificate)
        ]
        keys = [certificate.public_key() for certificate in chain]
        # Nitro's leaf has no AKI and no SAN, which the web profile demands.
        relaxed = verification.ExtensionPolicy.permit_all()
        for kind in (x509.BasicConstraints, x509.KeyUsage):
            relaxed = relaxed.require_present(kind, verification.Criticality.AGNOSTIC, None)
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store([chain[0]]))
            .time(now)
            .max_chain_depth(_MAX_INTERMEDIATES)
            .extension_policies(ca_policy=relaxed, ee_policy=relaxed)
            .build_client_verifier()
        )
        found = verifier.verify(chain[-1], chain[1:-1]).chain
        _verify_extensions(chain)
    except CERTIFICATE_ERRORS as error:
        reason = " ".join(str(error).partition(" (encountered")[0].split())
        raise AttestationChainError(
            f"the certificates of the attestation document are not valid at {now.isoformat()}: "
            f"{reason}; ask the enclave for a new document, and check this machine's clock"
        ) from error
    # The bundle is ordered; a verifier that reorders it would accept spliced bundles.
    if found[::-1] != chain:
        raise AttestationChainError("the certificates are not in the order root to leaf")
    p384 = [
        key
        for key in keys
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    ]
    if len(p384) != len(keys):
        raise AttestationChainError("a certificate's key is not P-384, which all of Nitro's are")
    return p384[-1]


def _verify_extensions(chain: list[x509.Certificate]) -> None:
    """Only authorities issue, and only the leaf signs documents; the verifier saw to the rest."""
    for position, certificate in enumerate(chain):
        is_leaf = position == len(chain) - 1
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        if basic.ca is is_leaf:
            raise ValueError(f"certificate {position} has CA={basic.ca}")
        if not (usage.digital_signature if is_leaf else usage.key_cert_sign):
            raise ValueError(f"certificate {position} may not sign")


def _verify_signature(signed: SignedDocument, leaf: ec.EllipticCurvePublicKey) -> None:
    """Step 5."""
    r = int.from_bytes(signed.signature[:_COORDINATE_BYTES], "big")
    s = int.from_bytes(signed.signature[_COORDINATE_BYTES:], "big")
    try:
        leaf.verify(
            utils.encode_dss_signature(r, s),
            signature_input(signed.payload, signed.protected),
            ec.ECDSA(hashes.SHA384()),
        )
    except InvalidSignature as error:
        raise AttestationSignatureError from error


def _verify_claims(
    content: AttestationDocument,
    now: datetime,
    nonce: bytes | None,
    pcrs: Mapping[int, bytes] | None,
    allow_debug: bool,
    max_age: timedelta | None,
) -> None:
    """Step 6."""
    age = now - content.written
    if age < -CLOCK_SKEW or (max_age is not None and age > max_age):
        raise AttestationTimeError(written=content.written, now=now)
    if nonce is not None and not hmac.compare_digest(content.nonce or b"", nonce):
        raise NonceMismatchError
    if content.is_debug and not allow_debug:
        raise DebugModeError
    for index, expected in (pcrs or {}).items():
        actual = content.pcrs.get(index)
        if actual is None or not hmac.compare_digest(actual, expected):
            raise PcrMismatchError(index, expected=expected, actual=actual)
