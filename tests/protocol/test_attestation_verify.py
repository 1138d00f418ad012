import hashlib
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.attestation_errors import (
    AttestationChainError,
    AttestationError,
    AttestationSignatureError,
    AttestationTimeError,
    DebugModeError,
    NonceMismatchError,
    PcrMismatchError,
    UntrustedRootError,
)
from enclave_protocol.attestation_verify import CLOCK_SKEW, verify_attestation
from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER, AWS_NITRO_ROOT_SHA256
from tests.support.attestation_documents import PCR0, DocumentMaker, make_documents

_VECTORS = Path(__file__).parents[1] / "vectors" / "attestation"
_NOW = datetime.now(UTC).replace(microsecond=0)  # the root is as old as the test

# file: (its time T, error at T, error at T when debug is allowed)
_Verdict = type[AttestationError] | None
_VERDICTS: dict[str, tuple[str, _Verdict, _Verdict]] = {
    "evervault-beta-valid": ("2022-10-13T08:58:02.136+00:00", None, None),
    "evervault-beta-debug": ("2022-10-12T13:50:06.081+00:00", DebugModeError, None),
    "evervault-ga-valid": ("2023-09-18T15:03:30.860+00:00", DebugModeError, None),
    "sui-fastcrypto-1": ("2025-11-10T17:20:10.812+00:00", None, None),
    "cape-spec-1": ("2022-09-28T15:33:27.680+00:00", None, None),
    "veracruz": ("2022-11-09T22:52:00.696+00:00", None, None),
    "veracruz-badsig": (
        "2022-11-09T22:52:00.696+00:00",
        AttestationSignatureError,
        AttestationSignatureError,
    ),
}


@pytest.fixture
def maker(tmp_path: Path) -> DocumentMaker:
    return make_documents(tmp_path / "root", _NOW)


def _genuine(name: str) -> bytes:
    return (_VECTORS / f"{name}.cbor").read_bytes()


def _error(document: bytes, now: datetime, **options: Any) -> _Verdict:
    try:
        verify_attestation(document, root=AWS_NITRO_ROOT_DER, now=now, **options)
    except AttestationError as error:
        assert "\n" not in str(error)
        return type(error)
    return None


def test_pinned_root() -> None:
    pem = x509.load_pem_x509_certificate((_VECTORS / "nitro-root-g1.pem").read_bytes())
    assert pem.public_bytes(Encoding.DER) == AWS_NITRO_ROOT_DER
    assert hashlib.sha256(AWS_NITRO_ROOT_DER).hexdigest() == AWS_NITRO_ROOT_SHA256


@pytest.mark.parametrize("name", _VERDICTS)
def test_genuine_verdict_at_its_own_time(name: str) -> None:
    text, strict, with_debug = _VERDICTS[name]
    now = datetime.fromisoformat(text)
    assert decode_signed_document(_genuine(name)).document.written == now
    assert _error(_genuine(name), now) is strict
    assert _error(_genuine(name), now, allow_debug=True) is with_debug


