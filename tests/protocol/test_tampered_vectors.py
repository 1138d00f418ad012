"""Every genuine document and KMS answer, altered in every way that matters: one verdict each.

The bytes are nobody's here (tests/vectors/README.md); each is altered by the test.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from enclave_protocol.attestation_document import MAX_DOCUMENT_BYTES, decode_signed_document
from enclave_protocol.attestation_errors import (
    AttestationChainError,
    AttestationError,
    AttestationFormatError,
    AttestationSignatureError,
    AttestationTimeError,
    DebugModeError,
    NonceMismatchError,
    PcrMismatchError,
    UntrustedRootError,
)
from enclave_protocol.attestation_verify import verify_attestation
from enclave_protocol.data_key_commitment import check_data_key, commit_data_key
from enclave_protocol.kms_cms import CmsError, CmsFormatError, CmsOpenError, decode_cms, decrypt_cms
from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER
from enclave_protocol.package_errors import PackageTamperedError

VECTORS = Path(__file__).parents[1] / "vectors"
DOCUMENTS = {path.stem: path.read_bytes() for path in (VECTORS / "attestation").glob("*.cbor")}
BAD_SIGNATURE = "veracruz-badsig"
DEBUG = ("evervault-beta-debug", "evervault-ga-valid")
every_document = pytest.mark.parametrize("name", sorted(DOCUMENTS))


class Genuine:
    """A genuine document taken apart."""

    def __init__(self, name: str) -> None:
        self.data = DOCUMENTS[name]
        self.content = decode_signed_document(self.data).document
        self.time = self.content.written
        self.parts: list[Any] = cbor2.loads(self.data)
        self.fields: dict[str, Any] = cbor2.loads(self.parts[2])

    def flipped(self, part: bytes, at: int = 0) -> bytes:
        """Return the document with one bit of one of its parts turned over, in place."""
        place = self.data.index(part) + at % len(part)
        return self.data[:place] + bytes([self.data[place] ^ 1]) + self.data[place + 1 :]

    def with_payload(self, payload: bytes) -> bytes:
        return cbor2.dumps([*self.parts[:2], payload, self.parts[3]])

    def with_fields(self, **fields: Any) -> bytes:
        return self.with_payload(cbor2.dumps(self.fields | fields))


def verdict(document: bytes, now: datetime, **changed: Any) -> type[AttestationError] | None:
    options: dict[str, Any] = {"root": AWS_NITRO_ROOT_DER, "allow_debug": True, **changed}
    try:
        verify_attestation(document, now=now, **options)
    except AttestationError as error:
        return type(error)
    return None


def otherwise(name: str, error: type[AttestationError] | None) -> type[AttestationError] | None:
    """Return what is found of a variant whose only fault comes after the signature."""
    return AttestationSignatureError if name == BAD_SIGNATURE else error


@every_document
def test_each_protected_range(name: str) -> None:
    genuine = Genuine(name)
    content = genuine.content
    chain = [*content.cabundle[1:], content.certificate]
    ranges: list[tuple[bytes, type[AttestationError]]] = [
        (content.module_id.encode(), AttestationSignatureError),
        (content.timestamp.to_bytes(8, "big"), AttestationSignatureError),
        (b"SHA384", AttestationFormatError),
        *((value, AttestationSignatureError) for value in set(content.pcrs.values())),
        (content.cabundle[0], UntrustedRootError),
        *((certificate, AttestationChainError) for certificate in chain),
        *(
            (value, AttestationSignatureError)
            for value in (content.public_key, content.user_data, content.nonce)
            if value
        ),
        (genuine.parts[3], AttestationSignatureError),
    ]
    for part, error in ranges:
        for at in {-1, len(part) // 2, len(part) // 4}:
            changed = genuine.flipped(part, at)
            if changed in DOCUMENTS.values():
                continue  # the one bit by which the bad signature differs from the good one
            assert verdict(changed, genuine.time) is error, (part.hex()[:40], at)
    assert verdict(genuine.flipped(genuine.parts[0]), genuine.time) is AttestationFormatError


@every_document
def test_chain_order_and_length(name: str) -> None:
    genuine = Genuine(name)
    root, *rest = genuine.content.cabundle
    leaf = genuine.content.certificate
    for bundle, error in (
        ([root, rest[1], rest[0], *rest[2:]], AttestationChainError),
        ([root, *rest[:-1]], AttestationChainError),
        ([root, *rest[1:]], AttestationChainError),
        ([root, *rest, leaf], AttestationChainError),
        ([root, root, *rest], AttestationChainError),
        ([root], AttestationChainError),
        ([*rest, root], UntrustedRootError),
        ([*reversed(rest), root], UntrustedRootError),
        (rest, UntrustedRootError),
        ([], AttestationFormatError),
    ):
        assert verdict(genuine.with_fields(cabundle=bundle), genuine.time) is error
    swapped = genuine.with_fields(certificate=rest[-1], cabundle=[root, *rest[:-1], leaf])
    assert verdict(swapped, genuine.time) is AttestationChainError


@every_document
def test_another_root(name: str) -> None:
    genuine = Genuine(name)
    for other in (genuine.content.cabundle[1], genuine.content.certificate, b"\x30\x00"):
        assert verdict(genuine.data, genuine.time, root=other) is UntrustedRootError
    # A chain of one document under the leaf of another.
    other_name = "sui-fastcrypto-1" if name != "sui-fastcrypto-1" else "veracruz"
    foreign = Genuine(other_name).fields
    for field in ("cabundle", "certificate"):
        mixed = genuine.with_fields(**{field: foreign[field]})
        assert verdict(mixed, genuine.time) is AttestationChainError


@every_document
def test_pcrs(name: str) -> None:
    genuine = Genuine(name)
    pcrs = genuine.content.pcrs
    first, second = (3, 4) if name in DEBUG else (0, 1)
    swapped = dict(pcrs) | {first: pcrs[second], second: pcrs[first]}
    assert verdict(genuine.with_fields(pcrs=swapped), genuine.time) is AttestationSignatureError
    assert verdict(genuine.data, genuine.time, pcrs={first: pcrs[first]}) is otherwise(name, None)
    other = verdict(genuine.data, genuine.time, pcrs={first: pcrs[second]})
    assert other is otherwise(name, PcrMismatchError)
    lacking = {index: value for index, value in pcrs.items() if index != 0}
    for wrong in (lacking, {}, pcrs | {32: bytes(48)}, pcrs | {-1: bytes(48)}, [*pcrs.values()]):
        assert verdict(genuine.with_fields(pcrs=wrong), genuine.time) is AttestationFormatError
    debug = verdict(genuine.data, genuine.time, allow_debug=False)
    assert debug is otherwise(name, DebugModeError if name in DEBUG else None)


@every_document
def test_time_and_nonce(name: str) -> None:
    genuine = Genuine(name)
    now = genuine.time
    for other in (now + timedelta(hours=4), now - timedelta(days=2), now + timedelta(days=3650)):
        assert verdict(genuine.data, other) is AttestationChainError
    old = verdict(genuine.data, now + timedelta(minutes=9), max_age=timedelta(minutes=1))
    assert old is otherwise(name, AttestationTimeError)
    nonce = genuine.content.nonce
    assert verdict(genuine.data, now, nonce=b"other" * 8) is otherwise(name, NonceMismatchError)
    if nonce:
        assert verdict(genuine.data, now, nonce=nonce) is otherwise(name, None)
        assert verdict(genuine.data, now, nonce=nonce[:-1]) is otherwise(name, NonceMismatchError)


def raw_map(pairs: list[tuple[bytes, bytes]]) -> bytes:
    head = bytes([0xA0 + len(pairs)]) if len(pairs) < 24 else b"\xb8" + bytes([len(pairs)])
    return head + b"".join(key + value for key, value in pairs)


@every_document
def test_encodings_that_are_not_the_only_one(name: str) -> None:
    genuine = Genuine(name)
    fields = genuine.fields
    pairs = [(cbor2.dumps(key), cbor2.dumps(value)) for key, value in fields.items()]
    pcr_pairs = [(cbor2.dumps(key), cbor2.dumps(value)) for key, value in fields["pcrs"].items()]
    at = list(fields).index("pcrs")
    bundle_at = list(fields).index("cabundle")

    def replaced(place: int, value: bytes) -> bytes:
        changed = [*pairs]
        changed[place] = (pairs[place][0], value)
        return genuine.with_payload(raw_map(changed))

    items = [cbor2.dumps(item) for item in genuine.parts]
    payload = genuine.parts[2]
    variants = {
        "trailing byte": genuine.data + b"\0",
        "trailing item": genuine.data + genuine.data[:1],
        "trailing in the payload": genuine.with_payload(payload + b"\0"),
        "cut": genuine.data[:-1],
        "cut payload": genuine.with_payload(payload[:-1]),
        "duplicate key": genuine.with_payload(raw_map([*pairs, pairs[0]])),
        "duplicate key, other value": genuine.with_payload(
            raw_map([*pairs, (pairs[0][0], cbor2.dumps("i-other"))])
        ),
        "duplicate PCR": replaced(at, raw_map([*pcr_pairs, pcr_pairs[0]])),
        "indefinite array": b"\x9f" + b"".join(items) + b"\xff",
        "indefinite payload": b"\x84"
        + b"".join(items[:2])
        + b"\x5f"
        + items[2]
        + b"\xff"
        + items[3],
        "indefinite signature": b"\x84" + b"".join(items[:3]) + b"\x5f" + items[3] + b"\xff",
        "indefinite bundle": replaced(
            bundle_at, b"\x9f" + b"".join(map(cbor2.dumps, fields["cabundle"])) + b"\xff"
        ),
        "another tag": b"\xd1" + genuine.data,
        "tag twice": b"\xd2\xd2" + genuine.data,
        "unprotected header": cbor2.dumps([genuine.parts[0], {4: b"k"}, *genuine.parts[2:]]),
        "another algorithm": cbor2.dumps([cbor2.dumps({1: -7}), *genuine.parts[1:]]),
        "no algorithm": cbor2.dumps([b"", *genuine.parts[1:]]),
        "three parts": cbor2.dumps(genuine.parts[:3]),
        "five parts": cbor2.dumps([*genuine.parts, b""]),
        "unknown field": genuine.with_fields(more=b""),
        "missing field": genuine.with_payload(raw_map(pairs[1:])),
    }
    for what, variant in variants.items():
        assert verdict(variant, genuine.time) is AttestationFormatError, what
    # What AWS writes itself: an indefinite map is read, and its bytes were not signed here.
    indefinite = b"\xbf" + b"".join(key + value for key, value in pairs) + b"\xff"
    expected = otherwise(name, None) if indefinite == payload else AttestationSignatureError
    assert verdict(genuine.with_payload(indefinite), genuine.time) is expected
    assert verdict(b"\xd2" + genuine.data, genuine.time) is otherwise(name, None)


@every_document
def test_oversized_fields(name: str) -> None:
    genuine = Genuine(name)
    content = genuine.content
    too_large: dict[str, Any] = {
        "module_id": "i" * 257,
        "timestamp": 2**64 - 1,
        "certificate": content.certificate + bytes(1025 - len(content.certificate)),
        "cabundle": [content.cabundle[0]] * 33,
        "public_key": bytes(1025),
        "user_data": bytes(1025),
        "nonce": bytes(1025),
        "pcrs": content.pcrs | {0: bytes(49)},
        "digest": "SHA384" * 100,
    }
    for field, value in too_large.items():
        variant = genuine.with_fields(**{field: value})
        if len(variant) <= MAX_DOCUMENT_BYTES:
            assert verdict(variant, genuine.time) is AttestationFormatError, field
    for wrong in (
        cbor2.dumps([*genuine.parts[:3], genuine.parts[3] + b"\0"]),
        cbor2.dumps([*genuine.parts[:3], genuine.parts[3][:-1]]),
        genuine.data + bytes(MAX_DOCUMENT_BYTES),
        b"\x5a\xff\xff\xff\xff",
        b"\x9b" + b"\xff" * 8,
        b"\x84" * MAX_DOCUMENT_BYTES,
    ):
        assert verdict(wrong, genuine.time) is AttestationFormatError


# KMS's answers

BLOBS = {path.name.partition(".")[0]: path.read_bytes() for path in (VECTORS / "cms").glob("*.ber")}
every_blob = pytest.mark.parametrize("name", sorted(BLOBS))
KEY = serialization.load_pem_private_key(
    (VECTORS / "cms" / "edgebit-datakey.key.pem").read_bytes(), None
)
PLAIN = (VECTORS / "cms" / "edgebit-datakey.plain").read_bytes()
OIDS = {
    "enveloped data": "2a864886f70d010703",
    "data": "2a864886f70d010701",
    "RSAES-OAEP": "2a864886f70d010107",
    "MGF1": "2a864886f70d010108",
    "SHA-256": "608648016503040201",
    "AES-256-CBC": "60864801650304012a",
}


def flipped(data: bytes, part: bytes, at: int = 0) -> bytes:
    place = data.index(part) + at % len(part)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def refusal(run: Callable[[], object]) -> type[CmsError] | None:
    try:
        run()
    except CmsError as error:
        return type(error)
    return None


@every_blob
@pytest.mark.parametrize("oid", OIDS)
def test_each_algorithm_of_an_answer(name: str, oid: str) -> None:
    encoded = bytes.fromhex(OIDS[oid])
    changed = flipped(BLOBS[name], encoded, -1)
    assert refusal(lambda: decode_cms(changed)) is CmsFormatError


@every_blob
def test_what_is_around_an_answer(name: str) -> None:
    data = BLOBS[name]
    for wrong in (
        data + b"\0",
        data + data,
        data[:-1],
        data[:-2],
        b"",
        b"\x30\x80",
        b"\x31" + data[1:],
        bytes(len(data)),
        data[:2] + b"\x31" + data[3:],
        data + bytes(64 * 1024),
    ):
        assert refusal(partial(decode_cms, wrong)) is CmsFormatError


def test_each_part_of_the_answer_that_can_be_opened() -> None:
    """The answer is not authenticated, which is why a label commits to its data key."""
    assert isinstance(KEY, rsa.RSAPrivateKey)
    key, data = KEY, BLOBS["edgebit-datakey"]
    parsed = decode_cms(data)
    assert bytes(decrypt_cms(key, data)) == PLAIN
    for part in (parsed.key_identifier, parsed.encrypted_key):
        for at in (0, len(part) // 2, -1):
            changed = flipped(data, part, at)
            assert refusal(partial(decrypt_cms, key, changed)) is CmsOpenError
    content = parsed.encrypted_content
    # The last block but one decides about the padding in the last.
    padding = flipped(data, content, len(content) - 17)
    assert refusal(lambda: decrypt_cms(key, padding)) is CmsOpenError
    commitment = commit_data_key(PLAIN)
    check_data_key(PLAIN, commitment)
    for changed in (flipped(data, parsed.iv), flipped(data, content)):
        found = bytes(decrypt_cms(key, changed))
        assert found != PLAIN and len(found) == len(PLAIN)
        with pytest.raises(PackageTamperedError):
            check_data_key(found, commitment)
