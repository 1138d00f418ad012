from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.attestation_document import (
    MAX_DOCUMENT_BYTES,
    decode_signed_document,
    encode_payload,
    encode_signed_document,
    signature_input,
)
from enclave_protocol.attestation_errors import AttestationFormatError
from tests.support.attestation_documents import DocumentMaker, make_documents

_VECTORS = Path(__file__).parents[1] / "vectors" / "attestation"
_GENUINE = sorted(_VECTORS.glob("*.cbor"))
_NOW = datetime.now(UTC).replace(microsecond=0)  # the root is as old as the test


@pytest.fixture
def maker(tmp_path: Path) -> DocumentMaker:
    return make_documents(tmp_path / "root", _NOW)


# file: (length of public_key, user_data, nonce; None is null), PCR count, PCRs that are not zero
_FIELDS = {
    "evervault-beta-valid": ((None, None, 256), 16, {0, 1, 2, 3, 4, 8}),
    "evervault-beta-debug": ((19, 13, None), 16, {3, 4}),
    "evervault-ga-valid": ((None, 91, 256), 16, {3, 4}),
    "sui-fastcrypto-1": ((32, 0, None), 17, {0, 1, 2, 4, 16}),
    "cape-spec-1": ((32, 746, 12), 16, {0, 1, 2, 3, 4, 8}),
    "veracruz": ((None, 32, 32), 16, {0, 1, 2, 4}),
    "veracruz-badsig": ((None, 32, 32), 16, {0, 1, 2, 4}),
}


@pytest.mark.parametrize("path", _GENUINE, ids=lambda path: path.stem)
def test_genuine_fields(path: Path) -> None:
    content = decode_signed_document(path.read_bytes()).document
    sizes = tuple(
        None if value is None else len(value)
        for value in (content.public_key, content.user_data, content.nonce)
    )
    not_zero = {index for index, value in content.pcrs.items() if any(value)}
    assert (sizes, len(content.pcrs), not_zero) == _FIELDS[path.stem]
    assert content.is_debug is (0 not in not_zero)


def test_there_are_seven_genuine_documents() -> None:
    assert {path.stem for path in _GENUINE} == set(_FIELDS)


@pytest.mark.parametrize("path", _GENUINE, ids=lambda path: path.stem)
def test_encoding_reproduces_genuine_bytes(path: Path) -> None:
    data = path.read_bytes()
    signed = decode_signed_document(data)
    assert encode_signed_document(signed.payload, signed.signature) == data
    payload = encode_payload(signed.document)
    if signed.payload[0] == 0xBF:  # the same pairs; only the map's length is written otherwise
        assert payload[1:] == signed.payload[1:-1]
    else:
        assert payload == signed.payload


@pytest.mark.parametrize("path", _GENUINE, ids=lambda path: path.stem)
def test_tag_18_is_accepted(path: Path) -> None:
    data = path.read_bytes()
    assert decode_signed_document(b"\xd2" + data) == decode_signed_document(data)


def test_signature_input_is_the_sig_structure() -> None:
    assert cbor2.loads(signature_input(b"p")) == ["Signature1", b"\xa1\x01\x38\x22", b"", b"p"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda parts: parts[:3], id="three parts"),
        pytest.param(lambda parts: [*parts, 1], id="five parts"),
        pytest.param(lambda parts: [b"\xa1\x01\x26", *parts[1:]], id="ES256"),
        pytest.param(lambda parts: [b"", *parts[1:]], id="no algorithm"),
        pytest.param(lambda parts: [b"\xa1\x01\x38\x22\x00", *parts[1:]], id="bytes after header"),
        pytest.param(lambda parts: [parts[0], {1: -35}, *parts[2:]], id="unprotected header"),
        pytest.param(lambda parts: [*parts[:2], None, parts[3]], id="detached payload"),
        pytest.param(lambda parts: [*parts[:3], parts[3][:95]], id="short signature"),
        pytest.param(lambda parts: [*parts[:3], "x" * 96], id="signature is text"),
        pytest.param(lambda parts: {"a": parts}, id="a map"),
    ],
)
def test_refused_outer_form(maker: DocumentMaker, change: Any) -> None:
    parts = cbor2.loads(maker.document())
    with pytest.raises(AttestationFormatError):
        decode_signed_document(cbor2.dumps(change(parts)))


