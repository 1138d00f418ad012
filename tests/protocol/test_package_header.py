import hashlib
import io

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.data_key_commitment import check_data_key, commit_data_key
from enclave_protocol.key_slot import (
    MAX_KEY_SLOT_BYTES,
    MAX_WRAPPED_KEY_BYTES,
    KeySlot,
    decode_key_slot,
    encode_key_slot,
)
from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)
from enclave_protocol.package_header import (
    MAX_HEADER_BYTES,
    PREAMBLE_BYTES,
    decode_header,
    encode_header,
    header_size,
)
from enclave_protocol.package_label import (
    MAX_LABEL_BYTES,
    Label,
    check_label,
    decode_label,
    encode_label,
)
from enclave_protocol.package_reader import read_header
from enclave_protocol.package_signature import PackageSignature, Signer
from tests.support.example_package import FILES, KEY_ARN, make_label

LABEL = make_label(FILES)
SLOT = KeySlot(KEY_ARN, b"wrapped")
HEADER = encode_header(LABEL, SLOT)


def changed(**fields: object) -> Label:
    return msgspec.structs.replace(LABEL, **fields)


def test_round_trip() -> None:
    header = decode_header(HEADER + b"body")
    assert header.label == LABEL
    assert header.wrapped_key == b"wrapped"
    assert header.raw == HEADER
    assert header_size(HEADER[:PREAMBLE_BYTES]) == len(HEADER)
    bound = HEADER[:10] + HEADER[14 : 18 + len(header.label_bytes)]
    assert header.context == hashlib.sha512(bound).digest()
    assert (header.kms_key_arn, header.region) == (KEY_ARN, "eu-central-1")
    assert header.encryption_context == {
        "package": "credit-scorer",
        "version": "1.2.0",
        "label-sha256": hashlib.sha256(encode_label(LABEL)).hexdigest(),
    }


def test_reader_takes_nothing_behind_the_header() -> None:
    stream = io.BytesIO(HEADER + b"body")
    assert read_header(stream).raw == HEADER
    assert stream.read() == b"body"


