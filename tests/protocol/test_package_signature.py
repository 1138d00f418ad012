"""The publisher's signature: what it covers, what may change under it, what does not fool it."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_encryption.publisher_keys import FileKey
from enclave_protocol.body_digest import SEGMENT_BYTES, BodyDigest
from enclave_protocol.chunked_encryption import Encryptor
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_archive import ArchiveEnd
from enclave_protocol.package_errors import PackageError, PackageFormatError, PackageTamperedError
from enclave_protocol.package_header import PackageHeader, decode_header, encode_header
from enclave_protocol.package_label import Label, encode_label
from enclave_protocol.package_reader import read_package
from enclave_protocol.package_signature import (
    ECDSA_P384,
    ED25519,
    PackageSignature,
    PackageSignatureError,
    Signer,
    check_signer,
    publisher_key,
    signed_message,
    verify_signature,
)
from tests.support import plain_package as plain
from tests.support.example_package import FILES, KEY_ARN, make_example, make_label, sign_package
from tests.support.held_key import HeldKey

PUBLISHER = FileKey(Ed25519PrivateKey.generate())
STRANGER = FileKey(Ed25519PrivateKey.generate())
HELD = HeldKey()
PACKAGE = make_example(held=HELD, publisher=PUBLISHER)
HEADER = decode_header(PACKAGE.data)
BODY = PACKAGE.data[PACKAGE.header_bytes :]
LABEL = HEADER.label


def opens(data: bytes, key: bytes = PACKAGE.data_key) -> None:
    """Read the whole package with this data key, or raise."""
    events = list(read_package(io.BytesIO(data), lambda _: bytearray(key)))
    assert isinstance(events[-1], ArchiveEnd)


def p384() -> tuple[Signer, Callable[[bytes], bytes]]:
    key = ec.generate_private_key(ec.SECP384R1())
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")

    return Signer("ecdsa-p384-sha384", spki.hex()), sign


def test_a_signed_package_opens() -> None:
    opens(PACKAGE.data)
    assert LABEL.signer == PUBLISHER.signer
    assert len(PUBLISHER.signer.fingerprint) == 64


def test_a_rewrapped_data_key_leaves_the_signature_valid() -> None:
    """What a new KMS key, or a new wrapping, changes: nothing the publisher vouched for."""
    arn = KEY_ARN.replace("eu-central-1", "us-east-1").replace("1234abcd", "99999999")
    wrapped = HeldKey().wrap(PACKAGE.data_key, HEADER.encryption_context)
    rewrapped = encode_header(LABEL, KeySlot(arn, wrapped), HEADER.signature)
    header = decode_header(rewrapped)
    assert header.raw != HEADER.raw and header.encryption_context == HEADER.encryption_context
    opens(rewrapped + BODY)


def test_another_body_under_a_signed_label_is_refused() -> None:
    """By somebody who may wrap keys, and even by somebody who knows the package's data key."""
    archive = plain.pack_tar({path: (bytes(len(data)), False) for path, data in FILES.items()})
    salt, own = BODY[:24], bytes(range(32))
    for key, refusal in (
        (own, "data key does not fit"),
        (PACKAGE.data_key, "not the one that the publisher signed"),
    ):
        encryptor = Encryptor(key, HEADER.context, salt)
        body = bytes(encryptor.update(archive)) + encryptor.finalize()
        assert len(body) == len(BODY)
        # The commitment does not tell them apart when the data key is the right one.
        assert (body[:56] == BODY[:56]) == (key == PACKAGE.data_key)
        with pytest.raises(PackageTamperedError, match=refusal):
            opens(HEADER.raw + body, key)


def test_nothing_is_complete_before_the_body_is_the_signed_one() -> None:
    encryptor = Encryptor(PACKAGE.data_key, HEADER.context)
    archive = plain.pack_tar({path: (bytes(len(data)), False) for path, data in FILES.items()})
    body = bytes(encryptor.update(archive)) + encryptor.finalize()
    events = []
    with pytest.raises(PackageSignatureError):
        for event in read_package(
            io.BytesIO(HEADER.raw + body), lambda _: bytearray(PACKAGE.data_key)
        ):
            events.append(event)
    assert events and not any(isinstance(event, ArchiveEnd) for event in events)


