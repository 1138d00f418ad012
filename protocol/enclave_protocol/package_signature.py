"""The publisher's signature: who made a package, which KMS cannot say.

What is signed: a domain, the algorithm, the label's hash and the hash of the encrypted body. What
is not: the KMS key and the wrapped data key, so that an owner can wrap the data key anew without
signing again. Only bytes in, verdict out; whom a user trusts is decided elsewhere.

Source: docs/spec/encrypted_package.md, "Signature"; docs/decisions/publisher_signature.md;
THREATS A-05, Z-01, Z-03.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from enclave_protocol.package_errors import PackageFormatError, PackageTamperedError

__all__ = [
    "ECDSA_P384",
    "ED25519",
    "MAX_PUBLISHER_CHARS",
    "MAX_SIGNATURE_BYTES",
    "SIGNATURE_BYTES",
    "Algorithm",
    "PackageSignature",
    "PackageSignatureError",
    "Signer",
    "check_signer",
    "decode_signature",
    "is_publisher",
    "publisher_key",
    "signed_message",
    "verify_signature",
]

Algorithm = Literal["ed25519", "ecdsa-p384-sha384"]
ED25519: Final = "ed25519"
ECDSA_P384: Final = "ecdsa-p384-sha384"
MAX_PUBLISHER_CHARS: Final = 100
"""Of a signed package's publisher: it is shown in one line and kept by users."""

# Letters, marks and symbols that show nothing, and that `isprintable` takes: a name with one would
# look like another. Source: Unicode 15, DerivedCoreProperties, Default_Ignorable_Code_Point; and
# the empty Braille pattern.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
_DOMAIN: Final = b"enclave-kernel package signature v1\x00"
_DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = {ED25519: 64, ECDSA_P384: 96}
"""Of the value alone, without the digest before it."""
MAX_SIGNATURE_BYTES: Final = _DIGEST_BYTES + max(SIGNATURE_BYTES.values())
# A SubjectPublicKeyInfo of either algorithm is this and then the key: nothing is left to parse.
_SPKI_PREFIX: Final = {
    ED25519: bytes.fromhex("302a300506032b6570032100"),
    ECDSA_P384: bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"),
}
_KEY_BYTES: Final = {ED25519: 32, ECDSA_P384: 96}


class PackageSignatureError(PackageTamperedError):
    """The publisher's signature is missing, or not of this label and body."""


class Signer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key that a label says its package is signed with.

    Attributes:
        algorithm: One of two; nothing about it is guessed from the key or the signature.
        public_key: DER SubjectPublicKeyInfo as lower-case hex.
    """

    algorithm: Algorithm
    public_key: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, 64 lower-case hex digits."""
        return hashlib.sha256(bytes.fromhex(self.public_key)).hexdigest()


@dataclass(frozen=True)
class PackageSignature:
    """What stands between label and wrapped key in a signed file.

    Attributes:
        body_digest: 32 bytes, `body_digest.BodyDigest` of the body.
        value: 64 bytes (Ed25519), or 96 (ECDSA: r, then s).
    """

    body_digest: bytes
    value: bytes

    def encode(self) -> bytes:
        """Return it as it is in the file."""
        return self.body_digest + self.value


def decode_signature(data: bytes, signer: Signer | None) -> PackageSignature | None:
    """Return the signature section of a file whose label names `signer`.

    Raises:
        PackageSignatureError: The label names a signer and there is no signature.
        PackageFormatError: There is one and no signer, or it has another size.
    """
    if signer is None:
        if data:
            raise PackageFormatError("there is a signature, and the label names no signer")
        return None
    if not data:
        raise PackageSignatureError(
            "the publisher's signature was taken out of the file: get it again from its publisher"
        )
    expected = _DIGEST_BYTES + SIGNATURE_BYTES[signer.algorithm]
    if len(data) != expected:
        raise PackageFormatError(
            f"the signature has {len(data)} bytes, expected {expected} for {signer.algorithm}"
        )
    return PackageSignature(data[:_DIGEST_BYTES], data[_DIGEST_BYTES:])


def check_signer(signer: Signer, publisher: str) -> None:
    """Check what a label says of its signer: the one encoding of a key, and a name to pin.

    Raises:
        PackageFormatError: Not a key of that algorithm, or no usable publisher's name.
    """
    try:
        spki = bytes.fromhex(signer.public_key)
    except ValueError:
        spki = b""
    prefix = _SPKI_PREFIX[signer.algorithm]
    fits = spki.startswith(prefix) and len(spki) == len(prefix) + _KEY_BYTES[signer.algorithm]
    if not fits or spki.hex() != signer.public_key:
        raise PackageFormatError(f"the label's public key is none for {signer.algorithm}")
    if not publisher.strip():
        raise PackageFormatError("a signed package names its publisher")
    if not is_publisher(publisher):
        raise PackageFormatError(
            f"a signed package's publisher has at most {MAX_PUBLISHER_CHARS} printable characters, "
            "none of them invisible"
        )


def is_publisher(text: str) -> bool:
    """Return whether a text can be a publisher's name: short, and every character of it is seen."""
    return (
        0 < len(text) <= MAX_PUBLISHER_CHARS
        and text.isprintable()
        and _INVISIBLE.search(text) is None
        and bool(publisher_key(text))
    )


def publisher_key(publisher: str) -> str:
    """Return what a publisher is looked up by: names that look alike to people are one.

    Case, width and spaces do not count. Letters of other scripts that look the same do: such a
    name is another publisher, whose key is shown as new.
    """
    folded = unicodedata.normalize("NFKC", publisher).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def signed_message(signer: Signer, label_bytes: bytes, body_digest: bytes) -> bytes:
    """Return the bytes that the publisher's key signs; at most 4096, as KMS takes them raw."""
    return b"".join(
        (
            _DOMAIN,
            signer.algorithm.encode(),
            b"\x00",
            hashlib.sha512(label_bytes).digest(),
            body_digest,
        )
    )


def verify_signature(signer: Signer, label_bytes: bytes, signature: PackageSignature) -> None:
    """Verify that the holder of the label's key signed this label with this body.

    1. The key is of the algorithm the label names, in its one encoding (`check_signer`, before).
    2. The signature is over domain, algorithm, label and body digest.
    3. That the body has this digest is checked by whoever reads it, before using any of it.

    Raises:
        PackageSignatureError: The signature is of something else.
        PackageFormatError: The public key is no point of its curve.
    """
    message = signed_message(signer, label_bytes, signature.body_digest)
    try:
        key = serialization.load_der_public_key(bytes.fromhex(signer.public_key))
    except ValueError:
        raise PackageFormatError(f"the label's public key is none for {signer.algorithm}") from None
    try:
        if signer.algorithm == ED25519 and isinstance(key, Ed25519PublicKey):
            key.verify(signature.value, message)
        elif signer.algorithm == ECDSA_P384 and isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(part, "big") for part in _halves(signature.value))
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA384()))
        else:
            raise PackageFormatError(f"the label's public key is none for {signer.algorithm}")
    except InvalidSignature:
        raise PackageSignatureError(
            "the publisher's signature is of another label or body: get the file again from its "
            "publisher"
        ) from None


def _halves(value: bytes) -> tuple[bytes, bytes]:
    return value[: len(value) // 2], value[len(value) // 2 :]
