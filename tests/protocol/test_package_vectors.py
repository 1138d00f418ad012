"""The vectors in tests/vectors/package, which the second implementation made."""

import hashlib
import importlib.util
import io
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_encryption.publisher_keys import FileKey
from enclave_protocol import package_errors
from enclave_protocol.chunked_encryption import Decryptor, Encryptor, sealed_size
from enclave_protocol.data_key_commitment import commit_data_key
from enclave_protocol.package_archive import ArchiveEnd, FileData, FileEnd, FileStart
from enclave_protocol.package_header import decode_header, encode_header
from enclave_protocol.package_reader import read_package
from enclave_protocol.package_signature import signed_message
from tests.support import plain_package as plain
from tests.support.example_package import make_example

VECTORS = Path(__file__).parents[1] / "vectors"
CHUNKED: dict[str, Any] = json.loads((VECTORS / "package/chunked_encryption.json").read_text())
PLAIN: dict[str, Any] = json.loads((VECTORS / "package/package.json").read_text())
SIGNED: dict[str, Any] = json.loads((VECTORS / "package/signed_package.json").read_text())
PACKAGES = [PLAIN, SIGNED]
INVALID = [(package, case) for package in PACKAGES for case in package["invalid"]]


def vector(package: dict[str, Any]) -> bytes:
    file: str = package["file"]
    return (VECTORS / "package" / file).read_bytes()


def message(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["name"] for case in cases]


def edited(data: bytes, case: dict[str, Any]) -> bytes:
    end = case["offset"] + case["removed"]
    return data[: case["offset"]] + bytes.fromhex(case["inserted"]) + data[end:]


def test_vectors_are_what_their_script_writes(tmp_path: Path) -> None:
    script = VECTORS / "make_package_vectors.py"
    spec = importlib.util.spec_from_file_location("make_package_vectors", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (VECTORS / "package" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("case", CHUNKED["valid"], ids=names(CHUNKED["valid"]))
def test_chunked_vector(case: dict[str, Any]) -> None:
    key, context = bytes.fromhex(case["key"]), bytes.fromhex(case["context"])
    encryptor = Encryptor(key, context, bytes.fromhex(case["salt"]))
    plaintext = message(case["message_bytes"])
    sealed = bytes(encryptor.update(plaintext)) + encryptor.finalize()
    assert sealed[:56].hex() == case["prefix"]
    assert sealed[-16:].hex() == case["last_chunk_tail"]
    assert len(sealed) == case["ciphertext_bytes"] == sealed_size(len(plaintext))
    assert hashlib.sha256(sealed).hexdigest() == case["ciphertext_sha256"]
    decryptor = Decryptor(key, context)
    assert bytes(decryptor.update(sealed)) + decryptor.finalize() == plaintext


@pytest.mark.parametrize("case", CHUNKED["invalid"], ids=names(CHUNKED["invalid"]))
def test_invalid_chunked_vector(case: dict[str, Any]) -> None:
    (valid,) = (entry for entry in CHUNKED["valid"] if entry["name"] == case["of"])
    key, context = bytes.fromhex(valid["key"]), bytes.fromhex(valid["context"])
    whole = plain.seal(key, context, bytes.fromhex(valid["salt"]), message(valid["message_bytes"]))
    decryptor = Decryptor(key, context)
    with pytest.raises(package_errors.PackageError) as caught:
        decryptor.update(edited(whole, case))
        decryptor.finalize()
    assert type(caught.value).__name__ == case["error"]


def read_vector(package: dict[str, Any], data: bytes) -> dict[str, tuple[bytes, bool]]:
    files: dict[str, tuple[bytes, bool]] = {}
    contents = bytearray()
    started = FileStart("", 0, False)
    last: object = None
    key = bytearray(bytes.fromhex(package["data_key"]))
    for last in read_package(io.BytesIO(data), lambda _: key, file="vector"):
        if isinstance(last, FileStart):
            started, contents = last, bytearray()
        elif isinstance(last, FileData):
            contents += last.data
        elif isinstance(last, FileEnd):
            files[last.path] = bytes(contents), started.executable
    assert isinstance(last, ArchiveEnd)
    return files


@pytest.mark.parametrize("package", PACKAGES, ids=["plain", "signed"])
def test_package_vector(package: dict[str, Any]) -> None:
    data = vector(package)
    header = decode_header(data)
    assert len(header.raw) == package["header_bytes"]
    assert header.wrapped_key.hex() == package["wrapped_key"]
    assert header.kms_key_arn == package["kms_key_arn"]
    assert header.context.hex() == package["context"]
    assert header.encryption_context == {
        "package": "vector",
        "version": "1.0",
        "label-sha256": package["label_sha256"],
    }
    assert header.label.package.description == "Grüße"
    assert header.label.data_key_commitment == package["data_key_commitment"]
    assert commit_data_key(bytes.fromhex(package["data_key"])) == package["data_key_commitment"]
    assert encode_header(header.label, header.slot, header.signature) == header.raw
    check_files(package, read_vector(package, data))


def check_files(package: dict[str, Any], files: dict[str, tuple[bytes, bool]]) -> None:
    assert files.keys() == package["files"].keys()
    for path, expected in package["files"].items():
        contents, executable = files[path]
        assert len(contents) == expected["bytes"]
        assert hashlib.sha256(contents).hexdigest() == expected["sha256"]
        assert executable == expected["executable"]


@pytest.mark.parametrize(
    ("package", "case"), [(package, case) for package in PACKAGES for case in package["rekeyed"]]
)
def test_rekeyed_package_vector(package: dict[str, Any], case: dict[str, Any]) -> None:
    rekeyed = edited(vector(package), case)
    header = decode_header(rekeyed)
    assert header.slot != decode_header(vector(package)).slot
    assert header.context.hex() == package["context"]
    check_files(package, read_vector(package, rekeyed))


def test_signature_vector() -> None:
    header = decode_header(vector(SIGNED))
    signer, signature = header.label.signer, header.signature
    assert signer is not None and signature is not None
    assert signer.fingerprint == SIGNED["fingerprint"]
    assert signature.body_digest.hex() == SIGNED["body_digest"]
    assert signature.value.hex() == SIGNED["signature"]
    message = signed_message(signer, header.label_bytes, signature.body_digest)
    assert message.hex() == SIGNED["signed_message"]
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SIGNED["private_key"]))
    assert private.sign(message) == signature.value


@pytest.mark.parametrize(
    ("package", "case"), INVALID, ids=[f"{p['file'][:6]}: {c['name']}" for p, c in INVALID]
)
def test_invalid_package_vector(package: dict[str, Any], case: dict[str, Any]) -> None:
    with pytest.raises(package_errors.PackageError) as caught:
        read_vector(package, edited(vector(package), case))
    assert type(caught.value).__name__ == case["error"]
    assert str(caught.value).startswith("vector: ")


@pytest.mark.parametrize("signed", [False, True])
def test_second_implementation_opens_what_ours_wrote(signed: bool) -> None:
    files = {"credit_scorer.py": b"x = 1\n", "w/" + "long" * 40: secrets.token_bytes(40_000)}
    publisher = FileKey(Ed25519PrivateKey.generate()) if signed else None
    package = make_example(files, publisher=publisher)
    label, opened = plain.open_package(package.data, package.data_key)
    assert label["package"]["name"] == "credit-scorer"
    assert {path: data for path, (data, _) in opened.items()} == files