@pytest.mark.parametrize("signer", [None, STRANGER.signer])
def test_a_label_with_another_signer_has_another_context(signer: Signer | None) -> None:
    """Taking the signature out, or putting an own one in, needs the data key."""
    label = msgspec.structs.replace(LABEL, signer=signer)
    signature = None if signer is None else sign_package(STRANGER, encode_label(label), BODY)
    header = encode_header(label, HEADER.slot, signature)
    assert decode_header(header).encryption_context != HEADER.encryption_context
    with pytest.raises(PackageError):
        opens(header + BODY)


def test_a_signature_that_is_taken_out_is_missed() -> None:
    raw = HEADER.raw
    label_end = 18 + PACKAGE.label_bytes
    stripped = raw[:12] + b"\0\0" + raw[14:label_end] + raw[label_end + 96 :]
    with pytest.raises(PackageSignatureError, match="taken out"):
        decode_header(stripped)


@given(offset=st.integers(0, len(PACKAGE.data) - 1), flip=st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_any_altered_byte_is_refused(offset: int, flip: int) -> None:
    data = bytearray(PACKAGE.data)
    data[offset] ^= flip

    def unwrap(header: PackageHeader) -> bytearray:
        if header.kms_key_arn != KEY_ARN:  # as KMS: IncorrectKeyException
            raise PackageError("another key")
        return HELD.unwrap(header.wrapped_key, header.encryption_context)

    with pytest.raises(PackageError):
        for event in read_package(io.BytesIO(bytes(data)), unwrap):
            assert not isinstance(event, ArchiveEnd)


def replaced(**fields: Any) -> Label:
    return msgspec.structs.replace(LABEL, **fields)


def test_every_part_of_what_is_signed_counts() -> None:
    assert HEADER.signature is not None
    signer, signature = PUBLISHER.signer, HEADER.signature
    verify_signature(signer, HEADER.label_bytes, signature)
    digest = hashlib.sha256(b"another").digest()
    forged = [
        (signer, encode_label(replaced(file_count=5)), signature),
        (signer, HEADER.label_bytes, PackageSignature(digest, signature.value)),
        (signer, HEADER.label_bytes, PackageSignature(signature.body_digest, bytes(64))),
        (STRANGER.signer, HEADER.label_bytes, signature),
    ]
    for case in forged:
        with pytest.raises(PackageSignatureError):
            verify_signature(*case)


@pytest.mark.parametrize(
    "message",
    [
        lambda label, digest: label + digest,
        lambda label, digest: hashlib.sha512(label).digest() + digest,
        lambda label, digest: plain.signed_message(ECDSA_P384, label, digest),
        lambda label, digest: plain.signed_message(ED25519, label, digest)[:-1],
        lambda label, digest: plain.signed_message(ED25519, label, digest).replace(b"v1", b"v2"),
    ],
)
def test_what_was_signed_for_something_else_is_no_signature(
    message: Callable[[bytes, bytes], bytes],
) -> None:
    assert HEADER.signature is not None
    digest = HEADER.signature.body_digest
    value = PUBLISHER.sign(message(HEADER.label_bytes, digest))
    with pytest.raises(PackageSignatureError):
        verify_signature(PUBLISHER.signer, HEADER.label_bytes, PackageSignature(digest, value))


def test_both_implementations_sign_the_same() -> None:
    message = signed_message(PUBLISHER.signer, b"label", bytes(32))
    assert message == plain.signed_message(ED25519, b"label", bytes(32))
    assert len(message) <= 4096


def test_ecdsa_p384() -> None:
    signer, sign = p384()
    label_bytes = encode_label(make_label(FILES, signer=signer))
    signature = PackageSignature(bytes(32), sign(signed_message(signer, label_bytes, bytes(32))))
    verify_signature(signer, label_bytes, signature)
    half = bytes(48)
    for value in (sign(b"else"), half + signature.value[48:], signature.value[:48] + half):
        with pytest.raises(PackageSignatureError):
            verify_signature(signer, label_bytes, PackageSignature(bytes(32), value))


def other_curve() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ).hex()