@pytest.mark.parametrize("allow_debug", [False, True])
@pytest.mark.parametrize("name", _VERDICTS)
def test_genuine_document_is_refused_later(name: str, allow_debug: bool) -> None:
    written = datetime.fromisoformat(_VERDICTS[name][0])
    for now in (written + timedelta(hours=4), datetime.now(UTC), written - timedelta(hours=1)):
        assert _error(_genuine(name), now, allow_debug=allow_debug) is AttestationChainError


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("name", _VERDICTS)
def test_openssl_agrees_on_the_chain(name: str, tmp_path: Path) -> None:
    content = decode_signed_document(_genuine(name)).document
    pem = [
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        for der in (*content.cabundle, content.certificate)
    ]
    for file, text in (("root", pem[0]), ("between", b"".join(pem[1:-1])), ("leaf", pem[-1])):
        (tmp_path / file).write_bytes(text)
    command = ["openssl", "verify", "-CAfile", "root", "-untrusted", "between", "-attime"]
    for hours, status in ((0, 0), (4, 2)):
        at = str(content.timestamp // 1000 + hours * 3600)
        done = subprocess.run([*command, at, "leaf"], cwd=tmp_path, capture_output=True)
        assert done.returncode == status, done.stderr


@pytest.mark.parametrize("path", sorted(_VECTORS.glob("*.cbor")), ids=lambda path: path.stem)
def test_genuine_document_under_another_root(path: Path, maker: DocumentMaker) -> None:
    now = decode_signed_document(path.read_bytes()).document.written
    with pytest.raises(UntrustedRootError, match=AWS_NITRO_ROOT_SHA256):
        verify_attestation(path.read_bytes(), root=maker.root.certificate, now=now)


def test_local_document_under_the_aws_root(maker: DocumentMaker) -> None:
    with pytest.raises(UntrustedRootError):
        verify_attestation(maker.document(), root=AWS_NITRO_ROOT_DER, now=_NOW)


def test_content_is_returned(maker: DocumentMaker) -> None:
    document = maker.document(nonce=b"n" * 32, user_data=b"u", public_key=b"k")
    content = verify_attestation(
        document, root=maker.root.certificate, now=_NOW, nonce=b"n" * 32, pcrs={0: PCR0}
    )
    assert (content.nonce, content.user_data, content.public_key) == (b"n" * 32, b"u", b"k")
    assert content.written == _NOW
    assert content.pcrs[0] == PCR0


@given(st.data())
@settings(max_examples=150)
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    document = bytearray(_genuine("veracruz"))
    now = decode_signed_document(bytes(document)).document.written
    position = data.draw(st.integers(0, len(document) - 1))
    document[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AttestationError):
        verify_attestation(bytes(document), root=AWS_NITRO_ROOT_DER, now=now)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({3640: 11}, id="InvalidVersion"),
        pytest.param({1233: 3, 1461: 189, 4268: 42}, id="TypeError"),
    ],
)
def test_what_the_certificate_library_raises_is_typed(changes: dict[int, int]) -> None:
    """Found by a million random changes; these are no ValueError of the library's."""
    document = bytearray(_genuine("cape-spec-1"))
    now = decode_signed_document(bytes(document)).document.written
    for position, value in changes.items():
        document[position] = value
    assert _error(bytes(document), now) is AttestationChainError


def test_altered_payload_fails_at_the_signature(maker: DocumentMaker) -> None:
    parts = cbor2.loads(maker.document(user_data=b"aaaa"))
    parts[2] = parts[2].replace(b"aaaa", b"aaab")
    with pytest.raises(AttestationSignatureError):
        verify_attestation(cbor2.dumps(parts), root=maker.root.certificate, now=_NOW)


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96], ids=["zero", "ones"])
def test_degenerate_signature(maker: DocumentMaker, signature: bytes) -> None:
    parts = cbor2.loads(maker.document())
    parts[3] = signature
    with pytest.raises(AttestationSignatureError):
        verify_attestation(cbor2.dumps(parts), root=maker.root.certificate, now=_NOW)


def _bundle(reorder: Any) -> Any:
    return lambda payload: payload.update(cabundle=reorder(payload["cabundle"]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_bundle(lambda bundle: [bundle[0], *bundle[:0:-1]]), id="reversed below root"),
        pytest.param(_bundle(lambda bundle: [bundle[i] for i in (0, 2, 1, 3)]), id="two swapped"),
        pytest.param(_bundle(lambda bundle: [*bundle, bundle[-1]]), id="one twice"),
        pytest.param(_bundle(lambda bundle: bundle[:-1]), id="one missing"),
        pytest.param(_bundle(lambda bundle: bundle[:1]), id="only the root"),
        pytest.param(
            lambda payload: payload.update(certificate=payload["cabundle"][-1]), id="leaf is a CA"
        ),
        pytest.param(lambda payload: payload.update(certificate=b"\x30\x00"), id="no certificate"),
    ],
)
def test_broken_chain(maker: DocumentMaker, change: Any) -> None:
    with pytest.raises(AttestationChainError):
        verify_attestation(maker.altered(change), root=maker.root.certificate, now=_NOW)


