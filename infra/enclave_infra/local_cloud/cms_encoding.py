"""`CiphertextForRecipient` as KMS writes it: CMS EnvelopedData in BER, in both observed shapes.

Shapes (tests/vectors/cms): the encrypted content is a constructed [0] of OCTET STRINGs of up to
1000 bytes, or one primitive [0]. The reader is `enclave_protocol.kms_cms`.
"""

import enum
import os

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from enclave_protocol.kms_cms import recipient_key_id

__all__ = ["CmsShape", "encrypt_cms"]

_SEGMENT_BYTES = 1000
_SEQUENCE, _SET, _INTEGER, _OCTETS, _OID = 0x30, 0x31, 0x02, 0x04, 0x06
_CONTEXT_0, _CONTEXT_0_CONSTRUCTED, _CONTEXT_1_CONSTRUCTED = 0x80, 0xA0, 0xA1
_NULL = b"\x05\x00"
_END_OF_CONTENTS = b"\x00\x00"
_ENVELOPED_DATA = bytes.fromhex("2a864886f70d010703")
_DATA = bytes.fromhex("2a864886f70d010701")
_RSAES_OAEP = bytes.fromhex("2a864886f70d010107")
_MGF1 = bytes.fromhex("2a864886f70d010108")
_SHA256 = bytes.fromhex("608648016503040201")
_AES_256_CBC = bytes.fromhex("60864801650304012a")


class CmsShape(enum.Enum):
    """How the encrypted content is written."""

    CONSTRUCTED = "constructed"
    PRIMITIVE = "primitive"


def _definite(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _indefinite(tag: int, *parts: bytes) -> bytes:
    return bytes((tag, 0x80)) + b"".join(parts) + _END_OF_CONTENTS


def encrypt_cms(recipient: rsa.RSAPublicKey, plaintext: bytes, shape: CmsShape) -> bytes:
    """Encrypt `plaintext` for `recipient` under a fresh AES-256 key; BER, as KMS emits it.

    Args:
        recipient: The key from the attestation document.
        plaintext: At most 4096 bytes with KMS.
        shape: Which of KMS's two forms.
    """
    content_key, iv = os.urandom(32), os.urandom(16)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padder.update(plaintext) + padder.finalize())
    encrypted += encryptor.finalize()
    oaep = rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    sha256 = _definite(_SEQUENCE, _definite(_OID, _SHA256), _NULL)
    oaep_parameters = _definite(
        _SEQUENCE,
        _definite(_CONTEXT_0_CONSTRUCTED, sha256),
        _definite(_CONTEXT_1_CONSTRUCTED, _definite(_SEQUENCE, _definite(_OID, _MGF1), sha256)),
    )
    version = _definite(_INTEGER, b"\x02")
    recipient_info = _definite(
        _SEQUENCE,
        version,
        _definite(_CONTEXT_0, recipient_key_id(recipient)),
        _definite(_SEQUENCE, _definite(_OID, _RSAES_OAEP), oaep_parameters),
        _definite(_OCTETS, recipient.encrypt(content_key, oaep)),
    )
    content_info = _indefinite(
        _SEQUENCE,
        _definite(_OID, _DATA),
        _definite(_SEQUENCE, _definite(_OID, _AES_256_CBC), _definite(_OCTETS, iv)),
        _encrypted_content(encrypted, shape),
    )
    enveloped = _indefinite(_SEQUENCE, version, _definite(_SET, recipient_info), content_info)
    return _indefinite(
        _SEQUENCE,
        _definite(_OID, _ENVELOPED_DATA),
        _indefinite(_CONTEXT_0_CONSTRUCTED, enveloped),
    )


def _encrypted_content(encrypted: bytes, shape: CmsShape) -> bytes:
    if shape is CmsShape.PRIMITIVE:
        return _definite(_CONTEXT_0, encrypted)
    segments = (
        _definite(_OCTETS, encrypted[start : start + _SEGMENT_BYTES])
        for start in range(0, len(encrypted), _SEGMENT_BYTES)
    )
    return _indefinite(_CONTEXT_0_CONSTRUCTED, *segments)
