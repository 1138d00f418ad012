"""The tie between a TLS key and a document; what is not the enclave expected is in
tests/parent_gateway/test_control_stream.py."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from enclave_protocol.attestation_errors import ChannelBindingError, PcrMismatchError
from enclave_protocol.channel_binding import (
    NOTEBOOK_USER_DATA,
    channel_user_data,
    public_key_of,
    verify_channel,
)
from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents

NONCE = b"n" * 32
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def certificate(key: _Key) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    start, end = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.fixture
def maker(tmp_path: Path) -> DocumentMaker:
    return make_documents(tmp_path / "root", datetime.now(UTC))


def test_the_key_of_the_certificate_is_the_one_attested(maker: DocumentMaker) -> None:
    mine = certificate(ec.generate_private_key(ec.SECP256R1()))
    document = maker.document(nonce=NONCE, user_data=channel_user_data(public_key_of(mine)))

    def verify(shown: bytes, pcrs: dict[int, set[bytes]]) -> None:
        verify_channel(
            document,
            certificate=shown,
            nonce=NONCE,
            root=maker.root.der,
            now=datetime.now(UTC),
            pcrs=pcrs,
        )

    verify(mine, {0: {PCR0}})
    verify(mine, {0: {PCR0, b"x" * 48}, 2: {maker.module._pcrs[2]}})
    with pytest.raises(ChannelBindingError):
        verify(certificate(ec.generate_private_key(ec.SECP256R1())), {0: {PCR0}})
    with pytest.raises(PcrMismatchError, match="PCR20 is absent"):
        verify(mine, {0: {PCR0}, 20: {PCR0}})
    # Without an image that is expected, nothing is verified.
    missing: list[dict[int, set[bytes]]] = [{}, {0: set()}, {8: {PCR0}}]
    for nothing in missing:
        with pytest.raises(ValueError, match="PCR0"):
            verify(mine, nothing)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_another_kind_of_key(key: _Key) -> None:
    with pytest.raises(ChannelBindingError):
        public_key_of(certificate(key))


@pytest.mark.parametrize("data", [b"", b"\x30\x80", b"x" * 1000])
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(ChannelBindingError):
        public_key_of(data)


def test_labels_tell_purposes_apart() -> None:
    user_data = channel_user_data(b"key")
    assert user_data != channel_user_data(b"yek")
    assert not user_data.startswith(NOTEBOOK_USER_DATA)
    assert not NOTEBOOK_USER_DATA.startswith(user_data[:-32])
