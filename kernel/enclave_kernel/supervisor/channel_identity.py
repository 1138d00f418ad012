"""The enclave's TLS identity: a key made at boot, in this process's memory and nowhere else.

Nobody certifies it. The attestation document names its public key (docs/spec/control.md).
"""

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclave_protocol.channel_binding import channel_user_data

__all__ = ["ChannelIdentity", "new_channel_identity"]

_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enclave")])
_BEGIN = datetime(2000, 1, 1, tzinfo=UTC)
_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""It has no end of its own (RFC 5280, 4.1.2.5): it goes with the enclave."""


@dataclass(frozen=True)
class ChannelIdentity:
    """What control streams are accepted with.

    Attributes:
        context: TLS 1.3 as a server; no tickets, so that no session outlives its connection.
        user_data: What attestation documents say of the key.
        public_key: SubjectPublicKeyInfo, DER.
    """

    context: ssl.SSLContext
    user_data: bytes
    public_key: bytes


def new_channel_identity() -> ChannelIdentity:
    """Return a new identity. Call it before anything else is started.

    The key passes through a memfd, since OpenSSL reads it from a file by its name. That is closed
    when this returns: no process started later can inherit it. All of them are exec'd, so none
    has this one's memory either.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # No resumption: every connection is attested by its own handshake. And no early data, which
    # would come before it (OpenSSL takes none unless told to).
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor = os.memfd_create("channel-identity", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
    public_key = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return ChannelIdentity(context, channel_user_data(public_key), public_key)
