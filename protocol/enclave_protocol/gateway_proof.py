"""How a gateway shows that it is the one that an enclave met first: signed here, verified here.

The gateway makes a key, and never sends it. What it signs holds for one stream only: its nonce,
what the stream is for, and the TLS key that the other end has shown in the handshake. So nobody who
is spoken to can use it elsewhere, and nobody in between can have a stream taken for another kind.

Source: docs/spec/control.md, "Who is authenticated"; THREATS V-04.
"""

import hashlib
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

__all__ = ["PROOF_BYTES", "PUBLIC_KEY_BYTES", "Purpose", "is_proof", "make_proof"]

Purpose = Literal["control", "workspace"]
PUBLIC_KEY_BYTES: Final = 32
PROOF_BYTES: Final = 64
_DOMAIN: Final = b"enclave-kernel gateway v1\0"


def make_proof(
    key: Ed25519PrivateKey, *, purpose: Purpose, nonce: bytes, enclave_key: bytes
) -> bytes:
    """Return the proof for one stream, 64 bytes.

    Args:
        key: The gateway's.
        purpose: What the stream is for.
        nonce: The challenge's, used once.
        enclave_key: SubjectPublicKeyInfo (DER) of the key that the peer's TLS certificate has.
    """
    return key.sign(_signed(purpose, nonce, enclave_key))


def is_proof(
    proof: bytes, public_key: bytes, *, purpose: Purpose, nonce: bytes, enclave_key: bytes
) -> bool:
    """Return whether the holder of a key made this proof for this stream.

    Args:
        proof: As received.
        public_key: The key's public half, 32 bytes, as received.
        purpose: What the stream was opened for.
        nonce: The challenge's.
        enclave_key: SubjectPublicKeyInfo (DER) of our own TLS key.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(proof, _signed(purpose, nonce, enclave_key))
    except (ValueError, InvalidSignature):
        return False
    return True


def _signed(purpose: Purpose, nonce: bytes, enclave_key: bytes) -> bytes:
    # Nothing here varies in length but the purpose, which has no NUL in it.
    return _DOMAIN + purpose.encode() + b"\0" + nonce + hashlib.sha256(enclave_key).digest()
