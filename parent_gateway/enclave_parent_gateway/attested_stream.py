"""Streams to the enclave in TLS whose other end proved to be the enclave, before a word is said.

Source: docs/spec/control.md, "The attested channel".
"""

import asyncio
import secrets
import socket
import ssl
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_parent_gateway.transport import CONNECT_TIMEOUT_S, connect, tls_context
from enclave_protocol.attestation_errors import ChannelBindingError
from enclave_protocol.channel_binding import CHALLENGE_BYTES, public_key_of
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.gateway_proof import Purpose, make_proof
from enclave_protocol.messages import (
    MAX_CHALLENGE_BYTES,
    Challenge,
    MessageError,
    OpenControl,
    OpenWorkspace,
    decode_attested,
    encode,
)

__all__ = ["AttestedStream", "PeerCheck", "open_attested"]

_PORTION_BYTES = 64 * 1024
_PROOF_TIMEOUT_S = 10.0
_SHUTDOWN_TIMEOUT_S = 1.0


class PeerCheck(Protocol):
    """Verifies that an attestation document is the enclave's, for this TLS certificate."""

    def __call__(self, document: bytes, *, certificate: bytes, nonce: bytes) -> object:
        """Raise an `EnclaveError` unless it is. Called in a thread."""


@dataclass(frozen=True)
class AttestedStream:
    """A stream to the enclave; `certificate` is the one it proved to be its own, DER."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    certificate: bytes


async def open_attested(
    endpoint: str,
    opening: OpenControl | OpenWorkspace,
    check: PeerCheck,
    key: Ed25519PrivateKey | None,
) -> AttestedStream:
    """Return a new stream whose peer proved to be the enclave.

    1. Say what the stream is for: the only word before TLS.
    2. TLS 1.3 with whoever is there.
    3. A fresh nonce, and our proof for this stream; the peer's document over it.
    4. The check: chain, time, nonce, PCRs, debug mode, and the key of step 2.

    Args:
        endpoint: The supervisor's, as in `transport.connect`.
        opening: The first message.
        check: Step 4.
        key: The gateway's; None: it has none, which only enclaves for development take.

    Raises:
        TransportError: Nothing answers.
        OSError, TimeoutError: The connection broke or TLS failed.
        EnclaveError: The peer breaks the rules, or the check failed.
    """
    sock = await asyncio.to_thread(connect, endpoint)
    try:
        # 30 bytes into the empty buffer of a new connection: this does not block.
        sock.sendall(encode_frame(encode(opening)))
        reader, writer = await _secure(sock)
    except BaseException:
        sock.close()
        raise
    try:
        async with asyncio.timeout(_PROOF_TIMEOUT_S):
            challenge = _challenge(writer, opening, key)
            certificate = await _prove(reader, writer, challenge, check)
    except BaseException:
        writer.transport.abort()
        raise
    return AttestedStream(reader, writer, certificate)


@cache
def _context() -> ssl.SSLContext:
    return tls_context()


async def _secure(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the connection after its TLS handshake; it owns the socket then."""
    return await asyncio.open_connection(
        sock=sock,
        ssl=_context(),
        server_hostname="",
        ssl_handshake_timeout=CONNECT_TIMEOUT_S,
        ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
    )


def _certificate(writer: asyncio.StreamWriter) -> bytes:
    return writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""


def _challenge(
    writer: asyncio.StreamWriter,
    opening: OpenControl | OpenWorkspace,
    key: Ed25519PrivateKey | None,
) -> Challenge:
    nonce = secrets.token_bytes(CHALLENGE_BYTES)
    if key is None:
        return Challenge(nonce)
    purpose: Purpose = "workspace" if isinstance(opening, OpenWorkspace) else "control"
    try:
        enclave_key = public_key_of(_certificate(writer))
    except ChannelBindingError:
        # No enclave's certificate: the check says so.
        return Challenge(nonce)
    proof = make_proof(key, purpose=purpose, nonce=nonce, enclave_key=enclave_key)
    return Challenge(nonce, key.public_key().public_bytes_raw(), proof)


async def _prove(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    challenge: Challenge,
    check: PeerCheck,
) -> bytes:
    """Steps 3 and 4; return the certificate."""
    certificate = _certificate(writer)
    writer.write(encode_frame(encode(challenge)))
    decoder = FrameDecoder(MAX_CHALLENGE_BYTES)
    frames: list[bytes] = []
    while not frames:
        data = await reader.read(_PORTION_BYTES)
        if not data:
            raise MessageError(
                "the enclave hung up instead of answering the challenge; it does so where another "
                "gateway was there first: start it again with enclave down && enclave up"
            )
        frames = decoder.feed(data, most=1)
    if decoder.take_rest():
        raise MessageError("the enclave speaks before it is spoken to")
    document = decode_attested(frames[0]).document
    await asyncio.to_thread(check, document, certificate=certificate, nonce=challenge.nonce)
    return certificate
