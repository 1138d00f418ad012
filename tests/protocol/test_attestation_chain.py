"""Chains that no Nitro hypervisor makes, each with one thing wrong and everything else right."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from enclave_protocol.attestation_document import (
    AttestationDocument,
    encode_payload,
    encode_signed_document,
    signature_input,
)
from enclave_protocol.attestation_errors import AttestationChainError
from enclave_protocol.attestation_verify import verify_attestation

_NOW = datetime.now(UTC).replace(microsecond=0)
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def _p384() -> _Key:
    return ec.generate_private_key(ec.SECP384R1())


@dataclass(frozen=True)
class _Link:
    """One certificate to be."""

    authority: bool = True
    may_sign: bool = True
    path_length: int | None = None
    make_key: Callable[[], _Key] = _p384
    basic_constraints: bool = True
    key_usage: bool = True
    starts: timedelta = timedelta(minutes=-5)
    ends: timedelta = timedelta(hours=3)


_GOOD = (_Link(), _Link(), _Link(), _Link(authority=False))


def _certify(link: _Link, number: int, key: _Key, issuer: tuple[x509.Name, _Key]) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"level {number}")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0] if number else name)
        .public_key(key.public_key())
        .serial_number(number + 1)
        .not_valid_before(_NOW + link.starts)
        .not_valid_after(_NOW + link.ends)
    )
    if link.basic_constraints:
        value = x509.BasicConstraints(ca=link.authority, path_length=link.path_length)
        builder = builder.add_extension(value, critical=True)
    if link.key_usage:
        usage = x509.KeyUsage(
            digital_signature=link.may_sign and not link.authority,
            content_commitment=False,
            key_encipherment=not link.may_sign,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=link.may_sign and link.authority,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    signer = issuer[1] if number else key
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA384()
    return builder.sign(signer, digest).public_bytes(Encoding.DER)


def _chain(links: tuple[_Link, ...]) -> tuple[list[bytes], _Key]:
    """Return the certificates, root first, and the leaf's key."""
    made: list[bytes] = []
    key = links[0].make_key()
    issuer = (x509.Name([]), key)
    for number, link in enumerate(links):
        key = key if number == 0 else link.make_key()
        made.append(_certify(link, number, key, issuer))
        issuer = (x509.load_der_x509_certificate(made[-1]).subject, key)
    return made, key


def _verify(certificates: list[bytes], leaf_key: _Key) -> None:
    payload = encode_payload(
        AttestationDocument(
            module_id="i-1",
            timestamp=int(_NOW.timestamp() * 1000),
            pcrs={0: b"\1" * 48},
            certificate=certificates[-1],
            cabundle=tuple(certificates[:-1]),
        )
    )
    signature = bytes(96)
    if isinstance(leaf_key, ec.EllipticCurvePrivateKey):
        made = leaf_key.sign(signature_input(payload), ec.ECDSA(hashes.SHA384()))
        signature = b"".join(n.to_bytes(48, "big") for n in utils.decode_dss_signature(made))
    verify_attestation(encode_signed_document(payload, signature), root=certificates[0], now=_NOW)


def test_the_good_chain_is_good() -> None:
    _verify(*_chain(_GOOD))


def _with(position: int, **changes: object) -> tuple[_Link, ...]:
    changed = replace(_GOOD[position], **changes)  # type: ignore[arg-type]  # by name, in a table
    return (*_GOOD[:position], changed, *_GOOD[position + 1 :])


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        (_with(3, may_sign=False), "may not sign"),
        (_with(3, authority=True), "CA=True"),
        (_with(3, make_key=lambda: ec.generate_private_key(ec.SECP256R1())), "P-384"),
        (_with(3, make_key=lambda: rsa.generate_private_key(65537, 2048)), "P-384"),
        (_with(3, make_key=ed25519.Ed25519PrivateKey.generate), "P-384"),
        (_with(3, basic_constraints=False), "not valid at"),
        (_with(3, key_usage=False), "not valid at"),
        (_with(3, ends=timedelta(seconds=-1)), "not valid"),
        (_with(3, starts=timedelta(seconds=1)), "not valid"),
        (_with(2, authority=False), "not valid at"),
        (_with(2, may_sign=False), "not valid at"),
        (_with(2, make_key=lambda: ec.generate_private_key(ec.SECP256R1())), "P-384"),
        (_with(2, key_usage=False), "not valid at"),
        (_with(2, ends=timedelta(seconds=-1)), "not valid"),
        (_with(1, path_length=0), "path length"),
        (_with(0, path_length=1), "path length"),
        (_with(0, may_sign=False), "may not sign"),
        (_with(0, ends=timedelta(seconds=-1)), "not valid"),
    ],
)
def test_one_wrong_certificate(links: tuple[_Link, ...], reason: str) -> None:
    with pytest.raises(AttestationChainError, match=reason):
        _verify(*_chain(links))


def test_order_of_the_bundle() -> None:
    """Without path lengths, a path exists whatever the order: the order itself is checked."""
    certificates, key = _chain(_GOOD)
    root, first, second, leaf = certificates
    with pytest.raises(AttestationChainError, match="order"):
        _verify([root, second, first, leaf], key)


def test_a_certificate_that_is_not_part_of_the_path() -> None:
    certificates, key = _chain(_GOOD)
    strangers, _ = _chain(_GOOD)
    with pytest.raises(AttestationChainError, match="order"):
        _verify([*certificates[:3], strangers[2], certificates[3]], key)