ED25519_KEY = PUBLISHER.signer.public_key
P384_KEY = p384()[0].public_key


WRONG_KEYS = {
    "P-384 as Ed25519": (ED25519, P384_KEY),
    "Ed25519 as P-384": (ECDSA_P384, ED25519_KEY),
    "P-256 as P-384": (ECDSA_P384, other_curve()),
    "capital letters": (ED25519, ED25519_KEY.upper()),
    "a byte more": (ED25519, ED25519_KEY + "00"),
    "a byte less": (ED25519, ED25519_KEY[:-2]),
    "nothing": (ED25519, ""),
    "a space": (ED25519, " " + ED25519_KEY),
    "no digits": (ED25519, "zz"),
    "raw": (ED25519, ED25519_KEY[24:]),
    "no point": (ECDSA_P384, P384_KEY[:48] + "00"),
}


@pytest.mark.parametrize(("algorithm", "public_key"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_key_has_one_encoding_and_one_algorithm(algorithm: Any, public_key: str) -> None:
    with pytest.raises(PackageFormatError, match="public key"):
        check_signer(Signer(algorithm, public_key), "ACME")
    label = make_label(FILES, signer=Signer(algorithm, public_key))
    with pytest.raises(PackageFormatError):
        encode_header(label, KeySlot(KEY_ARN, b"w"), PackageSignature(bytes(32), bytes(64)))


def test_no_point_of_the_curve_is_no_key() -> None:
    signer = Signer("ecdsa-p384-sha384", P384_KEY[:48] + "ff" * 96)
    check_signer(signer, "ACME")
    with pytest.raises(PackageFormatError, match="public key"):
        verify_signature(signer, b"{}", PackageSignature(bytes(32), bytes(96)))


@pytest.mark.parametrize("algorithm", ["none", "", "Ed25519", "ed25519ph", "rsa", None, 0])
def test_no_other_algorithm_is_known(algorithm: object) -> None:
    raw = msgspec.json.decode(HEADER.label_bytes)
    raw["signer"]["algorithm"] = algorithm
    label_bytes = msgspec.json.encode(raw, order="sorted")
    lengths = PACKAGE.data[10:14] + len(label_bytes).to_bytes(4, "big")
    with pytest.raises(PackageFormatError, match="malformed"):
        decode_header(PACKAGE.data[:10] + lengths + label_bytes + bytes(9000))


@pytest.mark.parametrize("publisher", ["", " ", "x" * 101, "a\nb", "a\x1b[31mb", "\u202ea"])
def test_a_signed_package_names_its_publisher(publisher: str) -> None:
    with pytest.raises(PackageFormatError, match="publisher"):
        check_signer(PUBLISHER.signer, publisher)


@pytest.mark.parametrize(
    "character", ["\u034f", "\u115f", "\u17b4", "\u2800", "\u3164", "\ufe0f", "\U000e0100"]
)
def test_a_publisher_has_no_character_that_nobody_sees(character: str) -> None:
    """With one it would be a new publisher, which looks like the one that was pinned."""
    assert character.isprintable()
    for name in (f"ACME{character} Analytics", f"{character}ACME Analytics"):
        with pytest.raises(PackageFormatError, match="invisible"):
            check_signer(PUBLISHER.signer, name)


def test_names_that_people_take_for_one_are_one() -> None:
    for name in (
        "ACME Analytics",
        "acme  analytics ",
        "\uff21\uff23\uff2d\uff25 Analytics",
        "ACME\u00a0Analytics",
    ):
        assert publisher_key(name) == "acme analytics"
    assert publisher_key("\u0410\u0421\u041c\u0415 Analytics") != "acme analytics"  # Cyrillic


SIZES = (0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 5 * SEGMENT_BYTES + 7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1 << 30, 1000, 300_001])
def test_the_bodys_digest_does_not_depend_on_the_pieces(size: int, step: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    digest = BodyDigest()
    for start in range(0, size, step):
        digest.update(data[start : start + step])
    assert digest.finish() == plain.body_digest(data)