def _pcrs(**changed: Any) -> Any:
    return lambda payload: payload["pcrs"].update(
        {int(name.removeprefix("p")): value for name, value in changed.items()}
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda payload: payload.pop("pcrs") and None, id="no pcrs"),
        pytest.param(lambda payload: payload.update(extra=1), id="unknown field"),
        pytest.param(lambda payload: payload.update(digest="SHA256"), id="SHA256"),
        pytest.param(lambda payload: payload.update(timestamp=0), id="timestamp 0"),
        pytest.param(lambda payload: payload.update(timestamp=True), id="timestamp is a bool"),
        pytest.param(lambda payload: payload.update(timestamp=2**63), id="timestamp too late"),
        pytest.param(lambda payload: payload.update(module_id=""), id="empty module_id"),
        pytest.param(lambda payload: payload.update(module_id=b"i-1"), id="module_id is bytes"),
        pytest.param(lambda payload: payload.update(cabundle=[]), id="empty cabundle"),
        pytest.param(lambda payload: payload.update(cabundle=[b"x"] * 9), id="long cabundle"),
        pytest.param(lambda payload: payload.update(certificate=b""), id="empty certificate"),
        pytest.param(lambda payload: payload.update(certificate=b"x" * 1025), id="big certificate"),
        pytest.param(lambda payload: payload.update(nonce=b"x" * 1025), id="nonce over 1024"),
        pytest.param(lambda payload: payload.update(user_data="text"), id="user_data is text"),
        pytest.param(lambda payload: payload.update(pcrs={}), id="no PCR at all"),
        pytest.param(lambda payload: payload["pcrs"].pop(0) and None, id="no PCR0"),
        pytest.param(_pcrs(p32=bytes(48)), id="PCR32"),
        pytest.param(_pcrs(p1=bytes(32)), id="PCR of 32 bytes"),
        pytest.param(lambda payload: payload["pcrs"].update({"17": bytes(48)}), id="index is text"),
    ],
)
def test_refused_payload_even_when_signed(maker: DocumentMaker, change: Any) -> None:
    with pytest.raises(AttestationFormatError):
        decode_signed_document(maker.altered(change))


def test_duplicate_payload_key_is_refused(maker: DocumentMaker) -> None:
    payload = cbor2.loads(maker.document())[2]
    assert payload[0] == 0xA9
    doubled = b"\xaa" + payload[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"other")
    with pytest.raises(AttestationFormatError, match="uplicate"):
        decode_signed_document(maker.sign(doubled))


def test_trailing_bytes_are_refused(maker: DocumentMaker) -> None:
    with pytest.raises(AttestationFormatError, match="1 bytes follow"):
        decode_signed_document(maker.document() + b"\0")
    payload = cbor2.loads(maker.document())[2]
    with pytest.raises(AttestationFormatError, match="1 bytes follow"):
        decode_signed_document(maker.sign(payload + b"\0"))


def test_indefinite_outer_array_is_refused(maker: DocumentMaker) -> None:
    document = maker.document()
    with pytest.raises(AttestationFormatError):
        decode_signed_document(b"\x9f" + document[1:] + b"\xff")


@pytest.mark.parametrize("size", [0, MAX_DOCUMENT_BYTES + 1])
def test_size_is_checked_before_decoding(size: int) -> None:
    with pytest.raises(AttestationFormatError, match=f"has {size} bytes"):
        decode_signed_document(bytes(size))


@given(st.data())
def test_a_changed_byte_never_raises_anything_else(data: st.DataObject) -> None:
    document = bytearray((_VECTORS / "cape-spec-1.cbor").read_bytes())
    position = data.draw(st.integers(0, len(document) - 1))
    document[position] ^= data.draw(st.integers(1, 255))
    try:
        decode_signed_document(bytes(document))
    except AttestationFormatError as error:
        assert "\n" not in str(error)