def test_chain_of_another_root_behind_the_right_one(maker: DocumentMaker, tmp_path: Path) -> None:
    other = make_documents(tmp_path / "other", _NOW)
    document = other.altered(_bundle(lambda bundle: [maker.root.der, *bundle[1:]]))
    with pytest.raises(AttestationChainError):
        verify_attestation(document, root=maker.root.certificate, now=_NOW)


def test_leaf_may_not_issue(maker: DocumentMaker) -> None:
    """A document signed by a certificate that an enclave's own leaf issued."""
    leaf, bundle = maker.chain.at(_NOW)
    below = make_documents_below(maker, leaf.certificate)
    document = maker.altered(
        lambda payload: payload.update(cabundle=[*bundle, leaf.der], certificate=below)
    )
    with pytest.raises(AttestationChainError):
        verify_attestation(document, root=maker.root.certificate, now=_NOW)


def make_documents_below(maker: DocumentMaker, issuer: x509.Certificate) -> bytes:
    """A certificate that the leaf's key signed."""
    from cryptography.hazmat.primitives import hashes

    leaf, _ = maker.chain.at(_NOW)
    builder = (
        x509.CertificateBuilder()
        .subject_name(issuer.subject)
        .issuer_name(issuer.subject)
        .public_key(leaf.key.public_key())
        .serial_number(7)
        .not_valid_before(_NOW - timedelta(minutes=1))
        .not_valid_after(_NOW + timedelta(hours=1))
    )
    for extension in issuer.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(leaf.key, hashes.SHA384()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("sent", [b"", b"m" * 16, b"n" * 15])
def test_nonce(maker: DocumentMaker, sent: bytes) -> None:
    document = maker.document(nonce=b"n" * 16)
    with pytest.raises(NonceMismatchError):
        verify_attestation(document, root=maker.root.certificate, now=_NOW, nonce=sent)


def test_absent_nonce(maker: DocumentMaker) -> None:
    with pytest.raises(NonceMismatchError):
        verify_attestation(maker.document(), root=maker.root.der, now=_NOW, nonce=b"n" * 16)


@pytest.mark.parametrize(("index", "found"), [(0, PCR0.hex()), (16, "absent")])
def test_pcr_mismatch_names_both_values(maker: DocumentMaker, index: int, found: str) -> None:
    expected = b"\x0b" * 48
    with pytest.raises(PcrMismatchError, match=f"PCR{index} is {found}, expected {'0b' * 48}"):
        verify_attestation(maker.document(), root=maker.root.der, now=_NOW, pcrs={index: expected})


def test_debug_mode(tmp_path: Path) -> None:
    maker = make_documents(tmp_path / "root", _NOW, debug=True)
    with pytest.raises(DebugModeError):
        verify_attestation(maker.document(), root=maker.root.der, now=_NOW)
    content = verify_attestation(maker.document(), root=maker.root.der, now=_NOW, allow_debug=True)
    assert {index for index in (0, 1, 2, 3, 4) if any(content.pcrs[index])} == {3, 4}


def test_max_age_and_future(maker: DocumentMaker) -> None:
    document = maker.document()
    late = _NOW + timedelta(minutes=6)
    verify_attestation(document, root=maker.root.der, now=late)
    with pytest.raises(AttestationTimeError):
        verify_attestation(document, root=maker.root.der, now=late, max_age=timedelta(minutes=5))
    future = maker.altered(
        lambda payload: payload.update(
            timestamp=int((_NOW + CLOCK_SKEW + timedelta(seconds=1)).timestamp() * 1000)
        )
    )
    with pytest.raises(AttestationTimeError):
        verify_attestation(future, root=maker.root.der, now=_NOW)


def test_now_without_a_time_zone_is_a_mistake_of_the_caller(maker: DocumentMaker) -> None:
    with pytest.raises(ValueError, match="time zone"):
        verify_attestation(maker.document(), root=maker.root.der, now=_NOW.replace(tzinfo=None))