class Trickle(io.BytesIO):
    """A raw stream that gives one byte a read, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 1))


def test_reader_copes_with_short_reads() -> None:
    assert read_header(Trickle(HEADER)).raw == HEADER


@given(st.integers(0, len(HEADER) - 1))
def test_any_truncation_is_typed_and_named(size: int) -> None:
    with pytest.raises(PackageTruncatedError, match=r"^name: "):
        read_header(io.BytesIO(HEADER[:size]), file="name")


@given(st.binary(max_size=200))
def test_strangers_bytes_raise_only_typed_errors(data: bytes) -> None:
    for candidate in (data, HEADER[:PREAMBLE_BYTES] + data):
        with pytest.raises(PackageError):
            decode_header(candidate)


@given(st.integers(0, len(HEADER) - 1), st.integers(1, 255))
def test_altered_header_never_decodes_to_the_same(offset: int, flip: int) -> None:
    data = bytearray(HEADER)
    data[offset] ^= flip
    try:
        header = decode_header(bytes(data))
    except PackageError:
        return
    assert (header.label, header.slot) != (LABEL, SLOT)


P384_SIGNER = Signer(
    "ecdsa-p384-sha384",
    ec.generate_private_key(ec.SECP384R1())
    .public_key()
    .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    .hex(),
)


def test_largest_header() -> None:
    label = changed(docs={"score": ""}, signer=P384_SIGNER)
    filler = MAX_LABEL_BYTES - len(encode_label(label))
    label = msgspec.structs.replace(label, docs={"score": "x" * filler})
    signature = PackageSignature(bytes(32), bytes(96))
    arn = f"arn:aws{'x' * 20}:kms:{'r' * 32}:{'1' * 12}:key/{'k' * 128}"
    header = encode_header(label, KeySlot(arn, bytes(MAX_WRAPPED_KEY_BYTES)), signature)
    # The ARNs there can be are shorter than the slot allows for.
    assert len(header) == MAX_HEADER_BYTES - (256 - len(arn)) == header_size(header)
    assert decode_header(header).label == label
    with pytest.raises(PackageFormatError, match="shorten"):
        encode_label(changed(docs={"score": "x" * (filler + 1)}, signer=P384_SIGNER))
    with pytest.raises(PackageFormatError, match="at most"):
        decode_label(b" " * (MAX_LABEL_BYTES + 1))
    for wrapped in (b"", bytes(MAX_WRAPPED_KEY_BYTES + 1)):
        with pytest.raises(PackageFormatError, match="wrapped key"):
            encode_header(LABEL, KeySlot(KEY_ARN, wrapped))


GOOD = encode_label(LABEL)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"null", b"[" * 100_000, GOOD + b" ", b" " + GOOD, GOOD[:-1], GOOD + GOOD,
        GOOD.replace(b'"file_count":', b'"file_count":4,"file_count":'),
        GOOD.replace(b'"file_count":4', b'"file_count":4.0'),
        GOOD.replace(b'"docs"', b'"docz"'), GOOD.replace(b'"publisher":"Example Publisher",', b""),
        GOOD.replace(b"credit-scorer", b"credit\\u002dscorer"), GOOD.replace(b"Score a", b"\xff"),
        GOOD.replace(b',"signer":null', b""),
    ],
)  # fmt: skip
def test_only_canonical_labels_decode(data: bytes) -> None:
    assert data != GOOD
    with pytest.raises(PackageFormatError):
        decode_label(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"file_count": 0}, {"file_count": 65_537}, {"archive_bytes": 0}, {"archive_bytes": 513},
        {"archive_bytes": 2**40 + 512},
        {"data_key_commitment": ""}, {"data_key_commitment": "A" * 64},
        {"data_key_commitment": "a" * 63}, {"data_key_commitment": "a" * 64 + "\n"},
        {"package": msgspec.structs.replace(LABEL.package, name="")},
        {"package": msgspec.structs.replace(LABEL.package, version="../1")},
    ],
)  # fmt: skip
def test_rules_hold_both_ways(fields: dict[str, object]) -> None:
    label = changed(**fields)
    with pytest.raises(PackageFormatError):
        encode_label(label)
    with pytest.raises(PackageFormatError):
        decode_label(msgspec.json.encode(label, order="sorted"))


@pytest.mark.parametrize("arn", ["", "alias/x", KEY_ARN + "\n", "arn:aws:s3:::b", KEY_ARN + "é"])
def test_a_key_slot_names_a_key(arn: str) -> None:
    with pytest.raises(PackageFormatError):
        encode_key_slot(KeySlot(arn, b"wrapped"))
    data = len(arn.encode()).to_bytes(2, "big") + arn.encode() + b"wrapped"
    with pytest.raises(PackageFormatError):
        decode_key_slot(data)


@given(st.binary(max_size=300))
def test_a_key_slot_has_one_encoding(data: bytes) -> None:
    for candidate in (data, encode_key_slot(SLOT)[:-7] + data):
        try:
            slot = decode_key_slot(candidate)
        except PackageFormatError:
            continue
        assert encode_key_slot(slot) == candidate
    with pytest.raises(PackageFormatError):
        decode_key_slot(bytes(MAX_KEY_SLOT_BYTES + 1))


def test_a_label_commits_to_one_data_key() -> None:
    keys = [bytes(32), bytes(31) + b"\x01", bytes(range(32))]
    for key in keys:
        check_data_key(key, commit_data_key(key))
        for other in keys:
            if other != key:
                with pytest.raises(PackageTamperedError):
                    check_data_key(other, commit_data_key(key))
    with pytest.raises(PackageFormatError):
        check_data_key(bytes(31), commit_data_key(bytes(32)))


def test_exports_are_checked_by_who_uses_them() -> None:
    exports = msgspec.structs.replace(LABEL.exports, functions={"score": "other(a)"})
    for label in (
        changed(exports=exports),
        changed(package=msgspec.structs.replace(LABEL.package, module="")),
    ):
        decoded = decode_label(msgspec.json.encode(label, order="sorted"))
        with pytest.raises(PackageFormatError):
            check_label(decoded)
    check_label(LABEL)


def test_file_names_do_not_break_the_line() -> None:
    error = PackageFormatError("reason").with_file("a\nb\x1b[31m").with_file("other")
    assert str(error) == r"'a\nb\x1b[31m': reason"
