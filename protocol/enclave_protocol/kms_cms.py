"""KMS's `CiphertextForRecipient`: CMS EnvelopedData, read in both shapes KMS emits, and opened.

The answer is encrypted but not authenticated: whoever knows the public key can make one. The
caller must bind the plaintext to something else (FACTS, "KMS").
Source: RFC 5652 section 6, RFC 3560; FACTS, "KMS".
"""

import hashlib
from typing import NoReturn

import msgspec
from asn1crypto import cms  # type: ignore[import-untyped]  # ships no stubs
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from enclave_protocol.errors import EnclaveError

__all__ = [
    "MAX_CMS_BYTES",
    "CmsError",
    "CmsFormatError",
    "CmsOpenError",
    "EnvelopedKey",
    "decode_cms",
    "decrypt_cms",
    "recipient_key_id",
]

MAX_CMS_BYTES = 16 * 1024  # KMS's largest plaintext is 4096 bytes, an RSA-4096 private key less
_VERSION = "v2"
_RSA_BYTES = 256
_BLOCK_BYTES = 16


class CmsError(EnclaveError):
    """KMS's answer for the enclave cannot be used."""


class CmsFormatError(CmsError):
    """The answer is not the CMS structure KMS writes."""


class CmsOpenError(CmsError):
    """The answer is not encrypted for this key, or was altered.

    One error and one message for every cause: which step failed must not be observable.
    """

    def __init__(self) -> None:
        super().__init__(
            "KMS's answer does not open with this enclave's key: it was made for another request "
            "or altered on the way; try again"
        )


class EnvelopedKey(msgspec.Struct, frozen=True):
    """The parts of the CMS structure, checked for form."""

    key_identifier: bytes
    encrypted_key: bytes
    iv: bytes
    encrypted_content: bytes


def recipient_key_id(key: rsa.RSAPublicKey) -> bytes:
    """Return how KMS names the recipient: SHA-256 of the DER SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).digest()


def decode_cms(data: bytes) -> EnvelopedKey:
    """Return the parts of a `CiphertextForRecipient`.

    Args:
        data: Untrusted BER or DER, at most 16 KiB; indefinite lengths are KMS's own form.

    Raises:
        CmsFormatError: Not the structure KMS writes; says which part.
    """
    if not 0 < len(data) <= MAX_CMS_BYTES:
        _refuse(f"it has {len(data)} bytes, expected 1 to {MAX_CMS_BYTES}")
    try:
        return _decode(bytes(data))
    # asn1crypto recurses by input and parses lazily, so any of these can come from any field.
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CmsFormatError(f"KMS's answer is not CMS: {reason:.200}") from error


def _decode(data: bytes) -> EnvelopedKey:
    info = cms.ContentInfo.load(data, strict=True)
    if info["content_type"].native != "enveloped_data":
        _refuse("content type is not envelopedData")
    enveloped = info["content"]
    recipients = enveloped["recipient_infos"]
    if enveloped["version"].native != _VERSION or len(recipients) != 1:
        _refuse("expected version 2 and one recipient")
    if recipients[0].name != "ktri":
        _refuse("the recipient is not of the key transport kind")
    recipient = recipients[0].chosen
    if recipient["version"].native != _VERSION or recipient["rid"].name != "subject_key_identifier":
        _refuse("the recipient is not named by its key identifier")
    _check_key_encryption(recipient["key_encryption_algorithm"])
    content = enveloped["encrypted_content_info"]
    algorithm = content["content_encryption_algorithm"]
    if content["content_type"].native != "data" or algorithm["algorithm"].native != "aes256_cbc":
        _refuse("the content is not data under aes-256-cbc")
    parts = EnvelopedKey(
        key_identifier=recipient["rid"].chosen.native,
        encrypted_key=recipient["encrypted_key"].native,
        iv=algorithm["parameters"].native,
        encrypted_content=content["encrypted_content"].native,
    )
    if any(type(getattr(parts, name)) is not bytes for name in parts.__struct_fields__):
        _refuse("a field is missing or not an octet string")
    if len(parts.encrypted_key) != _RSA_BYTES or len(parts.iv) != _BLOCK_BYTES:
        _refuse("the encrypted key or the IV has the wrong size")
    if not parts.encrypted_content or len(parts.encrypted_content) % _BLOCK_BYTES:
        _refuse("the content is not whole AES blocks")
    return parts


def _check_key_encryption(algorithm: cms.KeyEncryptionAlgorithm) -> None:
    if algorithm["algorithm"].native != "rsaes_oaep":
        _refuse("the key is not encrypted with RSAES-OAEP")
    parameters = algorithm["parameters"]
    mask = parameters["mask_gen_algorithm"]
    if (
        parameters["hash_algorithm"]["algorithm"].native != "sha256"
        or mask["algorithm"].native != "mgf1"
        or mask["parameters"]["algorithm"].native != "sha256"
        or parameters["p_source_algorithm"]["parameters"].native != b""
    ):
        _refuse("RSAES-OAEP is not with SHA-256, MGF1-SHA-256 and an empty label")


def _refuse(reason: str) -> NoReturn:
    raise CmsFormatError(
        f"KMS's answer is not the CMS that KMS writes: {reason}; check the KMS endpoint"
    )


def decrypt_cms(private_key: rsa.RSAPrivateKey, der: bytes) -> bytearray:
    """Open a `CiphertextForRecipient`; the caller wipes the result.

    Args:
        private_key: The RSA-2048 key whose public half was in the attestation document.
        der: Untrusted BER or DER, at most 16 KiB.

    Returns:
        The plaintext, at least 0 bytes; not authenticated. No other copy of it stays in memory.
        Of the content key one does, in freed memory, until that is used again: the library
        returns the result of an RSA decryption as immutable bytes. It opens this answer only.

    Raises:
        CmsFormatError: Not the structure KMS writes.
        CmsOpenError: Made for another key, or altered.
    """
    parts = decode_cms(der)
    if parts.key_identifier != recipient_key_id(private_key.public_key()):
        raise CmsOpenError
    oaep = rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    content_key = bytearray()
    # `update_into` asks for a block less one byte more than it writes.
    padded = bytearray(len(parts.encrypted_content) + _BLOCK_BYTES - 1)
    try:
        content_key = bytearray(private_key.decrypt(parts.encrypted_key, oaep))
        # AES256 raises ValueError for a key of any other size.
        decryptor = Cipher(algorithms.AES256(content_key), modes.CBC(parts.iv)).decryptor()
        written = decryptor.update_into(parts.encrypted_content, padded)
        decryptor.finalize()
        with memoryview(padded)[:written] as whole, whole[: _unpadded_size(whole)] as plaintext:
            return bytearray(plaintext)
    except ValueError as error:
        raise CmsOpenError from error
    finally:
        for secret in (content_key, padded):
            secret[:] = bytes(len(secret))


def _unpadded_size(padded: memoryview) -> int:
    """Return how many bytes of `padded`, at least one block, are before the PKCS#7 padding.

    Looks at every byte of the last block, whatever is in it.

    Raises:
        ValueError: There is no padding.
    """
    size = padded[-1]
    wrong = (size == 0) | (size > _BLOCK_BYTES)
    for position in range(1, _BLOCK_BYTES + 1):
        wrong |= (position <= size) & (padded[-position] != size)
    if wrong:
        raise ValueError("no PKCS#7 padding")
    return len(padded) - size
