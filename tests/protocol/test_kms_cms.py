import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_infra.local_cloud.cms_encoding import CmsShape, encrypt_cms
from enclave_protocol.kms_cms import (
    MAX_CMS_BYTES,
    CmsError,
    CmsFormatError,
    CmsOpenError,
    decode_cms,
    decrypt_cms,
    recipient_key_id,
)
from tests.support.process_memory import occurrences

_VECTORS = Path(__file__).parents[1] / "vectors" / "cms"
_BLOB = (_VECTORS / "edgebit-datakey.cms.ber").read_bytes()


def _edgebit_key() -> rsa.RSAPrivateKey:
    pem = (_VECTORS / "edgebit-datakey.key.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


_KEY = _edgebit_key()


def test_genuine_answer_opens() -> None:
    assert decrypt_cms(_KEY, _BLOB) == (_VECTORS / "edgebit-datakey.plain").read_bytes()


@pytest.mark.parametrize(
    ("name", "size", "start"),
    [
        ("rustcrypto-kms-1", 16, "cc74adf65d973c8b72cd51e1b927f0f0"),
        ("rustcrypto-kms-4", 4112, "cfee6403064fd7d749eefe87b329874f"),
        ("awssdkc-ctx", 16, "1f943eb0105c1b0644df4f7130448a28"),
        ("edgebit-datakey", 48, "7e9d16d10fd03d89a0e80a02dc3904e7"),
    ],
)
def test_genuine_answer_parses(name: str, size: int, start: str) -> None:
    parts = decode_cms((_VECTORS / f"{name}.cms.ber").read_bytes())
    assert len(parts.encrypted_content) == size
    assert parts.encrypted_content[:16].hex() == start
    assert (len(parts.key_identifier), len(parts.encrypted_key), len(parts.iv)) == (32, 256, 16)


def test_genuine_key_identifier_is_the_hash_of_the_spki() -> None:
    assert decode_cms(_BLOB).key_identifier == recipient_key_id(_KEY.public_key())


@pytest.mark.parametrize("shape", CmsShape)
@pytest.mark.parametrize("size", [0, 1, 32, 983, 984, 4096])
def test_both_shapes_open(shape: CmsShape, size: int) -> None:
    plaintext = bytes(index % 251 for index in range(size))
    assert decrypt_cms(_KEY, encrypt_cms(_KEY.public_key(), plaintext, shape)) == plaintext


def test_our_bytes_have_the_genuine_structure() -> None:
    """Apart from random values, byte for byte what KMS wrote."""
    ours = encrypt_cms(_KEY.public_key(), bytes(32), CmsShape.CONSTRUCTED)
    assert len(ours) == len(_BLOB)
    random_parts = ("encrypted_key", "iv", "encrypted_content")

    def skeleton(blob: bytes) -> bytes:
        parts = decode_cms(blob)
        for name in random_parts:
            blob = blob.replace(getattr(parts, name), b"*" * len(getattr(parts, name)))
        return blob

    assert skeleton(ours) == skeleton(_BLOB)
    primitive = (_VECTORS / "awssdkc-ctx.cms.ber").read_bytes()
    ours = encrypt_cms(_KEY.public_key(), b"", CmsShape.PRIMITIVE)
    key_id = decode_cms(primitive).key_identifier
    assert skeleton(ours) == skeleton(primitive).replace(
        key_id, recipient_key_id(_KEY.public_key())
    )


def test_long_content_is_scattered_as_kms_does() -> None:
    def places(blob: bytes) -> list[int]:
        header = b"\x04\x82\x03\xe8"  # OCTET STRING of 1000 bytes
        return [index for index in range(len(blob)) if blob.startswith(header, index)]

    genuine = (_VECTORS / "rustcrypto-kms-4.cms.ber").read_bytes()
    ours = encrypt_cms(_KEY.public_key(), bytes(4100), CmsShape.CONSTRUCTED)
    assert places(ours) == places(genuine)
    assert len(places(ours)) == 4
    assert len(ours) == len(genuine)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("shape", CmsShape)
def test_openssl_opens_our_bytes(shape: CmsShape, tmp_path: Path) -> None:
    (tmp_path / "cms").write_bytes(encrypt_cms(_KEY.public_key(), b"secret" * 400, shape))
    key = str(_VECTORS / "edgebit-datakey.key.pem")
    command = ["openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "cms"]
    done = subprocess.run([*command, "-inkey", key], cwd=tmp_path, capture_output=True)
    assert done.stdout == b"secret" * 400, done.stderr


def test_another_key_does_not_open() -> None:
    other = rsa.generate_private_key(65537, 2048)
    with pytest.raises(CmsOpenError):
        decrypt_cms(other, _BLOB)
    renamed = _BLOB.replace(
        recipient_key_id(_KEY.public_key()), recipient_key_id(other.public_key())
    )
    with pytest.raises(CmsOpenError):
        decrypt_cms(other, renamed)


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_content_key_of_another_size(size: int) -> None:
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    encrypted = _KEY.public_key().encrypt(bytes(size), oaep)
    with pytest.raises(CmsOpenError):
        decrypt_cms(_KEY, _BLOB.replace(decode_cms(_BLOB).encrypted_key, encrypted))


def _sealed_blocks(padded: bytes) -> bytes:
    """The genuine answer with other content: these blocks, under a content key of ours."""
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    parts = decode_cms(_BLOB)
    assert len(padded) == len(parts.encrypted_content)
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CBC(parts.iv)).encryptor()
    return _BLOB.replace(parts.encrypted_key, _KEY.public_key().encrypt(bytes(32), oaep)).replace(
        parts.encrypted_content, encryptor.update(padded)
    )


@pytest.mark.parametrize("size", range(1, 17))
def test_every_padding_opens(size: int) -> None:
    content = bytes(range(100, 148 - size))
    assert decrypt_cms(_KEY, _sealed_blocks(content + bytes([size]) * size)) == content


@pytest.mark.parametrize(
    "end",
    [
        pytest.param([0], id="zero"),
        pytest.param([17] * 17, id="longer than a block"),
        pytest.param([255] * 48, id="all ones"),
        pytest.param([15] + [16] * 15, id="first byte of a whole block"),
        pytest.param([2, 3, 3], id="first byte"),
        pytest.param([3, 2, 3], id="middle byte"),
    ],
)
def test_wrong_padding(end: list[int]) -> None:
    with pytest.raises(CmsOpenError):
        decrypt_cms(_KEY, _sealed_blocks(bytes(48 - len(end)) + bytes(end)))


_OPENER = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives import serialization
from enclave_protocol.kms_cms import decrypt_cms
key = serialization.load_pem_private_key(Path(sys.argv[1]).read_bytes(), None)
opened = decrypt_cms(key, Path(sys.argv[2]).read_bytes())
print("open", flush=True)
sys.stdin.readline()
opened[:] = bytes(len(opened))
print("wiped", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="reading another process's memory needs root")
@pytest.mark.parametrize("size", [32, 48, 600])
def test_no_copy_of_the_plaintext_stays_in_memory(size: int, tmp_path: Path) -> None:
    plaintext = secrets.token_bytes(size)
    blob = encrypt_cms(_KEY.public_key(), plaintext, CmsShape.CONSTRUCTED)
    (tmp_path / "cms").write_bytes(blob)
    arguments = [str(_VECTORS / "edgebit-datakey.key.pem"), str(tmp_path / "cms")]
    with subprocess.Popen(
        [sys.executable, "-c", _OPENER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line, expected in ((b"open\n", 1), (b"wiped\n", 0)):
            assert process.stdout.readline() == line
            for part in (plaintext[:16], plaintext[-16:]):
                assert occurrences(process.pid, part) == expected
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert process.returncode == 0


def test_every_failure_to_open_looks_the_same() -> None:
    parts = decode_cms(_BLOB)
    messages = set()
    for value in (parts.encrypted_key, parts.encrypted_content, parts.key_identifier):
        altered = _BLOB.replace(value, value[:-1] + bytes((value[-1] ^ 1,)))
        with pytest.raises(CmsOpenError) as caught:
            decrypt_cms(_KEY, altered)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("060960864801650304012a", "0609608648016503040102", id="aes-128-cbc"),
        pytest.param("2a864886f70d010703", "2a864886f70d010702", id="signedData"),
        pytest.param("2a864886f70d010107", "2a864886f70d010101", id="PKCS#1 v1.5"),
        pytest.param("608648016503040201", "608648016503040202", id="SHA-384"),
        pytest.param("2a864886f70d010701", "2a864886f70d010702", id="content is not data"),
    ],
)
def test_other_algorithms_are_refused(old: str, new: str) -> None:
    assert bytes.fromhex(old) in _BLOB
    with pytest.raises(CmsFormatError):
        decode_cms(_BLOB.replace(bytes.fromhex(old), bytes.fromhex(new)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(MAX_CMS_BYTES + 1),
        _BLOB + b"\0",
        b"\x30\x80" * 8000,
        b"\x30\x00",
        b"\x02\x01\x00",
    ],
    ids=["empty", "too long", "trailing byte", "deep", "empty sequence", "integer"],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(CmsFormatError):
        decode_cms(data)


def test_truncated_anywhere() -> None:
    for size in range(len(_BLOB)):
        with pytest.raises(CmsFormatError):
            decode_cms(_BLOB[:size])


@given(st.data())
@settings(max_examples=150)
def test_changed_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    altered = bytearray(_BLOB)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(altered) - 1))
        altered[position] = data.draw(st.integers(0, 255))
    try:
        decrypt_cms(_KEY, bytes(altered))
    except CmsError as error:
        assert "\n" not in str(error)
